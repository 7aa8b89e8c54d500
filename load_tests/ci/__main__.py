"""`python -m load_tests.ci`: the gate run of slo.toml in about a minute; exit status 1 when a limit was missed.

Starts a server of its own on the models in `model_store/`, unless `--http` and `--grpc` name a running one, of either
runtime. Locust asks for all models at once: at a constant rate, then with ever more users, up to saturation.
"""

import argparse
import csv
import json
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from load_tests import judging
from load_tests.ci import comparison
from load_tests.ci.result_page import page_of
from load_tests.page import command_of, commit, machine
from load_tests.processes import Process, own_server
from load_tests.slo import Gate, chosen, read_slo
from load_tests.targets import TARGETS

HERE = Path(__file__).parent
LOAD_TESTS = HERE.parent


def main() -> int:
    """Run the gate, judge it, compare it with an earlier run, write the page."""
    arguments = parser().parse_args()
    try:
        gate = gate_of(arguments)
        before = comparison.read_run(arguments.compare) if arguments.compare else None
    except ValueError as error:
        print(f"load-ci: {error}", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 140)
    arguments.results.mkdir(parents=True, exist_ok=True)
    base = arguments.results / f"ci-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    report = about(arguments, gate) | measure(arguments, gate, base)
    if before is None and (path := comparison.previous(arguments.results, arguments.target, Path(f"{base}.json"))):
        before = comparison.read_run(path)
    verdicts = list(judging.judge_gate(report, gate))
    report["missed"] = judging.missed(verdicts)
    Path(f"{base}.json").write_text(json.dumps(report, indent=1) + "\n")
    write_csv(report, Path(f"{base}.csv"))
    changes = comparison.compare(before, report, gate.tolerance) if before else []
    Path(f"{base}.html").write_text(page_of(report, verdicts, changes, before))
    console.print(steps_table(report))
    console.print(judging.table_of(verdicts, f"limits of {arguments.slo.name}, {arguments.target}"))
    if before:
        console.print(comparison.table_of(changes, f"beside the run of {before['started']} at {before['commit']}"))
        for difference in comparison.differences(before, report):
            console.print(f"not the same circumstances: {difference}", markup=False, soft_wrap=True)
    console.print(f"results: {base}.html, {base}.json, {base}.csv", soft_wrap=True)
    kept = "every limit that can be judged was kept"
    console.print(f"missed: {', '.join(report['missed'])}" if report["missed"] else kept, soft_wrap=True)
    return 1 if report["missed"] else 0


def parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m load_tests.ci", description=__doc__)
    root.add_argument(
        "--model",
        action="append",
        help="model with a table [ci.models.NAME] in slo.toml; may be repeated; default: all",
        metavar="MODEL",
    )
    root.add_argument("--target", choices=list(TARGETS), default="heed", help="runtime under load")
    root.add_argument("--http", help="address of a running server, http://host:port", metavar="URL")
    root.add_argument("--grpc", help="gRPC address of the running server, host:port", metavar="HOST:PORT")
    root.add_argument(
        "--server-pid",
        type=int,
        help="process id of the running server if it is on this machine, to read its CPU time",
        metavar="PID",
    )
    root.add_argument("--slo", type=Path, default=LOAD_TESTS / "slo.toml", metavar="FILE", help="limits of each model")
    root.add_argument(
        "--results", type=Path, default=LOAD_TESTS / "results", metavar="FOLDER", help="folder of the results"
    )
    root.add_argument(
        "--compare", type=Path, help="JSON file of an earlier run; default: the latest one in --results", metavar="FILE"
    )
    return root


def gate_of(arguments: argparse.Namespace) -> Gate:
    """Return the course and the limits of this run.

    Raises:
        ValueError: names what is wrong with the arguments or the file.
    """
    if bool(arguments.http) != bool(arguments.grpc):
        raise ValueError("--http and --grpc must be given together")
    if arguments.target != "heed" and not arguments.http:
        raise ValueError(f"--target {arguments.target} needs --http and --grpc: only Heed is started here")
    gate = read_slo(arguments.slo).ci
    if gate is None:
        raise ValueError(f"{arguments.slo} has no table [ci]")
    return msgspec.structs.replace(gate, models=chosen(gate.models, arguments.model, arguments.slo))


