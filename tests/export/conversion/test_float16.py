"""float16 graphs are made from a folder alone: their outputs, weights and quality."""

import json
import shutil
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from rich.console import Console

from export.__main__ import main
from export.conversion import float16
from export.conversion.classifier import convert, export_onnx
from export.conversion.comparison.requirements import Precision
from export.conversion.float16 import HalfPrecisionRefused, add_float16_graphs, add_to_store, in_float32
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_source import text_source_of_run
from export.conversion.text_source import TextClassifierSource
from export.conversion.translation import convert_translation
from export.conversion.translation_source import translation_source_of_run
from export.onnx_graphs.import_weights import StoredGraph
from export.onnx_graphs.passes import halve_exact_weights, quantize
from export.tasks.task import task_of
from model_store.folder import CARD, ModelFolder, read, scan, sha256
from service.engines.host import EngineHost
from service.engines.translation import TranslationEngine
from service.models.loaded import DecoderModel
from service.models.loading import Loader
from tests.conftest import ROOT
from tests.export.conftest import toy_data
from tests.export.conversion.outputs import onnx_logits
from tests.toy_translation import toy_pairs


@pytest.fixture(scope="module")
def source(toy_run: Path) -> TextClassifierSource:
    """The finished toy run."""
    return text_source_of_run(toy_run)


def converted(source: TextClassifierSource, store: Path, console: Console, precision: Precision = "float32") -> Path:
    """Write a folder of the toy model with its float16 graph."""
    validation = toy_data().validation
    return convert(
        source,
        task_of("text-classification"),
        name="toy",
        store=store,
        compare_on=validation.texts,
        labelled=validation,
        precision=precision,
        about={},
        console=console,
        explained=False,
    )


def folder_in(store: Path) -> ModelFolder:
    """Read the last version of the only model."""
    return read(scan(store)[-1])


def kept_in(graph: Path) -> list[int]:
    """Return the sizes in bytes of the constants that the graph itself stores."""
    model = onnx.load(graph, load_external_data=False)
    external = onnx.TensorProto.EXTERNAL
    return [numpy_helper.to_array(each).nbytes for each in model.graph.initializer if each.data_location != external]


def test_stored_weights_are_restored_to_float32(source: TextClassifierSource, tmp_path: Path) -> None:
    """float16 weights are bit-identical, int8 ones dequantized; no node that quantizes or scales is left."""
    texts, path = made_up_sentences(64), tmp_path / "model.onnx"

    def logits() -> np.ndarray:
        return onnx_logits(source, path, texts)

    export_onnx(source, path)
    exported, as_exported = logits(), path.read_bytes()
    halve_exact_weights(path)
    halves = StoredGraph(path).stored
    onnx.save(in_float32(onnx.load(path)), path)
    assert not any(name.endswith(".half") for name in StoredGraph(path).stored)
    assert any(name.endswith(".half") for name in halves)
    np.testing.assert_array_equal(logits(), exported)

    path.write_bytes(as_exported)
    quantize(path)
    quantized, weights = logits(), StoredGraph(path).arrays
    whole = in_float32(onnx.load(path))
    assert not {node.op_type for node in whole.graph.node} & {
        "MatMulInteger",
        "DynamicQuantizeLinear",
        "DequantizeLinear",
    }
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    made = [name for name in found if name.endswith(".whole")]
    assert len(made) >= 6
    for name in made:
        np.testing.assert_array_equal(found[name], weights[name.removesuffix(".whole")])
    onnx.save(whole, path)
    # Without the rounding of activations, closer to what it was quantized from.
    assert np.abs(logits() - exported).max() < np.abs(quantized - exported).max()


@pytest.mark.slow
def test_unknown_int8_operators_are_refused(source: TextClassifierSource, tmp_path: Path, quiet: Console) -> None:
    """Operators that ONNX Runtime cannot load are refused too; the folder stays unchanged."""
    folder = converted(source, tmp_path, quiet, "int8")
    manifest, served = folder_in(tmp_path).manifest, (folder / "model.onnx").read_bytes()
    assert manifest is not None
    material = {"validation": toy_data().validation}
    for operator, expected in (("QLinearMatMul", "in place of QLinearMatMul"), ("Unheard", "ONNX Runtime refuses it")):
        model = onnx.load_from_string(served)
        next(node for node in model.graph.node if node.op_type == "LayerNormalization").op_type = operator
        onnx.save(model, folder / "model.onnx")
        with pytest.raises(HalfPrecisionRefused, match=expected):
            add_float16_graphs(folder, manifest, task_of(manifest.task), material, quiet)
        assert not list(folder.glob("*.float16.onnx"))


