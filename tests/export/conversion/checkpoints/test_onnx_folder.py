"""ONNX graphs that others exported are served as they are, and nothing claims that they were compared."""

import json
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from rich.console import Console
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from export.conversion.checkpoints.architecture import task_of_checkpoint
from export.conversion.checkpoints.onnx_folder import GivenGraph
from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.classifier import export_onnx, served_precision
from export.conversion.golden_texts import made_up_sentences
from export.conversion.text_checkpoint import Positional, classifier_of_hugging_face, embedding_of_hugging_face
from export.onnx_graphs.passes import export_graph
from export.tasks.task import Target, task_of
from model_store.folder import NOT_COMPARED
from tests.conftest import running_server
from tests.export.conversion.random_checkpoints import save_model

TEXTS = made_up_sentences(3, seed=9)
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a classifier with its weights, and a graph and a quantized variant as Optimum names them."""
    folder = save_model("bert", tmp_path_factory.mktemp("checkpoints") / "mine", pairs=True)
    source = classifier_of_hugging_face(str(folder))
    (folder / "onnx").mkdir()
    export_onnx(source, folder / "onnx/model.onnx")
    quantize_dynamic(folder / "onnx/model.onnx", folder / "onnx/model_quantized.onnx")
    return folder


@pytest.fixture(scope="module")
def without_weights(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the folder without PyTorch's weights."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("optimum") / "optimum")
    (copy / "model.safetensors").unlink()
    return copy


def load(source: Path, task: str, store: Path) -> dict[str, Any]:
    """Load a checkpoint, and return its manifest."""
    task_of(task).load(str(source), None, Target("mine", store, "float32"), Console(quiet=True))
    manifest: dict[str, Any] = json.loads((store / "mine/1/manifest.json").read_text())
    return manifest


def test_a_graph_without_weights_is_served_and_said_to_be_not_compared(
    folder: Path, without_weights: Path, tmp_path: Path
) -> None:
    """Its answers are those of the model that it was made of; manifest, card and metadata say what is not proved."""
    assert task_of_checkpoint(str(without_weights)) == "text-classification"
    manifest = load(without_weights, "text-classification", tmp_path)
    assert manifest["quality"]["compared_with_pytorch"] == {}
    assert NOT_COMPARED in manifest["quality"]
    assert "not compared with PyTorch" in (tmp_path / "mine/1/README.md").read_text()
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        scores = torch.softmax(model(**tokens).logits[0], -1).tolist()
    with running_server(tmp_path) as server:
        request = urllib.request.Request(f"{server.http}/models/mine", json.dumps({"inputs": TEXTS[0]}).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            (answer,) = json.load(response)
        with urllib.request.urlopen(f"{server.http}/v2/models/mine", timeout=30) as response:
            assert "not compared with PyTorch" in json.load(response)["properties"]["remark"]
    assert {each["label"]: each["score"] for each in answer} == pytest.approx(
        dict(zip(("bad", "mixed", "good"), scores, strict=True)), abs=1e-5
    )


def test_a_quantized_variant_is_named_by_its_file(without_weights: Path, folder: Path, tmp_path: Path) -> None:
    """The manifest has its precision; beside weights it is compared with them."""
    manifest = load(without_weights / "onnx/model_quantized.onnx", "text-classification", tmp_path / "alone")
    assert manifest["precision"] == "int8"
    assert NOT_COMPARED in manifest["quality"]
    with pytest.raises(ValueError, match="is in int8 already: float16 cannot be made of it"):
        served_precision(classifier_of_hugging_face(str(without_weights / "onnx/model_quantized.onnx")), "float16")
    source = classifier_of_hugging_face(str(folder / "onnx/model_quantized.onnx"))
    assert served_precision(source, "float32") == ("int8", "int8")
    assert isinstance(source.module, Positional)  # the weights, which the graph is compared with
    assert source.given is not None
    assert source.given.precision == "int8"
    assert classifier_of_hugging_face(str(folder)).given is None  # weights are preferred to a graph beside them


def test_vectors_of_tokens_are_pooled(folder: Path, tmp_path: Path) -> None:
    """A graph of an encoder alone gets the mean of the tokens, whatever padding a row has."""
    copy = shutil.copytree(folder, tmp_path / "encoder", ignore=shutil.ignore_patterns("onnx", "*.safetensors"))
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    example = tuple(torch.full((2, 16), value, dtype=torch.int64) for value in (1, 1, 0))
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=64)}
    export_graph(
        TokenVectors(model), example, copy / "model.onnx",
        inputs=INPUTS, outputs=["last_hidden_state"], dynamic_shapes=tuple(axes for _ in INPUTS),
    )  # fmt: skip
    source = embedding_of_hugging_face(str(copy))
    items = [source.item(text) for text in (TEXTS[0], " ".join(TEXTS))]
    feeds = source.task.collate(items)
    found_BD = source.module(*(torch.from_numpy(feeds[name]) for name in source.input_names)).numpy()
    for found_D, item in zip(found_BD, items, strict=True):
        with torch.inference_mode():
            expected_TD = model(input_ids=torch.tensor([item.ids])).last_hidden_state[0]
        np.testing.assert_allclose(found_D, expected_TD.mean(0).numpy(), atol=1e-5)


class TokenVectors(torch.nn.Module):
    """An encoder that returns the vectors of the tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, types_BT: torch.Tensor) -> torch.Tensor:
        """Compute the vectors; [B, T, D]."""
        vectors_BTD: torch.Tensor = self.model(ids_BT, mask_BT, types_BT).last_hidden_state
        return vectors_BTD