def about(arguments: argparse.Namespace, gate: Gate) -> dict[str, Any]:
    """Return the circumstances of the run: commit, machine, target."""
    return {
        "kind": "load-ci",
        "target": arguments.target,
        "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "command": command_of("load_tests.ci"),
        "commit": commit(),
        "machine": machine(),
        "course": {name: msgspec.to_builtins(getattr(gate, name)) for name in ("warm_up_s", "arrivals", "steps")},
    }


def measure(arguments: argparse.Namespace, gate: Gate, base: Path) -> dict[str, Any]:
    """Run Locust as a process against a server of its own or the named one; return its report.

    Raises:
        RuntimeError: it did not report.
    """
    raw = Path(f"{base}.locust.json")
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--loglevel", "WARNING", "--stop-timeout", "30", "--exit-code-on-error", "0", "--report", str(raw)]
    command += ["--slo", str(arguments.slo), "--gate-models", ",".join(gate.models), "--target", arguments.target]
    with ExitStack() as stack:
        http, grpc, pid = arguments.http, arguments.grpc, arguments.server_pid
        if not http:
            server: Process
            server, http, grpc = stack.enter_context(own_server())
            pid = server.popen.pid
        command += ["--host", http, "--grpc-host", grpc, *(["--server-pid", str(pid)] if pid else [])]
        subprocess.run(command, check=False, cwd=LOAD_TESTS.parent)
    if not raw.exists():
        raise RuntimeError("Locust ended without a report")
    report: dict[str, Any] = json.loads(raw.read_text())
    raw.unlink()
    return report


def write_csv(report: dict[str, Any], path: Path) -> None:
    """Write a row for each phase and model, and for all models of a phase."""
    columns = ["requests", "answered", "failures", "requests_per_s", "p50_ms", "p95_ms", "p99_ms", "mean_batch_rows"]
    cpu = ["load_s", "server_s", "others_s", "steal_s", "idle_s"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["phase", "kind", "users", "seconds", "model", *columns, *(f"cpu_{name}" for name in cpu)])
        for phase in report["phases"]:
            head = [phase["name"], phase["kind"], phase["users"], round(phase["seconds"], 3)]
            for model, figures in {"(all)": phase["all"], **phase["models"]}.items():
                times = [phase["cpu"][name] if model == "(all)" else None for name in cpu]
                writer.writerow([*head, model, *(figures[name] for name in columns), *times])


def steps_table(report: dict[str, Any]) -> Table:
    """Format each phase: throughput and latency, and who used the CPU."""
    found = report["knee"]
    title = "no step was measured"
    if found:
        title = f"latency breaks at {found['requests_per_s']:.0f} answers/s ({found['users']} users)"
        title += "" if found["reached"] else ", or beyond: the last step was still gaining"
    table = Table(
        *("phase", "answers/s", "p50 ms", "p95 ms", "p99 ms", "failed", "rows a batch"),
        *("CPU s: load", "server", "others", "stolen", "idle"),
        title=title,
    )
    for phase in report["phases"]:
        figures, cpu = phase["all"], phase["cpu"]
        values = [figures["requests_per_s"], figures["p50_ms"], figures["p95_ms"], figures["p99_ms"]]
        times = [cpu[f"{name}_s"] for name in ("load", "server", "others", "steal", "idle")]
        table.add_row(
            phase["name"],
            *(number(value, 0) for value in values),
            str(figures["failures"]),
            "unknown" if figures["mean_batch_rows"] is None else number(figures["mean_batch_rows"], 1),
            *(number(value, 1) for value in times),
        )
    return table


def number(value: float | None, digits: int) -> str:
    """Format a number; a dash where it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
