"""docs/models.md is written from the records of real runs."""

import json
import shutil
from pathlib import Path

from rich.console import Console

from export.studies.model_report import report
from export.training.image_classifier import train_image_classifier
from tests.conftest import ROOT
from tests.export.training.test_image_classifier import toy_config as bars_config
from tests.export.training.test_image_classifier import toy_data as bars


def test_image_runs_have_their_own_section(tmp_path: Path, quiet: Console) -> None:
    """The section has accuracy on compressed and moved images, and precision and recall by class."""
    assert train_image_classifier(bars(), bars_config(epochs=1), tmp_path / "runs" / "bars", quiet)
    report(tmp_path / "runs", tmp_path / "docs", tmp_path / "store", quiet)
    record = json.loads((tmp_path / "docs" / "runs" / "bars.json").read_text())
    page = (tmp_path / "docs" / "models.md").read_text()
    for split in ("quality", "quality_jpeg", "quality_moved"):
        assert f"{100 * record[split]['accuracy']:.2f}" in page
    matrix = record["quality"]["confusion_matrix"]
    assert f"| bars | upright | {100 * matrix[0][0] / max(1, sum(row[0] for row in matrix)):.1f} |" in page


def test_translation_runs_have_both_kinds_of_bleu(toy_translation_run: Path, tmp_path: Path, quiet: Console) -> None:
    """Figures stand by test split and search, with their signatures."""
    shutil.copytree(toy_translation_run, tmp_path / "runs" / "dogs")
    report(tmp_path / "runs", tmp_path / "docs", tmp_path / "store", quiet)
    page = (tmp_path / "docs" / "models.md").read_text()
    for search in ("greedy", "beam 5"):
        measured = json.loads((tmp_path / "docs" / "runs" / "dogs.json").read_text())["quality"]["dogs"][search]
        figures = f"{measured['bleu']:.2f} ± {measured['bleu_confidence']:.2f} | {measured['chrf']:.2f} ±"
        assert f"| dogs | dogs (n = 60) | {search} | {figures}" in page
    assert "tok:13a" in page
    assert "tok:none" in page
    assert (tmp_path / "docs" / "models-translation-curves.png").exists()


def test_the_page_has_the_figures_of_the_records(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """Records of finished runs are copied and kept after the run folders are gone; unfinished runs are left out."""
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    shutil.copytree(toy_run, runs / "toy")
    (runs / "unfinished").mkdir()
    (runs / "own").mkdir()
    (runs / "own" / "result.json").write_text('{"data_document": {"format": 1}}')
    report(runs, docs, tmp_path / "store", quiet)
    record = json.loads((docs / "runs" / "toy.json").read_text())
    page = (docs / "models.md").read_text()
    for figure in (
        f"{100 * record['quality']['accuracy']:.2f}",
        f"{record['quality']['f1_macro']:.4f}",
        record["commit"],
        record["hardware"],
    ):
        assert figure in page
    threads, processor = record["hardware"].split(" threads of ")
    hours = int(threads) * record["training_s"] / 3600
    assert f"the 1 runs on this page, without validation: {hours:.1f} thread hours on {processor}." in page
    assert "unfinished" not in page
    assert not (docs / "runs" / "own.json").exists()
    assert sorted(path.suffix for path in docs.glob("*.png")) == [".png", ".png"]
    report(tmp_path / "nothing", docs, tmp_path / "store", quiet)
    assert (docs / "models.md").read_text() == page
    report(runs, docs, ROOT / "model_store", quiet)
    card = json.loads((ROOT / "model_store/sentiment-small/1/manifest.json").read_text())
    everyday = "everyday sentences (tests/data)"
    figure = f"| {everyday} (n = 206) | accuracy {100 * card['quality'][everyday]['accuracy']:.2f} ("
    assert figure in (docs / "models.md").read_text()
