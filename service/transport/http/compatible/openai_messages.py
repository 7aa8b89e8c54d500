"""Messages of OpenAI's embeddings API (https://platform.openai.com/docs/api-reference/embeddings)."""

from typing import Literal

import msgspec

from service.errors import HeedError, InvalidRequest, NotFound, Overloaded
from service.tasks.hub_messages import PositiveWhole
from service.transport.http.compatible.inputs import TextsOrIds


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for vectors; a list of integers is the ids of one text.

    The last three fields are this server's own. `user` changes nothing.
    """

    input: TextsOrIds
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: PositiveWhole | None = None
    user: str | None = None
    truncate: bool | None = None
    normalize: bool | None = None
    prompt_name: str | None = None


class Embedding(msgspec.Struct):
    """The vector of an input: numbers, or float32 in little-endian bytes as base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct):
    """The number of tokens of all inputs, with special ones."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(msgspec.Struct):
    """The vectors of all inputs, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class EmbeddingModel(msgspec.Struct):
    """A model; `created` is the time at which the server started, in seconds since 1970."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class EmbeddingModels(msgspec.Struct):
    """The models that embed texts."""

    object: Literal["list"]
    data: list[EmbeddingModel]


class ErrorDetail(msgspec.Struct):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAiErrorBody(msgspec.Struct):
    """The body of an error."""

    error: ErrorDetail


def error_body(kind: type[HeedError], text: str) -> OpenAiErrorBody:
    """Make the body of an error from its type and text."""
    if issubclass(kind, NotFound):
        return OpenAiErrorBody(ErrorDetail(text, "invalid_request_error", "model", "model_not_found"))
    if issubclass(kind, Overloaded):
        return OpenAiErrorBody(ErrorDetail(text, "rate_limit_error", None, "rate_limit_exceeded"))
    return OpenAiErrorBody(
        ErrorDetail(text, "invalid_request_error" if issubclass(kind, InvalidRequest) else "server_error")
    )
