"""Calls rounded up to buckets answer like calls in their own shape; the CPU computes here what a GPU does."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.engines.bucketed_session import TOKEN_STEP, Buckets
from service.engines.host import EngineHost
from service.engines.onnx import OnnxEngine
from service.engines.onnx_session import EngineError
from service.models.engine_opening import buckets_of
from tests.service.engines.store_models import IMAGES, TEXTS, folder_of, graph_of, images, one_operator, texts

MAX_TOKENS = 128


@pytest.fixture(scope="module")
def plain() -> dict[str, OnnxEngine]:
    """Engines that compute each call in its own shape."""
    return {name: OnnxEngine(graph_of(name), 1, EngineHost()) for name in (TEXTS, IMAGES)}


def bucketed(name: str, **options: Any) -> OnnxEngine:
    """Load an engine that rounds its calls up, set up as on a GPU."""
    return OnnxEngine(graph_of(name), 1, EngineHost(), buckets=buckets_of(folder_of(name)), **options)


def edges(number: int) -> list[int]:
    """Return the largest size of a bucket and the smallest of the next."""
    return [number, number + 1]


@pytest.mark.parametrize("rows", [1, 3, *edges(4), *edges(8), 33])
@pytest.mark.parametrize("tokens", [1, *edges(TOKEN_STEP), *edges(4 * TOKEN_STEP), MAX_TOKENS])
def test_rounding_up_changes_no_text(plain: dict[str, OnnxEngine], rows: int, tokens: int) -> None:
    """The logits are those of the call in its own shape, and padding rows give none."""
    feeds = texts(rows, tokens)
    found, expected = bucketed(TEXTS).run(feeds)["logits"], plain[TEXTS].run(feeds)["logits"]
    assert found.shape == (rows, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("rows", [1, *edges(2), *edges(4), 13])
def test_rounding_up_changes_no_image(plain: dict[str, OnnxEngine], rows: int, cuda_graphs: bool) -> None:
    """Rounding up changes no logits of images either, also where one thread makes all calls as for CUDA graphs."""
    found = bucketed(IMAGES, cuda_graphs=cuda_graphs).run(images(rows))["logits"]
    assert found.shape == (rows, 10)
    np.testing.assert_allclose(found, plain[IMAGES].run(images(rows))["logits"], rtol=0, atol=2e-5)


def test_buckets_are_allocated_once_and_calls_leave_nothing_behind() -> None:
    """Calls of all sizes in any order reuse a bucket's memory, and later calls do not overwrite returned answers."""
    engine, kept = bucketed(TEXTS), []
    for seed, (rows, tokens) in enumerate([(3, 9), (4, 16), (4, 3), (1, 5), (3, 20), (4, 32), (3, 9), (4, 16)] * 2):
        feeds = texts(rows, tokens, seed)
        logits = engine.run(feeds)["logits"]
        kept.append((feeds, logits, logits.copy()))
    assert engine.buffers == {(4, 16): 1, (1, 16): 1, (4, 32): 1}
    fresh = OnnxEngine(graph_of(TEXTS), 1, EngineHost())
    for feeds, logits, as_it_was in kept:
        np.testing.assert_array_equal(logits, as_it_was)
        np.testing.assert_allclose(logits, fresh.run(feeds)["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_threads_share_an_engine(plain: dict[str, OnnxEngine], cuda_graphs: bool) -> None:
    """Each thread gets its own answers; a bucket has at most a buffer a thread, and one where graphs are captured."""
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


def test_outputs_of_unknown_size_are_left_to_onnx_runtime(tmp_path: Path) -> None:
    """ONNX Runtime allocates them for each call; CUDA graphs, which write to fixed memory, are refused."""
    path = one_operator(tmp_path / "g.onnx", "Relu", {"x": ["n", 3]}, {"z": ["n", 3]})
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("chosen", TensorProto.BOOL, [3], [True, False, True]))
    model.graph.node.append(helper.make_node("Compress", ["z", "chosen"], ["y"], axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "any"]))
    onnx.save(model, path)
    engine = OnnxEngine(path, 1, EngineHost(), buckets=Buckets())
    for rows in (3, 5, 3):
        x_B3 = np.random.default_rng(rows).standard_normal((rows, 3), dtype=np.float32)
        np.testing.assert_array_equal(engine.run({"x": x_B3})["y"], x_B3.clip(min=0)[:, ::2])
    with pytest.raises(EngineError, match=r"^output 'y' has a size that is known only after a call"):
        OnnxEngine(path, 1, EngineHost(), buckets=Buckets(), cuda_graphs=True)


def test_what_has_no_buckets_is_refused(tmp_path: Path) -> None:
    """A graph with a fixed batch size is refused, and one whose rows have any size where one is needed."""
    for shape in ([2, 3], ["n", "any"]):
        path = one_operator(tmp_path / "g.onnx", "Relu", {"x": shape}, {"y": shape})
        with pytest.raises(EngineError, match=r"^input 'x' has shape .*: it fits no bucket$"):
            OnnxEngine(path, 1, EngineHost(), buckets=Buckets())


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_call_that_fails_harms_none_after_it(plain: dict[str, OnnxEngine], cuda_graphs: bool) -> None:
    """Missing inputs and wrong sizes raise `EngineError`, and later calls use the bucket's memory again."""
    engine, feeds = bucketed(IMAGES, cuda_graphs=cuda_graphs), images(2)
    for wrong in ({}, {"other": feeds["pixel_values"]}, {"pixel_values": feeds["pixel_values"][..., :7]}):
        with pytest.raises(EngineError):
            engine.run(wrong)
    found = engine.run(feeds)["logits"]
    np.testing.assert_allclose(found, plain[IMAGES].run(feeds)["logits"], rtol=0, atol=2e-5)
    assert engine.buffers == {(2, None): 1}


def test_rows_and_tokens_are_rounded_up() -> None:
    """Rows become powers of two; tokens become multiples, but never more than the graph takes."""
    texts = Buckets(max_tokens=40)
    assert [texts.of(rows, 1)[0] for rows in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
    assert [texts.of(1, tokens)[1] for tokens in (1, 16, 17, 32, 33, 40)] == [16, 16, 32, 32, 40, 40]
    assert Buckets().of(3, None) == (4, None)
