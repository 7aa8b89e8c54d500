"""Folders are refused if their preprocessing or answers differ from those of training."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.folder import FolderError, FoundFolder
from service.models.loading import Loader
from tests.conftest import running_server


def changed_copy(original: Path, target: Path, file_name: str, change: Callable[[Any], None]) -> None:
    """Copy a folder with one JSON file changed and its checksum updated."""
    shutil.copytree(original, target)
    document = json.loads((target / file_name).read_text())
    change(document)
    (target / file_name).write_text(json.dumps(document))
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"][file_name] = hashlib.sha256((target / file_name).read_bytes()).hexdigest()
    (target / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("labels", [["NEGATIVE"], ["NEGATIVE", "NEUTRAL", "POSITIVE"]])
def test_labels_that_do_not_fit_the_graph_are_refused(labels: list[str], store: Path, tmp_path: Path) -> None:
    """Too few and too many labels are refused."""
    folder = Path(shutil.copytree(store / "sentiment/1", tmp_path / "sentiment/1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"labels": labels}))
    with pytest.raises(FolderError, match="golden example 0: 2 logits"):
        Loader(8, 1, time.thread_time).load(FoundFolder("sentiment", "1", folder))


def test_images_with_other_pixels_or_answers_are_refused(image_store: Path, tmp_path: Path) -> None:
    """A changed golden image, mean, filter, crop or logit is reported; the unchanged folder is served."""
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

    other_pixels = "preprocessing gives other pixels than in training"
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


def test_different_translations_are_refused(translation_store: Path, tmp_path: Path) -> None:
    """A changed text, score or configuration and a missing graph are reported; the unchanged folder is served."""
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
        "language": ("config.json", no_language, "config.json: target_language is missing"),
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
