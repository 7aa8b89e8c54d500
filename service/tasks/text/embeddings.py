"""Feature extraction: the task of models that answer a text with a vector, and pairs of texts with their similarity.

    text ── prompt ──> ids ──> graph ──> pooled vector ── cut to `dimensions`, scaled to length 1 ──> embedding

Shapes: n inputs of a request, D elements of a vector.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.embedding import Embedder, unit_vectors
from service.tasks.hub_messages import HubOptions, PositiveWhole, Truncation, inputs_and_field, truncates, whole
from service.tasks.images.image_file import DecodingMemory
from service.tasks.stored_task import HubCall, TaskError, TaskFiles
from service.tasks.task import (
    NO_EMBEDDING_OPTIONS,
    EmbeddingOptions,
    Preparation,
    PrepareOptions,
    RequestLimits,
)
from service.tasks.text.encoding import TextEncoding
from service.tasks.text.tokenization import TextInput
from service.tensors import TensorSpec


class EmbeddingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`task.json` of a model that embeds texts.

    Attributes:
        dimensions: elements of a vector.
        normalize: whether vectors are scaled to length 1 where a request does not say.
        prompts: texts to put before an input, by the names that requests use, such as "query".
        default_prompt: name of the prompt where a request names none.
        similarity: how two vectors are compared: the cosine of their angle, or their product.
    """

    dimensions: int
    normalize: bool = True
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    similarity: str = "cosine"


class SimilarTo(msgspec.Struct, forbid_unknown_fields=True):
    """`inputs` of the Hugging Face sentence-similarity task."""

    source_sentence: str
    sentences: list[str]


class EmbeddingParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face feature-extraction task."""

    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: PositiveWhole | None = None
    truncate: bool | None = None
    truncation: bool | Truncation | None = None


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face feature-extraction task, or of sentence-similarity.

    The parameters may stand beside `inputs`, as `huggingface_hub` sends them.
    """

    inputs: str | list[str] | SimilarTo
    parameters: EmbeddingParameters | None = None
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: PositiveWhole | None = None
    truncate: bool | None = None
    options: HubOptions | None = None

    def parameter(self, name: str) -> Any:
        """Return a parameter from either place; None where it is not given."""
        inner = None if self.parameters is None else getattr(self.parameters, name)
        return inner if inner is not None else getattr(self, name)


class FeatureExtraction(Embedder, TextEncoding):
    """Texts to vectors."""

    name: ClassVar[str] = "feature-extraction"
    answers_lists: ClassVar[bool] = True
    request_options: ClassVar[frozenset[str]] = TextEncoding.request_options | {*EmbeddingOptions._fields}
    hub_request: ClassVar[type[msgspec.Struct]] = EmbeddingRequest
    example: ClassVar[str | None] = """-d '{"inputs": "A wonderful film."}'"""

    def __init__(
        self,
        tokenizer_json: str,
        *,
        max_tokens: int,
        pad_id: int,
        graph_inputs: Sequence[str],
        settings: EmbeddingSettings,
    ) -> None:
        """Set up; arguments are those of `TextEncoding`.

        Raises:
            TaskError: the settings name a prompt that they do not have, or a similarity that is not offered.
        """
        Embedder.__init__(self, dimensions=settings.dimensions, normalize=settings.normalize)
        TextEncoding.__init__(self, tokenizer_json, max_tokens=max_tokens, pad_id=pad_id, graph_inputs=graph_inputs)
        self.settings = settings
        if settings.default_prompt is not None and settings.default_prompt not in settings.prompts:
            raise TaskError(f"task.json: default_prompt {settings.default_prompt!r} is not in prompts")
        if settings.similarity not in {"cosine", "dot"}:
            raise TaskError(f"task.json: similarity {settings.similarity!r} is not offered; cosine and dot are")

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        settings = files.settings(EmbeddingSettings)
        return cls(**cls.arguments_of(files), graph_inputs=graph_inputs, settings=settings)

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """None: a vector belongs to one text."""
        return ()

    def prepare(
        self,
        inputs: Sequence[TextInput],
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the tokenization of texts, each behind the prompt that the request names."""
        asked = options.embedding or NO_EMBEDDING_OPTIONS
        self.check_dimensions(asked.dimensions)
        return super().prepare(self.with_prompt(inputs, asked.prompt_name), options, field, limits, memory)

    def with_prompt(self, texts: Sequence[TextInput], prompt_name: str | None) -> Sequence[TextInput]:
        """Put the prompt that a request names before each text; without a name, the model's default prompt.

        Ids have no place for a prompt: they are taken as they are, unless the request names one.

        Raises:
            InvalidRequest: the model has no such prompt, or it is to be put before ids.
        """
        name = self.settings.default_prompt if prompt_name is None else prompt_name
        if name is None:
            return texts
        if name not in self.settings.prompts:
            known = ", ".join(map(repr, self.settings.prompts)) or "none"
            raise InvalidRequest(f"prompt_name {name!r} is not known; the model has {known}")
        prompt = self.settings.prompts[name]
        if prompt_name is not None and not all(isinstance(text, str) for text in texts):
            raise InvalidRequest(f"prompt_name is {name!r}, but an input has ids; a prompt is put before texts alone")
        return [prompt + text if isinstance(text, str) else text for text in texts]

    def read_hub(self, request: EmbeddingRequest) -> HubCall:
        """Read a request for vectors, or for similarities."""
        asked = EmbeddingOptions(
            normalize=request.parameter("normalize"),
            dimensions=whole("dimensions", request.parameter("dimensions")),
            prompt_name=request.parameter("prompt_name"),
        )
        truncation = None if request.parameters is None else request.parameters.truncation
        truncate = bool(request.parameter("truncate")) or truncates(truncation)
        if isinstance(request.inputs, SimilarTo):
            given = request.inputs
            if not given.sentences:
                raise InvalidRequest("inputs.sentences is empty")
            texts = [given.source_sentence, *given.sentences]
            return self.call(texts, "sentence {}", asked, truncate=truncate)._replace(document=self.similarities)
        texts, field = inputs_and_field(request.inputs)
        return self.call(texts, field, asked, truncate=truncate)

    def call(self, texts: Sequence[TextInput], field: str, options: EmbeddingOptions, *, truncate: bool) -> HubCall:
        """Make the call of a request for vectors.

        Args:
            texts: the inputs.
            field: name of an input in error messages; `{}` in it becomes the input's number.
            options: options of the request.
            truncate: cut inputs that are too long.
        """
        answer = options.answer
        return HubCall(
            texts,
            field,
            truncate=truncate,
            embedding=None if options == NO_EMBEDDING_OPTIONS else options,
            answer=answer,
            rows_of=partial(self.vectors, options=answer),
        )

    def similarities(self, vectors: NDArray[np.float32] | Sequence[NDArray[np.float32]]) -> list[float]:
        """Compare the first vector, float32 [D], with each of the others."""
        vectors_nD = np.asarray(vectors)
        if self.settings.similarity == "cosine":
            vectors_nD = unit_vectors(vectors_nD)
        found: list[float] = (vectors_nD[1:] @ vectors_nD[0]).tolist()
        return found
