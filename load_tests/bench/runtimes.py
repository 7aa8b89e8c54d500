"""`python -m load_tests.bench.runtimes`: Heed and TorchServe side by side, on the same models, in one run.

Each server has the same core to itself while it is asked, Locust the other; both compute on one thread, in batches of
at most 32 rows. The same Locust users ask the same inputs and judge the answers, one runtime right after the other.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from load_tests.model_tasks import TASKS
from load_tests.page import MarkedPart, command_of, commit, machine
from load_tests.processes import DRAIN_AT_ONCE, LOAD_CORE, Process, free_port, steal_s
from load_tests.store import task_of
from load_tests.user_load.run import Load, run_locust

ROOT = Path(__file__).parents[2]
MODELS = ("sentiment", "sentiment-small", "cifar10-vit", "translation-en-de")
USERS, PROTOCOLS = (1, 16, 64), ("http", "grpc")
MAX_BATCH_ROWS = 32


class Running(NamedTuple):
    """A runtime under measurement."""

    process: Process
    http: str
    grpc: str
    start_s: float


def main() -> int:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench.runtimes", description=__doc__)
    parser.add_argument(
        "--archives",
        metavar="FOLDER",
        type=Path,
        default=ROOT / "build/archives",
        help="folder of archives, from `python -m export archive`",
    )
    parser.add_argument(
        "--model-store",
        type=Path,
        default=ROOT / "model_store",
        metavar="FOLDER",
        help="store of the models that are measured",
    )
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="rounds of all measurements")
    parser.add_argument("--seconds", type=int, default=5, help="duration of each measurement", metavar="SECONDS")
    parser.add_argument(
        "--document", type=Path, help="page whose part `runtimes` is replaced by the table", metavar="FILE"
    )
    arguments = parser.parse_args()
    try:
        part = MarkedPart.of(arguments.document, "runtimes") if arguments.document else None
    except ValueError as error:
        parser.error(str(error))
    if missing := [name for name in MODELS if not (arguments.archives / f"{name}.mar").exists()]:
        parser.error(f"{arguments.archives} has no archive of {missing[0]}: python -m export archive --threads 1")
    console = Console(width=None if sys.stdout.isatty() else 120)
    result = measure(arguments, console)
    (ROOT / "build/runtimes.json").write_text(json.dumps(result, indent=1) + "\n")
    page = report(result)
    if part:
        part.replace(page)
    console.print(page, soft_wrap=True, highlight=False)
    return 0


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure all rounds."""
    steal_before_s, began_s = steal_s(), time.monotonic()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        running = {
            "heed": start_heed(stack, arguments.model_store, Path(folder)),
            "torchserve": start_torchserve(stack, arguments.archives, Path(folder)),
        }
        cases = [(m, users, protocol) for m in MODELS for users in USERS for protocol in PROTOCOLS]
        total = arguments.rounds * len(cases)
        for number in range(total):
            model, users, protocol = cases[number % len(cases)]
            for target, each in running.items():
                load = Load(
                    model=model,
                    model_task=task_of(arguments.model_store, model).name,
                    target=target,
                    http=each.http,
                    grpc=each.grpc,
                    users=users,
                    seconds=arguments.seconds,
                    protocol=protocol,  # type: ignore[arg-type]
                    core=LOAD_CORE,
                )
                cpu_before_s = each.process.family_cpu_s()
                found = run_locust(load, Path(folder) / f"{number}-{target}")
                cpu_s = each.process.family_cpu_s() - cpu_before_s
                rows.append(
                    {
                        "target": target,
                        "model": model,
                        "users": users,
                        "protocol": protocol,
                        "cpu_s_per_1000": 1000 * cpu_s / max(1, found["requests"]),
                        **{name: found[name] for name in ("requests_per_s", "p50_ms", "p99_ms", "failures", "quality")},
                    }
                )
            left_s = (time.monotonic() - began_s) / (number + 1) * (total - number - 1)
            console.print(f"{number + 1} of {total}: {model}, {users} users, {protocol}; {left_s / 60:.0f} min left")
        return {
            "command": command_of("load_tests.bench.runtimes"),
            "commit": commit(),
            "machine": machine(),
            "seconds": arguments.seconds,
            "rounds": arguments.rounds,
            "rows": rows,
            "start_s": {target: each.start_s for target, each in running.items()},
            "memory_mib": {target: each.process.family_memory_mib() for target, each in running.items()},
            "steal_s": steal_s() - steal_before_s,
            "wall_s": time.monotonic() - began_s,
        }


