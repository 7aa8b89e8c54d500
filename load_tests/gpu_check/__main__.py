"""`python -m load_tests.gpu_check`: what a GPU gives, in one command of at most eight minutes, without network.

    parity       the server loads every model of the store on the device, and at load replays its golden examples;
                 which graphs it took of each, in which precision, and whether translation's cache stays on the device
    bare         a graph without its manifest, as a user would bring it: against the CPU, and requests per second
    engine       rows per second of each graph alone, by batch size and length; of images with CUDA graphs and without
    served       requests per second over gRPC, asked by several client processes; utilisation and memory of the GPU

`--device cpu` measures the same on the CPU, but for CUDA graphs: so the tests run it. One JSON, one table in Markdown.

Graphs alone are those that the server took, called as it calls them: inputs and outputs in the device's memory,
allocated once a shape.
"""

import argparse
import asyncio
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console

from load_tests.drivers import drive_grpc
from load_tests.material import load_sentences, load_translations
from load_tests.page import MarkedPart, command_of, commit, machine
from load_tests.processes import DRAIN_AT_ONCE, Process, free_port

ROOT = Path(__file__).parents[2]
BATCH_SIZES, LENGTHS = (1, 8, 32, 128, 512), (16, 64, 128)
PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CAPTURED = {False: "as it is", True: "CUDA graph"}
GRAPH, GRAPH_FLOAT16 = "model.onnx", "model.float16.onnx"
BARE = "bare"  # what the model without a manifest is called
BARE_ROWS = (1, 3, 8)
MAX_BARE_DIFFERENCE = 0.01  # of its answers on a GPU, which multiplies float32 numbers in 19 bits, to those on the CPU


def main() -> int:
    """Measure; non-zero where something is not computed on the device as it should be."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=list(PROVIDER), default="cuda")
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--results", type=Path, default=ROOT / "build/gpu_check.json")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each engine measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64, 256], help="requests at once")
    parser.add_argument("--requests", type=int, default=8000, help="of each served measurement")
    parser.add_argument("--clients", type=int, default=max(1, (os.cpu_count() or 1) // 4), help="client processes")
    parser.add_argument("--budget-s", type=float, default=420.0, help="what is not measured by then is left out")
    parser.add_argument("--document", type=Path, help="a page whose part marked `gpu` becomes the table")
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
    """All of it, as far as the budget goes."""
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary)
        for path in models_of(arguments.model_store):
            (store / path.name).symlink_to(path.resolve())
        bare = bare_graph(arguments.model_store)
        if bare is not None:
            (store / BARE / "1").mkdir(parents=True)
            shutil.copy(bare, store / BARE / "1" / GRAPH)  # a link that leaves the store is refused
        return measure_store(store, bare, arguments, console)


def bare_graph(store: Path) -> Path | None:
    """The graph that is served without its manifest as well: a classifier's, of images where there is one."""
    tasks = {path: manifest_of(store, path.name)["task"] for path in models_of(store)}
    for wanted in ("image-classification", "text-classification"):
        for path, task in tasks.items():
            if task == wanted:
                return path / str(version_of(path)) / GRAPH
    return None


def measure_store(store: Path, bare: Path | None, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The same, of the models together with one that has no manifest."""
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
        task, model = manifest_of(arguments.model_store, path.name)["task"], path.name
        precision = (result["taken"].get(model) or {}).get("precision")
        half = path / str(version_of(path)) / GRAPH_FLOAT16
        graph = half if precision == "float16" and half.exists() else half.with_name(GRAPH)
        if task == "text-classification":
            result["engine"] += engine_throughput(model, graph, arguments, ends_s, result["left_out"], console)
        elif task == "image-classification":
            # Of an int8 graph a part is computed on the CPU, and ONNX Runtime captures none such.
            captures = arguments.device == "cuda" and precision != "int8"
            ways = (False, True) if captures else (False,)
            result["images"] += image_throughput(model, graph, ways, arguments, ends_s, result["left_out"], console)
    return result


def gpu_name() -> str:
    """Name, memory and driver, as nvidia-smi tells."""
    if shutil.which("nvidia-smi") is None:
        return "none"
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "none"


def parity(store: Path, http: int) -> dict[str, str | None]:
    """Each model and version of the store: None where it is served, else why not."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz", timeout=30) as response:
        problems = json.loads(response.read())["not_served"]
    found = {path.name: problems.get(f"{path.name}/{version_of(path)}") for path in models_of(store)}
    return dict(sorted(found.items()))


