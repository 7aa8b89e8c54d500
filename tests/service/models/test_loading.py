"""Loading chooses graphs, refuses folders, and decides how bare models are batched."""

import asyncio
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper
from structlog.testing import capture_logs

from model_store.folder import FolderError, FoundFolder, ModelFolder
from service.engines.host import EngineHost
from service.engines.onnx import OnnxEngine
from service.engines.preemption import Preemption
from service.engines.translation import TranslationEngine
from service.models.loaded import DecoderModel, OneCallModel
from service.models.loading import Loader
from service.scheduling.batcher import Batcher
from tests.conftest import ROOT, running_server, write_endless, write_onnx


def test_a_limit_of_the_server_does_not_hide_a_model(image_store: Path) -> None:
    """Golden images may be larger than what clients may send."""
    with running_server(image_store, "--max-image-pixels", "100") as server:
        assert httpx.get(f"{server.http}/readyz").json()["not_served"] == {}
        answer = httpx.post(f"{server.http}/models/vit", content=(image_store / "vit/1/README.md").read_bytes())
        assert answer.status_code == 400


@pytest.mark.parametrize("name", ["translation-en-de", "translation-en-de-int8"])
def test_translation_models_of_the_store_keep_their_cache_on_a_gpu(name: str) -> None:
    """Float32 or int8, a GPU gets their graphs in half precision; here it is the CPU, whose memory is the device."""
    opened: list[TranslationEngine] = []

    def open_engine(folder: ModelFolder, threads: int, host: EngineHost) -> TranslationEngine:
        assert host.device == "cuda"
        opened.append(
            TranslationEngine(
                folder.encoder, folder.graph, threads, host.on_cpu(), max_tokens=256, keeps_on_device=True
            )
        )
        return opened[0]

    found = FoundFolder(name, "1", ROOT / "model_store" / name / "1")
    loaded = Loader(16, 1, time.perf_counter, EngineHost("cuda"), open_translation_engine=open_engine).load(found)
    assert isinstance(loaded, DecoderModel)
    assert (loaded.precision, loaded.cache_place, opened[0].dtype) == ("float16", "device", np.float16)
    assert opened[0].encoder_buffers
    on_a_cpu = Loader(16, 1, time.perf_counter).load(found)
    assert isinstance(on_a_cpu, DecoderModel)
    assert (on_a_cpu.precision, on_a_cpu.cache_place) == ("int8" if "int8" in name else "float32", "host")


