"""Token classification: the task of models that find entities, such as names, in a text.

    text ── tokenizer ──> windows of ids ──> graph ──> logits of each token ──> probabilities ──> entities

A text that is longer than the model takes is cut into windows that overlap; it needs no truncation.

Shapes: T tokens, C classes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.explainable import TextParts, ValueFunction, class_number
from service.tasks.hub_messages import (
    ExplainParameters,
    HubOptions,
    Truncation,
    Whole,
    inputs_and_field,
    truncates,
    whole,
)
from service.tasks.stored_task import Example, HubCall, TaskFiles
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions
from service.tasks.text.entities import Entity, EntityGrouping, Strategy, TokenScores, without_overlaps
from service.tasks.text.rows import Body, RowResults, RowsTask, TextRows, Window, windows_of
from service.tasks.text.tokenization import CHARACTERS_PER_TOKEN, characters_of, texts_of
from service.tensors import Arrays, TensorSpec, bytes_array

OUTSIDE = "O"  # the label of tokens that belong to no entity
STRIDE_FRACTION = 4  # windows share a quarter of their tokens where a request does not say

PLACED_TARGET = re.compile(r"(.+) at (\d+):(\d+)")  # a label, the first character, and the one after the last
HubStrategy = Literal["none", "simple", "first", "average", "max", "NONE", "SIMPLE", "FIRST", "AVERAGE", "MAX"]
STRATEGIES: Mapping[str, Strategy] = {
    "none": "none",
    "simple": "simple",
    "first": "first",
    "average": "average",
    "max": "max",
}


class EntityText(NamedTuple):
    """A text whose entities are asked for.

    Attributes:
        text: the text.
        strategy: how tokens become entities.
        ignored: labels that are left out of the answer.
        stride: tokens that two windows share; None: a quarter of a window.
    """

    text: str
    strategy: Strategy = "simple"
    ignored: frozenset[str] = frozenset({OUTSIDE})
    stride: int | None = None


class EntityTarget(NamedTuple):
    """What an explanation of entities explains: a class by its number, at some characters or where it is likeliest."""

    number: int
    span: tuple[int, int] | None


class ExplainedEntity(NamedTuple):
    """The tokens of a window whose label is explained, by their places in the row, and the label's score."""

    window: Window
    tokens: list[int]
    number: int
    score: float


class HubEntity(msgspec.Struct, omit_defaults=True):
    """An entity: `entity` and `index` of a single token, or `entity_group` of a group of tokens."""

    score: float
    word: str
    start: int
    end: int
    entity: str | msgspec.UnsetType = msgspec.UNSET
    entity_group: str | msgspec.UnsetType = msgspec.UNSET
    index: int | msgspec.UnsetType = msgspec.UNSET


class TokenClassificationParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face token-classification task."""

    aggregation_strategy: HubStrategy | None = None
    ignore_labels: list[str] | None = None
    stride: Whole | None = None
    truncation: bool | Truncation | None = None
    explain: ExplainParameters | None = None


class TokenClassificationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face token-classification task."""

    inputs: str | list[str]
    parameters: TokenClassificationParameters | None = None
    options: HubOptions | None = None


