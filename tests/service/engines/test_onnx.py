"""Engines of ONNX Runtime: calls bound to device memory, and models opened as on a GPU."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from structlog.testing import capture_logs

from model_store.folder import GRAPH, ModelFolder, read, scan
from service.engines.device import cuda_problem
from service.engines.host import EngineHost
from service.engines.onnx import OnnxEngine
from service.engines.onnx_session import EngineError
from service.models.engine_opening import buckets_of, capture_problem, open_onnx
from service.models.loading import Loaded, Loader
from service.tensors import NUMPY_OF
from tests.conftest import ROOT, write_onnx
from tests.service.engines.store_models import IMAGES, TEXTS, folder_of, graph_of, one_operator


def test_calls_without_buckets_are_bound_at_any_shape(tmp_path: Path) -> None:
    """Bound calls answer like unbound ones, for every type, empty and scalar tensors; later calls change no answer."""
    types = [name for name in NUMPY_OF if name != "BOOL"]
    nodes = [helper.make_node("Identity", [name], [f"{name}_copy"]) for name in types]
    nodes += [helper.make_node("ReduceSum", ["FP32"], ["total"], keepdims=0), helper.make_node("Relu", ["FP32"], ["z"])]
    elements = {name: helper.np_dtype_to_tensor_dtype(NUMPY_OF[name]) for name in types}
    inputs = {name: (element, ["n", "any"]) for name, element in elements.items()}
    outputs = {f"{name}_copy": tensor for name, tensor in inputs.items()}
    floats = TensorProto.FLOAT
    write_onnx(tmp_path / "1", nodes, inputs, outputs | {"total": (floats, []), "z": (floats, ["n", "any"])})
    bound, plain = (OnnxEngine(tmp_path / "1" / GRAPH, 1, EngineHost(), binds=binds) for binds in (True, False))
    assert (bound.binds, plain.binds, OnnxEngine(tmp_path / "1" / GRAPH, 1, EngineHost()).binds) == (True, False, False)
    kept = []
    for seed, shape in enumerate([(3, 2), (1, 5), (3, 2), (4, 0), (0, 3), (1, 1)]):
        rng = np.random.default_rng(seed)
        # Every other column: what lies apart in memory is as good.
        feeds = {name: (50 * rng.random((shape[0], 2 * shape[1])))[:, ::2].astype(NUMPY_OF[name]) for name in types}
        kept.append((bound.run(feeds), plain.run({name: array.copy() for name, array in feeds.items()})))
    for found, expected in kept:
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    for wrong in ({}, {"other": np.zeros((1, 1), np.float32)}, feeds | {"FP32": np.zeros(3, np.float32)}):
        with pytest.raises(EngineError):
            bound.run(wrong)


def test_strings_are_not_bound(tmp_path: Path) -> None:
    """Strings lie in the host's memory, whatever the device."""
    texts = (TensorProto.STRING, ["n"])
    write_onnx(tmp_path / "1", [helper.make_node("Identity", ["text"], ["copy"])], {"text": texts}, {"copy": texts})
    engine = OnnxEngine(tmp_path / "1" / GRAPH, 1, EngineHost(), binds=True)
    assert not engine.binds
    assert engine.run({"text": np.array(["a", "b"], dtype=object)})["copy"].tolist() == ["a", "b"]


@pytest.mark.parametrize("name", [TEXTS, "sentiment", IMAGES])
def test_models_of_the_store_answer_their_golden_examples_as_on_a_gpu(name: str) -> None:
    """Loading proves rounded calls in half precision, with the warm-up and the cost probes of a GPU."""
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
    assert isinstance(loaded, Loaded)
    assert (loaded.precision, len(opened)) == ("float16", 1)
    if name == IMAGES:  # no bucket is left to a client's first call
        assert opened[0].buffers == {(rows, None): 1 for rows in (1, 2, 4, 8, 16)}


class Clock:
    """A clock that advances by 1 ms at each reading."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        self.now_s += 0.001
        return self.now_s


def test_what_is_captured_has_shapes_that_follow_from_the_bucket() -> None:
    """Task and precision decide on capture: no shape in a captured graph depends on contents, some do in the other."""
    depends_on_contents = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop", "Scan"}
    operators = {node.op_type for node in onnx.load(graph_of(IMAGES)).graph.node}
    assert capture_problem(folder_of(IMAGES)) is None
    assert not operators & depends_on_contents
    operators = {node.op_type for node in onnx.load(graph_of(TEXTS)).graph.node}
    assert capture_problem(folder_of(TEXTS)) == "what is computed depends on how many tokens are real"
    assert operators & depends_on_contents


def test_bare_graphs_have_no_buckets(tmp_path: Path) -> None:
    """The rows of a graph without a manifest are never padded."""
    (tmp_path / "bare/1").mkdir(parents=True)
    one_operator(tmp_path / "bare/1" / GRAPH, "Relu", {"x": ["n", 3]}, {"y": ["n", 3]})
    folder = read(scan(tmp_path)[0])
    assert buckets_of(folder) is None
    assert capture_problem(folder) is not None


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here: nothing is refused")
def test_what_was_chosen_is_said_and_never_the_cpu_instead() -> None:
    """With and without CUDA graphs the log has the reason, and a device that is missing is an error."""
    for name, why in ((IMAGES, "refused: "), (TEXTS, "what is computed depends on how many tokens are real")):
        with capture_logs() as entries, pytest.raises(EngineError, match="CUDA"):
            open_onnx(folder_of(name), 1, EngineHost("cuda"))
        (entry,) = [entry for entry in entries if entry["event"] == "model is computed in buckets, without CUDA graphs"]
        assert entry["model"] == name
        assert entry["why"].startswith(why)