def test_graphs_in_half_precision_that_fail_leave_it_to_the_others(tmp_path: Path) -> None:
    """The graphs that pass are served, and the log says why those for GPUs are not."""

    def open_engine(folder: ModelFolder, threads: int, host: EngineHost) -> OnnxEngine:
        return OnnxEngine(folder.graph, threads, host.on_cpu())

    folder = Path(shutil.copytree(ROOT / "model_store/sentiment-small/1", tmp_path / "sentiment/1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["float16"]["tolerance"]["max_abs_logit_difference"] = 1e-9
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with capture_logs() as entries:
        loaded = Loader(8, 1, time.thread_time, EngineHost("cuda"), open_engine).load(
            FoundFolder("sentiment", "1", folder)
        )
    assert isinstance(loaded, OneCallModel)
    assert loaded.precision == "float32"
    (entry,) = [entry for entry in entries if entry["event"] == "model is not served in half precision"]
    assert "golden example 0 alone: logits differ by" in entry["why"]


def load_bare(folder: Path) -> OneCallModel:
    """Load a bare model as a server with one engine thread does."""
    loaded = Loader(8, 1, time.thread_time).load(FoundFolder("bare", "1", folder))
    assert isinstance(loaded, OneCallModel)
    return loaded


async def test_only_small_rows_are_computed_in_the_event_loop(tmp_path: Path) -> None:
    """The cost of small rows does not predict that of large ones, which can take seconds."""
    square = {"x": (TensorProto.FLOAT, ["rows", "side", "side"])}
    write_onnx(
        tmp_path / "1",
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        square,
        {"y": (TensorProto.FLOAT, square["x"][1])},
    )
    loaded = load_bare(tmp_path / "1")
    threads: list[int] = []

    def run(items: list[Any]) -> list[Any]:
        threads.append(threading.get_ident())
        return loaded.run(items)

    batcher = Batcher(
        run,
        probe=loaded.probe,
        costs=loaded.costs,
        preemption=Preemption(),
        skipped_padding_cost=0.0,
        engine_clock=lambda: 0.0,  # small rows are quick, however busy the machine is
        cost_follows_from_shapes=loaded.batching.constant_cost,
    )

    async def computed_here(side: int) -> bool:
        await batcher.submit(loaded.task.items({"x": np.ones((1, side, side), np.float32)}))
        return threads[-1] == threading.get_ident()

    # Once the size has proved quick. A call in the event loop that is interrupted for long lets it prove that again.
    assert any([await computed_here(2) for _ in range(200)])
    assert not await computed_here(500)
    assert any([await computed_here(2) for _ in range(200)])
    batcher.close()


async def test_a_first_dimension_that_is_no_batch_is_left_alone(tmp_path: Path) -> None:
    """Time steps depend on earlier ones, so concurrent requests must not be joined to one series."""
    series = {"x": (TensorProto.FLOAT, ["steps", 1])}
    axis = helper.make_node("Constant", [], ["axis"], value_int=0)
    nodes = [axis, helper.make_node("CumSum", ["x", "axis"], ["y"])]
    write_onnx(tmp_path / "store/sums/1", nodes, series, {"y": series["x"]})
    loaded = load_bare(tmp_path / "store/sums/1")
    batcher = Batcher(
        loaded.run, probe=loaded.probe, costs=loaded.costs, preemption=Preemption(), skipped_padding_cost=0.0
    )
    items = loaded.task.items({"x": np.ones((3, 1), np.float32)})
    answers = await asyncio.gather(*(batcher.submit(items) for _ in range(4)))
    batcher.close()
    assert [done.result["y"].ravel().tolist() for (done,) in answers] == [[1, 2, 3]] * 4
    with running_server(tmp_path / "store") as server:
        entry = server.wait_for("model is served without batching", model="sums", version="1")
    assert entry["why"] == "not joined: CumSum 'y' accumulates along the batch axis"


def test_a_model_that_never_loads_keeps_no_other_waiting(store: Path, tmp_path: Path) -> None:
    """After the time limit it is not served, its problem is reported, and the server is ready."""
    shutil.copytree(store / "double", tmp_path / "double")
    write_endless(tmp_path / "endless/1")
    with running_server(tmp_path, "--load-timeout-s", "1") as server:
        ready = httpx.get(f"{server.http}/readyz").raise_for_status().json()
        assert ready["not_served"] == {"endless/1": "loading took more than 1 s (load_timeout_s)"}
        assert httpx.get(f"{server.http}/v2/models/double/ready").status_code == 200


@pytest.mark.parametrize("max_tokens", [0, 131_073, 1_000_000_000])
def test_a_length_that_no_text_has_is_refused(max_tokens: int, store: Path, tmp_path: Path) -> None:
    """Costs are kept for each length, so a model that claims a billion would never load."""
    folder = Path(shutil.copytree(store / "sentiment/1", tmp_path / "sentiment/1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"limits": {"max_tokens": max_tokens}}))
    with pytest.raises(FolderError, match=f"limits.max_tokens is {max_tokens}; this server takes 1 to 131072"):
        Loader(8, 1, time.thread_time).load(FoundFolder("sentiment", "1", folder))


def test_batching_cannot_be_declared_for_a_translation_model(tmp_path: Path) -> None:
    """It would have no effect, because sentences join and leave a running batch."""
    shutil.copytree(ROOT / "model_store/translation-en-de/1", tmp_path / "translation/1")
    (tmp_path / "translation/policy.toml").write_text("[batching]\nrows_independent = false\n")
    with pytest.raises(FolderError, match="policy.toml: batching cannot be declared for a translation model"):
        Loader(8, 1, time.thread_time).load(FoundFolder("translation", "1", tmp_path / "translation/1"))


def test_labels_beside_a_bare_graph_name_its_classes(tmp_path: Path) -> None:
    """They belong to outputs with as many classes; without such an output, or with an empty line, it is refused."""
    shape = (TensorProto.FLOAT, ["rows", 2])
    write_onnx(tmp_path / "1", [helper.make_node("Neg", ["x"], ["y"])], {"x": shape}, {"y": shape})
    loader, found = Loader(16, 1, time.perf_counter), FoundFolder("negative", "1", tmp_path / "1")
    assert loader.load(found).task.labels == ()
    (tmp_path / "1/labels.txt").write_text("cat\nüßer dog\n")
    task = loader.load(found).task
    assert (task.labels, task.outputs[0].labels) == (("cat", "üßer dog"),) * 2
    for text, why in (
        ("", "is empty"),
        ("cat\n", "has 1 names, and no output has as many classes"),
        ("cat\n\n", "line 2 is empty"),
    ):
        (tmp_path / "1/labels.txt").write_text(text)
        with pytest.raises(FolderError, match=f"labels.txt.*{why}"):
            loader.load(found)
