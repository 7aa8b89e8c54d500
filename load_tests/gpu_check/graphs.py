"""Throughput of single graphs, without a server, called as the server calls them."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console

BATCH_SIZES, LENGTHS = (1, 8, 32, 128, 512), (16, 64, 128)
PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CAPTURED = {False: "as it is", True: "CUDA graph"}


def engine_throughput(
    model: str, graph: Path, arguments: argparse.Namespace, ends_s: float, left_out: list[str], console: Console
) -> list[dict[str, Any]]:
    """Measure rows per second of a text classifier's graph alone, by batch size and length.

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
    """Measure rows per second of an image classifier's graph alone, by batch size, with and without CUDA graphs.

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
    """Open a session that computes on the device only.

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
    """Return a call that copies these inputs to the device and the logits back, in memory that is allocated once."""
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
    """Return the rate of a call, after one warm-up call."""
    call()
    calls, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < seconds:
        call()
        calls += 1
    return calls / took_s
