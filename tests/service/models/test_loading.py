"""What must not be served: folders whose preprocessing or answers are not those of training."""

import asyncio
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper
from structlog.testing import capture_logs

from model_store.folder import FolderError, FoundFolder, ModelFolder
from service.engines.onnx import OnnxEngine
from service.engines.translation import TranslationEngine
from service.models.loading import Loaded, LoadedTranslation, Loader, measure_padding_cost
from service.scheduling.batcher import Batcher
from tests.conftest import ROOT, running_server, write_endless, write_onnx


def changed_copy(original: Path, target: Path, file_name: str, change: Callable[[Any], None]) -> None:
    """The folder with one JSON file changed, its checksum put right: as a careless hand would leave it."""
    shutil.copytree(original, target)
    document = json.loads((target / file_name).read_text())
    change(document)
    (target / file_name).write_text(json.dumps(document))
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"][file_name] = hashlib.sha256((target / file_name).read_bytes()).hexdigest()
    (target / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("labels", [["NEGATIVE"], ["NEGATIVE", "NEUTRAL", "POSITIVE"]])
def test_labels_that_are_not_those_of_the_graph_are_noticed(labels: list[str], store: Path, tmp_path: Path) -> None:
    """Too few, too many."""
    folder = Path(shutil.copytree(store / "sentiment/1", tmp_path / "sentiment/1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"labels": labels}))
    with pytest.raises(FolderError, match="golden example 0: 2 logits"):
        Loader(8, 1, time.thread_time).load(FoundFolder("sentiment", "1", folder))


def test_images_that_become_other_pixels_or_other_answers_are_noticed(image_store: Path, tmp_path: Path) -> None:
    """A changed golden image, mean, filter or logit; a file that is none; and the untouched folder is served."""
    original = image_store / "vit/1"
    shutil.copytree(original, tmp_path / "untouched/1")

    def swap_images(golden: Any) -> None:
        golden[1]["inputs"], golden[3]["inputs"] = golden[3]["inputs"], golden[1]["inputs"]

    def shift_mean(config: Any) -> None:
        config["image_mean"] = [0.5, 0.5, 0.51]

    def change_filter(config: Any) -> None:
        config["resample"] = 2

    def crop(config: Any) -> None:
        config["do_center_crop"] = True

    def nudge_logit(golden: Any) -> None:
        golden[2]["outputs"]["logits"][0] += 0.001

    def put_text(golden: Any) -> None:
        golden[0]["inputs"] = {"text": "A wonderful film."}

    other_pixels = "the image becomes other pixels than in training"
    cases: dict[str, tuple[str, Callable[[Any], None], str]] = {
        "swapped": ("golden.json", swap_images, f"golden example 1: {other_pixels}"),
        "mean": ("preprocessor_config.json", shift_mean, f"golden example 0: {other_pixels}"),
        "filter": ("preprocessor_config.json", change_filter, other_pixels),
        "crop": ("preprocessor_config.json", crop, "preprocessor_config.json: do_center_crop without a crop_size"),
        "logit": ("golden.json", nudge_logit, "golden example 2 alone: logits differ by 0.001"),
        "text": ("golden.json", put_text, "golden example 0: 'image' is missing"),
    }
    for name, (file_name, change, _) in cases.items():
        changed_copy(original, tmp_path / name / "1", file_name, change)
    with running_server(tmp_path) as server:
        problems = httpx.get(f"{server.http}/readyz").raise_for_status().json()["not_served"]
    assert problems.keys() == {f"{name}/1" for name in cases}
    for name, (_, _, expected) in cases.items():
        assert expected in problems[f"{name}/1"], name


def test_a_limit_of_the_server_does_not_hide_a_model(image_store: Path) -> None:
    """Golden images may be larger than what clients may send."""
    with running_server(image_store, "--max-image-pixels", "100") as server:
        assert httpx.get(f"{server.http}/readyz").json()["not_served"] == {}
        answer = httpx.post(f"{server.http}/models/vit", content=(image_store / "vit/1/README.md").read_bytes())
        assert answer.status_code == 400


def test_translations_that_are_others_are_noticed(translation_store: Path, tmp_path: Path) -> None:
    """A changed text, score, or configuration, a graph that is missing; and the untouched folder is served."""
    original = translation_store / "dogs/1"
    shutil.copytree(original, tmp_path / "untouched/1")

    def change_text(golden: Any) -> None:
        golden[1]["inputs"]["text"] += "!"

    def nudge_score(golden: Any) -> None:
        golden[2]["outputs"]["beam 4"][0] += 0.001

    def forget_search(golden: Any) -> None:
        del golden[0]["outputs"]["greedy"]

    def other_start(config: Any) -> None:
        config["decoder_start_token_id"] = 5

    def no_language(config: Any) -> None:
        del config["target_language"]

    cases: dict[str, tuple[str, Callable[[Any], None], str]] = {
        "text": ("golden.json", change_text, "golden example 1: the tokenizer gives other ids than in training"),
        "score": ("golden.json", nudge_score, "golden example 2 in a batch, beam 4: the score differs by 0.001"),
        "search": ("golden.json", forget_search, "golden example 0 alone, greedy: the score differs by nan"),
        "start": ("generation_config.json", other_start, "alone, greedy: the score differs by"),
        "language": ("config.json", no_language, "config.json: Object missing required field `target_language`"),
    }
    for name, (file_name, change, _) in cases.items():
        changed_copy(original, tmp_path / name / "1", file_name, change)
    shutil.copytree(original, tmp_path / "headless/1")
    (tmp_path / "headless/1/encoder.onnx").unlink()
    with running_server(tmp_path) as server:
        problems = httpx.get(f"{server.http}/readyz").raise_for_status().json()["not_served"]
    assert problems.keys() == {*(f"{name}/1" for name in cases), "headless/1"}
    for name, (_, _, expected) in cases.items():
        assert expected in problems[f"{name}/1"], name
    assert "'encoder.onnx' is in the manifest, but is not a file of the folder" in problems["headless/1"]


@pytest.mark.parametrize("name", ["translation-en-de", "translation-en-de-int8"])
def test_translation_models_of_the_store_keep_their_cache_on_a_gpu(name: str) -> None:
    """Float32 or int8, a GPU gets their graphs in half precision; here it is the CPU, whose memory is the device."""
    opened: list[TranslationEngine] = []

    def open_engine(folder: ModelFolder, threads: int, device: str) -> TranslationEngine:
        assert device == "cuda"
        opened.append(TranslationEngine(folder.encoder, folder.graph, threads, max_tokens=256, keeps_on_device=True))
        return opened[0]

    found = FoundFolder(name, "1", ROOT / "model_store" / name / "1")
    loaded = Loader(16, 1, time.perf_counter, "cuda", open_translation_engine=open_engine).load(found)
    assert isinstance(loaded, LoadedTranslation)
    assert (loaded.precision, loaded.cache_place, opened[0].dtype) == ("float16", "device", np.float16)
    assert opened[0].encoder_buffers
    on_a_cpu = Loader(16, 1, time.perf_counter).load(found)
    assert isinstance(on_a_cpu, LoadedTranslation)
    assert (on_a_cpu.precision, on_a_cpu.cache_place) == ("int8" if "int8" in name else "float32", "host")


def test_graphs_in_half_precision_that_fail_leave_it_to_the_others(tmp_path: Path) -> None:
    """Those whose golden examples hold are served, and the log says why not the ones for GPUs."""

    def open_engine(folder: ModelFolder, threads: int, device: str) -> OnnxEngine:
        return OnnxEngine(folder.graph, threads)

    folder = Path(shutil.copytree(ROOT / "model_store/sentiment-small/1", tmp_path / "sentiment/1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["float16"]["tolerance"]["max_abs_logit_difference"] = 1e-9
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with capture_logs() as entries:
        loaded = Loader(8, 1, time.thread_time, "cuda", open_engine).load(FoundFolder("sentiment", "1", folder))
    assert isinstance(loaded, Loaded)
    assert loaded.precision == "float32"
    (entry,) = [entry for entry in entries if entry["event"] == "model is not served in half precision"]
    assert "golden example 0 alone: logits differ by" in entry["why"]


def load_bare(folder: Path) -> Loaded:
    """A bare model, as a server with one engine thread loads it."""
    loaded = Loader(8, 1, time.thread_time).load(FoundFolder("bare", "1", folder))
    assert isinstance(loaded, Loaded)
    return loaded


async def test_only_small_rows_are_computed_in_the_event_loop(tmp_path: Path) -> None:
    """What small rows cost says nothing of large ones, of which one can take seconds."""
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
    """Steps of time, each of which depends on those before it: requests that come together do not become one series."""
    series = {"x": (TensorProto.FLOAT, ["steps", 1])}
    axis = helper.make_node("Constant", [], ["axis"], value_int=0)
    nodes = [axis, helper.make_node("CumSum", ["x", "axis"], ["y"])]
    write_onnx(tmp_path / "store/sums/1", nodes, series, {"y": series["x"]})
    loaded = load_bare(tmp_path / "store/sums/1")
    batcher = Batcher(loaded.run, probe=loaded.probe, costs=loaded.costs, skipped_padding_cost=0.0)
    items = loaded.task.items({"x": np.ones((3, 1), np.float32)})
    answers = await asyncio.gather(*(batcher.submit(items) for _ in range(4)))
    batcher.close()
    assert [done.result["y"].ravel().tolist() for (done,) in answers] == [[1, 2, 3]] * 4
    with running_server(tmp_path / "store") as server:
        entry = server.wait_for("model is served without batching", model="sums", version="1")
    assert entry["why"] == "not joined: CumSum 'y' accumulates along the batch axis"


@pytest.mark.parametrize(("truth", "expected"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (7.0, 1.0), (-0.2, 0.0)])
def test_what_skipped_padding_costs_is_measured(truth: float, expected: float) -> None:
    """As a share of a real token, from calls with and without padding; disturbed calls do not count."""
    now_s, disturbances = 0.0, iter([0.5, 0.0, 0.0, 2.0, 0.0, 0.0])

    def run(lengths: list[int]) -> list[int]:
        nonlocal now_s
        padding = len(lengths) * max(lengths) - sum(lengths)
        now_s += 1e-4 * (sum(lengths) + truth * padding) + next(disturbances)
        return lengths

    found = measure_padding_cost(run, lambda length: length, 512, lambda: now_s)
    assert found == pytest.approx(expected)


def test_a_model_too_short_for_the_padded_probe_is_not_asked() -> None:
    """It could not take the probe's longest row."""
    assert measure_padding_cost(lambda items: pytest.fail("asked"), lambda length: length, 25, lambda: 0.0) == 0.0


def test_a_model_that_never_loads_keeps_no_other_waiting(store: Path, tmp_path: Path) -> None:
    """After its time it is not served, says so, and the server is ready."""
    shutil.copytree(store / "double", tmp_path / "double")
    write_endless(tmp_path / "endless/1")
    with running_server(tmp_path, "--load-timeout-s", "1") as server:
        ready = httpx.get(f"{server.http}/readyz").raise_for_status().json()
        assert ready["not_served"] == {"endless/1": "loading has taken more than 1 s (load_timeout_s)"}
        assert httpx.get(f"{server.http}/v2/models/double/ready").status_code == 200


@pytest.mark.parametrize("max_tokens", [0, 131_073, 1_000_000_000])
def test_a_length_that_no_text_has_is_refused(max_tokens: int, store: Path, tmp_path: Path) -> None:
    """Costs are kept for each length: a claim of a billion would never be loaded."""
    folder = Path(shutil.copytree(store / "sentiment/1", tmp_path / "sentiment/1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"limits": {"max_tokens": max_tokens}}))
    with pytest.raises(FolderError, match=f"limits.max_tokens is {max_tokens}; this server takes 1 to 131072"):
        Loader(8, 1, time.thread_time).load(FoundFolder("sentiment", "1", folder))


def test_batching_cannot_be_declared_for_a_translation_model(tmp_path: Path) -> None:
    """A declaration without effect would be a silent one: sentences join and leave a running batch."""
    shutil.copytree(ROOT / "model_store/translation-en-de/1", tmp_path / "translation/1")
    (tmp_path / "translation/policy.toml").write_text("[batching]\nrows_independent = false\n")
    with pytest.raises(FolderError, match="policy.toml: batching cannot be declared for a translation model"):
        Loader(8, 1, time.thread_time).load(FoundFolder("translation", "1", tmp_path / "translation/1"))