class TokenClassification(RowsTask):
    """Texts to entities."""

    name: ClassVar[str] = "token-classification"
    answers_lists: ClassVar[bool] = False
    hub_request: ClassVar[type[msgspec.Struct]] = TokenClassificationRequest
    hub_answer: ClassVar[Any] = list[HubEntity]
    example: ClassVar[str | None] = """-d '{"inputs": "Ada Lovelace lived in London."}'"""
    attention_outputs: ClassVar[Mapping[str, str]] = {}
    per_token: ClassVar[bool] = True
    cuts_windows: ClassVar[bool] = True
    outputs = (TensorSpec("entities", "BYTES", (-1,)),)

    def __init__(
        self,
        tokenizer_json: str,
        *,
        labels: Sequence[str],
        max_tokens: int,
        pad_id: int,
        graph_inputs: Sequence[str],
    ) -> None:
        """Set up; arguments are those of `TextEncoding`, and the names of the classes."""
        super().__init__(tokenizer_json, max_tokens=max_tokens, pad_id=pad_id, graph_inputs=graph_inputs)
        self.labels = list(labels)
        self._grouping = EntityGrouping(self.encoder.tokenizer, tokenizer_json, self.labels)
        self._num_special = self.encoder.tokenizer.num_special_tokens_to_add(is_pair=False)

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        return cls(**cls.arguments_of(files), labels=files.labels, graph_inputs=graph_inputs)

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """None: entities belong to one text."""
        return ()

    @property
    def explainable(self) -> Self:
        """The task itself: words can be taken away."""
        return self

    def read(self, inputs: Arrays) -> Sequence[EntityText]:
        """Return the texts of the tensor `text`."""
        return [EntityText(text) for text in texts_of(inputs)]

    def characters_of(self, given: EntityText) -> int:
        """Return the length of a text, weighted by what a character costs to tokenize."""
        return characters_of(given.text)

    def rows_of(self, given: EntityText, *, truncate: bool, field: str, max_rows: int) -> TextRows:
        """Tokenize a text to windows."""
        text, size = given.text, self.max_length - self._num_special
        if truncate:
            text = text[: CHARACTERS_PER_TOKEN * self.max_length]
        self.check_characters(text, max_rows, field)
        stride = size // STRIDE_FRACTION if given.stride is None else given.stride
        if not 0 <= stride < size:
            raise InvalidRequest(
                f"stride is {stride}; it must lie between 0 and {size - 1}, the tokens of a window less 1"
            )
        encoding = self.encoder.body(text)
        own = [place for place, number in enumerate(encoding.sequence_ids) if number is not None]
        if not own:
            raise InvalidRequest(f"{field} has no character that the model can read")
        body = Body(encoding.ids, None, encoding.offsets, own[0], own[-1] + 1)
        windows = windows_of(body, size, stride)
        return self.window_rows(windows, given, body, truncate=truncate, field=field, max_rows=max_rows)

    def finish(self, result: RowResults, options: AnswerOptions = DEFAULT_ANSWER) -> list[Entity]:
        """Make the entities of a text, in the text's order."""
        given: EntityText = result.item.given
        windows: list[Window] = result.item.places
        per_window = [
            self._tokens(given.text, window, row_TC) for window, row_TC in zip(windows, result.rows, strict=True)
        ]
        if given.strategy == "none":
            return self._kept(self._grouping.group(_central(windows, per_window), "none"), given)
        entities = [
            entity
            for tokens in per_window
            for entity in self._kept(self._grouping.group(tokens, given.strategy), given)
        ]
        return without_overlaps(entities) if len(windows) > 1 else entities

    def _tokens(self, text: str, window: Window, logits_TC: NDArray[np.float32]) -> list[TokenScores]:
        """Return the tokens of a window with their probabilities."""
        inner = slice(window.start, window.end)
        spans, ids = window.spans[inner], window.tokens.ids[inner]
        return self._grouping.tokens(text, ids, spans, probabilities(logits_TC[inner]), window.start + window.first)

    def _kept(self, entities: Sequence[Entity], given: EntityText) -> list[Entity]:
        return [entity for entity in entities if entity.label not in given.ignored]

    def to_tensors(self, results: Sequence[RowResults]) -> Arrays:
        """Write the entities of each text as JSON."""
        return {
            "entities": bytes_array([msgspec.json.encode(self.hub_document(self.finish(each))) for each in results])
        }

    def read_hub(self, request: TokenClassificationRequest) -> HubCall:
        """Read a request of the task API."""
        parameters = request.parameters or TokenClassificationParameters()
        texts, field = inputs_and_field(request.inputs)
        strategy = STRATEGIES[(parameters.aggregation_strategy or "simple").lower()]
        ignored = frozenset({OUTSIDE} if parameters.ignore_labels is None else parameters.ignore_labels)
        stride = whole("stride", parameters.stride)
        return HubCall(
            [EntityText(text, strategy, ignored, stride) for text in texts],
            field,
            truncate=truncates(parameters.truncation),
            explain=parameters.explain,
            document=self._documents if isinstance(request.inputs, list) else self._document,
        )

    def hub_document(self, answer: Sequence[Entity]) -> list[dict[str, Any]]:
        """Make the task API's answer for one text."""
        return [entity.document() for entity in answer]

    def _document(self, answers: Sequence[Sequence[Entity]]) -> list[dict[str, Any]]:
        return self.hub_document(answers[0])

    def _documents(self, answers: Sequence[Sequence[Entity]]) -> list[list[dict[str, Any]]]:
        return [*map(self.hub_document, answers)]

    def golden_given(self, example: Example) -> EntityText:
        """Return the text of a golden example."""
        return EntityText(example.inputs["text"])

    # --- explanations ------------------------------------------------------------------------------------------------

    def parts(
        self, given: EntityText, item: TextRows, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split a text into its tokens and their places; a token is named by its place in the whole text."""
        body: Body = item.body
        present = {place for window in item.places for place in window.places[window.start : window.end]}
        spans = [span if place in present else None for place, span in enumerate(body.spans)]
        return TextParts(given.text, [*range(len(body.ids))], spans, self.names(body.ids))

    def target_of(self, given: EntityText, target: str, name: str) -> EntityTarget:
        """Return the label and the characters of a target: "B-LOC", or "B-LOC at 13:19"."""
        if target in self.labels:
            return EntityTarget(self.labels.index(target), None)
        if (placed := PLACED_TARGET.fullmatch(target)) is None:
            return EntityTarget(class_number(self.labels, target, name), None)
        span = int(placed[2]), int(placed[3])
        if not 0 <= span[0] < span[1] <= len(given.text):
            raise InvalidRequest(f"target {target!r} lies outside of the text, which has {len(given.text)} characters")
        return EntityTarget(class_number(self.labels, placed[1], name), span)

    def value_function(self, item: TextRows, result: RowResults, target: EntityTarget | None) -> ValueFunction:
        """Return the probability of an entity's label as a function of the tokens that are kept.

        The value is the mean over the entity's tokens, in which a removed token counts as 0. Without a target the
        entity is the token with the likeliest label, labels that are left out of answers excepted; of a label without
        characters it is the token where the label is the likeliest. Of a long text the entity's window alone is
        computed: words outside of it have no weight.
        """
        found = [
            self._explained(window, probabilities(row_TC), target, item.given)
            for window, row_TC in zip(item.places, result.rows, strict=True)
        ]
        window, tokens, number, _ = max(found, key=lambda each: (len(each.tokens), each.score))
        if not tokens:
            raise InvalidRequest("no token of the text has a character of the target")

        def item_of(kept: Sequence[int]) -> TextRows:
            own = window.kept(kept)
            row = self.part([window.tokens.ids[each] for each in own])
            return TextRows([row], item.given, [own.index(token) for token in tokens if token in own])

        def values_of(part: RowResults) -> list[float]:
            scores_TC = probabilities(part.rows[0])
            return [sum(float(scores_TC[place, number]) for place in part.item.places) / len(tokens)]

        start, end = window.spans[tokens[0]][0], window.spans[tokens[-1]][1]
        return ValueFunction(
            item_of,
            values_of,
            fraction_of=lambda values_K: float(values_K[0]),
            whole=None,
            target=f"{self.labels[number]} at {start}:{end}",
            row=dict,
        )

    def _explained(
        self, window: Window, scores_TC: NDArray[np.float32], target: EntityTarget | None, given: EntityText
    ) -> ExplainedEntity:
        """Return the tokens and the class to explain in a window; no tokens where the target lies outside of it."""
        if target is not None and target.span is not None:
            start, end = target.span
            inner = range(window.start, window.end)
            tokens = [place for place in inner if window.spans[place][0] < end and window.spans[place][1] > start]
            return ExplainedEntity(window, tokens, target.number, 0.0)
        named = [number for number, label in enumerate(self.labels) if label not in given.ignored]
        asked = (named or [*range(len(self.labels))]) if target is None else [target.number]
        place, column = divmod(int(scores_TC[window.start : window.end][:, asked].argmax()), len(asked))
        token, number = window.start + place, asked[column]
        return ExplainedEntity(window, [token], number, float(scores_TC[token, number]))

    def golden_row(self, item: TextRows, example: Example, target: int | None) -> Arrays:
        """No folder of this task has an explanation graph."""
        raise NotImplementedError


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the softmax over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: NDArray[np.float32] = weights / weights.sum(axis=-1, keepdims=True)
    return scores


def _central(windows: Sequence[Window], per_window: Sequence[Sequence[TokenScores]]) -> list[TokenScores]:
    """Take each token once: from the window in which it stands farther from an edge."""
    kept: list[TokenScores] = []
    for number, (window, tokens) in enumerate(zip(windows, per_window, strict=True)):
        end = window.first + len(tokens)
        if number + 1 < len(windows):
            following = windows[number + 1].first
            end = following + (end - following) // 2
        first = (kept[-1].place + 1 - window.start if kept else 0) - window.first
        kept += tokens[first : end - window.first]
    return kept