@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_converted_classifier_has_a_float16_graph(
    precision: Precision, source: TextClassifierSource, tmp_path: Path, quiet: Console
) -> None:
    """It stores hardly any weight, its quality is in manifest and card, and it answers like the served graph."""
    folder = converted(source, tmp_path, quiet, precision)
    opened = folder_in(tmp_path)
    halved = opened.in_half_precision()
    assert opened.manifest is not None
    assert opened.manifest.float16 is not None
    assert halved is not None
    graph = folder / halved.graph_name
    assert max(kept_in(graph)) < 256
    assert graph.stat().st_size < 50_000
    measured = opened.manifest.float16.quality["validation"]
    assert measured["num_examples"] == 600
    assert measured[f"accuracy_in_{precision}"] - measured["accuracy"] <= 0.005
    assert 0 < measured["max_abs_logit_difference_to_float32"] < 0.1
    assert "A GPU computes `model.float16.onnx`" in (folder / CARD).read_text()
    texts = made_up_sentences(64)
    difference = np.abs(onnx_logits(source, graph, texts) - onnx_logits(source, folder / "model.onnx", texts))
    assert (
        0 < difference.max() <= (0.02 if precision == "float32" else opened.manifest.tolerance.max_abs_logit_difference)
    )
    kinds = {node.type for node in onnxruntime.InferenceSession(graph).get_inputs()}
    assert kinds == {"tensor(int64)"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_converted_translation_model_has_float16_graphs(
    precision: Precision, toy_translation_run: Path, tmp_path: Path, quiet: Console
) -> None:
    """Their keys and values are in half precision, so that a GPU keeps them; the server loads them."""
    folder = convert_translation(
        translation_source_of_run(toy_translation_run),
        task_of("translation"),
        name="dogs",
        store=tmp_path,
        compare_on={"dogs": toy_pairs(500, 4)},
        precision=precision,
        about={},
        console=quiet,
        explained=False,
    )
    manifest = folder_in(tmp_path).manifest
    assert manifest is not None
    assert manifest.float16 is not None
    for graph in ("model.float16.onnx", "encoder.float16.onnx"):
        assert max(kept_in(folder / graph)) < 256
    for search in ("greedy", "beam 4"):
        measured = manifest.float16.quality["dogs"][search]
        assert measured[f"bleu_in_{precision}"] - measured["bleu"] <= 0.5
        assert measured["num_examples"] == 500
    assert "dogs, n = 500, beam 4: BLEU" in (folder / CARD).read_text()

    def open_engine(folder: ModelFolder, threads: int, host: EngineHost) -> TranslationEngine:
        return TranslationEngine(
            folder.encoder, folder.graph, threads, host.on_cpu(), max_tokens=64, keeps_on_device=True
        )

    loaded = Loader(16, 1, perf_counter, EngineHost("cuda"), open_translation_engine=open_engine).load(
        scan(tmp_path)[-1]
    )
    assert isinstance(loaded, DecoderModel)
    assert (loaded.precision, loaded.cache_place) == ("float16", "device")


@pytest.mark.slow
def test_float16_graphs_with_too_much_loss_are_left_out(
    source: TextClassifierSource, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversion continues without them; the command refuses, and leaves the folder unchanged."""
    with_it = converted(source, tmp_path / "with", quiet)
    before = {file.name: sha256(file) for file in with_it.iterdir()}
    monkeypatch.setattr(float16, "MAX_ACCURACY_LOSS", -1.0)
    with pytest.raises(HalfPrecisionRefused, match=r"half precision loses .* points of accuracy \(validation\)"):
        add_to_store(with_it, task_of, lambda manifest: {"validation": toy_data().validation}, quiet)
    assert {file.name: sha256(file) for file in with_it.iterdir()} == before
    without = converted(source, tmp_path / "without", quiet)
    assert not list(without.glob("*.float16.onnx"))
    assert "float16" not in json.loads((without / "manifest.json").read_text())
    assert "GPU" not in (without / CARD).read_text()


def test_half_graphs_adds_the_graphs_to_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command restores the committed graph and card, also when it runs again."""
    committed = ROOT / "model_store/sentiment-small/1"
    folder = Path(shutil.copytree(committed, tmp_path / "sentiment-small/1"))
    wanted = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "model.float16.onnx").unlink()
    card = (folder / CARD).read_text()
    start, end = card.index("\n## On a GPU"), card.index("\n## Explained")
    (folder / CARD).write_text(card[:start] + card[end:])
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["float16"], manifest["files"]["model.float16.onnx"]
    manifest["files"][CARD] = sha256(folder / CARD)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    material = {"validation": toy_data().validation}
    monkeypatch.setattr("export.__main__.material_of", lambda manifest: material)
    monkeypatch.setattr(sys, "argv", ["export", "half-graphs", str(folder)])
    for _ in range(2):
        assert main() == 0
        assert (folder / "model.float16.onnx").read_bytes() == wanted["model.float16.onnx"]
        written = (folder / CARD).read_text()
        assert written[:start] == card[:start]
        assert written.endswith(card[end:])
        assert written.count("\n## On a GPU\n") == 1
        assert read(scan(tmp_path)[0]).in_half_precision() is not None
    assert {file.name for file in folder.iterdir()} == wanted.keys()
    assert not list(folder.parent.glob(".*"))


@pytest.mark.parametrize("kind", ["bare", "halved", "unknown"])
def test_folders_without_known_data_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refuses a bare graph, a folder in half precision, and a translation model of unknown data."""
    folder = Path(shutil.copytree(ROOT / "model_store/translation-en-de/1", tmp_path / "translation/1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    if kind == "bare":
        (folder / "manifest.json").unlink()
    else:
        changed: dict[str, Any] = {"halved": {"precision": "float16"}, "unknown": {"provenance": {"data": "mine"}}}
        (folder / "manifest.json").write_text(json.dumps(manifest | changed[kind]))
    monkeypatch.setattr("export.data.sets.description.FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", "half-graphs", str(folder)])
    assert main() == 1
    expected = {
        "bare": "is a bare ONNX graph",
        "halved": "already in half precision",
        "unknown": "no data to measure it on",
    }
    assert expected[kind] in capsys.readouterr().err
