"""Question answering: the task of models that find the answer to a question in a context.

    question, context ── tokenizer ──> windows of the context, each behind the question ──> graph
        ──> logits of each token as the answer's start and end ──> spans, best first

The rules are those of the question-answering pipeline of `transformers`, version 4.

Shapes: T tokens of a window; 2: logits of the start and of the end.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from service.errors import InvalidRequest
from service.tasks.explainable import TextParts, ValueFunction, refuse_target
from service.tasks.hub_messages import ExplainParameters, HubOptions, PositiveWhole, Whole, inputs_and_field, whole
from service.tasks.stored_task import Example, HubCall, TaskError, TaskFiles
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions
from service.tasks.text.encoding import BETWEEN, part_of_pair
from service.tasks.text.rows import Body, RowResults, RowsTask, Span, TextRows, Window, windows_of
from service.tasks.text.tokenization import CHARACTERS_PER_TOKEN, Pair, characters_of, texts_of
from service.tensors import Arrays, TensorSpec, bytes_array

DEFAULT_WINDOW, DEFAULT_STRIDE = 384, 128  # tokens
MIN_LOGIT = -10_000.0  # of tokens that cannot be in an answer
EXTRA_SPANS = 10  # spans that are looked at beyond twice `top_k`, because several may mean the same words


class Question(NamedTuple):
    """A question with its context; the names are those of the task API.

    Attributes:
        question: the question.
        context: the text that has the answer.
        top_k: number of answers.
        max_answer_len: longest answer in tokens.
        max_question_len: tokens that are kept of the question; None: all.
        max_seq_len: tokens of a window; None: as many as the model takes, at most 384.
        doc_stride: tokens that two windows share; None: 128, at most half a window.
        handle_impossible_answer: whether "no answer" may be an answer.
        align_to_words: whether answers are widened to whole words.
    """

    question: str
    context: str
    top_k: int = 1
    max_answer_len: int = 15
    max_question_len: int | None = None
    max_seq_len: int | None = None
    doc_stride: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True


class FoundAnswer(msgspec.Struct, frozen=True):
    """A part of the context with its score; `start` and `end` are characters, equal for "no answer"."""

    score: float
    start: int
    end: int
    answer: str


class QuestionPlaces(NamedTuple):
    """A window of the context with what is needed to find its answers.

    Attributes:
        window: the row, with the characters of its tokens.
        words: the characters of the word of each token of the window's context.
        can_be_none: whether the row begins with a token that stands for "no answer".
    """

    window: Window
    words: list[Span]
    can_be_none: bool


class QuestionInput(msgspec.Struct, forbid_unknown_fields=True):
    """`inputs` of the Hugging Face question-answering task."""

    question: str
    context: str


class QuestionAnsweringParameters(msgspec.Struct, forbid_unknown_fields=True):
    """`parameters` of the Hugging Face question-answering task."""

    top_k: PositiveWhole | None = None
    max_answer_len: PositiveWhole | None = None
    max_question_len: PositiveWhole | None = None
    max_seq_len: PositiveWhole | None = None
    doc_stride: Whole | None = None
    handle_impossible_answer: bool | None = None
    align_to_words: bool | None = None
    explain: ExplainParameters | None = None


class QuestionAnsweringRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the Hugging Face question-answering task."""

    inputs: QuestionInput | list[QuestionInput]
    parameters: QuestionAnsweringParameters | None = None
    options: HubOptions | None = None


