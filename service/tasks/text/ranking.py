"""Text ranking: the task of cross-encoders, which read a query and a text together and answer with a score.

    query, text ── tokenizer ──> ids of the pair ──> graph ──> logits ── sigmoid ──> score; texts by their scores

Shapes: n pairs of a request, C classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.classification import scores_of
from service.tasks.explainable import TextParts, ValueFunction, class_number
from service.tasks.hub_messages import (
    ExplainParameters,
    HubOptions,
    PositiveWhole,
    Truncation,
    truncates,
    whole,
)
from service.tasks.stored_task import Example, HubCall, TaskError, TaskFiles
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions, ScoreFunction
from service.tasks.text.encoding import pair_parts, part_of_pair
from service.tasks.text.rows import RowResults, RowsTask, TextRows
from service.tasks.text.tokenization import TEXT_PAIR, Pair, texts_or_pairs_of
from service.tensors import Arrays, TensorSpec


class RankingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`task.json` of a model that ranks texts.

    Attributes:
        function: how logits become scores. sentence-transformers' default is sigmoid for one logit, none for several.
    """

    function: ScoreFunction = "sigmoid"


class Ranking(NamedTuple):
    """The answer for a pair: its logits after the model's function, float32 [C]."""

    scores_C: NDArray[np.float32]

    @property
    def score(self) -> float:
        """The number that texts are ordered by: the last class's, which is the only one of most models."""
        return float(self.scores_C[-1])


class RankedTexts(msgspec.Struct, forbid_unknown_fields=True):
    """`inputs` of a request: a query with the texts to rank; the names of sentence-similarity are taken too."""

    query: str | None = None
    texts: list[str] | None = None
    source_sentence: str | None = None
    sentences: list[str] | None = None

    def read(self) -> tuple[str, list[str]]:
        """Return query and texts.

        Raises:
            InvalidRequest: one is missing or given twice, or there are no texts.
        """
        query = self.query if self.source_sentence is None else self.source_sentence
        texts = self.texts if self.sentences is None else self.sentences
        given = (self.query, self.source_sentence), (self.texts, self.sentences)
        if query is None or texts is None or any(None not in each for each in given):
            raise InvalidRequest("inputs must have query and texts, or source_sentence and sentences")
        if not texts:
            raise InvalidRequest("inputs.texts is empty")
        return query, texts


class TextRankingParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of a text-ranking request."""

    raw_scores: bool | None = None
    return_text: bool | None = None
    top_k: PositiveWhole | None = None
    truncate: bool | None = None
    truncation: bool | Truncation | None = None
    explain: ExplainParameters | None = None


class TextRankingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request that ranks texts by their relevance to a query."""

    inputs: RankedTexts
    parameters: TextRankingParameters | None = None
    options: HubOptions | None = None


class RankedText(msgspec.Struct, omit_defaults=True):
    """A text by its place among those of the request, from 0 on, with its score."""

    index: int
    score: float
    text: str | msgspec.UnsetType = msgspec.UNSET


