"""Checks of a request against the model it names: task, tensors, number of rows."""

from collections.abc import Sequence

from service.errors import InvalidRequest
from service.models.loading import Task
from service.models.repository import ServedModel
from service.tasks.image_classification import ImageClassification
from service.tasks.raw_tensors import RawTensors
from service.tasks.text_classification import TextClassification
from service.tasks.translation import Translation
from service.tensors import DATATYPE_OF_NUMPY, DTYPE_OF, Arrays, TensorSpec


def require_translation(model: ServedModel) -> Translation:
    """Return the model's task, or raise InvalidRequest if it does not translate."""
    if not isinstance(model.task, Translation):
        raise InvalidRequest(
            f"model {model.name!r} is not a translation model; it takes {_accepted_inputs(model.task)}"
        )
    return model.task


def require_text_classification(model: ServedModel) -> TextClassification:
    """Return the model's task, or raise InvalidRequest if it does not classify texts."""
    if not isinstance(model.task, TextClassification):
        accepted = _accepted_inputs(model.task)
        raise InvalidRequest(f"model {model.name!r} is not a text-classification model; it takes {accepted}")
    return model.task


def require_image_classification(model: ServedModel) -> ImageClassification:
    """Return the model's task, or raise InvalidRequest if it does not classify images."""
    if not isinstance(model.task, ImageClassification):
        accepted = _accepted_inputs(model.task)
        raise InvalidRequest(f"model {model.name!r} is not an image-classification model; it takes {accepted}")
    return model.task


def check_inputs(task: Task, inputs: Arrays) -> None:
    """Refuse tensors whose name, datatype or shape does not fit the model's metadata.

    Raises:
        InvalidRequest: names the input and what the model takes.
    """
    specs = task.inputs
    optional = task.optional_inputs if isinstance(task, RawTensors) else ()
    if optional:
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


def check_requested_outputs(task: Task, requested_outputs: Sequence[str]) -> None:
    """Refuse names of outputs that the model does not have.

    Raises:
        InvalidRequest: names the unknown outputs and those of the model.
    """
    if requested_outputs and (unknown := set(requested_outputs) - {spec.name for spec in task.outputs}):
        raise InvalidRequest(f"unknown output {', '.join(sorted(unknown))}; {_tensor_names(task.outputs)}")


def check_num_rows(num_inputs: int, max_rows: int, what: str = "inputs", rows_each: int = 1) -> None:
    """Refuse a request with no rows or with too many, before any work is done for it.

    Args:
        num_inputs: inputs of the request.
        max_rows: limit of the server (max_request_rows).
        what: noun for the inputs in the message.
        rows_each: rows that each input takes in a batch; the beams of a translation.

    Raises:
        InvalidRequest: states the number and the limit.
    """
    if num_inputs == 0:
        raise InvalidRequest("the request has no inputs")
    if num_inputs * rows_each > max_rows:
        raise too_many_rows(num_inputs, max_rows, what, rows_each)


def too_many_rows(num_inputs: int, max_rows: int, what: str = "inputs", rows_each: int = 1) -> InvalidRequest:
    """Return the error for a request with too many rows; arguments as for `check_num_rows`."""
    beams = f" x {rows_each} num_beams = {num_inputs * rows_each} rows" if rows_each > 1 else ""
    return InvalidRequest(f"the request has {num_inputs} {what}{beams}, the limit is {max_rows} (max_request_rows)")


def check_single_input(inputs: Arrays) -> None:
    """Refuse tensors that do not hold exactly one element, the only input that an explanation takes.

    Raises:
        InvalidRequest: states the number of inputs.
    """
    if (count := sum(array.size for array in inputs.values())) != 1:
        raise InvalidRequest(f"an explanation is of one input, the request has {count}")


def _accepted_inputs(task: Task) -> str:
    if isinstance(task, RawTensors):
        return "tensors"
    if isinstance(task, Translation):
        return "texts, and gives translations"
    return "images" if isinstance(task, ImageClassification) else "texts"


def _wrong_input_names(inputs: Arrays, specs: Sequence[TensorSpec], optional: Sequence[TensorSpec]) -> InvalidRequest:
    names = {spec.name for spec in specs}
    if unknown := inputs.keys() - names:
        known = dict.fromkeys([*specs, *optional])
        return InvalidRequest(f"unknown input {', '.join(sorted(unknown))}; {_tensor_names([*known])}")
    return InvalidRequest(f"input {', '.join(sorted(names - inputs.keys()))} is missing; {_tensor_names(specs)}")


def _tensor_names(specs: Sequence[TensorSpec]) -> str:
    return f"the model has {', '.join(spec.name for spec in specs)}"
