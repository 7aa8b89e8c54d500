"""Feature extraction: the task of models that answer a text with a vector, and pairs of texts with their similarity.

    text ── prompt ──> ids ──> graph ──> pooled vector ── cut to `dimensions`, scaled to length 1 ──> embedding

Shapes: n inputs of a request, D elements of a vector.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.embedding import Embedder, unit_vectors
from service.tasks.explainable import TextParts, ValueFunction, refuse_target
from service.tasks.hub_messages import (
    ExplainParameters,
    HubOptions,
    PositiveWhole,
    Truncation,
    inputs_and_field,
    truncates,
    whole,
)
from service.tasks.stored_task import Example, HubCall, TaskError, TaskFiles
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions
from service.tasks.text.encoding import BETWEEN, TextEncoding
from service.tasks.text.rows import TextRows
from service.tasks.text.tokenization import Pair, Text
from service.tensors import Arrays, TensorSpec

WHAT_IS_EXPLAINED = "an explanation needs two texts, whose similarity it explains: source_sentence and one of sentences"


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
    explain: ExplainParameters | None = None


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

    @property
    def explainable(self) -> Self:
        """The task itself: the similarity of two texts can be explained, by the words of both."""
        return self

    def preprocess_all(self, texts: Sequence[Text], *, truncate: bool, field: str, first: int = 0) -> list[Any]:
        """Tokenize texts; the two of a pair become the rows of one item."""
        rows = [text for each in texts for text in (each if isinstance(each, Pair) else (each,))]
        tokens: list[Any] = super().preprocess_all(rows, truncate=truncate, field=field, first=first)
        taken = iter(tokens)
        return [TextRows([next(taken), next(taken)], each) if isinstance(each, Pair) else next(taken) for each in texts]

    def collate(self, items: Sequence[Any]) -> Arrays:
        """Batch the rows of all items into the feeds of one engine call, int64 [B, T]."""
        return super().collate([part for item in items for part in _parts(item)])

    def split_batch(self, outputs: Arrays, items: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Split the outputs of a call into the pooled vector of each item, float32 [D]; of two texts, [2, D]."""
        vectors = list(outputs["embedding"])
        if len(vectors) == len(items):
            return vectors
        rows = iter(vectors)
        return [
            np.stack([next(rows) for _ in item.parts]) if isinstance(item, TextRows) else next(rows) for item in items
        ]

    def finish(self, result: NDArray[np.float32], options: AnswerOptions = DEFAULT_ANSWER) -> NDArray[np.float32]:
        """Return the vector as a request wants it, float32 [D] or shorter; of two texts, their similarity, float32."""
        if result.ndim == 2:
            return np.array(self.similarities([*self.vectors([*result], options)])[0], dtype=np.float32)
        return super().finish(result, options)

    def with_prompt(self, texts: Sequence[str], prompt_name: str | None) -> list[str]:
        """Put the prompt that a request names before each text; without a name, the model's default prompt.

        Raises:
            InvalidRequest: the model has no such prompt.
        """
        name = self.settings.default_prompt if prompt_name is None else prompt_name
        if name is None:
            return [*texts]
        if name not in self.settings.prompts:
            known = ", ".join(map(repr, self.settings.prompts)) or "none"
            raise InvalidRequest(f"prompt_name {name!r} is not known; the model has {known}")
        return [self.settings.prompts[name] + text for text in texts]

    def read_hub(self, request: EmbeddingRequest) -> HubCall:
        """Read a request for vectors, or for similarities."""
        dimensions = self.check_dimensions(whole("dimensions", request.parameter("dimensions")))
        answer = AnswerOptions(normalize=request.parameter("normalize"), dimensions=dimensions)
        truncation = None if request.parameters is None else request.parameters.truncation
        truncate = bool(request.parameter("truncate")) or truncates(truncation)
        prompt = request.parameter("prompt_name")
        explain = None if request.parameters is None else request.parameters.explain
        if isinstance(request.inputs, SimilarTo):
            given = request.inputs
            if not given.sentences:
                raise InvalidRequest("inputs.sentences is empty")
            texts = self.with_prompt([given.source_sentence, *given.sentences], prompt)
            if explain is not None:
                if len(texts) != 2:
                    raise InvalidRequest(f"an explanation takes one sentence, inputs.sentences has {len(texts) - 1}")
                return HubCall([Pair(*texts)], "sentence {}", truncate=truncate, answer=answer, explain=explain)
            return HubCall(texts, "sentence {}", truncate=truncate, answer=answer, document=self.similarities)
        if explain is not None:
            raise InvalidRequest(WHAT_IS_EXPLAINED)
        texts, field = inputs_and_field(request.inputs)
        return HubCall(self.with_prompt(texts, prompt), field, truncate=truncate, answer=answer)

    def similarities(self, vectors: Sequence[NDArray[np.float32]]) -> list[float]:
        """Compare the first vector with each of the others."""
        vectors_nD = np.stack(vectors)
        if self.settings.similarity == "cosine":
            vectors_nD = unit_vectors(vectors_nD)
        found: list[float] = (vectors_nD[1:] @ vectors_nD[0]).tolist()
        return found

    # --- explanations ------------------------------------------------------------------------------------------------

    def parts(
        self, given: Text, item: TextRows, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split two texts into their tokens; a token is named by its place in the ids of both."""
        if not isinstance(given, Pair):
            raise InvalidRequest(WHAT_IS_EXPLAINED)
        spans: list[tuple[int, int] | None] = []
        for text, before in zip(given, (0, len(given.first) + len(BETWEEN)), strict=True):
            found = self.spans(text, truncate=truncate)
            spans += [None if span is None else (span[0] + before, span[1] + before) for span in found]
        ids = [token for part in item.parts for token in part.ids]
        return TextParts(BETWEEN.join(given), [*range(len(ids))], spans, self.names(ids))

    target_of = refuse_target

    def value_function(self, item: TextRows, result: NDArray[np.float32], target: Any) -> ValueFunction:
        """Return the similarity of two texts as a function of the tokens that are kept."""
        ids = [part.ids for part in item.parts]
        length = len(ids[0])

        def item_of(kept: Sequence[int]) -> TextRows:
            first = self.part([ids[0][place] for place in kept if place < length])
            second = self.part([ids[1][place - length] for place in kept if place >= length])
            return TextRows([first, second], item.given)

        def values_of(vectors_2D: NDArray[np.float32]) -> list[float]:
            return self.similarities([*self.vectors([*vectors_2D], DEFAULT_ANSWER)])

        return ValueFunction(
            item_of,
            values_of,
            fraction_of=lambda values_K: float(values_K[0]),
            whole=values_of(result),
            target="similarity",
            row=dict,
        )

    def golden_row(self, item: Any, example: Example, target: int | None) -> Arrays:
        """No folder of this task has an explanation graph."""
        raise NotImplementedError


def _parts(item: Any) -> Sequence[Any]:
    """Return the rows of an item: of two texts, or the item itself."""
    return item.parts if isinstance(item, TextRows) else (item,)
