"""Messages of Text Embeddings Inference (huggingface/text-embeddings-inference, docs/openapi.json, version 1.7.1).

Each request may name its model in the field `model`, because this server may have several; that server has one.
"""

from typing import Literal

import msgspec

from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    HeedError,
    InvalidRequest,
    Malformed,
    NotFound,
    Overloaded,
    TooLarge,
    TooSlow,
    Unavailable,
    Unsupported,
)
from service.tasks.hub_messages import PositiveWhole
from service.tasks.text.embeddings import SimilarTo
from service.transport.http.compatible.inputs import TextsOrIds, TextsOrPairs

Direction = Literal["left", "right", "Left", "Right"]
ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer"]
# Statuses of that server; those of 404, 408 and 504 are for errors that it does not have.
STATUS_OF: dict[type[HeedError], tuple[int, ErrorType]] = {
    InvalidRequest: (413, "Validation"),
    Malformed: (422, "Validation"),
    TooLarge: (413, "Validation"),
    TooSlow: (408, "Validation"),
    NotFound: (404, "Validation"),
    Unavailable: (503, "Unhealthy"),
    Overloaded: (429, "Overloaded"),
    DeadlineExceeded: (504, "Overloaded"),
    Unsupported: (424, "Backend"),
    EngineFailed: (424, "Backend"),
}


class TeiErrorBody(msgspec.Struct):
    """The body of an error."""

    error: str
    error_type: ErrorType


class Truncates(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields that several requests share."""

    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Direction | None = None


class EmbedRequest(Truncates, kw_only=True):
    """A request for vectors; a list of integers is the ids of one text."""

    inputs: TextsOrIds
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: PositiveWhole | None = None


class PredictRequest(Truncates, kw_only=True):
    """A request for the scores of classes; a list of two texts is a pair, and a list of lists has several inputs."""

    inputs: TextsOrPairs
    raw_scores: bool = False


class RerankRequest(Truncates, kw_only=True):
    """A request to order texts by how well they answer a query."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


class SimilarityParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of a request for similarities."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request for the similarity of a sentence with others."""

    inputs: SimilarTo
    parameters: SimilarityParameters | None = None
    model: str | None = None


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request for the tokens of texts."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = None


class DecodeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request to turn ids back into texts."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True
    model: str | None = None


class Rank(msgspec.Struct, omit_defaults=True):
    """A text by its index in the request, with its score."""

    index: int
    score: float
    text: str | msgspec.UnsetType = msgspec.UNSET


class SimpleToken(msgspec.Struct):
    """A token with its characters in the text, from `start` to before `stop`; a special token has none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Classes(msgspec.Struct):
    """The classes of a model."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class Pooling(msgspec.Struct):
    """How tokens become one vector."""

    pooling: str


class ModelType(msgspec.Struct, omit_defaults=True):
    """What a model is for; one field is set."""

    embedding: Pooling | msgspec.UnsetType = msgspec.UNSET
    classifier: Classes | msgspec.UnsetType = msgspec.UNSET
    reranker: Classes | msgspec.UnsetType = msgspec.UNSET


class Info(msgspec.Struct, kw_only=True):
    """The model and the limits of the server."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool = False
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None
