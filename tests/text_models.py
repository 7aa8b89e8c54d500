"""Small models of texts, made of ONNX nodes: an embedder with prompts, a cross-encoder and a classifier.

Shapes: V ids of the vocabulary, B rows of a call, T tokens, D elements of a vector.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ("a", "query", "passage", ":", "red", "blue", "green", "dog", "cat", "bird", "sleeps", "runs", "eats")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
MAX_TOKENS, DIMENSIONS = 16, 12
PROMPTS = {"query": "query: ", "passage": "passage: "}
IDS = (TensorProto.INT64, ["batch", "tokens"])


def tokenizer_json() -> str:
    """Make a tokenizer with a word for each id, which takes pairs."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, VOCABULARY[name]) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer.to_str()


def table(width: int) -> NDArray[np.float32]:
    """Draw the numbers of each id; float32 [V, width]."""
    return np.random.default_rng(8).standard_normal((len(VOCABULARY), width)).astype(np.float32)


def mean_of_ids(ids: list[int], width: int) -> NDArray[np.float32]:
    """Compute what the graphs compute for one row: the mean of the numbers of its ids."""
    mean: NDArray[np.float32] = table(width)[ids].mean(axis=0)
    return mean


def write_mean_model(folder: Path, task: str, width: int, labels: list[str], settings: dict[str, Any]) -> None:
    """Write a model folder whose graph takes the mean of numbers that belong to ids.

    Args:
        folder: the folder of the version.
        task: name of the task.
        width: numbers of a row of the output.
        labels: labels of the classes; empty for an embedder.
        settings: contents of task.json.
    """
    folder.mkdir(parents=True)
    output = "logits" if labels else "embedding"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], [output]),
    ]
    weights = {"table": table(width), "last": np.array([2]), "tokens": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info(name, *IDS) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    text = tokenizer_json()
    (folder / "tokenizer.json").write_text(text)
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    (folder / "task.json").write_text(json.dumps(settings))
    tokenizer, examples = Tokenizer.from_str(text), []
    for sentence in ("a red dog sleeps", "blue", "a green bird eats a cat"):
        ids = tokenizer.encode(sentence).ids
        outputs = {output: mean_of_ids(ids, width).tolist()}
        examples.append({"inputs": {"text": sentence}, "tensors": {"input_ids": ids}, "outputs": outputs})
    (folder / "golden.json").write_text(json.dumps(examples))
    files = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}
    manifest = {
        "format": 1,
        "name": folder.parent.name,
        "task": task,
        "precision": "float32",
        "inputs": [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in ("input_ids", "attention_mask")],
        "outputs": [{"name": output, "datatype": "FP32", "shape": [-1, width]}],
        "labels": labels,
        "limits": {"max_tokens": MAX_TOKENS},
        "tolerance": {"max_abs_logit_difference": 1e-4},
        "files": files,
        "provenance": {},
        "quality": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_embedder(folder: Path, **settings: object) -> None:
    """Write a model that embeds texts, with prompts; settings are those of `EmbeddingSettings`."""
    write_mean_model(
        folder, "feature-extraction", DIMENSIONS, [], {"dimensions": DIMENSIONS, "prompts": PROMPTS, **settings}
    )


def make_text_store(store: Path) -> Path:
    """Write an embedder, a cross-encoder with one label, and a classifier with three."""
    write_embedder(store / "embedder/1")
    write_mean_model(store / "ranker/1", "text-classification", 1, ["relevant"], {"problem": "regression"})
    write_mean_model(store / "mood/1", "text-classification", 3, ["bad", "mixed", "good"], {})
    return store
