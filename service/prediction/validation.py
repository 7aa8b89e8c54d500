"""Checks of a request against the model it names: task, tensors, number of inputs."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from service.errors import InvalidRequest
from service.models.repository import ServedModel
from service.prediction.messages import RequestOptions
from service.prediction.top_classes import check_classes
from service.tasks.table import TASKS
from service.tasks.task import Task
from service.tensors import DATATYPE_OF_NUMPY, DTYPE_OF, Arrays, TensorSpec

T = TypeVar("T", bound=Task[Any])

REQUEST_OPTIONS = ("truncate", "num_beams", "max_new_tokens", "length_penalty")  # those that depend on the task


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
        wanted = described(kind)
        raise InvalidRequest(f"model {model.name!r} is not {wanted}; it takes {task.accepts}")
    return task


def check_inputs(task: Task[Any], inputs: Arrays) -> None:
    """Refuse tensors whose name, datatype or shape does not fit the model's metadata.

    A tensor of shape [n, 1] is replaced by the same elements of shape [n] where the model takes [n] and n counts rows,
    or where the elements are BYTES: clients of servers with a batch dimension of their own send one element a row, and
    the model's configuration tells clients of Triton to. [1, n] is refused, because it is one row of n elements.

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
            is_column = array.shape[1:] == (1,) and spec.admits(array.shape[:1])
            if is_column and (spec.datatype == "BYTES" or task.max_inputs(1) > 0):
                inputs[name] = array.reshape(-1)
                continue
            raise InvalidRequest(
                f"input {name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)} (-1: any size)"
            )


def check_requested_outputs(task: Task[Any], requested_outputs: Sequence[str], num_classes: Mapping[str, int]) -> None:
    """Refuse outputs that the model does not have, and classes of outputs that have none.

    Args:
        task: task of the model.
        requested_outputs: names of the outputs; empty for all.
        num_classes: how many best classes are asked for in place of an output, by its name.

    Raises:
        InvalidRequest: names the unknown outputs and those of the model, or the output without classes.
    """
    if requested_outputs and (unknown := set(requested_outputs) - {spec.name for spec in task.outputs}):
        raise InvalidRequest(f"unknown output {', '.join(sorted(unknown))}; {_tensor_names(task.outputs)}")
    if num_classes:
        for spec in task.outputs:
            if spec.name in num_classes:
                check_classes(spec)


def check_options(model: ServedModel, options: RequestOptions) -> None:
    """Refuse options that the model's task has no use for.

    Raises:
        InvalidRequest: names the option, the tasks that it belongs to, and the model's task.
    """
    # Most requests have none of them, and are told here in a fraction of the time of the loop.
    if not (
        options.truncate
        or options.num_beams is not None
        or options.max_new_tokens is not None
        or options.length_penalty is not None
    ):
        return
    task = model.task
    for name in REQUEST_OPTIONS:
        value = getattr(options, name)
        if value is not None and value is not False and name not in task.request_options:
            *others, last = (kind.name for kind in TASKS.values() if name in kind.request_options)
            owners = f"{', '.join(others)} and {last}" if others else last
            raise InvalidRequest(f"parameter {name!r} belongs to {owners}; model {model.name!r} is {described(task)}")


def described(task: Task[Any] | type[Task[Any]]) -> str:
    """Return what a model of a task is, for messages: "a translation model"."""
    if task.name not in TASKS:
        return f"a bare graph, which takes {task.accepts}"
    return f"{'an' if task.name[0] in 'aeiou' else 'a'} {task.name} model"


def check_single_input(inputs: Sequence[Any]) -> None:
    """Refuse more or fewer inputs than one, the only input that an explanation takes.

    Raises:
        InvalidRequest: states the number of inputs.
    """
    if (count := len(inputs)) != 1:
        raise InvalidRequest(f"an explanation takes one input, the request has {count}")


def _wrong_input_names(inputs: Arrays, specs: Sequence[TensorSpec], optional: Sequence[TensorSpec]) -> InvalidRequest:
    names = {spec.name for spec in specs}
    if unknown := inputs.keys() - names:
        known = dict.fromkeys([*specs, *optional])
        return InvalidRequest(f"unknown input {', '.join(sorted(unknown))}; {_tensor_names([*known])}")
    return InvalidRequest(f"input {', '.join(sorted(names - inputs.keys()))} is missing; {_tensor_names(specs)}")


def _tensor_names(specs: Sequence[TensorSpec]) -> str:
    return f"the model has {', '.join(spec.name for spec in specs)}"
