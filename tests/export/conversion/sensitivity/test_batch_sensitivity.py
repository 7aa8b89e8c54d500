"""int8 folders state how much their answers change with the other items of a batch."""

import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from export.__main__ import main
from export.conversion.classifier import convert
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_source import text_source_of_run
from export.conversion.sensitivity.batch_sensitivity import card_of_batch_sensitivity, invented_texts
from export.tasks.task import task_of
from model_store.folder import BatchSensitivity, FoundFolder, Manifest, read
from tests.conftest import ROOT
from tests.export.conftest import toy_data


@pytest.fixture(scope="module")
def converted_to_int8(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy classifier in int8."""
    validation = toy_data().validation
    return convert(
        text_source_of_run(toy_run),
        task_of("text-classification"),
        name="toy",
        store=tmp_path_factory.mktemp("store"),
        compare_on=validation.texts,
        labelled=validation,
        precision="int8",
        about={},
        console=Console(quiet=True),
        explained=False,
        halved=False,
    )


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a folder that is served."""
    manifest = read(FoundFolder(folder.parent.name, folder.name, folder)).manifest
    assert manifest is not None
    return manifest


def test_conversion_to_int8_measures_batch_sensitivity(converted_to_int8: Path) -> None:
    """Manifest and card have the worst and the mean change of the probability, and how they were measured."""
    found = manifest_of(converted_to_int8).batch_sensitivity
    assert found is not None
    assert 0 < found.mean < found.worst_in_random_company <= found.worst < 1
    assert (found.score, found.num_items, found.batch_sizes) == ("probability", 512, [2, 8, 32, 64])
    assert found.num_answers == 4 * 512
    card = (converted_to_int8 / "README.md").read_text()
    assert f"not independent, worst change {found.worst:.3f}" in card
    assert f"{found.answers_changed} of {found.num_answers} labels change" in card


def test_measure_batches_changes_only_manifest_and_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted_to_int8: Path
) -> None:
    """`measure-batches` rewrites the figures in manifest and card, each once, and leaves all other files."""
    folder = Path(shutil.copytree(converted_to_int8, tmp_path / "toy/1"))
    before = manifest_of(folder)
    write = msgspec.structs.replace(before, batch_sensitivity=None)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(write))
    monkeypatch.setattr("export.__main__.material_of", lambda manifest: {"validation": toy_data().validation})
    monkeypatch.setattr(sys, "argv", ["export", "measure-batches", str(folder)])
    assert main() == 0
    after = manifest_of(folder)
    assert after == before
    assert (folder / "README.md").read_text() == (converted_to_int8 / "README.md").read_text()


def test_a_version_in_float32_is_not_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 answers do not depend on the batch: the command refuses, and leaves the folder unchanged."""
    monkeypatch.setattr(sys, "argv", ["export", "measure-batches", str(ROOT / "model_store/sentiment-small/1")])
    assert main() == 1
    assert "is in float32" in capsys.readouterr().err


def test_float32_has_no_card_section() -> None:
    """A manifest without figures adds nothing to the card."""
    manifest = manifest_of(ROOT / "model_store/sentiment-small/1")
    assert card_of_batch_sensitivity(manifest, task_of(manifest.task)) == ""


@pytest.mark.parametrize("folder", sorted((ROOT / "model_store").glob("*/[0-9]*")), ids=lambda path: path.parent.name)
def test_committed_int8_models_state_their_sensitivity(folder: Path) -> None:
    """Manifest and card of every committed int8 model have the figures; the other models have none."""
    manifest = manifest_of(folder)
    assert (manifest.batch_sensitivity is not None) == (manifest.precision == "int8")
    assert card_of_batch_sensitivity(manifest, task_of(manifest.task)) in (folder / "README.md").read_text()
    if isinstance(manifest.batch_sensitivity, BatchSensitivity):
        assert 0 < manifest.batch_sensitivity.mean < manifest.batch_sensitivity.worst < 1


def test_invented_texts_are_unlike_sentences() -> None:
    """Single words, long texts and repetitions come from the model's own vocabulary; every call gives the same ones."""
    texts = invented_texts(ROOT / "model_store/sentiment-small/1", 3, 40)
    assert texts == invented_texts(ROOT / "model_store/sentiment-small/1", 3, 40)
    assert not set(texts) & set(made_up_sentences(100))
    words = [len(text.split()) for text in texts]
    assert (min(words), max(words)) == (1, 40)
    assert any(len(set(text.split())) == 1 and len(text.split()) > 1 for text in texts)