class TextRanking(RowsTask):
    """Pairs of texts to scores."""

    name: ClassVar[str] = "text-ranking"
    accepts: ClassVar[str] = "pairs of texts"
    answers_lists: ClassVar[bool] = False
    hub_request: ClassVar[type[msgspec.Struct]] = TextRankingRequest
    hub_answer: ClassVar[Any] = list[RankedText]
    example: ClassVar[str | None] = (
        """-d '{"inputs": {"query": "Where is Berlin?", "texts": ["In Germany.", "A lake."]}}'"""
    )
    attention_outputs: ClassVar[Mapping[str, str]] = {}
    inputs = (TensorSpec("text", "BYTES", (-1,)), TensorSpec(TEXT_PAIR, "BYTES", (-1,)))

    def __init__(
        self,
        tokenizer_json: str,
        *,
        labels: Sequence[str],
        max_tokens: int,
        pad_id: int,
        graph_inputs: Sequence[str],
        settings: RankingSettings,
    ) -> None:
        """Set up; arguments are those of `TextEncoding`, and the names of the logits.

        Raises:
            TaskError: the tokenizer cannot separate the two texts of a pair.
        """
        super().__init__(tokenizer_json, max_tokens=max_tokens, pad_id=pad_id, graph_inputs=graph_inputs)
        if not self.encoder.takes_pairs:
            raise TaskError("the tokenizer does not separate the two texts of a pair")
        self.labels, self.settings = list(labels), settings
        self.outputs = (TensorSpec("score", "FP32", (-1,)), TensorSpec("scores", "FP32", (-1, len(self.labels))))

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        settings = files.settings(RankingSettings)
        return cls(**cls.arguments_of(files), labels=files.labels, graph_inputs=graph_inputs, settings=settings)

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """None: each query has its text."""
        return ()

    @property
    def explainable(self) -> Self:
        """The task itself: words of both texts can be taken away."""
        return self

    def read(self, inputs: Arrays) -> Sequence[Any]:
        """Return the pairs of the tensors `text` (the queries) and `text_pair`."""
        return texts_or_pairs_of(inputs)

    def all_rows(
        self, inputs: Sequence[Pair], *, first: int = 0, truncate: bool, field: str, max_rows: int
    ) -> list[TextRows]:
        """Tokenize pairs in one call of the tokenizer; each is one row."""
        tokens = self.preprocess_all(inputs, truncate=truncate, field=field, first=first)
        return [TextRows([row], pair, None, row.truncated) for row, pair in zip(tokens, inputs, strict=True)]

    def rows_of(self, given: Pair, *, truncate: bool, field: str, max_rows: int) -> TextRows:
        """Tokenize a pair."""
        return self.all_rows([given], truncate=truncate, field=field, max_rows=max_rows)[0]

    def finish(self, result: RowResults, options: AnswerOptions = DEFAULT_ANSWER) -> Ranking:
        """Convert the logits of a pair to scores."""
        scores = scores_of(result.rows[0].tolist(), options.function or self.settings.function)
        return Ranking(np.array(scores, dtype=np.float32))

    def to_tensors(self, results: Sequence[RowResults]) -> Arrays:
        """Make the output tensors of n pairs."""
        scores_nC = np.stack([self.finish(result).scores_C for result in results])
        return {"score": scores_nC[:, -1], "scores": scores_nC}

    def read_hub(self, request: TextRankingRequest) -> HubCall:
        """Read a request of the task API."""
        parameters = request.parameters or TextRankingParameters()
        query, texts = request.inputs.read()
        if parameters.explain is not None and len(texts) != 1:
            raise InvalidRequest(f"an explanation takes one text, inputs.texts has {len(texts)}")
        kept = texts if parameters.return_text else None
        return HubCall(
            [Pair(query, text) for text in texts],
            "inputs.texts[{}]",
            truncate=bool(parameters.truncate) or truncates(parameters.truncation),
            answer=AnswerOptions("none" if parameters.raw_scores else None),
            explain=parameters.explain,
            document=partial(ranked, texts=kept, top_k=whole("top_k", parameters.top_k)),
        )

    def hub_document(self, answer: Ranking) -> list[dict[str, Any]]:
        """Make the task API's answer for one text."""
        return ranked([answer])

    def golden_given(self, example: Example) -> Pair:
        """Return the pair of a golden example."""
        return Pair(example.inputs["text"], example.inputs[TEXT_PAIR])

    # --- explanations ------------------------------------------------------------------------------------------------

    def parts(
        self, given: Pair, item: TextRows, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split both texts into their tokens; a token is named by its place in the pair."""
        return pair_parts(self.encoder, given, item.parts[0], truncate=truncate)

    def target_of(self, given: Any, target: str, name: str) -> int:
        """Return the number of the logit that a request names."""
        return class_number(self.labels, target, name)

    def value_function(self, item: TextRows, result: RowResults, target: int | None) -> ValueFunction:
        """Return the score of the pair as a function of the tokens that are kept."""
        number = len(self.labels) - 1 if target is None else target

        def item_of(kept: Sequence[int]) -> TextRows:
            return TextRows([part_of_pair(item.parts[0], self.pad_id, kept)], item.given)

        def values_of(part: RowResults) -> list[float]:
            return [float(self.finish(part).scores_C[number])]

        return ValueFunction(
            item_of,
            values_of,
            fraction_of=lambda values_K: float(values_K[0]),
            whole=values_of(result),
            target=self.labels[number],
            row=dict,
        )

    def golden_row(self, item: TextRows, example: Example, target: int | None) -> Arrays:
        """No folder of this task has an explanation graph."""
        raise NotImplementedError


def ranked(
    answers: Sequence[Ranking], texts: Sequence[str] | None = None, top_k: int | None = None
) -> list[dict[str, Any]]:
    """Order texts by their scores, highest first; equal ones keep their order."""
    order = sorted(range(len(answers)), key=lambda number: -answers[number].score)[:top_k]
    return [
        {"index": number, "score": answers[number].score} | ({} if texts is None else {"text": texts[number]})
        for number in order
    ]
