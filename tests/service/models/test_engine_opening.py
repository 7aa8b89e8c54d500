"""Engines are opened with buckets and CUDA graphs as the manifest and the device allow."""

from pathlib import Path

import onnx
import pytest
from structlog.testing import capture_logs

from model_store.folder import GRAPH, ModelFolder, read, scan
from service.engines.device import cuda_problem
from service.engines.host import EngineHost
from service.engines.onnx import OnnxEngine
from service.engines.onnx_session import EngineError
from service.models.engine_opening import buckets_of, capture_problem, open_onnx
from service.models.loaded import OneCallModel
from service.models.loading import Loader
from tests.conftest import ROOT
from tests.service.engines.store_models import IMAGES, TEXTS, folder_of, graph_of, one_operator


@pytest.mark.parametrize("name", [TEXTS, "sentiment", IMAGES])
def test_models_of_the_store_answer_their_golden_examples_as_on_a_gpu(name: str) -> None:
    """Loading proves bucketed calls in half precision, with the warm-up and the cost probes of a GPU."""
    opened: list[OnnxEngine] = []

    def open_engine(folder: ModelFolder, threads: int, host: EngineHost) -> OnnxEngine:
        assert host.device == "cuda"
        cuda_graphs = capture_problem(folder) is None
        assert folder.graph_name == "model.float16.onnx"
        opened.append(
            OnnxEngine(folder.graph, threads, host.on_cpu(), buckets=buckets_of(folder), cuda_graphs=cuda_graphs)
        )
        return opened[0]

    found = next(found for found in scan(ROOT / "model_store") if found.name == name)
    loaded = Loader(16, 1, Clock(), EngineHost("cuda"), open_engine).load(found)
    assert isinstance(loaded, OneCallModel)
    assert (loaded.precision, len(opened)) == ("float16", 1)
    if name == IMAGES:  # every bucket was warmed up at load
        assert opened[0].buffers == {(rows, None): 1 for rows in (1, 2, 4, 8, 16)}


class Clock:
    """A clock that advances by 1 ms at each reading."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        self.now_s += 0.001
        return self.now_s


def test_captured_graphs_have_shapes_that_depend_on_the_bucket_alone() -> None:
    """Image graphs have no operator whose output shape depends on contents; text graphs have."""
    depends_on_contents = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop", "Scan"}
    operators = {node.op_type for node in onnx.load(graph_of(IMAGES)).graph.node}
    assert capture_problem(folder_of(IMAGES)) is None
    assert not operators & depends_on_contents
    operators = {node.op_type for node in onnx.load(graph_of(TEXTS)).graph.node}
    assert capture_problem(folder_of(TEXTS)) == "the computation depends on the number of real tokens"
    assert operators & depends_on_contents


def test_bare_graphs_have_no_buckets(tmp_path: Path) -> None:
    """The rows of a graph without a manifest are never padded."""
    (tmp_path / "bare/1").mkdir(parents=True)
    one_operator(tmp_path / "bare/1" / GRAPH, "Relu", {"x": ["n", 3]}, {"y": ["n", 3]})
    folder = read(scan(tmp_path)[0])
    assert buckets_of(folder) is None
    assert capture_problem(folder) is not None


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here: nothing is refused")
def test_a_missing_gpu_is_an_error_and_the_choice_is_logged() -> None:
    """The log gives the reason against CUDA graphs; the CPU is never used instead."""
    for name, why in ((IMAGES, "refused: "), (TEXTS, "the computation depends on the number of real tokens")):
        with capture_logs() as entries, pytest.raises(EngineError, match="CUDA"):
            open_onnx(folder_of(name), 1, EngineHost("cuda"))
        (entry,) = [entry for entry in entries if entry["event"] == "model is computed in buckets, without CUDA graphs"]
        assert entry["model"] == name
        assert entry["why"].startswith(why)
