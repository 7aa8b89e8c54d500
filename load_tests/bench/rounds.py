"""Rounds of the benchmark: the engine alone, the server, a model that does nothing, and echo servers."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper
from rich.console import Console

from load_tests.drivers import Load, drive_grpc, drive_http
from load_tests.material import load_sentences
from load_tests.page import command_of, commit, machine
from load_tests.processes import DRAIN_AT_ONCE, Process, free_port, steal_s

ROOT = Path(__file__).parents[2]
STORE = ROOT / "build" / "bench_store"
MODELS = {"minilm": "float32", "minilm-int8": "int8"}
PADDED = "minilm-padded"  # float32, the graph that computes padding: what other converters give; not served here
CONCURRENCIES = (1, 16, 64)
# A bare echo server, and one with the gRPC settings of the service: flags of load_tests/bench/echo_server.py.
ECHOES: dict[str, tuple[str, ...]] = {"echo": (), "tuned echo": ("--service-settings",)}
# The server moves its memory into huge pages (service/process/huge_pages.py), so the loops get theirs by glibc
# (mallopt(3)).
IN_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def prepare_store(console: Console) -> None:
    """Make untrained models of MiniLM's size (6 layers, 384 wide) and one that does nothing, anew for each commit."""
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
    """Empty a folder of build products, unless they were made from the version that is measured now."""
    note = folder / "origin.txt"
    if not note.exists() or note.read_text() != origin or origin.endswith("-dirty"):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(origin)


async def measure(num_rounds: int, num_requests: int, console: Console) -> dict[str, Any]:
    """Measure all rounds, and print a line of progress after each."""
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
    http, grpc = free_port(), free_port()
    url = f"http://127.0.0.1:{http}"
    server_arguments = ["--model-store", str(STORE), "--http-port", str(http), "--grpc-port", str(grpc)]
    loop_arguments = [str(STORE), ",".join([*MODELS, PADDED]), str(len(texts))]
    result["start_to_ready_s"] = [measure_start(name) for name in MODELS for _ in range(3)]
    with (
        Process("service", *DRAIN_AT_ONCE, *server_arguments) as server,
        Process("load_tests.bench.engine_loops", *loop_arguments, pipes=True, environment=IN_HUGE_PAGES) as loops,
        ExitStack() as stack,
    ):
        servers = [
            *start_echoes(stack),
            Asked("grpc", server, drive_grpc, grpc),
            Asked("http", server, drive_http, http),
        ]
        server.wait_until_ready(f"{url}/readyz")
        server.wait_until_idle()
        assert loops.popen.stdin and loops.popen.stdout
        result |= json.loads(loops.popen.stdout.readline())
        for number in range(num_rounds):
            started_s, stolen_s = time.perf_counter(), steal_s()
            loops.popen.stdin.write("go\n")
            loops.popen.stdin.flush()
            line = await asyncio.to_thread(loops.popen.stdout.readline)
            measured: dict[str, Any] = {"limit": json.loads(line)}
            measured["served"] = await measure_served(server, grpc, http, texts)
            measured["overhead"] = await measure_overhead(servers, texts)
            measured["steal_s"] = steal_s() - stolen_s
            measured["wall_s"] = time.perf_counter() - started_s
            result["rounds"].append(measured)
            left_s = (num_rounds - number - 1) * measured["wall_s"]
            console.print(f"round {number + 1} of {num_rounds}: {measured['wall_s']:.0f} s, about {left_s:.0f} s left")
        result["memory_mib"] = server.memory_mib()
        result["idle_cpu_share"] = await measure_idle(server)
    return result


async def measure_served(server: Process, grpc: int, http: int, texts: list[str]) -> dict[str, dict[str, float]]:
    """Measure the server under load: each model at each concurrency, over gRPC and over HTTP."""
    served = {}
    for model in MODELS:
        for concurrency in CONCURRENCIES:
            count = len(texts) if concurrency == 64 else len(texts) // 4
            for protocol, port, drive in (("grpc", grpc, drive_grpc), ("http", http, drive_http)):
                cpu_s = server.cpu_s()
                load = await drive(port, model, texts, concurrency, count)
                cpu_s = server.cpu_s() - cpu_s
                key = f"{model}: {protocol}, {concurrency}"
                served[key] = load.summary() | {"cpu_s_per_1000": 1e3 * cpu_s / count}
    return served


def measure_start(model: str) -> float:
    """Return the seconds from starting the process to ready, with a store of this one model."""
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
    """Return the fraction of a core that the idle server uses."""
    await asyncio.sleep(0.5)
    cpu_s = server.cpu_s()
    await asyncio.sleep(seconds)
    return (server.cpu_s() - cpu_s) / seconds


def start_echoes(stack: ExitStack) -> list["Asked"]:
    """Start the echo servers, and end them with the stack."""
    echoes = []
    for name, flags in ECHOES.items():
        process = stack.enter_context(Process("load_tests.bench.echo_server", str(port := free_port()), *flags))
        echoes.append(Asked(name, process, drive_grpc, port))
    return echoes


class Asked(NamedTuple):
    """A server under measurement, and how it is asked."""

    name: str
    process: Process
    drive: Callable[[int, str, Sequence[str], int, int], Awaitable[Load]]
    port: int


async def measure_overhead(
    servers: Sequence[Asked], texts: list[str], count: int = 500, slices: int = 4
) -> dict[str, float]:
    """Measure CPU seconds per 1,000 requests of a model that does nothing and of the echoes, in alternating slices."""
    spent: dict[str, float] = {}
    for concurrency in CONCURRENCIES:
        for _ in range(slices):
            for name, process, drive, port in servers:
                cpu_s = process.cpu_s()
                await drive(port, "noop", texts, concurrency, count)
                key = f"{name}, {concurrency}"
                spent[key] = spent.get(key, 0.0) + (process.cpu_s() - cpu_s) * 1e3 / (count * slices)
    return spent