def taken(http: int) -> dict[str, dict[str, str | None]]:
    """Of each model that is served: in which precision its graphs compute, and where translation keeps its cache."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models", timeout=30) as response:
        models = json.loads(response.read())["models"]
    return {model["name"]: {name: model[name] for name in ("precision", "cache")} for model in models if model["ready"]}


def ask_bare(http: int, graph: Path, requests: int) -> dict[str, Any]:
    """The bare model, with as many rows at once as may be: against the CPU, and how fast, one request after another."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rng, worst = np.random.default_rng(0), 0.0
    for rows in BARE_ROWS:
        feeds = {}
        for given in session.get_inputs():
            shape = [rows, *(size if isinstance(size, int) else 16 for size in given.shape[1:])]
            floats = rng.standard_normal(shape, dtype=np.float32)
            feeds[given.name] = floats if given.type == "tensor(float)" else np.ones(shape, np.int64)
        expected = dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))
        call = functools.partial(infer, http, feeds)
        for name, array in call().items():
            worst = max(worst, float(np.abs(array - expected[name].ravel()).max()))
    began_s = time.perf_counter()
    for _ in range(max(1, requests)):
        call()
    took_s = time.perf_counter() - began_s
    return {
        "graph": f"{graph.parent.parent.name}/{graph.name}",
        "rows": rows,
        "max_abs_difference": worst,
        "requests_per_s": max(1, requests) / took_s,
    }


