"""Calls in buckets against calls as they are; what a GPU gets is computed here by the same code on the CPU."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from structlog.testing import capture_logs

from model_store.folder import GRAPH, ModelFolder, read, scan
from service.engines.device import cuda_problem
from service.engines.onnx import TOKEN_STEP, Buckets, EngineError, OnnxEngine, open_session, run_session
from service.engines.preemption import lower_engine_priority, preempt_background, resume_background
from service.models.loading import Loaded, Loader, buckets_of, capture_problem, open_onnx
from service.tensors import NUMPY_OF, Arrays
from tests.conftest import ROOT, write_onnx

TEXTS, IMAGES = "sentiment-small", "cifar10-vit"
MAX_TOKENS = 128


def folder_of(name: str) -> ModelFolder:
    """A model of the store."""
    return read(next(found for found in scan(ROOT / "model_store") if found.name == name))


def graph_of(name: str) -> Path:
    """Its graph."""
    return folder_of(name).path / GRAPH


@pytest.fixture(scope="module")
def plain() -> dict[str, OnnxEngine]:
    """Engines that compute each call as it is."""
    return {name: OnnxEngine(graph_of(name), 1) for name in (TEXTS, IMAGES)}


def bucketed(name: str, **options: Any) -> OnnxEngine:
    """An engine that rounds up, set up as it is on a GPU."""
    return OnnxEngine(graph_of(name), 1, buckets=buckets_of(folder_of(name)), **options)


def texts(rows: int, tokens: int, seed: int = 0) -> Arrays:
    """Texts of 1 to `tokens` tokens, the longest of them first or not."""
    rng = np.random.default_rng([rows, tokens, seed])
    lengths = rng.permutation([tokens, *rng.integers(1, tokens + 1, rows - 1)])
    mask_BT = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(5, 5000, (rows, tokens)) * mask_BT, "attention_mask": mask_BT}


def images(rows: int, seed: int = 0) -> Arrays:
    """Noise."""
    return {"pixel_values": np.random.default_rng([rows, seed]).standard_normal((rows, 3, 32, 32), dtype=np.float32)}


def edges(number: int) -> list[int]:
    """A bucket's last member, and the first of the next."""
    return [number, number + 1]


@pytest.mark.parametrize("rows", [1, 3, *edges(4), *edges(8), 33])
@pytest.mark.parametrize("tokens", [1, *edges(TOKEN_STEP), *edges(4 * TOKEN_STEP), MAX_TOKENS])
def test_rounding_up_changes_no_text(plain: dict[str, OnnxEngine], rows: int, tokens: int) -> None:
    """Logits of real rows are those of the call as it is, and there are no others."""
    feeds = texts(rows, tokens)
    found, expected = bucketed(TEXTS).run(feeds)["logits"], plain[TEXTS].run(feeds)["logits"]
    assert found.shape == (rows, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("rows", [1, *edges(2), *edges(4), 13])
def test_rounding_up_changes_no_image(plain: dict[str, OnnxEngine], rows: int, cuda_graphs: bool) -> None:
    """The same of images, also where the calls are made as for a CUDA graph."""
    found = bucketed(IMAGES, cuda_graphs=cuda_graphs).run(images(rows))["logits"]
    assert found.shape == (rows, 10)
    np.testing.assert_allclose(found, plain[IMAGES].run(images(rows))["logits"], rtol=0, atol=2e-5)


def test_buckets_are_allocated_once_and_nothing_of_a_call_stays() -> None:
    """Calls of all sizes, in any order: a bucket's memory is used again, and answers handed out are not written to."""
    engine, kept = bucketed(TEXTS), []
    for seed, (rows, tokens) in enumerate([(3, 9), (4, 16), (4, 3), (1, 5), (3, 20), (4, 32), (3, 9), (4, 16)] * 2):
        feeds = texts(rows, tokens, seed)
        logits = engine.run(feeds)["logits"]
        kept.append((feeds, logits, logits.copy()))
    assert engine.buffers == {(4, 16): 1, (1, 16): 1, (4, 32): 1}
    fresh = OnnxEngine(graph_of(TEXTS), 1)
    for feeds, logits, as_it_was in kept:
        np.testing.assert_array_equal(logits, as_it_was)
        np.testing.assert_allclose(logits, fresh.run(feeds)["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_threads_share_an_engine(plain: dict[str, OnnxEngine], cuda_graphs: bool) -> None:
    """Each gets its own answers; memory is allocated for as many calls as ran at once, of captured ones for one."""
    engine, num_threads = bucketed(IMAGES, cuda_graphs=cuda_graphs), 6
    together = threading.Barrier(num_threads)
    calls = [[images(1 + (number + call) % 4, number) for call in range(5)] for number in range(num_threads)]

    def ask(number: int) -> list[np.ndarray]:
        together.wait()
        return [engine.run(feeds)["logits"] for feeds in calls[number]]

    with ThreadPoolExecutor(num_threads) as pool:
        answers = list(pool.map(ask, range(num_threads)))
    for asked, answered in zip(calls, answers, strict=True):
        for feeds, logits in zip(asked, answered, strict=True):
            np.testing.assert_allclose(logits, plain[IMAGES].run(feeds)["logits"], rtol=0, atol=2e-5)
    assert engine.buffers.keys() == {(1, None), (2, None), (4, None)}
    assert max(engine.buffers.values()) <= (1 if cuda_graphs else num_threads)


def graph(path: Path, operator: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> Path:
    """One operator on float tensors."""
    nodes = [helper.make_node(operator, list(inputs), list(outputs))]
    tensors = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", *tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
        ),
        path,
    )
    return path


def test_outputs_of_unknown_size_are_left_to_onnx_runtime(tmp_path: Path) -> None:
    """It allocates them at each call; a CUDA graph, which writes to one place, is refused for them."""
    path = graph(tmp_path / "g.onnx", "Relu", {"x": ["n", 3]}, {"z": ["n", 3]})
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("chosen", TensorProto.BOOL, [3], [True, False, True]))
    model.graph.node.append(helper.make_node("Compress", ["z", "chosen"], ["y"], axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "any"]))
    onnx.save(model, path)
    engine = OnnxEngine(path, 1, buckets=Buckets())
    for rows in (3, 5, 3):
        x_B3 = np.random.default_rng(rows).standard_normal((rows, 3), dtype=np.float32)
        np.testing.assert_array_equal(engine.run({"x": x_B3})["y"], x_B3.clip(min=0)[:, ::2])
    with pytest.raises(EngineError, match=r"^output 'y' has a size that only a call tells"):
        OnnxEngine(path, 1, buckets=Buckets(), cuda_graphs=True)