class QuestionAnswering(RowsTask):
    """Questions and contexts to spans of the contexts."""

    name: ClassVar[str] = "question-answering"
    accepts: ClassVar[str] = "questions with contexts"
    input_field: ClassVar[str] = "context[{}]"
    request_options: ClassVar[frozenset[str]] = frozenset()
    answers_lists: ClassVar[bool] = False
    hub_request: ClassVar[type[msgspec.Struct]] = QuestionAnsweringRequest
    hub_answer: ClassVar[Any] = FoundAnswer | list[FoundAnswer]
    example: ClassVar[str | None] = (
        """-d '{"inputs": {"question": "Who lived in London?", "context": "Ada lived in London."}}'"""
    )
    attention_outputs: ClassVar[Mapping[str, str]] = {}
    per_token: ClassVar[bool] = True
    cuts_windows: ClassVar[bool] = True
    labels: Sequence[str] = ()
    inputs = (TensorSpec("question", "BYTES", (-1,)), TensorSpec("context", "BYTES", (-1,)))
    outputs = (
        TensorSpec("answer", "BYTES", (-1,)),
        TensorSpec("score", "FP32", (-1,)),
        TensorSpec("start", "INT64", (-1,)),
        TensorSpec("end", "INT64", (-1,)),
    )

    def __init__(self, tokenizer_json: str, *, max_tokens: int, pad_id: int, graph_inputs: Sequence[str]) -> None:
        """Set up; arguments are those of `TextEncoding`.

        Raises:
            TaskError: the tokenizer cannot separate question and context.
        """
        super().__init__(tokenizer_json, max_tokens=max_tokens, pad_id=pad_id, graph_inputs=graph_inputs)
        if not self.encoder.takes_pairs:
            raise TaskError("the tokenizer does not separate question and context")

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        return cls(**cls.arguments_of(files), graph_inputs=graph_inputs)

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """None: each question has its context."""
        return ()

    @property
    def explainable(self) -> Self:
        """The task itself: words of question and context can be taken away."""
        return self

    def read(self, inputs: Arrays) -> Sequence[Question]:
        """Return the questions and contexts of the tensors.

        Raises:
            InvalidRequest: an element is not UTF-8, or the tensors differ in length.
        """
        questions, contexts = texts_of(inputs, "question"), texts_of(inputs, "context")
        if len(questions) != len(contexts):
            raise InvalidRequest(f"question has {len(questions)} elements, context has {len(contexts)}")
        return [Question(*both) for both in zip(questions, contexts, strict=True)]

    def characters_of(self, given: Question) -> int:
        """Return the length of question and context, weighted by what a character costs to tokenize."""
        return characters_of(given.question) + characters_of(given.context)

    def rows_of(self, given: Question, *, truncate: bool, field: str, max_rows: int) -> TextRows:
        """Tokenize a question with its context to windows of the context."""
        self.check_characters(given.context, max_rows, field)
        if not given.question.strip():
            raise InvalidRequest("the question is empty")
        if len(given.question) > (limit := CHARACTERS_PER_TOKEN * self.max_length):
            raise InvalidRequest(f"the question has {len(given.question)} characters, the model takes at most {limit}")
        encoding = self.encoder.pair_body(Pair(given.question, given.context))
        body, cut = _body_of(encoding, given.max_question_len)
        if body.start == body.end:
            raise InvalidRequest(f"{field} has no character that the model can read")
        longest = min(self.max_length, given.max_seq_len or DEFAULT_WINDOW)
        size = longest - (len(body.ids) - (body.end - body.start))
        if size < 1:
            raise InvalidRequest(
                f"the question leaves no room for its context in {longest} tokens; shorten it, or set max_question_len"
            )
        # The stride is bounded so that windows advance where the question is long.
        stride = min(longest // 2, DEFAULT_STRIDE, size - 1) if given.doc_stride is None else given.doc_stride
        if not 0 <= stride < size:
            raise InvalidRequest(f"doc_stride is {stride}; it must lie between 0 and {size - 1}, a window's tokens")
        windows = windows_of(body, size, stride)
        can_be_none = encoding.sequence_ids[0] is None
        places = [QuestionPlaces(window, _words_of(encoding, window), can_be_none) for window in windows]
        item = self.window_rows(windows, given, body, truncate=False, field=field, max_rows=max_rows)
        return TextRows(item.parts, given, places, cut, body)

    def finish(self, result: RowResults, options: AnswerOptions = DEFAULT_ANSWER) -> list[FoundAnswer]:
        """Find the answers in all windows, best first; equal words are one answer, whose scores are added."""
        given: Question = result.item.given
        answers: dict[str, FoundAnswer] = {}
        none_score, count = 1.0, 2 * given.top_k + EXTRA_SPANS if given.align_to_words else given.top_k
        for places, logits_T2 in zip(result.item.places, result.rows, strict=True):
            starts_T, ends_T, of_none = _probabilities(places, logits_T2)
            none_score = min(none_score, of_none)
            for first, last, score in _spans(starts_T, ends_T, count, given.max_answer_len):
                start, end = _characters(places, first, last, words=given.align_to_words)
                words = given.context[start:end]
                known = answers.get(words.lower(), FoundAnswer(0.0, start, end, words))
                answers[words.lower()] = msgspec.structs.replace(known, score=known.score + score)
        found = [*answers.values()]
        if given.handle_impossible_answer:
            found.append(FoundAnswer(none_score, 0, 0, ""))
        return sorted(found, key=lambda answer: -answer.score)[: given.top_k]

    def to_tensors(self, results: Sequence[RowResults]) -> Arrays:
        """Make the output tensors of n questions: the best answer to each."""
        best = [self.finish(result)[0] for result in results]
        return {
            "answer": bytes_array([each.answer.encode() for each in best]),
            "score": np.array([each.score for each in best], dtype=np.float32),
            "start": np.array([each.start for each in best], dtype=np.int64),
            "end": np.array([each.end for each in best], dtype=np.int64),
        }

    def read_hub(self, request: QuestionAnsweringRequest) -> HubCall:
        """Read a request of the task API."""
        given, _ = inputs_and_field(request.inputs)
        parameters = request.parameters or QuestionAnsweringParameters()
        numbers = {
            name: whole(name, getattr(parameters, name))
            for name in ("top_k", "max_answer_len", "max_question_len", "max_seq_len", "doc_stride")
        }
        flags = {name: getattr(parameters, name) for name in ("handle_impossible_answer", "align_to_words")}
        options: dict[str, Any] = {name: value for name, value in (numbers | flags).items() if value is not None}
        return HubCall(
            [Question(each.question, each.context, **options) for each in given],
            "context of inputs[{}]" if isinstance(request.inputs, list) else "inputs.context",
            explain=parameters.explain,
            document=partial(_document, self, single=not isinstance(request.inputs, list)),
        )

    def hub_document(self, answer: Sequence[FoundAnswer]) -> Any:
        """Make the task API's answer for one question: an answer, or a list where there are several."""
        return answer[0] if len(answer) == 1 else [*answer]

    def golden_given(self, example: Example) -> Question:
        """Return the question and the context of a golden example."""
        return Question(example.inputs["question"], example.inputs["context"])

    # --- explanations ------------------------------------------------------------------------------------------------

    def parts(
        self, given: Question, item: TextRows, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split question and context into their tokens; a token is named by its place in the ids of both."""
        body, before = item.body, len(given.question) + len(BETWEEN)
        spans: list[Span | None] = []
        for place, (start, end) in enumerate(body.spans):
            if body.start <= place < body.end:
                spans.append((start + before, end + before))
            else:  # a token of the question, or a special one, which has no characters
                spans.append((start, end) if place < body.start and start < end else None)
        return TextParts(BETWEEN.join(given[:2]), [*range(len(body.ids))], spans, self.names(body.ids))

    target_of = refuse_target

    def value_function(self, item: TextRows, result: RowResults, target: int | None) -> ValueFunction:
        """Return the score of the best answer's tokens as a function of the tokens that are kept.

        Of a long context the answer's window alone is computed: words outside of it have no weight.
        """
        given: Question = item.given
        best = next((each.answer for each in self.finish(result) if each.answer), None)
        found = [
            (given.context[slice(*_characters(places, first, last, words=given.align_to_words))] == best, score,
             row, first, last)
            for row, (places, logits_T2) in enumerate(zip(item.places, result.rows, strict=True))
            for first, last, score in _spans(
                *_probabilities(places, logits_T2)[:2], 2 * given.top_k + EXTRA_SPANS, given.max_answer_len
            )
        ]  # fmt: skip
        # Several spans may be one answer; the likeliest of them is explained.
        _, score, row, first, last = max(found)
        places, window = item.places[row], item.places[row].window

        def item_of(kept: Sequence[int]) -> TextRows:
            kept = window.kept(kept)
            row = part_of_pair(window.tokens, self.pad_id, kept)
            inner = [number for number, place in enumerate(kept) if window.start <= place < window.end]
            bounds = (inner[0], inner[-1] + 1) if inner else (0, 0)
            own = [kept.index(place) if place in kept else None for place in (first, last)]
            part = places._replace(window=Window(row, [(0, 0)] * row.length, *bounds, 0), words=[])
            return TextRows([row], item.given, (part, own))

        def values_of(part: RowResults) -> list[float]:
            where, (begin, finish) = part.item.places
            if begin is None or finish is None:
                return [0.0]
            starts_T, ends_T, _ = _probabilities(where, part.rows[0])
            return [float(starts_T[begin] * ends_T[finish])]

        return ValueFunction(
            item_of,
            values_of,
            fraction_of=lambda values_K: float(values_K[0]),
            whole=[score],
            target=given.context[slice(*_characters(places, first, last, words=given.align_to_words))],
            row=dict,
        )

    def golden_row(self, item: TextRows, example: Example, target: int | None) -> Arrays:
        """No folder of this task has an explanation graph."""
        raise NotImplementedError


def _document(task: QuestionAnswering, answers: Sequence[Any], *, single: bool) -> Any:
    documents = [*map(task.hub_document, answers)]
    return documents[0] if single else documents


def _body_of(encoding: Encoding, max_question: int | None) -> tuple[Body, bool]:
    """Return the context's tokens as the body of windows, with the question cut to its limit; whether it was cut."""
    numbers = encoding.sequence_ids
    question = [place for place, number in enumerate(numbers) if number == 0]
    dropped = set() if max_question is None else {*question[max_question:]}
    kept = [place for place in range(len(numbers)) if place not in dropped]
    own = [place for place, number in enumerate(kept) if numbers[number] == 1]
    start, end = (own[0], own[-1] + 1) if own else (len(kept), len(kept))
    lists: Any = (encoding.ids, encoding.type_ids, encoding.offsets)
    ids, types, spans = ([each[place] for place in kept] for each in lists)
    return Body(ids, types, spans, start, end), bool(dropped)


def _words_of(encoding: Encoding, window: Window) -> list[Span]:
    """Return for each token of a window's context the characters of its word, as far as the window has the word."""
    numbers = [place for place, number in enumerate(encoding.sequence_ids) if number == 1]
    inner = numbers[window.first : window.first + window.end - window.start]
    bounds: dict[int | None, Span] = {}
    for place in inner:
        start, end = encoding.offsets[place]
        bounds[encoding.word_ids[place]] = (bounds.get(encoding.word_ids[place], (start, end))[0], end)
    return [
        encoding.offsets[place] if encoding.word_ids[place] is None else bounds[encoding.word_ids[place]]
        for place in inner
    ]


def _probabilities(
    places: QuestionPlaces, logits_T2: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the probability of each token to be the start and the end of the answer, and the one of "no answer".

    Only tokens of the context, and the first token for "no answer", can be chosen.
    """
    window = places.window
    chosen_T = np.zeros(len(logits_T2), dtype=np.bool_)
    chosen_T[window.start : window.end] = True
    chosen_T[0] |= places.can_be_none
    masked_T2 = np.where(chosen_T[:, None], logits_T2.astype(np.float64), MIN_LOGIT)
    weights_T2 = np.exp(masked_T2 - masked_T2.max(axis=0))
    scores_T2 = weights_T2 / weights_T2.sum(axis=0)
    of_none = float(scores_T2[0, 0] * scores_T2[0, 1]) if places.can_be_none else 0.0
    if places.can_be_none:
        scores_T2[0] = 0.0
    return scores_T2[:, 0], scores_T2[:, 1], of_none


def _spans(
    starts_T: NDArray[np.float64], ends_T: NDArray[np.float64], count: int, max_tokens: int
) -> list[tuple[int, int, float]]:
    """Return the likeliest spans, best first: first token, last token, score; those of probability 0 are left out."""
    num_lengths = min(max_tokens, len(starts_T))
    padded_ends = np.concatenate([ends_T, np.zeros(num_lengths - 1)])
    # By the first token, and the number of tokens behind it.
    scores_TL = starts_T[:, None] * np.lib.stride_tricks.sliding_window_view(padded_ends, num_lengths)
    flat = scores_TL.ravel()
    count = min(count, len(flat))
    best = np.argpartition(-flat, count - 1)[:count]
    found = []
    for place in best[np.argsort(-flat[best], kind="stable")].tolist():
        first, behind = divmod(place, num_lengths)
        found.append((first, first + behind, float(flat[place])))
    return [each for each in found if each[2] > 0] or found[:1]


def _characters(places: QuestionPlaces, first: int, last: int, *, words: bool) -> Span:
    """Return the characters of a span of tokens, widened to whole words where asked."""
    window = places.window
    if not window.start <= first <= last < window.end:  # no token of the context has any probability
        return (0, 0)
    if words:
        return places.words[first - window.start][0], places.words[last - window.start][1]
    return window.spans[first][0], window.spans[last][1]
