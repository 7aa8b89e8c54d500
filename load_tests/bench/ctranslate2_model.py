"""The served translation model in CTranslate2's format: the same weights, taken from the graphs of its folder.

A graph keeps biases, normalisations and embeddings under the names that training gave them. Of a linear layer's weights
it has the transpose, without a name: they are found through the sum with the layer's bias.
"""

import json
import math
from pathlib import Path

import ctranslate2
import numpy as np
import onnx
from ctranslate2.specs import TransformerSpec, common_spec
from numpy.typing import NDArray
from onnx import numpy_helper

Weights = dict[str, NDArray[np.float32]]


def read_weights(graph: Path) -> Weights:
    """Read the weights of an exported graph by their names in training, linear layers as [out, in]."""
    model = onnx.load(graph).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.initializer}
    for node in model.node:
        if node.op_type == "Cast" and node.input[0] in tensors:  # weights stored in half precision
            tensors[node.output[0]] = tensors[node.input[0]].astype(np.float32)
    producers = {output: node for node in model.node for output in node.output}
    weights = {name.removeprefix("model."): array for name, array in tensors.items() if name.startswith("model.")}
    for node in model.node:
        if node.op_type != "Add":
            continue
        for bias, product in (node.input, reversed(node.input)):
            producer = producers.get(product)
            if bias.startswith("model.") and bias.endswith(".bias") and producer and producer.op_type == "MatMul":
                name = bias.removeprefix("model.").removesuffix("bias") + "weight"
                weights[name] = np.ascontiguousarray(tensors[producer.input[1]].T)
    return weights


def write_ctranslate2(folder: Path, target: Path) -> None:
    """Write a model folder's translation model (pre-norm, ReLU) as a CTranslate2 model.

    Raises:
        KeyError: the graphs do not hold the weights of such a model.
    """
    encoder, decoder = read_weights(folder / "encoder.onnx"), read_weights(folder / "model.onnx")
    attention = next(
        node for node in onnx.load(folder / "model.onnx").graph.node if node.op_type == "GroupQueryAttention"
    )
    num_heads = next(field.i for field in attention.attribute if field.name == "num_heads")
    layers = [
        len({name.split(".")[1] for name in found if name.startswith(part)})
        for found, part in ((encoder, "encoder."), (decoder, "decoder."))
    ]
    spec = TransformerSpec.from_config(
        (layers[0], layers[1]), num_heads, pre_norm=True, activation=common_spec.Activation.RELU
    )
    max_tokens = max_positions(folder)
    for side, found, name in ((spec.encoder, encoder, "encoder"), (spec.decoder, decoder, "decoder")):
        embeddings = side.embeddings[0] if name == "encoder" else side.embeddings
        embeddings.weight = (encoder | decoder)["embedding.weight"]
        side.scale_embeddings = True
        side.position_encodings.encodings = sinusoids(max_tokens, embeddings.weight.shape[1])
        _norm(side.layer_norm, found, f"{name}_norm")
        for number, layer in enumerate(side.layer):
            prefix = f"{name}.{number}"
            _norm(layer.self_attention.layer_norm, found, f"{prefix}.attention_norm")
            _linear(layer.self_attention.linear[0], found, f"{prefix}.attention.qkv")
            _linear(layer.self_attention.linear[1], found, f"{prefix}.attention.out")
            if name == "decoder":
                _norm(layer.attention.layer_norm, found, f"{prefix}.cross_norm")
                _linear(layer.attention.linear[0], found, f"{prefix}.cross.query")
                # The encoder's graph computes it once for each sentence.
                _linear(layer.attention.linear[1], encoder, f"{prefix}.cross.key_value")
                _linear(layer.attention.linear[2], found, f"{prefix}.cross.out")
            _norm(layer.ffn.layer_norm, found, f"{prefix}.feed_forward_norm")
            _linear(layer.ffn.linear_0, found, f"{prefix}.feed_forward.up")
            _linear(layer.ffn.linear_1, found, f"{prefix}.feed_forward.down")
    spec.decoder.projection.weight = decoder["embedding.weight"]
    spec.decoder.projection.bias = decoder["never_V"]
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token = spec.config.decoder_start_token = "[BOS]"  # noqa: S105, of text
    spec.config.eos_token, spec.config.unk_token = "[EOS]", "[PAD]"
    spec.config.add_source_bos = spec.config.add_source_eos = False
    spec.validate()
    spec.optimize()
    target.mkdir(parents=True, exist_ok=True)
    spec.save(str(target))


def max_positions(folder: Path) -> int:
    """Return the number of tokens of the longest text that the model reads or writes."""
    limit: int = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    return limit


def sinusoids(num_positions: int, width: int) -> NDArray[np.float32]:
    """Compute the position encoding of Vaswani et al. 2017, section 3.5: sines in even columns, cosines in odd."""
    angle = np.arange(num_positions)[:, None] * np.exp(np.arange(0, width, 2) * (-math.log(10_000.0) / width))
    return np.stack((np.sin(angle), np.cos(angle)), axis=2).reshape(num_positions, width).astype(np.float32)


def _norm(spec: common_spec.LayerNormSpec, weights: Weights, name: str) -> None:
    spec.gamma, spec.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]


def _linear(spec: common_spec.LinearSpec, weights: Weights, name: str) -> None:
    spec.weight, spec.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]


def open_ctranslate2(model: Path, compute_type: str) -> ctranslate2.Translator:
    """Open a translator on one thread of one CPU core."""
    return ctranslate2.Translator(str(model), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=1)
