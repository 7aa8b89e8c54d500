"""What both transports read of a request besides its tensors: its id, its deadline, its parameters."""

import itertools
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from service.errors import InvalidRequest

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-ms"
MAX_REQUEST_ID_CHARACTERS = 128

_PREFIX = secrets.token_hex(4)
_numbers = itertools.count(1)


def request_id_of(given: str | None) -> str:
    """The caller's request id, when it is fit to be logged and sent back; else a new one, unique to this process."""
    if given and len(given) <= MAX_REQUEST_ID_CHARACTERS and given.isascii() and given.isprintable():
        return given
    return f"{_PREFIX}-{next(_numbers):x}"


class Parameters(NamedTuple):
    """The request parameters of the Open Inference Protocol that mean something here; others are passed over."""

    timeout_s: float | None = None
    truncate: bool = False
    binary_data_output: bool = False


def parameters_of(given: Mapping[str, object]) -> Parameters:
    """Read `timeout` (microseconds), `truncate` and `binary_data_output`.

    Raises:
        InvalidRequest: one of them has the wrong type or sign.
    """
    if not given:
        return Parameters()
    timeout_us = given.get("timeout", 0)
    # bool is a subclass of int, and "timeout": true a mistake.
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0:
        raise InvalidRequest(f"parameter 'timeout' must be a positive integer of microseconds, not {timeout_us!r}")
    flags = {}
    for name in ("truncate", "binary_data_output"):
        value = given.get(name, False)
        if not isinstance(value, bool):
            raise InvalidRequest(f"parameter {name!r} must be true or false, not {value!r}")
        flags[name] = value
    # Zero is what clients send that have no timeout (Triton's documentation says the same).
    return Parameters(timeout_s=timeout_us * 1e-6 if timeout_us else None, **flags)


def earliest(*timeouts_s: float | None) -> float | None:
    """The shortest of the timeouts that were given."""
    given = [timeout_s for timeout_s in timeouts_s if timeout_s is not None]
    return min(given) if given else None
