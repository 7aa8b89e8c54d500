"""Checks of a request against the model it names: task, tensors, number of inputs."""

from collections.abc import Sequence
from typing import Any, TypeVar

from service.errors import InvalidRequest
from service.models.repository import ServedModel
from service.tasks.task import Task
from service.tensors import DATATYPE_OF_NUMPY, DTYPE_OF, Arrays, TensorSpec

T = TypeVar("T", bound=Task[Any])


def require(model: ServedModel, kind: type[T]) -> T:
    """Return the model's task.

    Args:
        model: model that the request names.
        kind: task that the call is made for.

    Raises:
        InvalidRequest: the model has another task; says which inputs it takes.
    """
    task = model.task
    if not isinstance(task, kind):
        article = "an" if kind.name[0] in "aeiou" else "a"
        raise InvalidRequest(f"model {model.name!r} is not {article} {kind.name} model; it takes {task.accepts}")
    return task


def check_inputs(task: Task[Any], inputs: Arrays) -> None:
    """Refuse tensors whose name, datatype or shape does not fit the model's metadata.

    Raises:
        InvalidRequest: names the input and what the model takes.
    """
    specs = task.inputs
    if optional := task.optional_inputs:
        specs = (*specs, *(spec for spec in optional if spec.name in inputs))
    if len(inputs) > len(specs):
        raise _wrong_input_names(inputs, specs, optional)
    for spec in specs:
        name = spec.name
        if (array := inputs.get(name)) is None:
            raise _wrong_input_names(inputs, specs, optional)
        if array.dtype != DTYPE_OF[spec.datatype]:
            datatype = DATATYPE_OF_NUMPY[array.dtype]
            raise InvalidRequest(f"input {name!r} has datatype {datatype}, the model takes {spec.datatype}")
        if not spec.admits(array.shape):
            raise InvalidRequest(
                f"input {name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)} (-1: any size)"
            )


def check_requested_outputs(task: Task[Any], requested_outputs: Sequence[str]) -> None:
    """Refuse names of outputs that the model does not have.

    Raises:
        InvalidRequest: names the unknown outputs and those of the model.
    """
    if requested_outputs and (unknown := set(requested_outputs) - {spec.name for spec in task.outputs}):
        raise InvalidRequest(f"unknown output {', '.join(sorted(unknown))}; {_tensor_names(task.outputs)}")


def check_single_input(inputs: Arrays) -> None:
    """Refuse tensors that do not hold exactly one element, the only input that an explanation takes.

    Raises:
        InvalidRequest: states the number of inputs.
    """
    if (count := sum(array.size for array in inputs.values())) != 1:
        raise InvalidRequest(f"an explanation takes one input, the request has {count}")


def _wrong_input_names(inputs: Arrays, specs: Sequence[TensorSpec], optional: Sequence[TensorSpec]) -> InvalidRequest:
    names = {spec.name for spec in specs}
    if unknown := inputs.keys() - names:
        known = dict.fromkeys([*specs, *optional])
        return InvalidRequest(f"unknown input {', '.join(sorted(unknown))}; {_tensor_names([*known])}")
    return InvalidRequest(f"input {', '.join(sorted(names - inputs.keys()))} is missing; {_tensor_names(specs)}")


def _tensor_names(specs: Sequence[TensorSpec]) -> str:
    return f"the model has {', '.join(spec.name for spec in specs)}"
