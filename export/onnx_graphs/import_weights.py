"""Reads the PyTorch network of a model folder back from its served graphs.

    model.onnx (encoder.onnx) ── weights, in float32 ──> names ──┐
                              └─ operators, attributes ──> shape ─┴──> the network, for `explanation_modules`

A folder keeps no PyTorch weights; its graphs contain everything. Weights in half precision or int8 are read as the
graph restores them, so the network of an int8 folder has dequantized weights. Its activations are not rounded, as they
are when it is served.

Only graphs written by this repository's conversion are understood. The shape is inferred from the graph, so callers
prove a rebuilt network by its answers (`export.conversion.explanation_graph`).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from export.networks.image import VisionTransformer, VitConfig
from export.networks.transformer import EncoderConfig, TextClassifier
from export.networks.translation import TranslationConfig, TranslationTransformer
from model_store.folder import ENCODER, GRAPH

# Names in `config.json` of the networks that can be read back.
TEXT, IMAGE, TRANSLATION = "heed-encoder", "heed-vit", "heed-translation"


class NotUnderstood(ValueError):
    """A folder whose network cannot be read back; the message says why."""


ReadableNetwork = TextClassifier | VisionTransformer | TranslationTransformer


@dataclass(frozen=True)
class StoredNetwork:
    """A network read back from a folder.

    `output_VD` is the output matrix of a translation model, where it differs from the embedding: int8 rounds the two
    differently.
    """

    module: ReadableNetwork
    output_VD: Tensor | None = None


def stored_network(folder: Path) -> StoredNetwork:
    """Read a folder's network back from its graphs.

    Args:
        folder: a version's folder with its graphs and `config.json`.

    Raises:
        NotUnderstood: another kind of network, or a graph from another exporter.
        FileNotFoundError: a file is missing.
    """
    config = json.loads((folder / "config.json").read_text())
    kind = config.get("model_type")
    graphs = [StoredGraph(folder / name) for name in (GRAPH, ENCODER) if (folder / name).is_file()]
    try:
        if kind == TEXT:
            return StoredNetwork(_text_classifier(graphs[0], len(config["id2label"]), config))
        if kind == IMAGE:
            return StoredNetwork(_vision_transformer(graphs[0], config))
        if kind == TRANSLATION:
            return _translation(*graphs)
    except (KeyError, RuntimeError, StopIteration) as error:  # torch raises RuntimeError for missing or unknown weights
        raise NotUnderstood(f"{folder}: the graph is not one that conversion writes: {error}") from error
    raise NotUnderstood(
        f"{folder} holds a network of the kind {kind!r}: only {TEXT}, {IMAGE} and {TRANSLATION} are known"
    )


class StoredGraph:
    """A graph of a folder, with its weights, scalars and attributes."""

    def __init__(self, path: Path) -> None:
        self._graph = onnx.load(path).graph
        self.operators = {node.op_type for node in self._graph.node}
        self.stored = {tensor.name: tensor for tensor in self._graph.initializer}

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All constants, with float16 and int8 restored to float32."""
        arrays = {name: numpy_helper.to_array(tensor) for name, tensor in self.stored.items()}
        for name, array in list(arrays.items()):
            if array.dtype == np.float16:
                arrays[name.removesuffix(".half")] = array.astype(np.float32)
            elif name.endswith("_quantized"):
                whole = name.removesuffix("_quantized")
                arrays[whole] = dequantized(array, arrays[f"{whole}_scale"], arrays[f"{whole}_zero_point"])
        return arrays

    @cached_property
    def weights(self) -> dict[str, NDArray[Any]]:
        """The network's weights by their PyTorch names.

        The exporter folds the transposition of some matrices into them, and names what comes out `val_<number>`: it is
        the weight whose product is added to the bias of that name.
        """
        named = {}
        for name, array in self.arrays.items():
            if name.endswith(".weight_Transposed"):
                named[_plain(name.removesuffix("_Transposed"))] = array.T
            elif name.endswith((".weight", ".bias", "_TD", "_TK", "_V")):
                named.setdefault(_plain(name), array)
        for node in self._graph.node:
            if node.op_type not in ("MatMul", "MatMulInteger"):
                continue
            stored = node.input[1].removesuffix("_quantized")
            if re.fullmatch(r"val_\d+", stored) and (bias := self._added_bias(node)) is not None:
                named[_plain(bias).removesuffix(".bias") + ".weight"] = self.arrays[stored].T
        return named

    @cached_property
    def scalars(self) -> set[float]:
        """The scalar constants of the graph."""
        return {float(array) for array in self.arrays.values() if array.dtype == np.float32 and array.ndim == 0}

    def attribute(self, operator: str, name: str, default: Any = None) -> Any:
        """Return an attribute of the first node of an operator type."""
        for node in self._graph.node:
            if node.op_type == operator:
                return next(
                    (onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default
                )
        return default

    @property
    def num_heads(self) -> Any:
        """The number of heads of its attention."""
        return self.attribute("Attention", "q_num_heads") or self.attribute("MultiHeadAttention", "num_heads")

    def first_use(self, weight: str) -> int:
        """Return the index of the first node that takes a weight, under any stored name."""
        for number, node in enumerate(self._graph.node):
            if node.op_type != "Cast" and any(_plain(name) == weight for name in node.input):
                return number
        raise KeyError(weight)

    def _added_bias(self, product: Any) -> str | None:
        """Find the bias that is added to a product, after int8's scaling if there is any."""
        output = product.output[0]
        for _ in range(8):
            following = next((node for node in self._graph.node if output in node.input), None)
            if following is None:
                return None
            for name in following.input:
                if following.op_type == "Add" and name.removesuffix(".half").endswith(".bias"):
                    return str(name).removesuffix(".half")
            output = following.output[0]
        return None


def dequantized(quantized: NDArray[Any], scale: NDArray[np.float32], zero_point: NDArray[Any]) -> NDArray[np.float32]:
    """Dequantize: (quantized - zero point) x scale, float32; one scale for all, or one for each column."""
    difference = quantized.astype(np.int32) - zero_point.astype(np.int32)
    return difference.astype(np.float32) * scale


def _plain(name: str) -> str:
    """Strip the prefixes and suffixes that export adds to a weight's name."""
    for suffix in (".half", "_quantized"):
        name = name.removesuffix(suffix)
    return name.removeprefix("model.")


# --- shapes ----------------------------------------------------------------------------------------------------------


def _layers(graph: StoredGraph, weights: Mapping[str, NDArray[Any]], stack: str, num_heads: int) -> dict[str, Any]:
    """Read the fields of a `LayerConfig`, except positions."""
    first = f"{stack}.0"
    d_ff, d_model = weights[f"{first}.feed_forward.down.weight"].shape[::-1]
    if len(weights[f"{first}.feed_forward.up.weight"]) == 2 * d_ff:
        activation = "swiglu"
    elif "Gelu" in graph.operators:
        activation = "gelu"
    else:
        activation = "silu" if graph.operators & {"Sigmoid", "Swish", "QuickGelu"} else "relu"
    norm_first = graph.first_use(f"{first}.attention_norm.weight") < graph.first_use(f"{first}.attention.qkv.bias")
    return {
        "d_model": d_model,
        "d_ff": d_ff,
        "num_layers": sum(re.fullmatch(rf"{stack}\.\d+\.attention_norm\.weight", name) is not None for name in weights),
        "num_heads": num_heads,
        "dropout": 0.0,
        "norm_position": "pre" if norm_first else "post",
        "norm": "layernorm" if f"{first}.attention_norm.bias" in weights else "rmsnorm",
        "norm_eps": graph.attribute("LayerNormalization", "epsilon", 1e-5),
        "activation": activation,
    }


def _text_classifier(graph: StoredGraph, num_labels: int, config: Mapping[str, Any]) -> TextClassifier:
    weights = graph.weights
    layers = _layers(graph, weights, "layers", graph.num_heads)
    vocab_size, width = weights["embedding.weight"].shape
    has_table = "positions_TD" in weights
    module = TextClassifier(
        EncoderConfig(
            vocab_size=vocab_size,
            num_labels=num_labels,
            embedding_width=0 if width == layers["d_model"] else width,
            embedding_scale=_has_scale(graph, layers["d_model"]),
            embedding_norm="embedding_norm.weight" in weights,
            pooling="max" if "ReduceMax" in graph.operators else "mean" if "ReduceSum" in graph.operators else "cls",
            # Learned and computed positions are both tables.
            positions="learned" if has_table else "rotary",
            max_tokens=len(weights["positions_TD"]) if has_table else config["max_position_embeddings"],
            **layers,
        )
    )
    _load(module, weights)
    return module.eval()


def _vision_transformer(graph: StoredGraph, config: Mapping[str, Any]) -> VisionTransformer:
    weights = graph.weights
    # Attention is written out in this graph: queries, keys and values are cut into heads as [B, T, 3, H, K].
    shapes = [array for array in graph.arrays.values() if array.dtype == np.int64 and array.shape == (5,)]
    layers = _layers(graph, weights, "layers", next(int(shape[3]) for shape in shapes if shape[2] == 3))
    patches = weights.get("tokens.weight")
    kind: dict[str, Any] = {
        "tokens": "convolutions",
        "num_convolutions": sum(name.startswith("tokens.") for name in weights),
    }
    if patches is not None:
        kind = {"tokens": "patches", "patch_size": patches.shape[-1]}
    module = VisionTransformer(
        VitConfig(
            num_labels=len(config["id2label"]),
            image_size=config["image_size"],
            pooling="attention" if "pool.bias" in weights else "mean",
            positions="learned",
            **kind,
            **layers,
        )
    )
    _load(module, weights)
    return module.eval()


def _translation(step: StoredGraph, encoder: StoredGraph) -> StoredNetwork:
    weights = encoder.weights | step.weights
    layers = _layers(encoder, weights, "encoder", encoder.num_heads)
    embedding_VD = step.arrays["model.embedding.weight"]
    output_VD = step.arrays.get("model.embedding.weight_Transposed")
    weights["embedding.weight"] = embedding_VD
    module = TranslationTransformer(
        TranslationConfig(
            vocab_size=len(embedding_VD),
            num_decoder_layers=sum(
                re.fullmatch(r"decoder\.\d+\.cross_norm\.weight", name) is not None for name in weights
            ),
            max_tokens=len(weights["positions_TD"]),
            **layers,
        )
    )
    module.embedding_scale = math.sqrt(layers["d_model"]) if _has_scale(encoder, layers["d_model"]) else 1.0
    for name in ("positions_TD", "never_V"):
        getattr(module, name).copy_(_tensor(weights.pop(name)))
    _load(module, weights)
    return StoredNetwork(module.eval(), None if output_VD is None else _tensor(output_VD.T))


def _has_scale(graph: StoredGraph, d_model: int) -> bool:
    """Tell whether embeddings are multiplied by sqrt(d_model)."""
    return any(math.isclose(number, math.sqrt(d_model), rel_tol=1e-3) for number in graph.scalars)


def _load(module: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Load weights into a network; it computes tables of angles, which are not weights, itself.

    Raises:
        RuntimeError: a weight is missing, unknown or of another shape.
    """
    tables = {name for name in weights if name.endswith("_TK")}
    module.load_state_dict({name: _tensor(array) for name, array in weights.items() if name not in tables})


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
