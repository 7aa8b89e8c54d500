"""Conversion of classifiers: a written model equals PyTorch's, and one that differs is refused."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console

from export.conversion.classifier import convert, export_onnx
from export.conversion.comparison.requirements import ConversionRefused, Precision
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.conversion.model_source import text_source_of_run
from export.conversion.text_source import TextClassifierSource
from export.networks.transformer import EncoderConfig, PackedTextClassifier, TextClassifier
from export.studies.random_weights import write_random_weights
from export.tasks import classification
from export.tasks.task import task_of
from model_store.folder import FoundFolder, read
from service.models.loaded import OneCallModel
from service.models.loading import Loader
from tests.conftest import ROOT
from tests.export.conftest import toy_data
from tests.export.conversion.outputs import onnx_logits
from tests.export.networks.test_transformer import VARIANTS


def converted(source: TextClassifierSource, store: Path, console: Console, precision: Precision) -> Path:
    """The next version of the toy model."""
    validation = toy_data().validation
    return convert(
        source,
        task_of("text-classification"),
        name="toy",
        store=store,
        compare_on=validation.texts,
        labelled=validation,
        precision=precision,
        about={"licence": "none"},
        console=console,
        explained=False,
        halved=False,
    )


@pytest.fixture(scope="module")
def source(toy_run: Path) -> TextClassifierSource:
    """The finished toy run."""
    return text_source_of_run(toy_run)


def test_onnx_torchscript_and_pytorch_are_the_same_model(
    source: TextClassifierSource, tmp_path: Path, quiet: Console
) -> None:
    """600 texts are compared; a whole folder is written, with weights in half precision and dynamic shapes."""
    folder = converted(source, tmp_path, quiet, "float32")
    model = read(FoundFolder("toy", "1", folder))
    assert model.manifest is not None
    for runtime in ("onnx", "torchscript"):
        compared = model.manifest.quality["compared_with_pytorch"][runtime]
        assert compared["num_examples"] == 600
        assert compared["max_abs_logit_difference"] <= 1e-4
        assert compared["labels_changed"] == 0
    assert model.manifest.quality["validation"]["accuracy"] > 0.9
    assert model.manifest.skips_padding
    assert len(model.golden) >= 8
    assert {path.name for path in folder.iterdir()} == {*model.manifest.files, "manifest.json"}
    assert "confusion matrix" in (folder / "README.md").read_text()
    graph = onnx.load(folder / "model.onnx").graph
    assert {node.op_type for node in graph.node} >= {"Attention", "LayerNormalization"}
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    script = torch.jit.load(folder / "model.torchscript.pt")
    for shape in ((1, 1), (3, 7), (2, 128)):
        ids = torch.randint(2, 100, shape)
        mask = torch.ones_like(ids)
        expected = source.module(ids, mask).detach().numpy()
        feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-4)
        np.testing.assert_allclose(script(ids, mask).detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [pytest.param(change, id=str(change), marks=[pytest.mark.slow] * bool(change)) for change in VARIANTS],
)
def test_every_variant_exports_to_the_same_answers(
    change: dict[str, str], source: TextClassifierSource, tmp_path: Path
) -> None:
    """The packed graph answers padded batches of mixed length like the trained network."""
    torch.manual_seed(5)
    config = dataclasses.replace(
        EncoderConfig(vocab_size=400, num_labels=2, d_model=32, num_layers=2, num_heads=4, d_ff=64, max_tokens=128),
        **change,
    )
    model = TextClassifier(config).eval()
    variant = dataclasses.replace(source, module=model, for_export=lambda: PackedTextClassifier(model))
    export_onnx(variant, tmp_path / "model.onnx")
    texts = made_up_sentences(40)
    difference = np.abs(
        onnx_logits(variant, tmp_path / "model.onnx", texts) - np.stack(variant.outputs(model, texts))
    ).max()
    assert difference <= 1e-4


def test_int8_states_its_loss_and_becomes_the_next_version(
    source: TextClassifierSource, tmp_path: Path, quiet: Console
) -> None:
    """The int8 version is smaller than the float32 version, and has a tolerance of its own."""
    first = converted(source, tmp_path, quiet, "float32")
    second = converted(source, tmp_path, quiet, "int8")
    assert [first.name, second.name] == ["1", "2"]
    manifest = json.loads((second / "manifest.json").read_text())
    assert manifest["precision"] == "int8"
    assert manifest["quality"]["accuracy_loss"] <= 0.005
    assert 0 < manifest["tolerance"]["max_abs_logit_difference"] < 1.0
    assert manifest["tolerance"]["labels_must_agree"] is False  # rounding that is allowed may turn a close answer
    assert any(node.op_type == "MatMulInteger" for node in onnx.load(second / "model.onnx").graph.node)
    assert "accuracy lost by quantization" in (second / "README.md").read_text()


@pytest.mark.slow
def test_float16_states_its_loss_too(source: TextClassifierSource, tmp_path: Path, quiet: Console) -> None:
    """Inputs and outputs stay as they are, so that the server can load the graph."""
    folder = converted(source, tmp_path, quiet, "float16")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["precision"] == "float16"
    assert 0 < manifest["tolerance"]["max_abs_logit_difference"] < 0.1
    assert abs(manifest["quality"]["accuracy_loss"]) <= 0.005
    graph = onnx.load(folder / "model.onnx").graph
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert isinstance(Loader(8, 1, time.thread_time).load(FoundFolder("toy", "1", folder)), OneCallModel)


def test_a_graph_that_differs_from_the_model_is_refused(
    source: TextClassifierSource, tmp_path: Path, quiet: Console
) -> None:
    """One weight changes a little between PyTorch and the export: nothing is written."""
    other = TextClassifier(source.module.config).eval()
    other.load_state_dict(source.module.state_dict())
    with torch.no_grad():
        other.head.bias += 0.01
    wrong = dataclasses.replace(source, for_export=lambda: PackedTextClassifier(other))
    with pytest.raises(ConversionRefused, match=r"ONNX is not PyTorch's model: logits differ by up to 0\.01"):
        converted(wrong, tmp_path, quiet, "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_int8_with_too_much_loss_is_refused(
    source: TextClassifierSource, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that no quantization can meet shows that the limit is enforced."""
    monkeypatch.setattr(classification, "MAX_ACCURACY_LOSS", -1.0)
    with pytest.raises(ConversionRefused, match="int8 loses"):
        converted(source, tmp_path, quiet, "int8")
    assert list(tmp_path.iterdir()) == []


