"""Reads a request's id, timeout and parameters, for both transports."""

import itertools
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from service.errors import InvalidRequest
from service.prediction.messages import AttentionSelector, ExplainRequest
from service.tasks.task import (
    NO_EMBEDDING_OPTIONS,
    NO_GENERATION_OPTIONS,
    EmbeddingOptions,
    GenerationOptions,
)
from service.tensors import whole_number
from service.transport.unoffered import check_request_parameters

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-ms"
MAX_REQUEST_ID_CHARACTERS = 128
MAX_DIGITS = 18  # digits of a number in a header
MAX_TIMEOUT_US = 2**63 - 1  # largest value of an integer parameter over gRPC

# Requests with more elements or JSON bytes are decoded in a thread, so that they do not delay other requests. An
# element takes about 0.25 microseconds, a byte of JSON at most as much, and the hand-over to a thread 0.1 ms.
MAX_READ_AT_ONCE = 16_384
# Limit for a request's inputs, and for its outputs; graphs with an input for each column of a table have hundreds.
MAX_TENSORS = 1024
MAX_PARAMETERS = 64  # parameters of one request


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
    """Parse a header's whole number; None if the text is not one, or has more than `MAX_DIGITS` digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None


class Parameters(NamedTuple):
    """The request parameters of the Open Inference Protocol that this server uses; see `unoffered` for others."""

    timeout_s: float | None = None
    truncate: bool = False
    binary_data_output: bool = False
    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    generation: GenerationOptions | None = None
    embedding: EmbeddingOptions | None = None


NO_PARAMETERS = Parameters()


def check_parameter_count(count: int) -> None:
    """Check how many parameters a request has, before they are read.

    Raises:
        InvalidRequest: the request has more than `MAX_PARAMETERS`.
    """
    if count > MAX_PARAMETERS:
        raise InvalidRequest(f"the request has {count} parameters, the limit is {MAX_PARAMETERS}")


def parameters_of(given: Mapping[str, object]) -> Parameters:
    """Read `timeout` (microseconds), `truncate`, `binary_data_output`, and the parameters of searches and of vectors.

    A parameter that is None, JSON's null, is not given.

    Raises:
        InvalidRequest: a parameter has the wrong type or sign.
        InvalidRequest, Unsupported: a parameter asks for an answer that is not offered.
    """
    if not given:
        return NO_PARAMETERS
    check_parameter_count(len(given))
    check_request_parameters(given)
    asked = given.get("timeout")
    timeout_us = 0 if asked is None else whole_number(asked)
    if timeout_us is None or not 0 <= timeout_us <= MAX_TIMEOUT_US:
        raise InvalidRequest(
            f"parameter 'timeout' must be a positive integer of microseconds, at most {MAX_TIMEOUT_US}, not {asked!r}"
        )
    flags = {}
    for name in ("truncate", "binary_data_output"):
        value = given.get(name)
        if value is not None and not isinstance(value, bool):
            raise InvalidRequest(f"parameter {name!r} must be true or false, not {value!r}")
        flags[name] = value is True
    # Clients without a timeout send 0 (Triton's documentation says the same).
    return Parameters(
        timeout_s=timeout_us * 1e-6 if timeout_us else None,
        length_penalty=_number("length_penalty", given.get("length_penalty")),
        num_beams=_count("num_beams", given.get("num_beams")),
        max_new_tokens=_count("max_new_tokens", given.get("max_new_tokens")),
        generation=_generation_options(given),
        embedding=_embedding_options(given),
        **flags,
    )


def _generation_options(given: Mapping[str, object]) -> GenerationOptions | None:
    """Read the options of a search that few requests have; None if there is none."""
    if given.keys().isdisjoint(GenerationOptions._fields):
        return None
    options = GenerationOptions(
        min_new_tokens=_count("min_new_tokens", given.get("min_new_tokens")),
        no_repeat_ngram_size=_count("no_repeat_ngram_size", given.get("no_repeat_ngram_size")),
        repetition_penalty=_number("repetition_penalty", given.get("repetition_penalty")),
        src_lang=_text("src_lang", given.get("src_lang")),
        tgt_lang=_text("tgt_lang", given.get("tgt_lang")),
    )
    return None if options == NO_GENERATION_OPTIONS else options


def _embedding_options(given: Mapping[str, object]) -> EmbeddingOptions | None:
    """Read the options of a request for vectors; None if there is none."""
    if given.keys().isdisjoint(EmbeddingOptions._fields):
        return None
    normalize, prompt_name = given.get("normalize"), given.get("prompt_name")
    if normalize is not None and not isinstance(normalize, bool):
        raise InvalidRequest(f"parameter 'normalize' must be true or false, not {normalize!r}")
    if prompt_name is not None and not isinstance(prompt_name, str):
        raise InvalidRequest(f"parameter 'prompt_name' must be a text, not {prompt_name!r}")
    options = EmbeddingOptions(normalize, _count("dimensions", given.get("dimensions")), prompt_name)
    return None if options == NO_EMBEDDING_OPTIONS else options


def explain_request_of(given: Mapping[str, object]) -> ExplainRequest:
    """Read the request parameters of an explanation: method, target, n_samples and seed; part, layer and head.

    Raises:
        InvalidRequest: a parameter has the wrong type.
    """
    texts = {name: _text(name, given.get(name)) for name in ("method", "target", "part")}
    counts = {name: _count(name, given.get(name)) for name in ("n_samples", "seed", "layer", "head")}
    looking = AttentionSelector(texts["part"], counts["layer"], counts["head"])
    return ExplainRequest(texts["method"], texts["target"], counts["n_samples"], counts["seed"], looking)


def _text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"parameter {name!r} must be a text, not {value!r}")
    return value


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if (number := whole_number(value)) is None:
        raise InvalidRequest(f"parameter {name!r} must be an integer, not {value!r}")
    return number


def _number(name: str, value: object) -> float | None:
    """Convert a parameter to a number; text is accepted, because some gRPC clients cannot send fractions."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidRequest(f"parameter {name!r} must be a number, not {value!r}")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"parameter {name!r} must be a number, not {value!r}") from None


def earliest(*timeouts_s: float | None) -> float | None:
    """Return the shortest timeout in seconds; None if none is given."""
    shortest_s = None
    for timeout_s in timeouts_s:
        if timeout_s is not None and (shortest_s is None or timeout_s < shortest_s):
            shortest_s = timeout_s
    return shortest_s
