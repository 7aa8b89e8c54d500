"""What both transports read of a request besides its tensors: its id, its deadline, its parameters."""

import itertools
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from service.errors import InvalidRequest
from service.prediction.messages import AttentionSelector, ExplainRequest

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-ms"
MAX_REQUEST_ID_CHARACTERS = 128
MAX_DIGITS = 18  # of a number in a header
MAX_TIMEOUT_US = 2**63 - 1  # what a parameter over gRPC can be

# Requests with more to read than so many elements or bytes are read in a thread, so that they do not hold up all
# others: an element of its own takes about 0.25 microseconds, a byte of JSON at most as much, the hand-over 0.1 ms.
MAX_READ_AT_ONCE = 16_384
# Of a request's inputs and of its outputs; graphs with an input for each column of a table have hundreds.
MAX_TENSORS = 1024
MAX_PARAMETERS = 64  # of a request


class RequestIds:
    """Gives an id to each request of one transport; the random prefix tells transports and processes apart."""

    def __init__(self) -> None:
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count(1)

    def choose(self, given: str | None) -> str:
        """Return the caller's request id if it can be logged and sent back, else a new one."""
        if given and len(given) <= MAX_REQUEST_ID_CHARACTERS and given.isascii() and given.isprintable():
            return given
        return f"{self._prefix}-{next(self._numbers):x}"


def number_of(text: str) -> int | None:
    """A header's whole number; None if it is none, or has more than `MAX_DIGITS`."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None


class Parameters(NamedTuple):
    """The request parameters of the Open Inference Protocol that mean something here; others are passed over."""

    timeout_s: float | None = None
    truncate: bool = False
    binary_data_output: bool = False
    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None


NO_PARAMETERS = Parameters()


def check_parameter_count(count: int) -> None:
    """Check how many parameters a request has, before each is looked at.

    Raises:
        InvalidRequest: more than a request may have.
    """
    if count > MAX_PARAMETERS:
        raise InvalidRequest(f"the request has {count} parameters, the limit is {MAX_PARAMETERS}")


def parameters_of(given: Mapping[str, object]) -> Parameters:
    """Read `timeout` (microseconds), `truncate`, `binary_data_output`, and those of a translation's search.

    Raises:
        InvalidRequest: one of them has the wrong type or sign.
    """
    if not given:
        return NO_PARAMETERS
    check_parameter_count(len(given))
    timeout_us = given.get("timeout", 0)
    # bool is a subclass of int, and "timeout": true a mistake.
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or not 0 <= timeout_us <= MAX_TIMEOUT_US:
        raise InvalidRequest(
            "parameter 'timeout' must be a positive integer of microseconds, at most"
            f" {MAX_TIMEOUT_US}, not {timeout_us!r}"
        )
    flags = {}
    for name in ("truncate", "binary_data_output"):
        value = given.get(name, False)
        if not isinstance(value, bool):
            raise InvalidRequest(f"parameter {name!r} must be true or false, not {value!r}")
        flags[name] = value
    # Zero is what clients send that have no timeout (Triton's documentation says the same).
    return Parameters(
        timeout_s=timeout_us * 1e-6 if timeout_us else None,
        length_penalty=_number("length_penalty", given.get("length_penalty")),
        num_beams=_count("num_beams", given.get("num_beams")),
        max_new_tokens=_count("max_new_tokens", given.get("max_new_tokens")),
        **flags,
    )


def explain_request_of(given: Mapping[str, object]) -> ExplainRequest:
    """Read the request parameters of an explanation: method, target, n_samples and seed; part, layer and head.

    Raises:
        InvalidRequest: one of them has the wrong type.
    """
    texts: dict[str, str | None] = {}
    for name in ("method", "target", "part"):
        text = given.get(name)
        if text is not None and not isinstance(text, str):
            raise InvalidRequest(f"parameter {name!r} must be a text, not {text!r}")
        texts[name] = text
    counts = {name: _count(name, given.get(name)) for name in ("n_samples", "seed", "layer", "head")}
    looking = AttentionSelector(texts["part"], counts["layer"], counts["head"])
    return ExplainRequest(texts["method"], texts["target"], counts["n_samples"], counts["seed"], looking)


def _count(name: str, value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRequest(f"parameter {name!r} must be an integer, not {value!r}")
    return value


def _number(name: str, value: object) -> float | None:
    """A number; also as text, for some gRPC clients of the protocol have no fractions among their parameters."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidRequest(f"parameter {name!r} must be a number, not {value!r}")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"parameter {name!r} must be a number, not {value!r}") from None


def earliest(*timeouts_s: float | None) -> float | None:
    """The shortest of the timeouts that were given."""
    shortest_s = None
    for timeout_s in timeouts_s:
        if timeout_s is not None and (shortest_s is None or timeout_s < shortest_s):
            shortest_s = timeout_s
    return shortest_s
