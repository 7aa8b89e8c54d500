"""`python -m load_tests`: Locust against a server, judged by slo.toml; the exit status is 1 if a limit was missed.

Starts a server of its own on the models in `model_store/`, unless `--http` and `--grpc` name a running one.
One model after the other; `python -m load_tests.ci` has them all at once.
"""

import argparse
import csv
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.judging import judge, missed, table_of
from load_tests.page import MarkedPart, command_of, commit, machine
from load_tests.processes import own_server
from load_tests.slo import Limits, chosen, read_slo
from load_tests.targets import TARGETS
from load_tests.user_load.run import Load, run_locust

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> int:
    """Run Locust, judge the figures, draw them."""
    parser = command_line()
    arguments = parser.parse_args()
    if bool(arguments.http) != bool(arguments.grpc):
        parser.error("--http and --grpc must be given together")
    if arguments.target != "heed" and not arguments.http:
        parser.error(f"--target {arguments.target} needs --http and --grpc: it is not started here")
    try:
        part = MarkedPart.of(arguments.document, "load") if arguments.document else None
        models = chosen(read_slo(arguments.slo).models, arguments.model, arguments.slo)
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 120)
    arguments.results.mkdir(parents=True, exist_ok=True)
    reports, all_missed = {}, []
    with ExitStack() as stack:
        if not arguments.http:
            _, arguments.http, arguments.grpc = stack.enter_context(own_server())
        for model, limits in models.items():
            reports[model], missed_here = measure(model, limits, arguments, console)
            all_missed += missed_here
    if part:
        part.replace(page_of(reports, all_missed, arguments))
    console.print(f"missed: {', '.join(all_missed)}" if all_missed else "every limit of slo.toml was kept")
    return 1 if all_missed else 0


def measure(
    model: str, limits: Limits, arguments: argparse.Namespace, console: Console
) -> tuple[dict[str, Any], list[str]]:
    """Measure one model: return its report, and the limits that it missed."""
    base = arguments.results / f"load-{datetime.now(UTC):%Y%m%d-%H%M%S}-{model}"
    load = Load(
        model=model,
        model_task=limits.task,
        target=arguments.target,
        http=arguments.http,
        grpc=arguments.grpc,
        users=arguments.users,
        seconds=arguments.seconds,
    )
    report = run_locust(load, base)
    verdicts = judge(report, limits, model)
    title = f"{model}: {report['requests']} requests, {report['sent']}, {batch_size_of(report)} rows a batch"
    table = table_of(verdicts, title)
    console.print(table)
    with Path(f"{base}.txt").open("w") as file:
        Console(file=file, width=100).print(table)
    plot(base, report)
    console.print(f"results: {base}.json, {base}.txt, {base}.png, {base}_stats.csv", soft_wrap=True)
    return report, missed(verdicts)


def command_line() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m load_tests", description=__doc__)
    parser.add_argument(
        "--model",
        action="append",
        help="model with a table in slo.toml; may be repeated; default: all of them",
        metavar="MODEL",
    )
    parser.add_argument(
        "--users", type=int, default=32, help="number of users, half over HTTP and half over gRPC", metavar="N"
    )
    parser.add_argument("--seconds", type=int, default=20, metavar="SECONDS", help="seconds of load on each model")
    parser.add_argument("--target", default="heed", choices=list(TARGETS), help="runtime at --http and --grpc")
    parser.add_argument("--http", help="address of a running server, http://host:port", metavar="URL")
    parser.add_argument("--grpc", help="gRPC address of the running server, host:port", metavar="HOST:PORT")
    parser.add_argument("--slo", type=Path, default=HERE / "slo.toml", metavar="FILE", help="limits of each model")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results")
    parser.add_argument("--document", type=Path, help="page whose part `load` is replaced by the table", metavar="FILE")
    return parser


def page_of(reports: dict[str, dict[str, Any]], missed: list[str], arguments: argparse.Namespace) -> str:
    """Format the reports as a table in Markdown."""
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
        quality = ", ".join(f"{name} {value:.3g}" for name, value in report["quality"].items()) or "not judged"
        lines.append(
            f"| {model} | {report['answers_checked']:,} | {report['requests_per_s']:.0f} | {report['p50_ms']:.0f} |"
            f" {report['p95_ms']:.0f} | {report['p99_ms']:.0f} | {batch_size_of(report)} | {report['failures']} |"
            f" {quality} |"
        )
    return "\n".join(lines) + "\n"


def batch_size_of(report: dict[str, Any]) -> str:
    """Format the mean batch size for people."""
    rows = report["mean_batch_rows"]
    return "unknown" if rows is None else f"{rows:.1f}"


def plot(base: Path, report: dict[str, Any]) -> None:
    """Draw throughput, latency and batch sizes over time."""
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
    sizes = {int(size): count for size, count in (report["batch_rows"] or {}).items()}
    right.bar(list(sizes), list(sizes.values()))
    right.set(xlabel="rows of the batch", ylabel="answers")
    quality = ", ".join(f"{name} {value:.3g}" for name, value in report["quality"].items())
    figure.suptitle(f"{report['requests']} requests, {quality}, {report['failures']} failed")
    figure.savefig(f"{base}.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
