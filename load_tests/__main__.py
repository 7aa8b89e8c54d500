"""`python -m load_tests`: Locust against a server, judged by slo.toml; exit status 1 when something was missed.

Starts a server of its own on the models in `model_store/`, unless `--http` and `--grpc` name a running one.
"""

import argparse
import csv
import json
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from load_tests.drivers import mean_batch_rows
from load_tests.page import MarkedPart, command_of, commit, machine
from load_tests.processes import Process, free_port

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> int:
    """Run, judge, plot."""
    parser = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    parser.add_argument("--model", action="append", help="one with a table in slo.toml; default: each that has one")
    parser.add_argument("--users", type=int, default=32, help="half over HTTP, half over gRPC")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--http", help="address of a running server, http://host:port")
    parser.add_argument("--grpc", help="its gRPC address, host:port")
    parser.add_argument("--slo", type=Path, default=HERE / "slo.toml")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, help="a page whose part marked `load` becomes the table")
    arguments = parser.parse_args()
    if bool(arguments.http) != bool(arguments.grpc):
        parser.error("--http and --grpc go together")
    try:
        part = MarkedPart.of(arguments.document, "load") if arguments.document else None
    except ValueError as error:
        parser.error(str(error))
    limits_by_model = tomllib.loads(arguments.slo.read_text())
    models = arguments.model or list(limits_by_model)
    if unknown := [model for model in models if model not in limits_by_model]:
        parser.error(f"{arguments.slo} has no table [{unknown[0]}]")
    console = Console(width=None if sys.stdout.isatty() else 120)
    arguments.results.mkdir(parents=True, exist_ok=True)
    started = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    reports, missed = {}, []
    with ExitStack() as stack:
        http, grpc = arguments.http, arguments.grpc
        if not http:
            ports = free_port(), free_port()
            http, grpc = f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
            options = ["--http-port", str(ports[0]), "--grpc-port", str(ports[1])]
            stack.enter_context(Process("service", *options, core=None)).wait_until_ready(f"{http}/readyz")
        for model in models:
            limits = limits_by_model[model]
            model_task = limits.pop("task")
            base = arguments.results / f"load-{started}-{model}"
            report = run_locust(model, model_task, http, grpc, arguments.users, arguments.seconds, base)
            table, missed_here = judge(report, limits, model)
            console.print(table)
            with Path(f"{base}.txt").open("w") as file:
                Console(file=file, width=100).print(table)
            plot(base, report)
            console.print(f"results: {base}.json, {base}.txt, {base}.png, {base}_stats.csv", soft_wrap=True)
            reports[model] = report
            missed += [f"{name} of {model}" for name in missed_here]
    if part:
        part.replace(page_of(reports, missed, arguments))
    console.print(f"missed: {', '.join(missed)}" if missed else "every limit of slo.toml was kept")
    return 1 if missed else 0


def page_of(reports: dict[str, dict[str, Any]], missed: list[str], arguments: argparse.Namespace) -> str:
    """The reports as a table in Markdown."""
    kept = f"Missed: {', '.join(missed)}." if missed else "Every limit of slo.toml was kept."
    lines = [
        f"`{command_of('load_tests')}` at commit {commit()}, {datetime.now(UTC):%Y-%m-%d}, {machine()}:"
        f" {arguments.users} users for {arguments.seconds} s a model, half over HTTP and half over gRPC, on the cores"
        f" that the server runs on. {kept}",
        "",
        "| model | answers | requests/s | p50 ms | p95 ms | p99 ms | rows a batch | failed | under load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, report in reports.items():
        quality = ", ".join(f"{name} {value:.3g}" for name, value in report["quality"].items())
        lines.append(
            f"| {model} | {report['answers_checked']:,} | {report['requests_per_s']:.0f} | {report['p50_ms']:.0f} |"
            f" {report['p95_ms']:.0f} | {report['p99_ms']:.0f} | {rows_a_batch(report):.1f} | {report['failures']} |"
            f" {quality} |"
        )
    return "\n".join(lines) + "\n"


def rows_a_batch(report: dict[str, Any]) -> float:
    """Rows of the batch that an answer was computed in, on average."""
    sizes = {int(size): count for size, count in report["batch_rows"].items()}
    return mean_batch_rows(sizes) if sizes else 0.0


def run_locust(
    model: str, model_task: str, http: str, grpc: str, users: int, seconds: int, base: Path
) -> dict[str, Any]:
    """Locust as a process of its own; what it reports.

    Raises:
        RuntimeError: it did not report.
    """
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--model", model, "--model-task", model_task, "--host", http, "--grpc-host", grpc]
    command += ["-u", str(users), "-r", str(users), "-t", f"{seconds}s"]
    command += ["--csv", str(base), "--csv-full-history", "--report", f"{base}.json", "--exit-code-on-error", "0"]
    subprocess.run(command, check=False, cwd=HERE.parent)
    if not Path(f"{base}.json").exists():
        raise RuntimeError("Locust ended without a report")
    report: dict[str, Any] = json.loads(Path(f"{base}.json").read_text())
    return report


def judge(report: dict[str, Any], limits: dict[str, float], model: str) -> tuple[Table, list[str]]:
    """Each limit beside what was measured; the names of those that were missed."""
    measured = {
        "max_p95_ms": report["p95_ms"],
        "max_p99_ms": report["p99_ms"],
        "max_refused_share": report["failures"] / max(1, report["requests"]),
        "min_requests_per_s": report["requests_per_s"],
        **{f"min_{name}": value for name, value in report["quality"].items()},
    }
    if unknown := limits.keys() - measured.keys():
        raise ValueError(f"slo.toml: unknown limit {', '.join(sorted(unknown))}; known are {', '.join(measured)}")
    title = f"{model}: {report['requests']} requests, {report['sent']}, {rows_a_batch(report):.1f} rows a batch"
    table = Table("limit", "value", "measured", "kept", title=title)
    missed = []
    for name, limit in limits.items():
        kept = measured[name] <= limit if name.startswith("max_") else measured[name] >= limit
        table.add_row(name, f"{limit:g}", f"{measured[name]:.4g}", "yes" if kept else "NO")
        if not kept:
            missed.append(name)
    return table, missed


def plot(base: Path, report: dict[str, Any]) -> None:
    """Throughput and latency over time, and the batch sizes, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with Path(f"{base}_stats_history.csv").open() as file:
        history = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated" and row["50%"] != "N/A"]
    times_s = [int(row["Timestamp"]) - int(history[0]["Timestamp"]) for row in history]
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.plot(times_s, [float(row["Requests/s"]) for row in history])
    left.set(xlabel="s", ylabel="requests/s", ylim=(0, None))
    for share in ("50%", "95%", "99%"):
        middle.plot(times_s, [float(row[share]) for row in history], label=f"p{share[:-1]}")
    middle.set(xlabel="s", ylabel="latency, ms", ylim=(0, None))
    middle.legend()
    sizes = {int(size): count for size, count in report["batch_rows"].items()}
    right.bar(list(sizes), list(sizes.values()))
    right.set(xlabel="rows of the batch", ylabel="answers")
    quality = ", ".join(f"{name} {value:.3g}" for name, value in report["quality"].items())
    figure.suptitle(f"{report['requests']} requests, {quality}, {report['failures']} failed")
    figure.savefig(f"{base}.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
