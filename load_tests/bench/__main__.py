"""`python -m load_tests.bench`: what the server costs and gives, beside the limits, in one run.

The server has one core, the load the other. Each round measures, one after another, so that a machine whose speed
drifts treats all alike: the engine alone in loops (the limit), the server over gRPC and HTTP at each concurrency, a
model that does nothing, and a bare echo server. Ratios are taken within a round; the report gives their medians.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from rich.console import Console

from load_tests.bench.explanation import explanation_bars, measure_explanations, report_explanations
from load_tests.bench.translation import measure_translation, report_translation
from load_tests.drivers import drive_grpc, drive_http
from load_tests.material import load_sentences
from load_tests.page import MarkedPart, command_of, commit, machine
from load_tests.processes import DRAIN_AT_ONCE, LOAD_CORE, Process, free_port, pin, steal_s

ROOT = Path(__file__).parents[2]
STORE = ROOT / "build" / "bench_store"
MODELS = {"minilm": "float32", "minilm-int8": "int8"}
PADDED = "minilm-padded"  # float32, the graph that computes padding: what other converters give; not served here
CONCURRENCIES = (1, 16, 64)
# The server moves its memory into huge pages (service/process/huge_pages.py); so the loops get theirs there, by glibc
# (mallopt(3)).
IN_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# With fewer of a measurement, nothing is answered while all users are at work, which throughput is measured by.
MIN_COUNT = 2 * max(CONCURRENCIES)


def prepare_store(console: Console) -> None:
    """Untrained models of MiniLM's size (6 layers, 384 wide), and one that does nothing; made anew for each commit."""
    forget_unless_made_by(STORE, commit())
    for name, options in (
        *((name, ["--precision", precision]) for name, precision in MODELS.items()),
        (PADDED, ["--padded"]),
    ):
        if not (STORE / name).exists():
            console.print(f"making {name}")
            command = [
                sys.executable,
                "-m",
                "export",
                "untrained",
                "--name",
                name,
                "--model-store",
                str(STORE),
            ]
            subprocess.run([*command, *options], check=True, cwd=ROOT)
    folder = STORE / "noop" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [helper.make_tensor_value_info(name, TensorProto.STRING, ["rows"]) for name in ("text", "same")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["same"])],
        "noop",
        tensors[:1],
        tensors[1:],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        folder / "model.onnx",
    )


def forget_unless_made_by(folder: Path, origin: str) -> None:
    """Empty a folder of things made here, unless they were made from the same as what is measured now."""
    note = folder / "origin.txt"
    if not note.exists() or note.read_text() != origin or origin.endswith("-dirty"):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(origin)


def main(given: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--requests",
        type=int,
        default=872,
        help="requests of one measurement, of each model",
    )
    parser.add_argument("--sentences", type=int, default=512, help="sentences of one measurement of translation")
    parser.add_argument("--predictions", type=int, default=300, help="of one measurement beside explanations")
    parser.add_argument("--document", type=Path, help="a page whose marked part becomes the report")
    arguments = parser.parse_args(given)
    for name in ("requests", "sentences"):
        if getattr(arguments, name) < MIN_COUNT:
            parser.error(f"--{name} must be at least {MIN_COUNT}, twice the most users, not {getattr(arguments, name)}")
    try:
        part = MarkedPart.of(arguments.document, "bench") if arguments.document else None
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 140)
    prepare_store(console)
    pin(LOAD_CORE)
    result = asyncio.run(measure(arguments.rounds, arguments.requests, console))
    result["translation"] = asyncio.run(
        measure_translation(ROOT / "model_store", arguments.rounds, arguments.sentences, console.print)
    )
    result["explanations"] = asyncio.run(
        measure_explanations(ROOT / "model_store", arguments.rounds, arguments.predictions, console.print)
    )
    target = ROOT / "load_tests" / "results" / f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    page = report(result)
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {target.relative_to(ROOT)}")
    if part:
        part.replace(page)
    return 0


