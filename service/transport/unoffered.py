"""Parameters of the Open Inference Protocol that ask for another answer than this server gives: refused by name.

Clients of other servers send parameters that this server does not know. Most are remarks of the client, and the
protocol lets a server ignore them. The ones in this module would change the answer, so ignoring them would give an
answer that was not asked for. Neutral values, which clients send without being asked to, are taken.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from service.errors import InvalidRequest, Unsupported
from service.tasks.parameters import NEUTRAL, OWNER_OF, check_neutral
from service.tasks.task import EmbeddingOptions, GenerationOptions
from service.tensors import whole_number

CLASSIFICATION = "classification"  # parameter of a requested output: number of best classes
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
# Parameters that this protocol takes under the names that the task API uses too.
OFFERED = (
    "truncate",
    "num_beams",
    "max_new_tokens",
    "length_penalty",
    *GenerationOptions._fields,
    *EmbeddingOptions._fields,
)
TASK_API_ALONE = OWNER_OF.keys() - NEUTRAL.keys() - {*OFFERED} | {"top_k"}
LOOKED_AT = frozenset({*SEQUENCE, "priority", *NEUTRAL, *TASK_API_ALONE})
# How a tensor's elements are to be read or written, by MLServer's names; these two are what the datatype says.
CONTENT_TYPE, CONTENT_TYPES = "content_type", ("np", "str")


def check_request_parameters(given: Mapping[str, object]) -> None:
    """Refuse parameters of a request that would change its answer.

    Raises:
        Unsupported: the request belongs to a sequence.
        InvalidRequest: the parameter is one of the task API's alone, or asks for sampling and the like.
    """
    if LOOKED_AT.isdisjoint(given):
        return
    for name in SEQUENCE:
        if given.get(name) not in (None, 0, "", False):
            raise Unsupported(f"parameter {name!r} is not offered: no model here keeps a state between requests")
    # Orders a queue in servers with levels of priority; without levels, as here, it changes no answer.
    priority = whole_number(given.get("priority") or 0)
    if priority is None or priority < 0:
        raise InvalidRequest(f"parameter 'priority' must be an integer of at least 0, not {given['priority']!r}")
    for name in TASK_API_ALONE & given.keys():
        if given[name] is not None:
            raise InvalidRequest(
                f"parameter {name!r} belongs to the task API (POST /models/<name>), of {OWNER_OF[name]};"
                " the Open Inference Protocol has no such parameter"
            )
    check_neutral(given)


def check_tensor_parameters(what: str, name: str, given: Mapping[str, object]) -> None:
    """Refuse parameters of a tensor that say where its data lies, or that it means something else.

    Args:
        what: "input" or "output".
        name: name of the tensor.
        given: its parameters.

    Raises:
        Unsupported: names the tensor and the parameter.
    """
    for parameter in SHARED_MEMORY:
        if given.get(parameter) not in (None, "", 0):
            raise Unsupported(f"{what} {name!r}: {parameter} is not offered; send and receive the data in the messages")
    content_type = given.get(CONTENT_TYPE)
    if content_type is not None and content_type not in CONTENT_TYPES:
        raise Unsupported(
            f"{what} {name!r}: content_type {content_type!r} is not offered; known are {', '.join(CONTENT_TYPES)}"
        )


class RequestedOutputs(NamedTuple):
    """The outputs that a request asks for.

    Attributes:
        names: their names; empty for all outputs.
        num_classes: how many best classes are asked for in place of an output, by its name.
    """

    names: Sequence[str] = ()
    num_classes: Mapping[str, int] = {}


ALL_OUTPUTS = RequestedOutputs()


def requested_outputs(given: Iterable[tuple[str, Mapping[str, Any]]]) -> RequestedOutputs:
    """Read the outputs that a request asks for.

    Args:
        given: name and parameters of each requested output.

    Raises:
        InvalidRequest: `classification` is wrong, or the output is asked for in two forms.
        Unsupported: a parameter asks for a form that is not offered.
    """
    wanted: dict[str, int] = {}
    for name, parameters in given:
        num_classes = 0
        if parameters:
            check_tensor_parameters("output", name, parameters)
            if (asked := parameters.get(CLASSIFICATION)) is not None:
                count = whole_number(asked)
                if count is None or count < 1:
                    raise InvalidRequest(
                        f"output {name!r}: classification must be an integer of at least 1, not {asked!r}"
                    )
                num_classes = count
        if wanted.setdefault(name, num_classes) != num_classes:
            raise InvalidRequest(f"output {name!r} is requested twice, with different values of classification")
    return RequestedOutputs([*wanted], {name: count for name, count in wanted.items() if count})
