"""Conversion of translation models: written folders and refusals."""

import json
from pathlib import Path
from time import perf_counter

import pytest
import torch
from rich.console import Console

from export.conversion.comparison.requirements import ConversionRefused, Precision
from export.conversion.translation import convert_translation
from export.conversion.translation_source import translation_source_of_run
from export.data.translation import ParallelTexts
from export.tasks.task import task_of
from model_store.folder import FoundFolder, read
from service.models.loaded import DecoderModel
from service.models.loading import Loader
from tests.toy_translation import toy_pairs


def test_the_manifest_has_the_measures(translation_store: Path) -> None:
    """It has both graphs, both searches, both kinds of BLEU, and the comparison with PyTorch."""
    folder = read(FoundFolder("dogs", "1", translation_store / "dogs" / "1"))
    assert folder.manifest is not None
    assert {"model.onnx", "encoder.onnx", "tokenizer.json", "generation_config.json"} <= folder.manifest.files.keys()
    measured = folder.manifest.quality["dogs"]["beam 4"]
    assert measured["bleu"] > 90
    assert measured["num_examples"] == 300
    compared = folder.manifest.quality["compared_with_pytorch"]
    assert set(compared) == {"dogs, greedy", "dogs, beam 4", "more dogs, greedy", "more dogs, beam 4"}
    assert all(comparison["max_abs_score_difference"] <= 1e-4 for comparison in compared.values())
    card = (folder.path / "README.md").read_text()
    assert "| dogs | 300 | greedy |" in card
    assert "0 of 300 translations change" in card
    assert len(folder.golden) > 3
    assert {"greedy", "beam 4"} == folder.golden[0].outputs.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "was"), [("int8", "bleu_before_quantization"), ("float16", "bleu_in_float32")])
def test_lossy_precisions_state_their_loss(
    toy_translation_run: Path, tmp_path: Path, quiet: Console, precision: Precision, was: str
) -> None:
    """The float32 figure stands beside it; the server loads the folder."""
    target = convert_translation(
        translation_source_of_run(toy_translation_run),
        task_of("translation"),
        name="dogs",
        store=tmp_path,
        compare_on={"dogs": toy_pairs(500, 4)},
        precision=precision,
        about={},
        console=quiet,
        explained=False,
        halved=False,
    )
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["precision"] == precision
    quality = manifest["quality"]["dogs"]["greedy"]
    assert quality[was] - quality["bleu"] <= 0.5
    loaded = Loader(16, 1, perf_counter).load(FoundFolder("dogs", target.name, target))
    assert isinstance(loaded, DecoderModel)


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_lossy_precisions_need_references(
    toy_translation_run: Path, tmp_path: Path, quiet: Console, precision: Precision
) -> None:
    """Without references the loss of BLEU cannot be measured."""
    with pytest.raises(ValueError, match=f"{precision} needs sentences with references"):
        convert_translation(
            translation_source_of_run(toy_translation_run),
            task_of("translation"),
            name="dogs",
            store=tmp_path / "store",
            compare_on={"dogs": ParallelTexts(toy_pairs(500, 4).source, [])},
            precision=precision,
            about={},
            console=quiet,
            explained=False,
            halved=False,
        )


def test_too_few_sentences_are_refused(toy_translation_run: Path, tmp_path: Path, quiet: Console) -> None:
    """Nothing is written."""
    with pytest.raises(ValueError, match="499 sentences to compare on, at least 500"):
        convert_translation(
            translation_source_of_run(toy_translation_run),
            task_of("translation"),
            name="dogs",
            store=tmp_path / "store",
            compare_on={"dogs": toy_pairs(499, 4)},
            precision="float32",
            about={},
            console=quiet,
            explained=False,
            halved=False,
        )
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_graphs_that_differ_from_the_model_are_refused(
    toy_translation_run: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights change between export and comparison, as by a bug of the exporter."""
    source = translation_source_of_run(toy_translation_run)
    from export.conversion import translation as module

    def export_and_change(model: torch.nn.Module, path: Path) -> None:
        export(model, path)
        with torch.no_grad():
            model.decoder[0].feed_forward.down.bias[0] += 0.5

    export = module.export_decoder_step
    monkeypatch.setattr(module, "export_decoder_step", export_and_change)
    with pytest.raises(ConversionRefused, match="ONNX is not PyTorch's model"):
        convert_translation(
            source,
            task_of("translation"),
            name="dogs",
            store=tmp_path,
            compare_on={"dogs": toy_pairs(500, 4)},
            precision="float32",
            about={},
            console=quiet,
            explained=False,
            halved=False,
        )
    assert not list(tmp_path.glob("dogs/*"))
