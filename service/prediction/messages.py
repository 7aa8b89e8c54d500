"""Messages between the transports and the predictor: request options, receipts, model descriptions.

`__all__` also exports names from modules that transports may not import.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from service.engines.device import Place
from service.explanation.graph_methods import AttentionSelector
from service.explanation.messages import ExplainRequest, Explanation
from service.tasks.task import AnswerOptions, EmbeddingOptions, GenerationOptions
from service.telemetry.tallies import Protocol
from service.tensors import TensorSpec

__all__ = [
    "AnswerOptions",
    "AttentionSelector",
    "ExplainRequest",
    "Explained",
    "Explanation",
    "IndexedModel",
    "IndexedVersion",
    "ModelConfiguration",
    "ModelDescription",
    "Receipt",
    "RequestOptions",
]


class RequestOptions(msgspec.Struct, frozen=True, gc=False):
    """The options of a request: everything that a transport reads from it besides its inputs."""

    model: str
    version: str  # empty: the default version
    protocol: Protocol
    request_id: str
    timeout_s: float | None = None  # None: the server's default
    truncate: bool = False
    # Search options of a translation; None: the model's default. Models of other tasks refuse them, and `truncate` too.
    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    generation: GenerationOptions | None = None
    embedding: EmbeddingOptions | None = None


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Time spent in each stage of a request, and the batch it was computed in.

    When its rows went through several engine calls, the receipt shows the longest wait and the largest call.
    """

    model_version: str
    preprocess_us: int
    queue_us: int
    compute_us: int
    postprocess_us: int
    batch_size: int
    padded_tokens: int
    batch_tokens: int
    truncated: bool

    def as_parameters(self) -> dict[str, int | bool]:
        """Return the response parameters of the Open Inference Protocol, which has its own field for the version."""
        parameters = msgspec.structs.asdict(self)
        del parameters["model_version"]
        return parameters

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name."""
        return msgspec.structs.asdict(self)


class Explained(NamedTuple):
    """An answer and its explanation."""

    answer: Any  # the form is defined by the model's task
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The metadata of a model version."""

    name: str
    versions: list[str]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: dict[str, str]  # "batching", "remark", and comma-separated names in "explain" and "optional_inputs"


@dataclass(frozen=True, slots=True)
class IndexedModel:
    """One entry of the model index (GET /v2/models)."""

    name: str
    version: str  # answers requests that name no version; empty where the folder has none
    versions: list[str]  # all versions that are ready
    task: str | None  # None while no version can answer
    labels: list[str]  # class names of a classifier
    explain: list[str]  # explanation methods that the model supports
    ready: bool
    reason: str | None  # why the model is not ready
    precision: str | None  # precision of the served graphs; None for a bare model
    cache: Place | None  # where a translation model keeps keys and values between two steps
    batching: str | None  # whether requests share engine calls, and why; None while the model cannot answer


@dataclass(frozen=True, slots=True)
class IndexedVersion:
    """A folder of the store and the state of its model version."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]  # Triton's names
    reason: str | None  # why the version is not ready


@dataclass(frozen=True, slots=True)
class ModelConfiguration:
    """How a model version is served."""

    name: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int  # inputs of one request, which the first dimension of every tensor counts; 0: it does not
    joins_requests: bool  # whether requests share engine calls
    streams: bool  # whether an answer can be sent in pieces
    instances: int  # engine threads
    on_gpu: bool
