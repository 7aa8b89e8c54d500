"""Exports modules to ONNX, and optimizes, quantizes and halves graphs, whatever they compute."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.fusion_options import FusionOptions
from torch import nn

from export.stopping import raise_if_stopped
from service.engines.int8_products import session_entries

OPSET = 20
OUTPUT_SUFFIX = ".output"  # of the outputs while a graph is exported
ATTENTION_OPSET = 23  # the first opset with `Attention`
# Smaller weights are not worth a node of their own.
MIN_HALVED_ELEMENTS = 1024


def export_graph(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: Any,
) -> None:
    """Write a module as an ONNX graph, through torch.export.

    Args:
        module: the module in the form to be served.
        example: example arguments, of any size.
        path: the file to write.
        inputs: input names, in the order of the arguments.
        outputs: output names, in the order of the results.
        dynamic_shapes: the dimensions of any size, as `torch.export.export` takes them.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnxruntime"):
        warnings.simplefilter("ignore")  # about the exporter's own internals
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=[name + OUTPUT_SUFFIX for name in outputs],
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
        assert program is not None
        program.save(path)
    raise_if_stopped()  # the exporter runs Python from C, where exceptions are dropped
    name_outputs(path, outputs)
    keep_tanh_gelu(path)


def name_outputs(path: Path, outputs: Sequence[str]) -> None:
    """Give the outputs of an exported graph their names, in place; inner values of these names get others.

    The exporter names inner values after PyTorch's operators (`embedding`, `linear`), and does not notice that an
    output has the name of one.
    """
    model = onnx.load(path)
    names = {name + OUTPUT_SUFFIX: name for name in outputs} | {name: f"{name}.inner" for name in outputs}
    given = {each.name for each in model.graph.input}
    rename_values(model, {old: new for old, new in names.items() if old not in given})
    onnx.save(model, path)