async def measure(num_rounds: int, num_requests: int, console: Console) -> dict[str, Any]:
    """All rounds, with a line of progress after each."""
    sentences = load_sentences()
    texts = [sentences.texts[number % len(sentences.texts)] for number in range(num_requests)]
    result: dict[str, Any] = {
        "command": command_of("load_tests.bench"),
        "commit": commit(),
        "machine": machine(),
        "sentences": sentences.source,
        "requests": num_requests,
        "rounds": [],
    }
    http, grpc, echo_port = free_port(), free_port(), free_port()
    url = f"http://127.0.0.1:{http}"
    server_arguments = [
        "--model-store",
        str(STORE),
        "--http-port",
        str(http),
        "--grpc-port",
        str(grpc),
    ]
    result["start_to_ready_s"] = [measure_start(name) for name in MODELS for _ in range(3)]
    with (
        Process("service", *DRAIN_AT_ONCE, *server_arguments) as server,
        Process("load_tests.bench.echo_server", str(echo_port)) as echo,
        Process(
            "load_tests.bench.engine_loops",
            str(STORE),
            ",".join([*MODELS, PADDED]),
            str(len(texts)),
            pipes=True,
            environment=IN_HUGE_PAGES,
        ) as loops,
    ):
        server.wait_until_ready(f"{url}/readyz")
        server.wait_until_idle()
        assert loops.popen.stdin and loops.popen.stdout
        result |= json.loads(loops.popen.stdout.readline())
        for number in range(num_rounds):
            started_s, stolen_s = time.perf_counter(), steal_s()
            loops.popen.stdin.write("go\n")
            loops.popen.stdin.flush()
            line = await asyncio.to_thread(loops.popen.stdout.readline)
            measured: dict[str, Any] = {
                "limit": json.loads(line),
                "served": {},
                "overhead": {},
            }
            for model in MODELS:
                for concurrency in CONCURRENCIES:
                    count = len(texts) if concurrency == 64 else len(texts) // 4
                    for protocol, port, drive in (
                        ("grpc", grpc, drive_grpc),
                        ("http", http, drive_http),
                    ):
                        cpu_s = server.cpu_s()
                        load = await drive(port, model, texts, concurrency, count)
                        cpu_s = server.cpu_s() - cpu_s
                        key = f"{model}: {protocol}, {concurrency}"
                        measured["served"][key] = load.summary() | {"cpu_s_per_1000": 1e3 * cpu_s / count}
            measured["overhead"] = await measure_overhead(server, echo, grpc, http, echo_port, texts)
            measured["steal_s"] = steal_s() - stolen_s
            measured["wall_s"] = time.perf_counter() - started_s
            result["rounds"].append(measured)
            left_s = (num_rounds - number - 1) * measured["wall_s"]
            console.print(f"round {number + 1} of {num_rounds}: {measured['wall_s']:.0f} s, about {left_s:.0f} s left")
        result["memory_mib"] = server.memory_mib()
        result["idle_cpu_share"] = await measure_idle(server)
    return result


def measure_start(model: str) -> float:
    """Seconds from starting the process to ready, with a store of this one model."""
    store = ROOT / "build" / "bench_store_of_one" / model
    store.mkdir(parents=True, exist_ok=True)
    if not (store / model).exists():
        (store / model).symlink_to(STORE / model)
    http = free_port()
    arguments = [
        "--model-store",
        str(store),
        "--http-port",
        str(http),
        "--grpc-port",
        "0",
    ]
    with Process("service", *DRAIN_AT_ONCE, *arguments) as server:
        return server.wait_until_ready(f"http://127.0.0.1:{http}/readyz")


async def measure_idle(server: Process, seconds: float = 5.0) -> float:
    """Share of a core that the idle server uses."""
    await asyncio.sleep(0.5)
    cpu_s = server.cpu_s()
    await asyncio.sleep(seconds)
    return (server.cpu_s() - cpu_s) / seconds


