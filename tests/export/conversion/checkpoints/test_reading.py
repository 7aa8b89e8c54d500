"""Checkpoints that are incomplete or unsupported are refused in one sentence that names the problem."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.classifier import convert, export_onnx
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.conversion.text_checkpoint import classifier_of_hugging_face
from export.data.tokenizers import train_tokenizer
from export.tasks.task import task_of
from model_store.folder import FolderError, FoundFolder, read, write_manifest
from service.models.loading import Loader
from service.tasks.text.classification import TextClassification
from tests.conftest import ROOT
from tests.export.conversion.outputs import onnx_logits

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small tokenizer that knows the golden texts' letters."""
    return train_tokenizer(made_up_sentences(300), 600)


@pytest.fixture(scope="module")
def whole(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint: BERT with three classes."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    save(folder, tokenizer, BertForSequenceClassification, id2label={0: "bad", 1: "mixed", 2: "good"})
    return folder


def save(folder: Path, tokenizer: Tokenizer, kind: Any, **config: Any) -> None:
    """Save a network with random weights, and the tokenizer."""
    torch.manual_seed(1)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", model_max_length=64
    ).save_pretrained(folder)
    kind(BertConfig(**{"vocab_size": tokenizer.get_vocab_size(), **SMALL, **config})).save_pretrained(folder)


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of `model.safetensors`."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_in_half(path: Path) -> None:
    """Leave the first half of a file, as an interrupted download does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def more_layers(weights: dict[str, torch.Tensor]) -> None:
    """Give a checkpoint a third layer."""
    for name in list(weights):
        if ".layer.1." in name:
            weights[name.replace(".layer.1.", ".layer.2.")] = weights[name].clone()


def with_shard_missing(folder: Path) -> None:
    """Split the weights into two files and leave one out."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


