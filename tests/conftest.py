"""Fixtures: real servers on free ports, and model stores made for the tests."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
from filelock import FileLock
from onnx import TensorProto, helper

ROOT = Path(__file__).parent.parent
SHARED_FOLDER = "TESTS_SHARED_FOLDER"  # variable with the path of a folder that processes of tests share
# The files that take longest come first, so that no process has one of them left when the others have none. Files that
# train the toy translation stand between others: a second process that needs it would wait.
LONGEST_FILES = (
    "tests/export/conversion/test_translation.py",
    "tests/service/transport/test_explain_interfaces.py",
    "tests/service/transport/http/test_playground.py",
    "tests/export/conversion/test_classifier.py",
    "tests/export/conversion/test_hugging_face.py",
    "tests/export/conversion/checkpoints/test_text_families.py",
    "tests/load_tests/test_load_tests.py",
    "tests/service/telemetry/test_tracing.py",
    "tests/test_heed.py",
    "tests/export/torchserve/test_handler.py",
    "tests/service/transport/http/test_openapi.py",
    "tests/export/conversion/test_explanation_graph.py",
    "tests/export/conversion/test_float16.py",
    "tests/service/models/row_independence/test_backend_graphs.py",
    "tests/load_tests/stalls/test_stalls.py",
    "tests/load_tests/soak/test_soak.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests of the longest files to the front; the others stay in order."""
    place = {str(ROOT / path): number for number, path in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


START_S = 60.0  # only a failing test waits this long


@dataclass
class Server:
    """A running server process with its addresses and its log."""

    popen: subprocess.Popen[str]
    log: list[dict[str, Any]] = field(default_factory=list)
    http: str = ""
    grpc: str = ""
    _logged: threading.Condition = field(default_factory=threading.Condition)

    def read_log(self) -> None:
        """Collect the log until the process ends; runs in a thread."""
        assert self.popen.stderr
        for line in self.popen.stderr:
            with self._logged:
                self.log.append(json.loads(line) if line.startswith("{") else {"event": line.strip()})
                self._logged.notify_all()
        with self._logged:
            self.log.append({"event": "(end of log)"})
            self._logged.notify_all()

    def wait_for(self, event: str, timeout_s: float = START_S, **fields: str) -> dict[str, Any]:
        """Return the first log entry with this event and these fields; fail at the end of the log or of the time."""

        def found() -> dict[str, Any] | None:
            wanted = {"event": event, **fields}
            return next(
                (entry for entry in self.log if wanted.items() <= entry.items() or entry["event"] == "(end of log)"),
                None,
            )

        with self._logged:
            assert self._logged.wait_for(found, timeout_s), f"no {event!r} in {self.log}"
            entry = found()
        assert entry, self.log
        assert entry["event"] == event, self.log
        return entry

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout=START_S)


@contextlib.contextmanager
def running_server(
    store: Path | None, *options: str, until: str = "loaded", program: Sequence[str] = ("-m", "service")
) -> Iterator[Server]:
    """Run a server on this store; `until` is the log event that is waited for.

    Args:
        store: the model store; None: the options say what is served.
        options: further options.
        until: log event to wait for.
        program: arguments of Python that start the server.
    """
    command = [sys.executable, *program, "--http-port", "0", "--grpc-port", "0", "--unready-before-drain-s", "0"]
    command += [] if store is None else ["--model-store", str(store)]
    popen = subprocess.Popen(
        [*command, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    server = Server(popen)
    reader = threading.Thread(target=server.read_log)
    reader.start()
    try:
        listening = server.wait_for("listening")
        server.http, server.grpc = listening["http"], listening["grpc"]
        server.wait_for(until)
        yield server
    finally:
        if popen.poll() is None:
            popen.terminate()
        try:
            popen.wait(timeout=START_S)
        finally:
            popen.kill()  # no effect after its end
        reader.join()
        assert popen.stderr
        popen.stderr.close()


def write_onnx(
    folder: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], opset: int = 17
) -> None:
    """Write a bare model from its nodes and its tensors (name to type and shape)."""
    folder.mkdir(parents=True)
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in inputs.items()],
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