async def measure_overhead(
    server: Process,
    echo: Process,
    grpc: int,
    http: int,
    echo_port: int,
    texts: list[str],
    count: int = 500,
    slices: int = 4,
) -> dict[str, float]:
    """CPU seconds per 1,000 requests of a model that does nothing, beside the bare echo, in alternating slices."""
    spent: dict[str, float] = {}
    for concurrency in CONCURRENCIES:
        for _ in range(slices):
            for name, process, drive, port in (
                ("echo", echo, drive_grpc, echo_port),
                ("grpc", server, drive_grpc, grpc),
                ("http", server, drive_http, http),
            ):
                cpu_s = process.cpu_s()
                await drive(port, "noop", texts, concurrency, count)
                key = f"{name}, {concurrency}"
                spent[key] = spent.get(key, 0.0) + (process.cpu_s() - cpu_s) * 1e3 / (count * slices)
    return spent


# --- report ----------------------------------------------------------------------------------------------------------


def spread(values: list[float], form: str = "{:.1f}") -> str:
    """Median and range."""
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def report(result: dict[str, Any]) -> str:
    """The figures as Markdown; medians over the rounds, lowest and highest in brackets."""
    rounds = result["rounds"]
    lines = [
        f"`{result['command']}` at commit {result['commit']}, {datetime.now(UTC):%Y-%m-%d}, {result['machine']};"
        " server and engine on one core, load on the other."
        f" {len(rounds)} rounds of {result['requests']} requests a figure (a quarter of them at 1 and 16 users),"
        f" sentences of {result['sentences']}"
        f" ({result['tokens_per_text']:.1f} tokens on average), closed loop."
        " Median over the rounds, lowest and highest in brackets."
        f" Stolen by the host: {sum(r['steal_s'] for r in rounds):.1f} CPU s in"
        f" {sum(r['wall_s'] for r in rounds):.0f} s.",
        "",
        "### Bars",
        "",
        "| what | bar | measured | met |",
        "| --- | --- | --- | --- |",
    ]
    for name, bar, values, form, met in bars(result):
        lines.append(f"| {name} | {bar} | {spread(values, form)} | {'yes' if met else '**no**'} |")
    lines += ["", "### The engine alone (the limit)", ""]
    lines += [
        "| loop, rows/s | float32, padding computed | float32 | int8 |",
        "| --- | --- | --- | --- |",
    ]
    for loop in [key.split(": ")[1] for key in rounds[0]["limit"] if key.startswith("minilm:")]:
        cells = [spread([r["limit"][f"{model}: {loop}"]["rows_per_s"] for r in rounds]) for model in (PADDED, *MODELS)]
        lines.append(f"| {loop} | {' | '.join(cells)} |")
    lines += [
        "",
        "### Served",
        "",
        "| model, protocol, users | requests/s | share of the limit | p50 ms | p99 ms | rows a batch | padding"
        " | server CPU s per 1,000 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key in rounds[0]["served"]:
        served = [r["served"][key] for r in rounds]
        model = key.split(":")[0]
        shares = [r["served"][key]["requests_per_s"] / limit(r, model) for r in rounds]
        lines.append(
            f"| {key} | {spread([s['requests_per_s'] for s in served])} | {statistics.median(shares):.0%}"
            f" | {statistics.median(s['p50_ms'] for s in served):.1f}"
            f" | {statistics.median(s['p99_ms'] for s in served):.1f}"
            f" | {statistics.median(s['mean_batch_rows'] for s in served):.1f}"
            f" | {statistics.median(s['padded_share'] for s in served):.1%}"
            f" | {spread([s['cpu_s_per_1000'] for s in served], '{:.2f}')} |"
        )
    lines += ["", "### The server's own cost (a model that does nothing)", ""]
    lines += [
        "| users | bare grpc.aio echo | gRPC | gRPC / echo | HTTP |",
        "| --- | --- | --- | --- | --- |",
    ]
    for users in CONCURRENCIES:
        echo, grpc, http = ([r["overhead"][f"{name}, {users}"] for r in rounds] for name in ("echo", "grpc", "http"))
        ratios = [mine / bare for mine, bare in zip(grpc, echo, strict=True)]
        cells = [spread(values, "{:.3f}") for values in (echo, grpc)]
        lines.append(f"| {users} | {cells[0]} | {cells[1]} | {spread(ratios, '{:.2f}')} | {spread(http, '{:.3f}')} |")
    lines += [
        "",
        "CPU seconds per 1,000 requests. Added latency at one user (mean request less mean engine call, one by one):"
        f" {added_latency_ms(result, 'grpc'):.2f} ms over gRPC, {added_latency_ms(result, 'http'):.2f} ms over HTTP"
        " (float32).",
        f"Memory of the server with all models of the run: {result['memory_mib']['now']:.0f} MiB"
        f" (peak {result['memory_mib']['peak']:.0f}).",
        *report_translation(result["translation"], spread),
        *report_explanations(result["explanations"], spread),
    ]
    return "\n".join(lines) + "\n"


def limit(measured: dict[str, Any], model: str) -> float:
    """Rows per second of the best loop at a model's precision in one round."""
    same = (model, PADDED) if MODELS[model] == "float32" else (model,)
    return max(values["rows_per_s"] for key, values in measured["limit"].items() if key.split(":")[0] in same)


def added_latency_ms(result: dict[str, Any], protocol: str) -> float:
    """At one user: the mean time of a request, less the engine's for a row alone; the median over the rounds."""
    added = []
    for measured in result["rounds"]:
        alone_ms = 1e3 / measured["limit"]["minilm: one by one"]["rows_per_s"]
        mean_ms = 1e3 / measured["served"][f"minilm: {protocol}, 1"]["requests_per_s"]
        added.append(mean_ms - alone_ms)
    return statistics.median(added)


def bars(result: dict[str, Any]) -> list[tuple[str, str, list[float], str, bool]]:
    """Each bar: what, the bar in words, the values of the rounds, their form, and whether the median meets it."""
    rounds = result["rounds"]
    middle = statistics.median

    def shares(model: str) -> list[float]:
        return [r["served"][f"{model}: grpc, 64"]["requests_per_s"] / limit(r, model) for r in rounds]

    gain = [
        r["served"]["minilm-int8: grpc, 64"]["requests_per_s"] / r["limit"][f"{PADDED}: list order, 32"]["rows_per_s"]
        for r in rounds
    ]
    overhead = {
        users: [r["overhead"][f"grpc, {users}"] / r["overhead"][f"echo, {users}"] for r in rounds]
        for users in CONCURRENCIES
    }
    found = [
        ("float32 over gRPC at 64, share of the limit", "at least 85 %", shares("minilm"), "{:.1%}", 0.85, True),
        ("int8 over gRPC at 64, share of the limit", "at least 75 %", shares("minilm-int8"), "{:.1%}", 0.75, True),
        (
            "int8 over gRPC at 64, times the float32 list-order loop of 32 with padding",
            "at least 3",
            gain,
            "{:.2f}",
            3.0,
            True,
        ),
        ("start to ready", "below 2 s", result["start_to_ready_s"], "{:.2f}", 2.0, False),
        ("idle CPU", "below 1 % of a core", [result["idle_cpu_share"]], "{:.2%}", 0.01, False),
    ]
    found += [
        (f"CPU of gRPC without a model at {users}, times the echo's", "at most 1.6", values, "{:.2f}", 1.6, False)
        for users, values in overhead.items()
    ]
    found += explanation_bars(result["explanations"])
    return [
        (name, bar, values, form, middle(values) >= edge if at_least else middle(values) <= edge)
        for name, bar, values, form, edge, at_least in found
    ]


if __name__ == "__main__":
    sys.exit(main())
