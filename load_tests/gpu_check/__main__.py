"""`python -m load_tests.gpu_check`: parity, throughput and utilisation of a GPU in at most eight minutes, offline.

    parity       the server loads every model of the store on the device, and at load replays its golden examples;
                 which graphs it took of each, in which precision, and whether translation's cache stays on the device
    bare         a graph without its manifest, as a user would bring it: against the CPU, and requests per second
    engine       rows per second of each graph alone, by batch size and length; of images with CUDA graphs and without
    served       requests per second over gRPC, asked by several client processes; utilisation and memory of the GPU

`--device cpu` measures the same on the CPU, except for CUDA graphs; tests use it. The results are a JSON file and a
table in Markdown.

`engine` measures the graphs that the server chose, called as it calls them: inputs and outputs are in the device's
memory and allocated once for each shape.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.gpu_check.graphs import PROVIDER, engine_throughput, image_throughput
from load_tests.gpu_check.report import report
from load_tests.gpu_check.served import BARE, ask, ask_bare, parity, problems_of, taken
from load_tests.page import MarkedPart, command_of, commit, machine
from load_tests.processes import DRAIN_AT_ONCE, Process, free_port
from load_tests.store import GRAPH, GRAPH_FLOAT16, bare_graph, inputs_of, models_of, task_of, version_of

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Measure; the exit status is 1 when the device does not compute everything that it should."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=list(PROVIDER), default="cuda", help="device to check")
    parser.add_argument(
        "--model-store",
        type=Path,
        default=ROOT / "model_store",
        metavar="FOLDER",
        help="store of the models that are measured",
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "build/gpu_check.json", metavar="FILE", help="file of the results"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="duration of each engine measurement", metavar="SECONDS"
    )
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[16, 64, 256], metavar="N", help="numbers of concurrent requests"
    )
    parser.add_argument("--requests", type=int, default=8000, help="requests of each served measurement", metavar="N")
    parser.add_argument(
        "--clients",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 4),
        metavar="N",
        help="number of client processes",
    )
    parser.add_argument(
        "--budget-s", type=float, default=420.0, help="time limit; later measurements are left out", metavar="SECONDS"
    )
    parser.add_argument("--document", type=Path, help="page whose part `gpu` is replaced by the table", metavar="FILE")
    arguments = parser.parse_args()
    try:
        part = MarkedPart.of(arguments.document, "gpu") if arguments.document else None
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 120)
    result = measure(arguments, console)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(result, indent=1) + "\n")
    page = report(result)
    if part:
        part.replace(page)
    console.print(page, soft_wrap=True, highlight=False)
    for problem in result["problems"]:
        console.print(problem, style="bold red", soft_wrap=True, highlight=False)
    return 1 if result["problems"] else 0


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure everything within the budget, with a model store that has one bare graph more."""
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary)
        for path in models_of(arguments.model_store):
            (store / path.name).symlink_to(path.resolve())
        bare = bare_graph(arguments.model_store)
        if bare is not None:
            (store / BARE / "1").mkdir(parents=True)
            shutil.copy(bare, store / BARE / "1" / GRAPH)  # a link that leaves the store is refused
        return measure_store(store, bare, arguments, console)


def measure_store(store: Path, bare: Path | None, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure the models of a store that includes the bare graph."""
    ends_s = time.monotonic() + arguments.budget_s
    http, grpc = free_port(), free_port()
    options = ["--model-store", str(store), "--http-port", str(http), "--grpc-port", str(grpc)]
    result: dict[str, Any] = {
        "command": command_of("load_tests.gpu_check"),
        "commit": commit(),
        "machine": machine(),
        "device": arguments.device,
        "gpu": gpu_name(),
        "left_out": [],
    }
    console.print(f"starting the server on {arguments.device}")
    with Process("service", *options, *DRAIN_AT_ONCE, "--device", arguments.device, core=None) as server:
        result["start_s"] = server.wait_until_ready(f"http://127.0.0.1:{http}/readyz", timeout_s=180)
        result["parity"] = parity(arguments.model_store, http)
        result["taken"] = taken(http)
        result["bare"] = None if bare is None else ask_bare(http, bare, arguments.requests // 100)
        result["problems"] = problems_of(arguments.model_store, result)
        console.print(f"served: {', '.join(model for model, why in result['parity'].items() if why is None)}")
        result["served"] = []
        for model, texts in inputs_of(arguments.model_store).items():
            for concurrency in arguments.concurrency:
                if time.monotonic() > ends_s or result["parity"].get(model):
                    result["left_out"].append(f"{model} served at {concurrency}")
                    continue
                found = ask(grpc, model, texts, concurrency, arguments)
                result["served"].append({"model": model, "concurrency": concurrency} | found)
                console.print(f"{model}, {concurrency} at once: {found['requests_per_s']:.0f} requests/s")
    result["engine"], result["images"] = [], []
    for path in models_of(arguments.model_store):
        task, model = task_of(arguments.model_store, path.name), path.name
        precision = (result["taken"].get(model) or {}).get("precision")
        half = path / str(version_of(path)) / GRAPH_FLOAT16
        graph = half if precision == "float16" and half.exists() else half.with_name(GRAPH)
        if task.graph_input == "tokens":
            result["engine"] += engine_throughput(model, graph, arguments, ends_s, result["left_out"], console)
        elif task.graph_input == "pixels":
            # ONNX Runtime captures no graph with nodes on the CPU, and int8 graphs have some.
            captures = arguments.device == "cuda" and precision != "int8"
            ways = (False, True) if captures else (False,)
            result["images"] += image_throughput(model, graph, ways, arguments, ends_s, result["left_out"], console)
    return result


def gpu_name() -> str:
    """Return name, memory and driver of the GPU, as nvidia-smi reports them."""
    if shutil.which("nvidia-smi") is None:
        return "none"
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "none"


if __name__ == "__main__":
    sys.exit(main())