def write_endless(folder: Path) -> None:
    """Write a text classifier whose engine call never ends, so that loading does not end either."""
    shutil.copytree(ROOT / "model_store/sentiment-small/1", folder)
    (folder / "model.onnx").unlink()
    scalar = {"number": (TensorProto.INT64, []), "going": (TensorProto.BOOL, []), "before": (TensorProto.FLOAT, None)}
    step = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Sin", ["before"], ["after"])],
        "step",
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in scalar.items()],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Constant", [], ["count"], value_int=2**62),
        helper.make_node("Constant", [], ["more"], value=helper.make_tensor("true", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["ids"]),
        helper.make_node("Cast", ["ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Loop", ["count", "more", "x"], ["z"], body=step),
        helper.make_node("ReduceSum", ["z", "axis"], ["sum"]),
        helper.make_node("Concat", ["sum", "sum"], ["logits"], axis=1),
    ]
    ids = (TensorProto.INT64, ["batch", "tokens"])
    outputs = {"logits": (TensorProto.FLOAT, ["batch", 2])}
    write_onnx(folder / "graph", nodes, {"input_ids": ids, "attention_mask": ids}, outputs)
    (folder / "graph/model.onnx").rename(folder / "model.onnx")
    (folder / "graph").rmdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_store(store: Path) -> Path:
    """Write the trained sentiment model, bare models of several kinds, and folders that must not be served."""
    shutil.copytree(ROOT / "model_store" / "sentiment-small", store / "sentiment")
    floats = {"x": (TensorProto.FLOAT, ["rows", 3])}
    write_onnx(
        store / "double/1",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        floats,
        {"y": (TensorProto.FLOAT, ["rows", 3])},
    )
    strings = {"text": (TensorProto.STRING, ["rows"])}
    write_onnx(
        store / "same/1",
        [helper.make_node("Identity", ["text"], ["copy"])],
        strings,
        {"copy": (TensorProto.STRING, ["rows"])},
    )
    # The rows must not be padded, because the output depends on all elements.
    write_onnx(
        store / "sum/1",
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0, noop_with_empty_axes=0)],
        {"x": (TensorProto.FLOAT, [2])},
        {"total": (TensorProto.FLOAT, [])},
    )
    types = {
        "BOOL": TensorProto.BOOL,
        "UINT8": TensorProto.UINT8,
        "UINT16": TensorProto.UINT16,
        "UINT32": TensorProto.UINT32,
        "UINT64": TensorProto.UINT64,
        "INT8": TensorProto.INT8,
        "INT16": TensorProto.INT16,
        "INT32": TensorProto.INT32,
        "INT64": TensorProto.INT64,
        "FP16": TensorProto.FLOAT16,
        "FP32": TensorProto.FLOAT,
        "FP64": TensorProto.DOUBLE,
    }
    write_onnx(
        store / "all-types/1",
        [helper.make_node("Identity", [name], [f"{name}_copy"]) for name in types],
        {name: (element, ["rows", "columns"]) for name, element in types.items()},
        {f"{name}_copy": (element, ["rows", "columns"]) for name, element in types.items()},
    )
    (store / "broken/1").mkdir(parents=True)
    (store / "broken/1/model.onnx").write_bytes(b"not a graph")
    shutil.copytree(store / "sentiment/1", store / "damaged/1")
    with (store / "damaged/1/model.onnx").open("ab") as file:
        file.write(b"\0")
    (store / "no-version").mkdir()
    return store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store with models of every kind."""
    return make_store(tmp_path_factory.mktemp("store") / "models")


@pytest.fixture(scope="session")
def committed_server() -> Iterator[Server]:
    """Run one server on the models of the repository for all tests that only send requests."""
    with running_server(ROOT / "model_store") as running:
        yield running


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[Server]:
    """Run one server for all tests that only send requests."""
    with running_server(store, "--max-request-rows", "64", "--max-body-bytes", "1000000") as running:
        yield running


LABELS = ["anchor", "bird", "cat", "drum", "ear", "fern", "goat"]


def untrained_image_sources() -> dict[str, Any]:
    """Make a vision transformer and a CNN with random weights, whose answers differ between images."""
    import torch

    from export.conversion.model_source import ImageClassifierSource
    from export.networks.image import ResNet9, ResNetConfig, VisionTransformer, VitConfig

    torch.manual_seed(3)
    shape = VitConfig(
        d_model=32, num_layers=2, num_heads=4, d_ff=64, image_size=16, num_labels=len(LABELS), positions="learned"
    )
    networks = {"vit": VisionTransformer(shape), "resnet9": ResNet9(ResNetConfig(num_labels=len(LABELS), width=8))}
    sources = {}
    for name, network in networks.items():
        with torch.no_grad():
            network.head.weight.mul_(20 if name == "vit" else 400)
        sources[name] = ImageClassifierSource(
            module=network.eval(), labels=LABELS, image_size=16 if name == "vit" else 32, model_type=f"heed-{name}"
        )
    return sources


def noise_files(count: int, side: int = 32) -> list[bytes]:
    """Make PNG images of noise."""
    import numpy as np

    from export.data.image_classification import LabelledImages, encoded

    pixels = np.random.default_rng(4).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return encoded(LabelledImages(pixels, np.zeros(count, np.int64)), "PNG").inputs


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder once for all processes that share the tests; return a copy for this process.

    `python -m tests` names the folder that its processes share; those of pytest-xdist have one in any case.
    """
    shared = tmp_path_factory.getbasetemp()
    if SHARED_FOLDER in os.environ:
        shared = Path(os.environ[SHARED_FOLDER])
    elif "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, is_made = shared / f"{name}.once" / name, shared / f"{name}.made"
    with FileLock(shared / f"{name}.lock"):
        if not is_made.exists():
            folder.parent.mkdir(exist_ok=True)
            make(folder)
            is_made.touch()
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp(name) / name))