def small_graph(path: Path, inputs: Mapping[str, tuple[int, list[Any]]], output: str, kind: int) -> Path:
    """Write a graph that casts its first input."""
    first = next(iter(inputs))
    graph = helper.make_graph(
        [helper.make_node("Cast", [first], [output], to=kind)],
        "small",
        [helper.make_tensor_value_info(name, *form) for name, form in inputs.items()],
        [helper.make_tensor_value_info(output, kind, ["batch", "tokens"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


TWO = {name: (TensorProto.INT64, ["batch", "tokens"]) for name in INPUTS[:2]}
THREE = TWO | {"position_ids": TWO["input_ids"]}
SHORT, FIXED = (TensorProto.INT32, ["batch", "tokens"]), (TensorProto.INT64, [1, 128])


@pytest.mark.parametrize(
    ("inputs", "output", "kind", "why"),
    [
        (THREE, "logits", TensorProto.FLOAT, "has the inputs attention_mask, input_ids, position_ids; offered"),
        ({"input_ids": TWO["input_ids"]}, "logits", TensorProto.FLOAT, "has the inputs input_ids; offered"),
        (TWO | {"input_ids": SHORT}, "logits", TensorProto.FLOAT, "the input input_ids is INT32; INT64"),
        (TWO | {"input_ids": FIXED}, "logits", TensorProto.FLOAT, r"input_ids has the shape \[1, 128\]"),
        (TWO, "start_logits", TensorProto.FLOAT, "has the outputs start_logits; for this task one of logits is needed"),
        (TWO, "logits", TensorProto.FLOAT16, "the output logits is FLOAT16; FLOAT is offered"),
    ],
)
def test_graphs_that_cannot_be_served_are_refused(
    inputs: dict[str, tuple[int, list[Any]]], output: str, kind: int, why: str, tmp_path: Path
) -> None:
    """The sentence names what was found and what is offered."""
    with pytest.raises(LoadRefused, match=why):
        GivenGraph(small_graph(tmp_path / "model.onnx", inputs, output, kind), "logits")
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    with pytest.raises(LoadRefused, match=r"damaged\.onnx cannot be read"):
        GivenGraph(tmp_path / "damaged.onnx", "logits")


def test_a_graph_must_take_the_token_types_of_its_tokenizer(without_weights: Path, tmp_path: Path) -> None:
    """Without them a pair would be answered as one text."""
    copy = shutil.copytree(without_weights, tmp_path / "copy", ignore=shutil.ignore_patterns("onnx"))
    small_graph(copy / "model.onnx", TWO, "logits", TensorProto.FLOAT)
    with pytest.raises(LoadRefused, match=r"model\.onnx lacks inputs that the tokenizer makes: token_type_ids"):
        classifier_of_hugging_face(str(copy))
