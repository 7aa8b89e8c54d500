"""The graphs of the `onnx` package's backend tests, with rows along an axis of any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.backend.test.case import model as model_cases
from onnx.backend.test.case import node as node_cases

from service.tensors import Arrays

_STORED = Path(onnx.backend.test.__file__).parent / "data"
_KINDS = "biufOUS"  # of elements that a request may carry


@dataclass(frozen=True)
class Case:
    """A graph, with one set of inputs and outputs if the package has one."""

    name: str
    model: onnx.ModelProto
    inputs: Sequence[NDArray[Any]]
    outputs: Sequence[NDArray[Any]]


def cases() -> Iterator[Case]:
    """Every graph of the package: those made by its scripts, then those exported from PyTorch."""
    for case in [*node_cases.collect_testcases(None), *model_cases.collect_testcases()]:
        if case.model is not None:
            inputs, outputs = case.data_sets[0] if case.data_sets else ([], [])
            yield Case(case.name, case.model, inputs, outputs)
    for kind in ("pytorch-operator", "pytorch-converted"):
        for folder in sorted((_STORED / kind).iterdir()):
            data = folder / "test_data_set_0"
            yield Case(
                f"{kind}/{folder.name}",
                onnx.load(folder / "model.onnx"),
                _stored(data, "input"),
                _stored(data, "output"),
            )


def _stored(folder: Path, kind: str) -> list[NDArray[Any]]:
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.load_tensor(path)) for path in files]


def with_any_rows(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Make the first dimensions of a graph dynamic; None if a tensor has no dimensions."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    constants = {each.name for each in changed.graph.initializer}
    inputs = [each for each in changed.graph.input if each.name not in constants]
    for each in [*inputs, *changed.graph.output]:
        if not each.type.HasField("tensor_type") or not each.type.tensor_type.shape.dim:
            return None
        each.type.tensor_type.shape.dim[0].Clear()
        each.type.tensor_type.shape.dim[0].dim_param = "rows"
    del changed.graph.value_info[:]
    return changed if inputs else None


def rows_of(case: Case, model: onnx.ModelProto) -> Arrays | None:
    """The case's rows, followed by reversed and much larger copies; None if its inputs are not rows."""
    constants = {each.name for each in model.graph.initializer}
    names = [each.name for each in model.graph.input if each.name not in constants]
    arrays = [np.asarray(each) for each in case.inputs]
    if len(names) != len(arrays) or any(array.dtype.kind not in _KINDS or array.ndim == 0 for array in arrays):
        return None
    if len({len(array) for array in arrays}) != 1 or len(arrays[0]) == 0:
        return None
    return {name: beside_larger(array) for name, array in zip(names, arrays, strict=True)}


def beside_larger(array: NDArray[Any]) -> NDArray[Any]:
    """Append reversed copies of rows, enlarged if they are real numbers."""
    if array.dtype.kind != "f":
        return np.concatenate([array, array[::-1]])
    return np.concatenate([array, (array[::-1] * (3 if array.dtype.itemsize == 2 else 100)).astype(array.dtype)])


def along(case: Case, batched: frozenset[str], axis: int, result_axis: int) -> tuple[onnx.ModelProto, Arrays] | None:
    """The graph with rows along any axis: moved to the front of the inputs, and of the outputs.

    Args:
        case: the graph and its data.
        batched: inputs that have rows; the others become constants.
        axis: the axis of the rows in these inputs.
        result_axis: the axis of the rows in the outputs.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs, outputs = list(model.graph.input), list(model.graph.output)
    before, after, rows = [], [], {}
    for part in (model.graph.input, model.graph.output, model.graph.value_info):
        del part[:]
    for each, array in zip(inputs, map(np.asarray, case.inputs), strict=True):
        if each.name not in batched:
            model.graph.initializer.append(numpy_helper.from_array(array, each.name))
            continue
        order = [axis, *[other for other in range(array.ndim) if other != axis]]
        rows[f"in_{each.name}"] = beside_larger(np.transpose(array, order))
        kind = each.type.tensor_type.elem_type
        shape = ["rows", *[array.shape[other] for other in order[1:]]]
        model.graph.input.append(helper.make_tensor_value_info(f"in_{each.name}", kind, shape))
        back = [int(place) for place in np.argsort(order)]
        before.append(helper.make_node("Transpose", [f"in_{each.name}"], [each.name], perm=back))
    for each, array in zip(outputs, map(np.asarray, case.outputs), strict=True):
        if array.ndim <= result_axis:
            return None
        order = [result_axis, *[other for other in range(array.ndim) if other != result_axis]]
        after.append(helper.make_node("Transpose", [each.name], [f"out_{each.name}"], perm=order))
        kind = each.type.tensor_type.elem_type
        model.graph.output.append(
            helper.make_tensor_value_info(f"out_{each.name}", kind, ["rows", *[None] * (array.ndim - 1)])
        )
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, rows