@pytest.fixture(scope="session")
def image_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert both kinds of image classifier, beside the sentiment model."""
    from rich.console import Console

    from export.conversion.classifier import convert
    from export.tasks.task import task_of

    def convert_all(store: Path) -> None:
        for name, source in untrained_image_sources().items():
            convert(
                source,
                task_of("image-classification"),
                name=name,
                store=store,
                compare_on=noise_files(500),
                labelled=None,
                precision="float32",
                about={"licence": "none"},
                console=Console(quiet=True),
                explained=False,
                halved=False,
            )
        shutil.copytree(ROOT / "model_store" / "sentiment-small", store / "sentiment")

    return made_once(tmp_path_factory, "image-models", convert_all)


@pytest.fixture(scope="session")
def image_server(image_store: Path) -> Iterator[Server]:
    """Run one image server for all tests that only send requests."""
    with running_server(image_store, "--max-request-rows", "16", "--max-image-pixels", "20000000") as running:
        yield running


@pytest.fixture(scope="session")
def toy_translation_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the toy translation task."""
    from rich.console import Console

    from export.training.translation import train_translation
    from tests.toy_translation import toy_config, toy_data

    def train(run_dir: Path) -> None:
        assert train_translation(toy_data(), toy_config(), run_dir, Console(quiet=True))

    return made_once(tmp_path_factory, "dogs", train)


@pytest.fixture(scope="session")
def translation_store(tmp_path_factory: pytest.TempPathFactory, toy_translation_run: Path) -> Path:
    """Convert the toy translation model and one whose translations never end, beside the sentiment model."""
    from rich.console import Console

    from export.conversion.translation import convert_translation
    from export.conversion.translation_source import translation_source_of_run
    from export.tasks.task import task_of
    from tests.toy_translation import endless_source, toy_pairs

    def convert_all(store: Path) -> None:
        toy = translation_source_of_run(toy_translation_run)
        for name, source in {"dogs": toy, "endless": endless_source(toy.tokenizer_json)}.items():
            convert_translation(
                source,
                task_of("translation"),
                name=name,
                store=store,
                compare_on={"dogs": toy_pairs(300, 4), "more dogs": toy_pairs(200, 5)},
                precision="float32",
                about={"licence": "none"},
                console=Console(quiet=True),
                explained=False,
                halved=False,
            )
        shutil.copytree(ROOT / "model_store" / "sentiment-small", store / "sentiment")

    return made_once(tmp_path_factory, "translation-models", convert_all)


@pytest.fixture(scope="session")
def translation_server(translation_store: Path) -> Iterator[Server]:
    """Run one translation server for all tests that only send requests."""
    with running_server(translation_store, "--max-request-rows", "16") as running:
        yield running