CONFIG = "config.json"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "labels from one": (lambda f: edit(f / CONFIG, id2label={"1": "a", "2": "b", "3": "c"}), "numbered from 0 on"),
    "labels with a gap": (lambda f: edit(f / CONFIG, id2label={"0": "a", "2": "b", "4": "c"}), "without a gap"),
    "labels that are integers": (lambda f: edit(f / CONFIG, id2label={"0": 0, "1": 1, "2": 2}), r"id2label\[0\] is 0"),
    "labels that are null": (lambda f: edit(f / CONFIG, id2label={"0": "a", "1": []}), r"id2label\[1\] is \[\]"),
    "labels as a list": (lambda f: edit(f / CONFIG, id2label=["a", "b", "c"]), "id2label is not an object"),
    "labels that are missing": (
        lambda f: edit(f / CONFIG, id2label=None, label2id=None),
        r"classifier\.bias \(3,\) instead of \(2,\)",
    ),
    "an unknown problem": (
        lambda f: edit(f / CONFIG, problem_type="ranking"),
        "problem_type 'ranking' is not one of single_label_classification, multi_label_classification, regression",
    ),
    "another model type": (lambda f: edit(f / CONFIG, model_type="fnet"), "model type 'fnet' is not one of bert"),
    "an unknown model type": (lambda f: edit(f / CONFIG, model_type="mine"), "model type 'mine' is not one of bert"),
    "no model type": (lambda f: edit(f / CONFIG, model_type=None), "model type None"),
    "code of its own": (
        lambda f: edit(f / CONFIG, auto_map={"AutoModelForSequenceClassification": "evil.Model"}),
        "auto_map names code of the checkpoint's own, which is never run",
    ),
    "a tokenizer of its own": (
        lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}),
        r"tokenizer_config\.json: auto_map",
    ),
    "bitsandbytes": (
        lambda f: edit(f / CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        r"quantization_config \('bitsandbytes'\)",
    ),
    "GPTQ": (lambda f: edit(f / CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}), "'gptq'"),
    "relative positions": (
        lambda f: edit(f / CONFIG, position_embedding_type="relative_key"),
        "position_embedding_type 'relative_key'",
    ),
    "a decoder": (lambda f: edit(f / CONFIG, is_decoder=True), "is_decoder is true"),
    "other sizes": (lambda f: edit(f / CONFIG, intermediate_size=48), "another shape than config.json says"),
    "fewer heads than fit": (lambda f: edit(f / CONFIG, num_attention_heads=5), "whole cannot be loaded"),
    "an unknown activation": (lambda f: edit(f / CONFIG, hidden_act="swoosh"), "whole cannot be loaded"),
    "config.json is no JSON": (lambda f: (f / CONFIG).write_text("{"), "config.json is not a JSON object"),
    "config.json is a list": (lambda f: (f / CONFIG).write_text("[]"), "config.json is not a JSON object"),
    "config.json is not there": (lambda f: (f / CONFIG).unlink(), "has no config.json"),
    "an adapter": (
        lambda f: (f / CONFIG).rename(f / "adapter_config.json"),
        r"holds an adapter \(adapter_config.json\)",
    ),
    "a weight too few": (
        lambda f: edit_weights(f, lambda w: w.pop("bert.encoder.layer.1.output.dense.weight")),
        r"1 weights are missing from the checkpoint: bert\.encoder\.layer\.1\.output\.dense\.weight",
    ),
    "a layer too many": (lambda f: edit_weights(f, more_layers), r"16 weights .* have no place .* bert\.encoder"),
    "a head of another shape": (
        lambda f: edit_weights(f, lambda w: w.update({"classifier.weight": torch.zeros(5, 32)})),
        r"classifier\.weight \(5, 32\) instead of \(3, 32\)",
    ),
    "weights that are no numbers": (
        lambda f: edit_weights(f, lambda w: w["classifier.weight"].fill_(float("nan"))),
        "not finite numbers",
    ),
    "a pointer of Git LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "model.safetensors is a Git LFS pointer",
    ),
    "a tokenizer that is a pointer": (
        lambda f: (f / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "tokenizer.json is a Git LFS pointer",
    ),
    "half of the weights": (
        lambda f: cut_in_half(f / "model.safetensors"),
        "model.safetensors is damaged or incomplete",
    ),
    "weights of no bytes": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors is damaged or incomplete",
    ),
    "a shard too few": (with_shard_missing, r"not there: model-00002-of-00002\.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "whole cannot be loaded"),
    "half of the tokenizer": (lambda f: cut_in_half(f / "tokenizer.json"), r"tokenizer\.json of .* is damaged"),
    "a tokenizer of another version": (
        lambda f: edit(f / "tokenizer.json", model={"type": "Future", "vocab": {}}),
        r"tokenizer\.json of .* is damaged",
    ),
    "half of the tokenizer's settings": (
        lambda f: cut_in_half(f / "tokenizer_config.json"),
        "tokenizer_config.json is not a JSON object",
    ),
    "no padding": (
        lambda f: (f / CONFIG).write_text(
            (f / CONFIG).read_text().replace('"pad_token_id": 0', '"pad_token_id": null')
        ),
        "has no pad_token_id",
    ),
    "padding beyond the embedding": (lambda f: edit(f / CONFIG, pad_token_id=5000), "whole cannot be loaded"),
    "no room for a text": (
        lambda f: edit(f / "tokenizer_config.json", model_max_length=1),
        r"the model takes 1 tokens .*: no text fits",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_in_a_sentence(name: str, whole: Path, tmp_path: Path) -> None:
    """Damaged, unsupported and missing configuration, weights and tokenizers are refused."""
    folder = tmp_path / "whole"
    shutil.copytree(whole, folder)
    break_it, said = BROKEN[name]
    break_it(folder)
    with pytest.raises(LoadRefused, match=said) as refused:
        classifier_of_hugging_face(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (BertModel, "classifier.bias, classifier.weight"),
        (BertForMaskedLM, "bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight"),
        (BertForTokenClassification, "bert.pooler.dense.bias, bert.pooler.dense.weight"),
    ],
)
def test_missing_head_weights_are_named(kind: Any, missing: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A checkpoint of another task lacks the head or part of it; the message names the missing weights."""
    save(tmp_path / "headless", tokenizer, kind, num_labels=3)
    with pytest.raises(LoadRefused, match=f"missing from the checkpoint: {missing}"):
        classifier_of_hugging_face(str(tmp_path / "headless"))


def test_unused_weights_are_named_on_the_card(whole: Path, tmp_path: Path) -> None:
    """The head of another task does no harm; the model card names it."""
    folder = shutil.copytree(whole, tmp_path / "whole")
    edit_weights(folder, lambda weights: weights.update({"cls.predictions.bias": torch.zeros(7)}))
    assert classifier_of_hugging_face(str(folder)).provenance["weights_not_used"] == "cls.predictions.bias"


def test_unnamed_labels_are_numbered(whole: Path, tmp_path: Path) -> None:
    """Two classes without names are LABEL_0 and LABEL_1, as in `transformers`."""
    folder = shutil.copytree(whole, tmp_path / "whole")
    edit(folder / CONFIG, id2label=None, label2id=None)
    edit_weights(
        folder,
        lambda weights: weights.update(
            {f"classifier.{part}": weights[f"classifier.{part}"][:2] for part in ("weight", "bias")}
        ),
    )
    assert classifier_of_hugging_face(str(folder)).labels == ["LABEL_0", "LABEL_1"]


def test_a_folder_without_a_tokenizer_is_refused(whole: Path, tmp_path: Path) -> None:
    """`transformers` would make up a tokenizer that knows no word."""
    folder = shutil.copytree(whole, tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(LoadRefused, match=r"has no tokenizer: tokenizer\.json or vocab\.txt must be there"):
        classifier_of_hugging_face(str(folder))


def test_a_tokenizer_must_fit_the_embedding(whole: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Too many ids for the embedding, and a vocabulary of another model, are refused."""
    folder = shutil.copytree(whole, tmp_path / "more")
    more = AutoTokenizer.from_pretrained(folder)
    more.add_tokens(["@user"])
    more.save_pretrained(folder)
    rows = tokenizer.get_vocab_size()
    with pytest.raises(LoadRefused, match=rf"without a row in the embedding, which has {rows} \(vocab_size\): @user"):
        classifier_of_hugging_face(str(folder))
    save(tmp_path / "fewer", tokenizer, BertForSequenceClassification, vocab_size=2 * rows)
    with pytest.raises(LoadRefused, match=f"has {rows} tokens, the embedding {2 * rows} rows"):
        classifier_of_hugging_face(str(tmp_path / "fewer"))


def test_pickled_weights_are_read_without_running_code(whole: Path, tmp_path: Path) -> None:
    """Only weights are read, and the card says so; anything else in the file is refused."""
    folder = shutil.copytree(whole, tmp_path / "whole")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "pickle" in classifier_of_hugging_face(str(folder)).provenance["weights_read_from"]
    torch.save({"bert.x": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(LoadRefused, match="whole cannot be loaded"):
        classifier_of_hugging_face(str(folder))
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_paths_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    """A missing path, an empty folder and a file are refused."""
    with pytest.raises(LoadRefused, match="nowhere is not a folder"):
        classifier_of_hugging_face(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadRefused, match="empty has no config.json"):
        classifier_of_hugging_face(str(tmp_path / "empty"))
    (tmp_path / "file").touch()
    with pytest.raises(LoadRefused, match="file is a file"):
        classifier_of_hugging_face(str(tmp_path / "file"))


def test_command_prints_one_line_and_asks_nothing(whole: Path, tmp_path: Path) -> None:
    """The error is one line, and the command does not ask whether to trust a checkpoint's code."""
    folder = shutil.copytree(whole, tmp_path / "whole")
    edit(folder / CONFIG, model_type="mine", auto_map={"AutoConfig": "evil.Config"})
    command = [sys.executable, "-m", "export", "load", str(folder), "--task", "text-classification"]
    run = subprocess.run(
        [*command, "--model-store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("load: model type 'mine' is not one of")
    assert "Traceback" not in run.stderr
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize(
    "activation",
    ["gelu_pytorch_tanh", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gelu_new", "quick_gelu"))],
)
def test_the_exported_activation_equals_pytorchs(activation: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The weights are so large that exact and tanh-approximated GELU would give different answers."""
    save(tmp_path / "mine", tokenizer, BertForSequenceClassification, hidden_act=activation, initializer_range=0.3)
    source = classifier_of_hugging_face(str(tmp_path / "mine"))
    texts, path = made_up_sentences(40, seed=3), tmp_path / "model.onnx"
    export_onnx(source, path)
    expected_BC = np.stack(source.outputs(source.module, texts))
    np.testing.assert_allclose(onnx_logits(source, path, texts), expected_BC, atol=1e-4)
    edit(tmp_path / "mine" / CONFIG, hidden_act="gelu")
    other = classifier_of_hugging_face(str(tmp_path / "mine"))
    assert np.abs(np.stack(other.outputs(other.module, texts)) - expected_BC).max() > 5e-4


def test_left_truncation_is_kept_when_served(tokenizer: Tokenizer, tmp_path: Path, quiet: Console) -> None:
    """With `truncation_side` left, served ids are those of `transformers`; a golden example proves it at load."""
    save(tmp_path / "mine", tokenizer, BertForSequenceClassification)
    edit(tmp_path / "mine/tokenizer_config.json", truncation_side="left")
    source = classifier_of_hugging_face(str(tmp_path / "mine"))
    target = convert(
        source,
        task_of("text-classification"),
        name="mine",
        store=tmp_path / "store",
        compare_on=made_up_sentences(500),
        labelled=None,
        precision="float32",
        about={},
        console=quiet,
    )
    folder = read(FoundFolder("mine", "1", target))
    assert folder.golden[-1].inputs["truncate"] == "true"
    task = Loader(16, 1, perf_counter).load(FoundFolder("mine", "1", target)).task
    assert isinstance(task, TextClassification)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "mine")
    for text in (" ".join(made_up_sentences(20)), f"{'dull ' * 1000}and a wonderful film"):
        tokens = task.preprocess(text, truncate=True, field="text")
        assert tokens.ids == theirs(text, truncation=True, max_length=64).input_ids
        start, end = task.spans(text, truncate=True)[-1] or (0, 0)
        assert tokens.truncated
        assert end == len(text)
        assert text[start:end].strip() in {"film", ".", "m"}
    changed = json.loads((target / "tokenizer.json").read_text())
    changed["truncation"]["direction"] = "Right"
    (target / "tokenizer.json").write_text(json.dumps(changed))
    assert folder.manifest is not None
    write_manifest(target, folder.manifest)
    with pytest.raises(FolderError, match="the tokenizer gives other ids than in training"):
        Loader(16, 1, perf_counter).load(FoundFolder("mine", "1", target))


def test_a_network_with_one_segment_type_is_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With `type_vocab_size` 1 the only segment type is 0, also while the graph is traced."""
    save(tmp_path / "mine", tokenizer, BertForSequenceClassification, type_vocab_size=1)
    source = classifier_of_hugging_face(str(tmp_path / "mine"))
    export_onnx(source, tmp_path / "model.onnx")
    texts = made_up_sentences(10)
    found_BC = onnx_logits(source, tmp_path / "model.onnx", texts)
    np.testing.assert_allclose(found_BC, np.stack(source.outputs(source.module, texts)), atol=1e-4)


def test_a_folder_with_only_a_sentencepiece_model_is_loaded(tmp_path: Path) -> None:
    """The ids are those of `transformers`, for any version of protobuf."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "texts.txt").write_text("\n".join([*made_up_sentences(400), *GOLDEN_TEXTS]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model")).get_piece_size()
    config = SMALL | {"vocab_size": pieces + 2, "pad_token_id": 1}
    torch.manual_seed(1)
    XLMRobertaForSequenceClassification(XLMRobertaConfig(**config)).save_pretrained(folder)
    source = classifier_of_hugging_face(str(folder))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "A wonderful film, and nobody seems to care."
    with torch.inference_mode():
        expected_BC = model.eval()(**tokenizer(text, return_tensors="pt")).logits.numpy()
    assert len(set(source.item(text).ids)) > 5
    np.testing.assert_allclose(np.stack(source.outputs(source.module, [text])), expected_BC, atol=1e-5)
