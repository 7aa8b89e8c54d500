"""Reads ONNX graphs of text encoders that others have exported, as Optimum writes them, with their tokenizers.

Shapes: B rows, T tokens, D elements of a token's vector.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.conversion.checkpoints.reading import LoadRefused, few, reading
from export.conversion.checkpoints.text_families import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPES
from export.conversion.comparison.requirements import Precision
from export.onnx_graphs.passes import rename_values

GRAPHS = ("model.onnx", "onnx/model.onnx")  # where Optimum and sentence-transformers put them
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OFFERED_INPUTS = (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPES)
VECTORS, TOKEN_VECTORS = ("sentence_embedding",), ("last_hidden_state", "token_embeddings")
MIN_POOLING_OPSET = 13  # the first in which Unsqueeze and ReduceSum take their axes as an input
INT8_OPERATORS = {"MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QLinearMatMul", "QuantizeLinear"}


def split_graph(source: str) -> tuple[str, Path | None]:
    """Return the folder of a checkpoint and the graph to serve, where one was named or nothing else is there.

    Args:
        source: a folder, a hub id, or a graph in a folder of Optimum, such as `folder/onnx/model_quantized.onnx`.

    Returns:
        the folder or hub id; the graph, or None where PyTorch weights are converted.
    """
    path = Path(source)
    if path.suffix == ".onnx" and path.is_file():
        inner = path.parent.name == "onnx" and not (path.parent / "config.json").is_file()
        return str(path.parent.parent if inner else path.parent), path
    if not path.is_dir() or has_weights(source):
        return source, None
    return source, next((path / name for name in GRAPHS if (path / name).is_file()), None)


def has_weights(folder: str) -> bool:
    """Return whether a folder has PyTorch weights."""
    return any((Path(folder) / name).is_file() for name in WEIGHTS)


def provenance_of_graph(name_or_path: str, config: Any, graph: Path) -> dict[str, Any]:
    """Return the provenance of a model that is known by its graph alone."""
    return {
        "loaded_from": Path(name_or_path).name,
        "model_type": config.model_type,
        "graph": f"{graph.name}, as it was given",
        "transformers": transformers.__version__,
    }


class GivenGraph(nn.Module):
    """An ONNX graph in the place of a network: text encoders whose PyTorch weights may not be there."""

    def __init__(self, path: Path, output_name: str, poolings: Sequence[str] = ()) -> None:
        """Read a graph, and give it one output.

        Args:
            path: the graph, with its weights inside or beside it.
            output_name: the name that the output gets: "logits", or "embedding".
            poolings: how the vectors of tokens become one of the text, for a graph that gives vectors of tokens.

        Raises:
            LoadRefused: the graph is damaged, or has inputs or outputs that are not offered.
        """
        super().__init__()
        self.path = path
        with reading(f"{path.name} cannot be read"):
            self.model = onnx.load(path)
        self._check_inputs()
        self._name_output(output_name, poolings)

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The graph, opened on a CPU."""
        with reading(f"{self.path.name} cannot be opened by ONNX Runtime"):
            return onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the graph's inputs, in the order of conversion."""
        names = {each.name for each in self.model.graph.input}
        return tuple(name for name in OFFERED_INPUTS if name in names)

    @property
    def precision(self) -> Precision:
        """The precision of the graph's products, by its operators and weights."""
        if any(node.op_type in INT8_OPERATORS for node in self.model.graph.node):
            return "int8"
        kinds = {tensor.data_type for tensor in self.model.graph.initializer if len(tensor.dims) > 1}
        return "float16" if TensorProto.FLOAT16 in kinds and TensorProto.FLOAT not in kinds else "float32"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the output; inputs int64 [B, T] in the order of `input_names`."""
        feeds = {name: tensor.numpy() for name, tensor in zip(self.input_names, inputs, strict=True)}
        return torch.from_numpy(self.session.run(None, feeds)[0])

    def write(self, path: Path) -> None:
        """Write the graph with its weights inside."""
        onnx.save(self.model, path)

    def _check_inputs(self) -> None:
        stored = {tensor.name for tensor in self.model.graph.initializer}
        inputs = [each for each in self.model.graph.input if each.name not in stored]
        names = {each.name for each in inputs}
        if not {INPUT_IDS, ATTENTION_MASK} <= names or not names <= set(OFFERED_INPUTS):
            raise LoadRefused(
                f"{self.path.name} has the inputs {few(sorted(names))}; offered: {INPUT_IDS}, {ATTENTION_MASK},"
                f" and {TOKEN_TYPES} where the network has it"
            )
        for each in inputs:
            kind = each.type.tensor_type
            if kind.elem_type != TensorProto.INT64:
                found = TensorProto.DataType.Name(kind.elem_type)
                raise LoadRefused(f"{self.path.name}: the input {each.name} is {found}; INT64 is offered")
            if len(kind.shape.dim) != 2 or any(dim.HasField("dim_value") for dim in kind.shape.dim):
                sizes = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
                raise LoadRefused(f"{self.path.name}: the input {each.name} has the shape {sizes}; rows and tokens of"
                                  " any number are offered")  # fmt: skip

    def _name_output(self, output_name: str, poolings: Sequence[str]) -> None:
        graph = self.model.graph
        wanted = ("logits",) if output_name == "logits" else (*VECTORS, *TOKEN_VECTORS)
        outputs = {each.name: each for each in graph.output}
        found = next((name for name in wanted if name in outputs), None)
        if found is None:
            raise LoadRefused(
                f"{self.path.name} has the outputs {few(outputs)}; for this task one of {', '.join(wanted)} is needed"
            )
        kind = outputs[found].type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise LoadRefused(
                f"{self.path.name}: the output {found} is {TensorProto.DataType.Name(kind)}; FLOAT is offered"
            )
        if found != output_name:
            rename_values(self.model, {output_name: f"{output_name}.inner"})
        if found in TOKEN_VECTORS:
            self._pool(found, output_name, poolings)
        elif found != output_name:
            graph.node.append(helper.make_node("Identity", [found], [output_name], "heed_output"))
        del graph.output[:]
        sizes = ["batch", None]
        kept = outputs[found] if found == output_name else helper.make_tensor_value_info(output_name, 1, sizes)
        graph.output.append(kept)

    def _pool(self, vectors: str, output_name: str, poolings: Sequence[str]) -> None:
        """Add the nodes that make one vector of the vectors of the tokens."""
        opset = next(each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx"))
        if [*poolings] not in (["mean_tokens"], ["cls_token"]) or opset < MIN_POOLING_OPSET:
            raise LoadRefused(
                f"{self.path.name} gives vectors of tokens, in opset {opset}, which {', '.join(poolings)} pools;"
                f" mean_tokens and cls_token are offered, from opset {MIN_POOLING_OPSET} on"
            )

        def constant(name: str, value: Any) -> str:
            tensor = numpy_helper.from_array(torch.tensor(value).numpy(), f"heed_{name}")
            self.model.graph.initializer.append(tensor)
            return f"heed_{name}"

        if poolings[0] == "cls_token":
            nodes = [helper.make_node("Gather", [vectors, constant("first", 0)], [output_name], axis=1)]
        else:
            rows, last = constant("axis_tokens", [1]), constant("axis_last", [2])
            nodes = [
                helper.make_node("Cast", [ATTENTION_MASK], ["heed_mask_BT"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["heed_mask_BT", last], ["heed_mask_BT1"]),
                helper.make_node("Mul", [vectors, "heed_mask_BT1"], ["heed_real_BTD"]),
                helper.make_node("ReduceSum", ["heed_real_BTD", rows], ["heed_sum_BD"], keepdims=0),
                helper.make_node("ReduceSum", ["heed_mask_BT1", rows], ["heed_count_B1"], keepdims=0),
                helper.make_node("Div", ["heed_sum_BD", "heed_count_B1"], [output_name]),
            ]
        for number, node in enumerate(nodes):
            node.name = f"heed_pooling_{number}"
        self.model.graph.node.extend(nodes)