def rename_values(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename values and weights of a graph, in place."""
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    named: list[Any] = [*model.graph.output, *model.graph.value_info, *model.graph.initializer]
    for value in named:
        value.name = names.get(value.name, value.name)


def keep_tanh_gelu(path: Path) -> None:
    """Replace tanh-approximated GELU (`gelu_pytorch_tanh`) by ONNX Runtime's own operator, in place.

    ONNX Runtime's optimizers join ONNX's `Gelu` with the bias before it, and then compute GELU by the error function
    whatever `approximate` says: logits of a small BERT were 0.0039 off.
    """
    model = onnx.load(path)
    approximated = [
        node
        for node in model.graph.node
        if node.op_type == "Gelu"
        and not node.domain
        and any(each.name == "approximate" and each.s == b"tanh" for each in node.attribute)
    ]
    if not approximated:
        return
    for node in approximated:
        node.CopyFrom(helper.make_node("FastGelu", node.input, node.output, node.name, domain="com.microsoft"))
    if not any(imported.domain == "com.microsoft" for imported in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)


def optimize_transformer(path: Path, shape: Mapping[str, Any]) -> None:
    """Fuse BERT-like patterns with ONNX Runtime's optimizer, in place; `shape` has `num_heads` and the like."""
    options = FusionOptions("bert")
    # On a CPU SkipLayerNormalization is slower than the sum and the LayerNormalization that it replaces (measured:
    # docs/decisions/engines.md).
    options.enable_skip_layer_norm = False
    # Quantized, EmbedLayerNormalization adds tables of different scales: logits of a small MPNet were 3.5 off instead
    # of 0.3.
    options.enable_embed_layer_norm = False
    with _quiet("onnxruntime"):
        optimized = optimizer.optimize_model(str(path), **shape, opt_level=0, optimization_options=options)
        optimized.save_model_to_file(str(path))


def use_standard_attention(path: Path) -> None:
    """Replace ONNX Runtime's attention by ONNX's standard operator, in place, where a bias hides the padding.

    Both compute the same. On a CPU the standard operator takes half the time (docs/decisions/engines.md). On a GPU only
    the older one is sure to exist, so `use_own_attention` restores it.
    """
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "MultiHeadAttention" and len(node.input) == 6 and not any(node.input[3:5]):
            query, key, value, *_, bias = node.input
            (num_heads,) = (each.i for each in node.attribute if each.name == "num_heads")
            node.CopyFrom(
                helper.make_node(
                    "Attention",
                    [query, key, value, bias],
                    node.output,
                    node.name,
                    q_num_heads=num_heads,
                    kv_num_heads=num_heads,
                    **_scale_of(node),
                )
            )
            _import_opset(model, ATTENTION_OPSET)
    onnx.save(model, path)


def use_own_attention(model: onnx.ModelProto) -> None:
    """Undo `use_standard_attention`, in place."""
    for node in model.graph.node:
        if node.op_type == "Attention" and not node.domain:  # ONNX Runtime has another one of this name
            query, key, value, bias = node.input
            (num_heads,) = (each.i for each in node.attribute if each.name == "q_num_heads")
            node.CopyFrom(
                helper.make_node(
                    "MultiHeadAttention",
                    [query, key, value, "", "", bias],
                    node.output,
                    node.name,
                    domain="com.microsoft",
                    num_heads=num_heads,
                    **_scale_of(node),
                )
            )
            _import_opset(model, OPSET)


def _scale_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attribute `scale` of an attention node, if it has one."""
    return {each.name: each.f for each in node.attribute if each.name == "scale"}


def _import_opset(model: onnx.ModelProto, version: int) -> None:
    """Set the opset version: all other operators that conversion writes mean the same in versions 20 to 23."""
    for imported in model.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = version


def quantize(path: Path, operators: Sequence[str] | None = None) -> None:
    """Quantize dynamically, in place: weights to int8 per channel, activations to int8 at run time.

    Only the given operators are quantized; None quantizes all that can be.
    """
    # ONNX cannot infer types behind operators of ONNX Runtime's own; before quantization all products are in float32.
    extra_options = {"DefaultTensorType": TensorProto.FLOAT}
    with _quiet(None):
        quantize_dynamic(
            path,
            path,
            op_types_to_quantize=operators,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options=extra_options,
        )


def halve(path: Path, *, kept: Sequence[str] | None = None, in_full: Sequence[str] = ()) -> None:
    """Convert weights and products to float16, in place.

    For GPUs. ONNX Runtime computes such a graph on a CPU too, slowly, which is how it is compared with PyTorch.

    Args:
        path: the file of the graph.
        kept: inputs and outputs that stay in float32; None for all of them.
        in_full: operators that still compute in float32.
    """
    blocked = [*DEFAULT_OP_BLOCK_LIST, *in_full]
    with _quiet("onnxruntime"):
        halved = convert_float_to_float16(
            onnx.load(path), keep_io_types=True if kept is None else list(kept), op_block_list=blocked
        )
        onnx.save(halved, path)


def halve_exact_weights(path: Path) -> None:
    """Store weights in float16 where that is exact, in place.

    Training keeps weights that are half-precision numbers (`export.training.run_folder.halve_weights`); a Cast node,
    which ONNX Runtime folds away when it loads the graph, makes them float32 again, bit for bit.
    """
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        full = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if full.size < MIN_HALVED_ELEMENTS or not np.array_equal(half.astype(np.float32), full):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(
            helper.make_node(
                "Cast",
                [f"{name}.half"],
                [name],
                name=f"{name}.cast",
                to=TensorProto.FLOAT,
            )
        )
    for node in reversed(casts):
        graph.node.insert(0, node)
    onnx.save(model, path)


def cpu_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a CPU session that computes a graph as the service does: int8 products are exact."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a busy machine has no core to spin on
    for name, value in session_entries().items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _quiet:  # noqa: N801, used as a statement
    """Silence loggers for a while: the exporters report every internal step."""

    def __init__(self, *names: str | None) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