def test_what_has_no_buckets_is_refused(tmp_path: Path) -> None:
    """A graph of one fixed batch, and one whose rows have any size where they should have one."""
    for shape in ([2, 3], ["n", "any"]):
        path = graph(tmp_path / "g.onnx", "Relu", {"x": shape}, {"y": shape})
        with pytest.raises(EngineError, match=r"^input 'x' has shape .*: no buckets are known for it$"):
            OnnxEngine(path, 1, buckets=Buckets())


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_call_that_fails_harms_none_after_it(plain: dict[str, OnnxEngine], cuda_graphs: bool) -> None:
    """Inputs that are missing or have another size: an error in words, and the bucket's memory goes on being used."""
    engine, feeds = bucketed(IMAGES, cuda_graphs=cuda_graphs), images(2)
    for wrong in ({}, {"other": feeds["pixel_values"]}, {"pixel_values": feeds["pixel_values"][..., :7]}):
        with pytest.raises(EngineError):
            engine.run(wrong)
    found = engine.run(feeds)["logits"]
    np.testing.assert_allclose(found, plain[IMAGES].run(feeds)["logits"], rtol=0, atol=2e-5)
    assert engine.buffers == {(2, None): 1}


def test_rows_and_tokens_are_rounded_up() -> None:
    """Rows to powers of two, tokens to multiples, but never beyond what the graph takes."""
    texts = Buckets(max_tokens=40)
    assert [texts.of(rows, 1)[0] for rows in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
    assert [texts.of(1, tokens)[1] for tokens in (1, 16, 17, 32, 33, 40)] == [16, 16, 32, 32, 40, 40]
    assert Buckets().of(3, None) == (4, None)


@pytest.mark.parametrize("name", [TEXTS, "sentiment", IMAGES])
def test_models_of_the_store_answer_their_golden_examples_as_on_a_gpu(name: str) -> None:
    """All that loading proves, proved of rounded calls in half precision, with the warm-up and the costs of a GPU."""
    opened: list[OnnxEngine] = []

    def open_engine(folder: ModelFolder, threads: int, device: str) -> OnnxEngine:
        assert device == "cuda"
        cuda_graphs = capture_problem(folder) is None
        assert folder.graph_name == "model.float16.onnx"
        opened.append(OnnxEngine(folder.graph, threads, buckets=buckets_of(folder), cuda_graphs=cuda_graphs))
        return opened[0]

    found = next(found for found in scan(ROOT / "model_store") if found.name == name)
    loaded = Loader(16, 1, Clock(), "cuda", open_engine).load(found)
    assert isinstance(loaded, Loaded)
    assert (loaded.precision, len(opened)) == ("float16", 1)
    if name == IMAGES:  # no bucket is left to a client's first call
        assert opened[0].buffers == {(rows, None): 1 for rows in (1, 2, 4, 8, 16)}


class Clock:
    """Goes on a little at each look."""

    now_s = 0.0

    def __call__(self) -> float:
        """The time."""
        self.now_s += 0.001
        return self.now_s


def test_what_is_captured_has_shapes_that_follow_from_the_bucket() -> None:
    """Decided by task and precision: no shape of what is captured depends on contents, one of the others does."""
    depends_on_contents = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop", "Scan"}
    operators = {node.op_type for node in onnx.load(graph_of(IMAGES)).graph.node}
    assert capture_problem(folder_of(IMAGES)) is None
    assert not operators & depends_on_contents
    operators = {node.op_type for node in onnx.load(graph_of(TEXTS)).graph.node}
    assert capture_problem(folder_of(TEXTS)) == "what is computed depends on how many tokens are real"
    assert operators & depends_on_contents


def test_calls_without_buckets_are_bound_at_any_shape(tmp_path: Path) -> None:
    """As ONNX Runtime gives them without: of every type, none and no dimension; and answers stay what they were."""
    types = [name for name in NUMPY_OF if name != "BOOL"]
    nodes = [helper.make_node("Identity", [name], [f"{name}_copy"]) for name in types]
    nodes += [helper.make_node("ReduceSum", ["FP32"], ["total"], keepdims=0), helper.make_node("Relu", ["FP32"], ["z"])]
    elements = {name: helper.np_dtype_to_tensor_dtype(NUMPY_OF[name]) for name in types}
    inputs = {name: (element, ["n", "any"]) for name, element in elements.items()}
    outputs = {f"{name}_copy": tensor for name, tensor in inputs.items()}
    floats = TensorProto.FLOAT
    write_onnx(tmp_path / "1", nodes, inputs, outputs | {"total": (floats, []), "z": (floats, ["n", "any"])})
    bound, plain = (OnnxEngine(tmp_path / "1" / GRAPH, 1, binds=binds) for binds in (True, False))
    assert (bound.binds, plain.binds, OnnxEngine(tmp_path / "1" / GRAPH, 1).binds) == (True, False, False)
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


def test_texts_are_not_bound(tmp_path: Path) -> None:
    """They lie in the host's memory, whatever computes."""
    texts = (TensorProto.STRING, ["n"])
    write_onnx(tmp_path / "1", [helper.make_node("Identity", ["text"], ["copy"])], {"text": texts}, {"copy": texts})
    engine = OnnxEngine(tmp_path / "1" / GRAPH, 1, binds=True)
    assert not engine.binds
    assert engine.run({"text": np.array(["a", "b"], dtype=object)})["copy"].tolist() == ["a", "b"]


def test_bare_graphs_have_no_buckets(tmp_path: Path) -> None:
    """Their rows are never padded."""
    (tmp_path / "bare/1").mkdir(parents=True)
    graph(tmp_path / "bare/1" / GRAPH, "Relu", {"x": ["n", 3]}, {"y": ["n", 3]})
    folder = read(scan(tmp_path)[0])
    assert buckets_of(folder) is None
    assert capture_problem(folder) is not None


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here: nothing is refused")
def test_what_was_chosen_is_said_and_never_the_cpu_instead() -> None:
    """With and without CUDA graphs: the log has the reason, and what cannot be had is an error."""
    for name, why in ((IMAGES, "refused: "), (TEXTS, "what is computed depends on how many tokens are real")):
        with capture_logs() as entries, pytest.raises(EngineError, match="CUDA"):
            open_onnx(folder_of(name), 1, "cuda")
        (entry,) = [entry for entry in entries if entry["event"] == "model is computed in buckets, without CUDA graphs"]
        assert entry["model"] == name
        assert entry["why"].startswith(why)


def test_a_call_of_low_priority_is_stopped_and_made_again(plain: dict[str, OnnxEngine]) -> None:
    """ONNX Runtime ends it by an error, and afterwards computes what it always does."""
    session = open_session(graph_of(TEXTS), 1, "cpu")
    names, feeds = [spec.name for spec in plain[TEXTS].outputs], texts(2, 9)
    told = list[bool]()
    held = threading.Event()

    def call(options: Any) -> list[Any]:
        if not told:
            preempt_background()
        told.append(options.terminate)
        held.set()
        return list(session.run(names, feeds, options))

    with ThreadPoolExecutor(1, initializer=lower_engine_priority) as thread:
        computing = thread.submit(run_session, call, "cpu")
        assert held.wait(20)
        resume_background()
        (found, *_) = computing.result(20)
    assert told == [True, False]
    np.testing.assert_array_equal(found, plain[TEXTS].run(feeds)[names[0]])