def start_heed(stack: ExitStack, store: Path, folder: Path) -> Running:
    """Start Heed on the compared models, and no others."""
    (folder / "store").mkdir()
    for name in MODELS:
        (folder / "store" / name).symlink_to((store / name).resolve())
    http, grpc = free_port(), free_port()
    options = ["--model-store", str(folder / "store"), "--http-port", str(http), "--grpc-port", str(grpc)]
    process = stack.enter_context(Process("service", *DRAIN_AT_ONCE, *options, "--max-batch-rows", str(MAX_BATCH_ROWS)))
    start_s = process.wait_until_ready(f"http://127.0.0.1:{http}/readyz")
    return Running(process, f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}", start_s)


def start_torchserve(stack: ExitStack, archives: Path, folder: Path) -> Running:
    """Start TorchServe on the compared models, and no others.

    Raises:
        RuntimeError: it does not start; its log says why.
    """
    (folder / "archives").mkdir()
    for name in MODELS:
        (folder / "archives" / f"{name}.mar").symlink_to((archives / f"{name}.mar").resolve())
    http, grpc, metrics, management = (free_port() for _ in range(4))
    options = ["--archives", str(folder / "archives"), "--http-port", str(http), "--grpc-port", str(grpc)]
    options += ["--metrics-port", str(metrics), "--management-grpc-port", str(management)]
    process = stack.enter_context(Process("export.torchserve", *options, pipes=True, log=folder / "torchserve.log"))
    assert process.popen.stdout
    if not process.popen.stdout.readline().startswith("HTTP"):  # it writes this when all models are ready
        raise RuntimeError((folder / "torchserve.log").read_text()[-2000:])
    return Running(process, f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}", time.perf_counter() - process.started_s)


def report(result: dict[str, Any]) -> str:
    """Format the figures as Markdown: medians over the rounds, lowest and highest in brackets."""
    lines = [
        f"`{result['command']}` at commit {result['commit']}, {datetime.now(UTC):%Y-%m-%d}, {result['machine']};"
        f" {result['rounds']} rounds of {result['seconds']} s a figure, server on one core, Locust on the other, one"
        f" thread, batches of at most {MAX_BATCH_ROWS}. Median over the rounds, lowest and highest in brackets."
        f" Stolen by the host: {result['steal_s']:.1f} CPU s in {result['wall_s']:.0f} s.",
        "",
        "| model, protocol, users | requests/s: Heed | TorchServe | Heed / that | p50, p99 ms: Heed | TorchServe |"
        " CPU s per 1,000: Heed | TorchServe | quality: Heed | TorchServe |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in MODELS:
        for users in USERS:
            for protocol in PROTOCOLS:
                ours, theirs = (
                    [
                        row
                        for row in result["rows"]
                        if (row["target"], row["model"], row["users"], row["protocol"])
                        == (target, model, users, protocol)
                    ]
                    for target in ("heed", "torchserve")
                )
                ratios = [a["requests_per_s"] / b["requests_per_s"] for a, b in zip(ours, theirs, strict=True)]
                lines.append(
                    f"| {model}, {protocol}, {users} | {spread(ours, 'requests_per_s', 0)} |"
                    f" {spread(theirs, 'requests_per_s', 0)} | {statistics.median(ratios):.2f}"
                    f" ({min(ratios):.2f} to {max(ratios):.2f}) | {times(ours)} | {times(theirs)} |"
                    f" {spread(ours, 'cpu_s_per_1000', 2)} | {spread(theirs, 'cpu_s_per_1000', 2)} |"
                    f" {quality(ours)} | {quality(theirs)} |"
                )
    failed = {
        target: sum(row["failures"] for row in result["rows"] if row["target"] == target)
        for target in ("heed", "torchserve")
    }
    lines += [
        "",
        f"Start to all models ready: Heed {result['start_s']['heed']:.1f} s, TorchServe"
        f" {result['start_s']['torchserve']:.1f} s (archives packed before). Memory of all processes at the end"
        f" (proportional set size): {result['memory_mib']['heed']:.0f} and"
        f" {result['memory_mib']['torchserve']:.0f} MiB."
        f" Failed requests: {failed['heed']} and {failed['torchserve']}.",
    ]
    return "\n".join(lines) + "\n"


def spread(rows: list[dict[str, Any]], name: str, digits: int) -> str:
    """Format a median and its range."""
    values = [row[name] for row in rows]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def times(rows: list[dict[str, Any]]) -> str:
    """Format the medians of both percentiles."""
    return ", ".join(f"{statistics.median(row[name] for row in rows):.0f}" for name in ("p50_ms", "p99_ms"))


def quality(rows: list[dict[str, Any]]) -> str:
    """Format the quality of the first round's answers, by the first measure of its task."""
    shown = {task.measures[0] for task in TASKS.values()}
    return ", ".join(f"{name} {value:.3g}" for name, value in rows[0]["quality"].items() if name in shown)


if __name__ == "__main__":
    sys.exit(main())
