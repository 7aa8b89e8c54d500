"""Models of the store, inputs for them, and graphs of one operator: what tests of several engines compute."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from model_store.folder import GRAPH, ModelFolder, read, scan
from service.tensors import Arrays
from tests.conftest import ROOT

TEXTS, IMAGES = "sentiment-small", "cifar10-vit"


def folder_of(name: str) -> ModelFolder:
    """Read a model of the store."""
    return read(next(found for found in scan(ROOT / "model_store") if found.name == name))


def graph_of(name: str) -> Path:
    """Return the path of its graph."""
    return folder_of(name).path / GRAPH


def texts(rows: int, tokens: int, seed: int = 0) -> Arrays:
    """Return texts of 1 to `tokens` tokens; one of them, at any place, has the full length."""
    rng = np.random.default_rng([rows, tokens, seed])
    lengths = rng.permutation([tokens, *rng.integers(1, tokens + 1, rows - 1)])
    mask_BT = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(5, 5000, (rows, tokens)) * mask_BT, "attention_mask": mask_BT}


def images(rows: int, seed: int = 0) -> Arrays:
    """Return images of noise."""
    return {"pixel_values": np.random.default_rng([rows, seed]).standard_normal((rows, 3, 32, 32), dtype=np.float32)}


def one_operator(path: Path, operator: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> Path:
    """Write a graph of one operator on float tensors."""
    nodes = [helper.make_node(operator, list(inputs), list(outputs))]
    tensors = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", *tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
        ),
        path,
    )
    return path