def infer(http: int, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One request of the bare model, in JSON; its outputs without their shapes."""
    datatypes = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}
    inputs = [
        {"name": name, "shape": array.shape, "datatype": datatypes[array.dtype], "data": array.ravel().tolist()}
        for name, array in feeds.items()
    ]
    url = f"http://127.0.0.1:{http}/v2/models/{BARE}/infer"
    with urllib.request.urlopen(url, json.dumps({"inputs": inputs}).encode(), timeout=60) as response:
        outputs = json.loads(response.read())["outputs"]
    return {output["name"]: np.array(output["data"]) for output in outputs}


def problems_of(store: Path, result: dict[str, Any]) -> list[str]:
    """What is not as it should be: models that are not served, or on a GPU not by the graphs that it should take."""
    problems = [f"{model} is not served: {why}" for model, why in result["parity"].items() if why]
    if result["bare"] is not None and not result["bare"]["max_abs_difference"] <= MAX_BARE_DIFFERENCE:
        problems.append(f"the bare graph answers {result['bare']['max_abs_difference']:.3g} off the CPU's answers")
    if result["device"] == "cpu":
        return problems
    for model, how in result["taken"].items():
        if model == BARE:
            continue
        if manifest_of(store, model).get("float16") and how["precision"] != "float16":
            problems.append(f"{model} is served in {how['precision']}, though it has graphs in half precision")
        if how["precision"] == "float16" and how["cache"] == "host":
            problems.append(f"{model} keeps its cache in the host's memory")
    return problems


def models_of(store: Path) -> list[Path]:
    """The folders of models."""
    return sorted(path.parent.parent for path in store.glob("*/*/manifest.json"))


def version_of(model: Path) -> int:
    """The highest."""
    return max(int(path.name) for path in model.iterdir() if path.name.isdigit())


def manifest_of(store: Path, model: str) -> dict[str, Any]:
    """Of the highest version."""
    folder = store / model / str(version_of(store / model))
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def inputs_of(store: Path) -> dict[str, list[str]]:
    """Texts for each model that takes texts."""
    by_task = {"text-classification": load_sentences().texts, "translation": load_translations().texts}
    tasks = {path.name: manifest_of(store, path.name)["task"] for path in models_of(store)}
    return {model: by_task[task] for model, task in tasks.items() if task in by_task}


def ask(port: int, model: str, texts: list[str], concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Several processes ask at once; what they got together, and what the GPU did meanwhile."""
    clients = min(arguments.clients, concurrency)
    share = (port, model, texts, concurrency // clients, arguments.requests // clients)
    with GpuSampler() as sampler, ProcessPoolExecutor(clients, multiprocessing.get_context("spawn")) as pool:
        summaries = list(pool.map(drive, [share] * clients))
    return {
        "clients": clients,
        "requests_per_s": sum(each["requests_per_s"] for each in summaries),
        **{name: max(each[name] for each in summaries) for name in ("p50_ms", "p99_ms")},
        "mean_batch_rows": sum(each["mean_batch_rows"] for each in summaries) / clients,
        "gpu_utilisation_percent": sampler.mean(0),
        "gpu_memory_mib": sampler.highest(1),
    }


def drive(share: tuple[int, str, list[str], int, int]) -> dict[str, float]:
    """One client process."""
    return asyncio.run(drive_grpc(*share)).summary()


class GpuSampler:
    """Utilisation in percent and used memory in MiB of the first GPU, five times a second; nothing without one."""

    def __enter__(self) -> Self:
        self._samples: list[list[float]] = []
        self._popen = None
        if shutil.which("nvidia-smi"):
            command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu,memory.used", "-lms", "200"]
            command += ["--format=csv,noheader,nounits"]
            self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._popen is None:
            return
        self._popen.terminate()
        lines = self._popen.communicate()[0].splitlines()
        self._samples = [[float(value) for value in line.split(",")] for line in lines if line.count(",") == 1]

    def mean(self, column: int) -> float | None:
        """Of all samples."""
        values = [sample[column] for sample in self._samples]
        return sum(values) / len(values) if values else None

    def highest(self, column: int) -> float | None:
        """Of all samples."""
        return max((sample[column] for sample in self._samples), default=None)


def engine_throughput(
    model: str, graph: Path, arguments: argparse.Namespace, ends_s: float, left_out: list[str], console: Console
) -> list[dict[str, Any]]:
    """Rows per second of a text classifier's graph alone, by batch size and length.

    Raises:
        RuntimeError: ONNX Runtime does not compute on the device.
    """
    session, measured = open_graph(graph, arguments.device), []
    rng = np.random.default_rng(0)
    for rows in BATCH_SIZES:
        for length in LENGTHS:
            if time.monotonic() > ends_s:
                left_out.append(f"{model} alone, {rows} x {length}")
                continue
            ids_BT = rng.integers(5, 1000, (rows, length), dtype=np.int64)
            call = bound_call(session, arguments.device, {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT)})
            found = {"model": model, "rows": rows, "length": length}
            measured.append(found | {"rows_per_s": rows * calls_per_s(call, arguments.seconds)})
            console.print(f"{model} alone, {rows} x {length}: {measured[-1]['rows_per_s']:.0f} rows/s")
    return measured


def image_throughput(
    model: str,
    graph: Path,
    ways: tuple[bool, ...],
    arguments: argparse.Namespace,
    ends_s: float,
    left_out: list[str],
    console: Console,
) -> list[dict[str, Any]]:
    """Rows per second of an image classifier's graph alone, by batch size, captured as CUDA graphs or not.

    Raises:
        RuntimeError: ONNX Runtime does not compute on the device.
    """
    rng, measured = np.random.default_rng(0), []
    for captured in ways:
        session = open_graph(graph, arguments.device, captured=captured)
        (given,) = session.get_inputs()
        for graph_id, rows in enumerate(BATCH_SIZES, start=1):
            if time.monotonic() > ends_s:
                left_out.append(f"{model} alone, {rows}, {CAPTURED[captured]}")
                continue
            pixels_BCHW = rng.standard_normal((rows, *given.shape[1:]), dtype=np.float32)
            call = bound_call(session, arguments.device, {given.name: pixels_BCHW}, graph_id if captured else None)
            found = {"model": model, "rows": rows, "captured": captured}
            measured.append(found | {"rows_per_s": rows * calls_per_s(call, arguments.seconds)})
            console.print(f"{model} alone, {rows}, {CAPTURED[captured]}: {measured[-1]['rows_per_s']:.0f} rows/s")
    return measured


def open_graph(graph: Path, device: str, *, captured: bool = False) -> Any:
    """A session on the device, and nowhere else.

    Raises:
        RuntimeError: ONNX Runtime does not compute on the device.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    provider = (PROVIDER[device], {"enable_cuda_graph": "1"} if captured else {})
    session = onnxruntime.InferenceSession(graph, options, providers=[provider])
    if PROVIDER[device] not in session.get_providers():
        raise RuntimeError(f"ONNX Runtime does not compute {graph} on {device}")
    return session


def bound_call(
    session: Any, device: str, feeds: dict[str, NDArray[Any]], graph_id: int | None = None
) -> Callable[[], object]:
    """A call with these inputs: they go to the device and the logits come back each time, into memory that stays."""
    binding, run_options = session.io_binding(), onnxruntime.RunOptions()
    if graph_id is not None:
        run_options.add_run_config_entry("gpu_graph_id", str(graph_id))
    rows = len(next(iter(feeds.values())))
    (output,) = session.get_outputs()
    on_device = {
        name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type, device)
        for name, array in feeds.items()
    }
    logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type((rows, *output.shape[1:]), np.float32, device)
    binding.bind_ortvalue_output(output.name, logits)

    def call() -> object:
        for name, value in on_device.items():
            value.update_inplace(feeds[name])
            binding.bind_ortvalue_input(name, value)
        session.run_with_iobinding(binding, run_options)
        return logits.numpy()

    return call


def calls_per_s(call: Callable[[], object], seconds: float) -> float:
    """How often a call is made, after the first."""
    call()
    calls, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < seconds:
        call()
        calls += 1
    return calls / took_s


def report(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        f"`{result['command']}` at commit {result['commit']}, {datetime.now(UTC):%Y-%m-%d}, {result['machine']};"
        f" device {result['device']}, GPU {result['gpu']}; start to ready {result['start_s']:.1f} s.",
        "",
        "| model | served on the device | precision | cache |",
        "| --- | --- | --- | --- |",
    ]
    for model, why in result["parity"].items():
        how = result["taken"].get(model) or {}
        lines.append(
            f"| {model} | {why or 'yes, golden examples within tolerance'} | {how.get('precision') or ''} |"
            f" {how.get('cache') or ''} |"
        )
    if bare := result["bare"]:
        lines += [
            "",
            f"`{bare['graph']}` without its manifest: within {bare['max_abs_difference']:.2g} of the CPU's answers,"
            f" {bare['requests_per_s']:.0f} requests/s of {bare['rows']} rows in JSON, one after another.",
        ]
    lines += [
        "",
        "| served, at once | requests/s | p50 ms | p99 ms | rows a batch | GPU busy | GPU memory MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["served"]:
        busy, memory = row["gpu_utilisation_percent"], row["gpu_memory_mib"]
        lines.append(
            f"| {row['model']}, {row['concurrency']} | {row['requests_per_s']:.0f} | {row['p50_ms']:.1f} |"
            f" {row['p99_ms']:.1f} | {row['mean_batch_rows']:.1f} | {'?' if busy is None else f'{busy:.0f} %'} |"
            f" {'?' if memory is None else f'{memory:.0f}'} |"
        )
    lines += [
        "",
        f"| rows/s of the graph alone | {' | '.join(f'{length} tokens' for length in LENGTHS)} |",
        f"| --- |{' --- |' * len(LENGTHS)}",
    ]
    found = {(row["model"], row["rows"], row["length"]): row["rows_per_s"] for row in result["engine"]}
    for model, rows in dict.fromkeys((row["model"], row["rows"]) for row in result["engine"]):
        cells = [found.get((model, rows, length)) for length in LENGTHS]
        lines.append(
            f"| {model}, {rows} rows | {' | '.join('' if each is None else f'{each:.0f}' for each in cells)} |"
        )
    if result["images"]:
        ways = [CAPTURED[captured] for captured in sorted({row["captured"] for row in result["images"]})]
        lines += ["", f"| rows/s of the graph alone | {' | '.join(ways)} |", f"| --- |{' --- |' * len(ways)}"]
        images = {(row["model"], row["rows"], CAPTURED[row["captured"]]): row["rows_per_s"] for row in result["images"]}
        for model, rows in dict.fromkeys((row["model"], row["rows"]) for row in result["images"]):
            cells = [images.get((model, rows, way)) for way in ways]
            lines.append(
                f"| {model}, {rows} images | {' | '.join('' if each is None else f'{each:.0f}' for each in cells)} |"
            )
    if result["left_out"]:
        lines += ["", f"Left out for want of time, or not served: {', '.join(result['left_out'])}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
