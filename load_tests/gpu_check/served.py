"""Checks of a running server: which models and graphs it serves, how its answers differ from the CPU's, how fast."""

import argparse
import asyncio
import functools
import json
import multiprocessing
import shutil
import subprocess
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from load_tests.drivers import drive_grpc
from load_tests.store import manifest_of, models_of, version_of

BARE = "bare"  # the name of the model that is served without a manifest
BARE_ROWS = (1, 3, 8)
MAX_BARE_DIFFERENCE = 0.01  # between its answers on a GPU, which multiplies float32 numbers in 19 bits, and on the CPU


def parity(store: Path, http: int) -> dict[str, str | None]:
    """Return None for each served model of the store, else the reason why it is not served."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz", timeout=30) as response:
        problems = json.loads(response.read())["not_served"]
    found = {path.name: problems.get(f"{path.name}/{version_of(path)}") for path in models_of(store)}
    return dict(sorted(found.items()))


def taken(http: int) -> dict[str, dict[str, str | None]]:
    """Return the precision of each served model's graphs, and where translation keeps its cache."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models", timeout=30) as response:
        models = json.loads(response.read())["models"]
    return {model["name"]: {name: model[name] for name in ("precision", "cache")} for model in models if model["ready"]}


def ask_bare(http: int, graph: Path, requests: int) -> dict[str, Any]:
    """Measure the bare model: its difference from the CPU, and requests per second, one after another."""
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
    """Send one request in JSON to the bare model; return its outputs, flattened."""
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
    """Return models that are not served, or that a GPU serves by other graphs than it should."""
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


def ask(port: int, model: str, texts: list[str], concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Drive a model from several processes; return their throughput together, and the use of the GPU meanwhile."""
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
    """Run one client process."""
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
        """Return the mean of one column over all samples; None without samples."""
        values = [sample[column] for sample in self._samples]
        return sum(values) / len(values) if values else None

    def highest(self, column: int) -> float | None:
        """Return the maximum of one column over all samples; None without samples."""
        return max((sample[column] for sample in self._samples), default=None)