def test_too_few_texts_are_refused(source: TextClassifierSource, tmp_path: Path, quiet: Console) -> None:
    """A comparison needs at least 500 texts, and int8 needs labelled ones."""
    options = {"name": "toy", "store": tmp_path, "labelled": None, "about": {}, "console": quiet}
    with pytest.raises(ValueError, match="2 texts to compare on, at least 500"):
        convert(source, task_of("text-classification"), compare_on=["a", "b"], precision="float32", **options)
    with pytest.raises(ValueError, match="int8 needs labelled texts"):
        convert(source, task_of("text-classification"), compare_on=made_up_sentences(500), precision="int8", **options)


@pytest.mark.slow
def test_random_models_say_that_they_are_untrained(tmp_path: Path, quiet: Console) -> None:
    """Both kinds of graphs are written for measuring speed, and the server would load them."""
    sizes: dict[str, Any] = {"layers": 1, "width": 32, "heads": 2, "precision": "float32"}
    sizes["tokenizer"] = ROOT / "model_store/sentiment-small/1/tokenizer.json"
    with pytest.raises(ValueError, match="vocab_size is 1000, the tokenizer has 21"):
        write_random_weights(
            task_of("text-classification"),
            name="random",
            store=tmp_path,
            vocab_size=1000,
            packed=True,
            console=quiet,
            **sizes,
        )
    for packed in (True, False):
        folder = write_random_weights(
            task_of("text-classification"),
            name="random",
            store=tmp_path,
            vocab_size=30522,
            packed=packed,
            console=quiet,
            **sizes,
        )
        manifest = read(FoundFolder("random", folder.name, folder)).manifest
        assert manifest is not None
        assert "random weights" in manifest.provenance["untrained"]
        assert manifest.skips_padding is packed
        assert manifest.quality["compared_with_pytorch"]["onnx"]["max_abs_logit_difference"] < 1e-4


def test_golden_texts_are_our_own() -> None:
    """No golden text is a row of the data set, where that is available."""
    import os

    if not os.environ.get("HEED_DATASETS"):
        pytest.skip("HEED_DATASETS is not set: SST-2 is not at hand")
    from export.data.sets.texts import load_text_set

    data = load_text_set("sst2")
    rows = {text.lower() for text in (*data.train.texts, *data.validation.texts) if len(text.split()) > 3}
    assert not rows & {text.lower() for text in GOLDEN_TEXTS}
