"""Explanations: which parts of an input an answer rests on, and what that finding is worth.

    answer ──> parts, plan ──> variants, a few at a time at low priority ──> weights ──> what they are worth
           └─> attention or gradients, from a graph of the model's folder ──┘

Occlusion, LIME and SHAP ask the model again without some parts of the input, through its batcher like any request, so
that they need no graph of their own; `service.explanation.graph_methods` asks the one that a folder may have. Either
way an explanation gives way to whatever else there is to do, and ends when its caller leaves or its deadline passes;
and the model itself is asked what is left of its answer while the weightiest parts go.

What is explained is a number: of a classifier the probability of a class; of a translation the log probability of that
very translation. The second is exact, not a comparison of texts: the decoder step is fed the translation's own tokens
and asked for all candidates (`service.tasks.translation_search.Forced`), which gives a log probability for each token,
and so a weight of each word of the source for each token of the translation.

Shapes: S samples, M features, K values of one answer, T tokens.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from service.engines.preemption import compute
from service.errors import EngineFailed, InvalidRequest, Overloaded
from service.explanation.graph_methods import (
    AttentionMap,
    AttentionSelector,
    TokenAttributions,
    check_selector,
    integrated_gradients,
    look,
    open_graph,
)
from service.explanation.methods.features import PATCHES_A_SIDE, Patches, Word, Words
from service.explanation.methods.fidelity import Fidelity, area, curves
from service.explanation.methods.gradients import DEFAULT_STEPS, MAX_STEPS, MIN_STEPS
from service.explanation.methods.overlay import overlay_png
from service.explanation.methods.perturbation import METHODS as SAMPLING_METHODS
from service.explanation.methods.perturbation import Method as SamplingMethod
from service.explanation.methods.perturbation import Plan, estimate, plan
from service.models.explanation_graph import Explainable, ExplainGraph, image_row, text_row, translation_row
from service.models.repository import ServedModel
from service.scheduling.admission import ItemResult
from service.scheduling.idle_executor import IdleExecutor
from service.tasks.image_classification import ImageClassification, Pixels
from service.tasks.image_file import DecodingMemory
from service.tasks.raw_tensors import RawTensors
from service.tasks.text_classification import TextClassification, Tokens
from service.tasks.translation import Translation
from service.tasks.translation_search import Sentence
from service.tensors import Arrays

Method = Literal["occlusion", "lime", "shap", "attention", "gradients"]
# Those of models whose folder has `explain.onnx`.
GRAPH_METHODS: tuple[Method, ...] = ("attention", "gradients")
METHODS: tuple[Method, ...] = (*SAMPLING_METHODS, *GRAPH_METHODS)
DEFAULT_METHOD: Method = "occlusion"
MAX_SEED = 2**63 - 1  # what a parameter over gRPC can be
# Variants that are made and submitted together: enough for the batcher to choose from, few enough that those of large
# images (600 kB each at 224 x 224) take no memory to speak of.
PIECE_ROWS = 16
OVERLAY_SIDE_PIXELS = 448
RETRY_AFTER_S = 1.0


class ExplainRequest(NamedTuple):
    """What a client may ask of an explanation; None leaves the choice to the server."""

    method: str | None = None
    target: str | None = None  # the class whose probability is explained; the predicted one if None
    n_samples: int | None = None  # of gradients the steps
    seed: int | None = None
    selector: AttentionSelector = AttentionSelector()  # of attention alone


class Token(NamedTuple):
    """A token of a text and its weight; a special one has its name as text, and no place."""

    text: str
    start: int
    end: int
    weight: float
    feature: int | None  # the number of the word that it belongs to


@dataclass(frozen=True, slots=True)
class Explanation:
    """A weight for each part of an input: how much it adds to `score`.

    Of a text there are `words` and their weights [M]; of a translation also the text and the weights of each of its
    tokens, `influence` [M, K], whose rows sum to the weights; of an image `patches` [rows, columns] and a picture.
    The methods of a graph weigh `tokens`, and a word has what its tokens have together. What `attention` weighs adds up
    to one (of a translation to its tokens), what `gradients` do to the logit of the class, less that of no word at all.
    """

    method: Method
    target: str  # the class, or the translation
    score: float  # the probability of the class, or the log probability of the translation
    fidelity: Fidelity
    words: Sequence[Word] = ()
    weights: Sequence[float] = ()
    target_tokens: Sequence[str] | None = None
    influence: list[list[float]] | None = None
    patches: list[list[float]] | None = None
    overlay: bytes | None = None
    tokens: Sequence[Token] | None = None
    attention: AttentionMap | None = None


class ExplanationPlan(NamedTuple):
    """An input taken apart, before the model is asked."""

    method: Method
    seed: int
    features: Words | Patches
    plan: Plan | None  # of methods that sample
    steps: int  # of gradients
    selector: AttentionSelector
    target: int | None  # the class that is asked for
    spans: Sequence[tuple[int, int] | None] = ()  # of a text, where its tokens stand
    picture: Callable[[], Image] | None = None  # of an image: makes what is drawn on


class _Game(NamedTuple):
    """What is played with the features: which of them are there, and what the model says to that."""

    item_of: Callable[[NDArray[np.bool_]], Any]  # features that are kept, to an item of the batcher
    values_of: Callable[[Any], Sequence[float]]  # the item's result, to K values that sum to the score
    share_of: Callable[[NDArray[np.float64]], float]  # the K values, to a number between 0 and 1 for the curves
    whole: Sequence[float] | None  # the values of the input itself, where the answer has told them
    target: str  # what is explained, in words
    row: Callable[[], Arrays]  # the input, as the explaining graph takes it
    target_ids: Sequence[int] = ()  # of a translation


class _Weighed(NamedTuple):
    """What a method has found: weights of features, and what else there is to tell."""

    weights_MK: NDArray[np.float64]
    completeness_gap: float | None
    evaluations: int = 0  # of the graph; the model's own are counted where it is asked
    tokens: list[Token] | None = None
    view: AttentionMap | None = None
    of_each_target: bool = True  # of a translation: K are its tokens


class Explainer:
    """Explains answers; bounds how many at once."""

    def __init__(self, max_queue_rows: int, idle_executor: IdleExecutor) -> None:
        """Set up.

        Args:
            max_queue_rows: may wait at low priority for one model: so many that no explanation is refused half-way.
            idle_executor: what graphs are asked in.
        """
        self._piece_rows = min(PIECE_ROWS, max_queue_rows)
        self._most = max_queue_rows // self._piece_rows
        self._running = 0
        self._idle_executor = idle_executor

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """For as long as one explanation takes.

        Raises:
            Overloaded: there are too many already.
        """
        if self._running >= self._most:
            raise Overloaded(f"{self._running} explanations are being made, the limit is {self._most}", RETRY_AFTER_S)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def get_ready(self, model: ServedModel, request: ExplainRequest, deadline_s: float) -> None:
        """Open the graph that a method needs, and refuse what it has not.

        Args:
            model: that `check` has passed.
            request: the same.
            deadline_s: on `time.monotonic()`'s clock.

        Raises:
            Unavailable: the graph is not what it should be.
            InvalidRequest: it has no such layer or head.
            DeadlineExceeded: it passed first.
        """
        if request.method in GRAPH_METHODS:
            assert model.graph is not None
            await open_graph(model.graph, self._idle_executor, deadline_s)
            check_selector(model.graph, request.selector)

    async def explain(
        self, model: ServedModel, question: ExplanationPlan, item: Any, answer: Any, deadline_s: float
    ) -> tuple[Explanation, list[ItemResult]]:
        """Ask the model about the parts of an input.

        Args:
            model: that answers texts or images.
            question: the input, taken apart.
            item: the input, as the batcher got it.
            answer: what the batcher gave back for it.
            deadline_s: on `time.monotonic()`'s clock.

        Returns:
            the explanation, and what was computed for it.

        Raises:
            HeedError: as `submit_low` of the batchers, or of `service.explanation.graph_methods`.
        """
        started_s = time.monotonic()
        assert isinstance(model.task, Explainable)
        game, features = _game_of(model.task, question, item, answer), question.features
        asked = _EvaluationCache(model, game, self._piece_rows, deadline_s)
        whole_M = np.ones(features.num_features, dtype=np.bool_)
        if game.whole is not None:
            asked.know(whole_M, game.whole)
        if question.plan is None:
            weighed = await self._by_graph(model, question, game, deadline_s)
        else:
            weighed = await self._by_samples(asked, question, question.plan, deadline_s)
        weights_M = weighed.weights_MK.sum(axis=1)
        areas = []
        for kept_SM in curves(weights_M):
            scores = [game.share_of(values_K) for values_K in await asked.values(kept_SM)]
            areas.append(area(kept_SM, scores))
        (whole_K,) = await asked.values(whole_M[None])
        details: dict[str, Any] = {"tokens": weighed.tokens, "attention": weighed.view}
        if isinstance(features, Patches):
            assert question.picture is not None
            patches_RC = weights_M.reshape(features.rows, features.columns)
            # Nothing of an image is looked at not at all: what gets least is left clear.
            drawn_RC = patches_RC - patches_RC.min() if question.method == "attention" else patches_RC
            details["overlay"] = await self._idle_executor.run(
                partial(compute, _drawn, question.picture, drawn_RC), deadline_s
            )
            details["patches"] = patches_RC.tolist()
        else:
            details |= {"words": features.words, "weights": weights_M.tolist()}
        if isinstance(model.task, Translation):
            details["target_tokens"] = await asyncio.to_thread(model.task.pieces_of, game.target_ids)
            if weighed.of_each_target:
                details["influence"] = weighed.weights_MK.tolist()
        fidelity = Fidelity(
            deletion_area=areas[0],
            insertion_area=areas[1],
            completeness_gap=weighed.completeness_gap,
            evaluations=len(asked.known) + weighed.evaluations,
            seed=question.seed,
            seconds=time.monotonic() - started_s,
        )
        return Explanation(question.method, game.target, float(whole_K.sum()), fidelity, **details), asked.done

    async def _by_samples(
        self, asked: "_EvaluationCache", question: ExplanationPlan, made: Plan, deadline_s: float
    ) -> _Weighed:
        """Weigh features by what the model says without some of them."""
        whole_M = np.ones(question.features.num_features, dtype=np.bool_)
        values = await asked.values(np.concatenate([whole_M[None], ~whole_M[None], made.kept_SM]))
        whole_K, empty_K, values_SK = values[0], values[1], values[2:]
        method: SamplingMethod = next(known for known in SAMPLING_METHODS if known == question.method)
        estimating = partial(compute, estimate, method, made, values_SK, whole_K, empty_K)
        weights_MK = await self._idle_executor.run(estimating, deadline_s)
        gap = abs(weights_MK.sum() - (whole_K.sum() - empty_K.sum()))
        return _Weighed(weights_MK, float(gap) if method == "shap" else None)

    async def _by_graph(
        self, model: ServedModel, question: ExplanationPlan, game: _Game, deadline_s: float
    ) -> _Weighed:
        """Weigh tokens by the model's graph, and add up those of each word; the tokens of an image are its patches."""
        assert model.graph is not None
        row = game.row()
        found: TokenAttributions
        if question.method == "attention":
            found = await look(model.graph, row, question.selector, self._idle_executor, deadline_s)
        else:
            found = await integrated_gradients(model.graph, row, question.steps, self._idle_executor, deadline_s)
        weights_MK, tokens = found.weights_TK, None
        if isinstance(question.features, Words):
            assert not isinstance(model.task, ImageClassification | RawTensors)
            weights_MK = question.features.merged(found.weights_TK)
            tokens = _tokens_of(model.task, question, question.features, found.weights_TK.sum(axis=1))
        aligned = found.view is not None and found.view.part == "cross"
        return _Weighed(weights_MK, found.completeness_gap, found.evaluations, tokens, found.view, aligned)


def _drawn(picture: Callable[[], Image], weights_RC: NDArray[np.float64]) -> bytes:
    return overlay_png(picture(), weights_RC)


def _tokens_of(
    task: TextClassification | Translation, question: ExplanationPlan, features: Words, weights_T: NDArray[np.float64]
) -> list[Token]:
    """The tokens of a text as it was sent; `spans` of what the tokenizer itself puts in are None."""
    names = task.names(features.ids)
    text = features.text
    return [
        Token(name, 0, 0, weight, word) if span is None else Token(text[slice(*span)], *span, weight, word)
        for name, span, weight, word in zip(
            names, question.spans, weights_T.tolist(), features.word_of_token, strict=True
        )
    ]


class _EvaluationCache:
    """What the model was asked in one explanation, each variant once."""

    def __init__(self, model: ServedModel, game: _Game, piece_rows: int, deadline_s: float) -> None:
        self._model, self._game, self._piece_rows, self._deadline_s = model, game, piece_rows, deadline_s
        self.known: dict[bytes, NDArray[np.float64]] = {}
        self.done: list[ItemResult] = []

    def know(self, kept_M: NDArray[np.bool_], values: Sequence[float]) -> None:
        """Take in what the model says to a variant."""
        if not all(map(math.isfinite, values)):
            raise EngineFailed("the model gives no finite score to a part of this input")
        self.known[kept_M.tobytes()] = np.array(values, dtype=np.float64)

    async def values(self, kept_SM: NDArray[np.bool_]) -> NDArray[np.float64]:
        """What the model says to these variants, [S, K]."""
        missing = {key: kept_M for kept_M in kept_SM if (key := kept_M.tobytes()) not in self.known}
        asking = list(missing.values())
        for first in range(0, len(asking), self._piece_rows):
            piece = asking[first : first + self._piece_rows]
            items = await asyncio.to_thread(lambda piece=piece: [self._game.item_of(kept_M) for kept_M in piece])  # type: ignore[misc]
            done = await self._model.batcher.submit_low(items, self._deadline_s)
            self.done += done
            for kept_M, entry in zip(piece, done, strict=True):
                self.know(kept_M, self._game.values_of(entry.result))
        return np.stack([self.known[kept_M.tobytes()] for kept_M in kept_SM])


def methods_of(model: ServedModel) -> list[Method]:
    """The methods that a model can be explained by, the default first."""
    if not isinstance(model.task, Explainable):
        return []
    return [*SAMPLING_METHODS, *(GRAPH_METHODS if model.graph is not None else ())]


def check(model: ServedModel, request: ExplainRequest) -> None:
    """Refuse what can be refused before the input is looked at.

    Raises:
        InvalidRequest: the model cannot be explained, or not so.
    """
    task, name = model.task, f"model {model.name!r}"
    if not isinstance(task, Explainable):
        raise InvalidRequest(f"{name} takes tensors; texts and images can be explained")
    method = request.method
    offered = ", ".join(methods_of(model))
    if method in GRAPH_METHODS and model.graph is None:
        raise InvalidRequest(f"{name} has no graph for method {method!r}; it has {offered}")
    if method is not None and method not in METHODS:
        raise InvalidRequest(f"method {method!r} is not known; {name} has {offered}")
    if method != "attention":
        for field, value in request.selector._asdict().items():
            if value is not None:
                raise InvalidRequest(f"{field} is of method 'attention', not of {method or DEFAULT_METHOD!r}")
    elif request.n_samples is not None:
        raise InvalidRequest("n_samples is not of method 'attention', which asks once")
    if method == "gradients" and request.n_samples is not None and not MIN_STEPS <= request.n_samples <= MAX_STEPS:
        limits = f"between {MIN_STEPS} and {MAX_STEPS}"
        raise InvalidRequest(f"n_samples of gradients are its steps, and must lie {limits}, not {request.n_samples}")
    if request.seed is not None and not 0 <= request.seed <= MAX_SEED:
        raise InvalidRequest(f"seed must lie between 0 and {MAX_SEED}, not {request.seed}")
    if request.target is None:
        return
    if isinstance(task, Translation):
        raise InvalidRequest("target is the class of a classifier; of a translation, what is explained is its text")
    if request.target not in task.labels:
        raise InvalidRequest(f"target {request.target!r} is no class of {name}; it has {', '.join(task.labels)}")


def take_apart(
    task: Explainable,
    graph: ExplainGraph | None,
    request: ExplainRequest,
    item: Any,
    given: str | bytes,
    *,
    truncate: bool,
    field: str,
    max_image_pixels: int,
    memory: DecodingMemory | None = None,
) -> ExplanationPlan:
    """Find the parts of an input and plan which of them to take away; may be called in any thread.

    Args:
        task: of the model.
        graph: that explains it, open where the method needs it.
        request: one that `check` has passed.
        item: what the task has made of the input.
        given: the input itself.
        truncate: as for the task.
        field: what the client calls the input, for messages.
        max_image_pixels: as for the task.
        memory: as for the task.

    Raises:
        InvalidRequest: it has no parts, or `n_samples` lies outside its limits.
    """
    method = next(known for known in METHODS if known == (request.method or DEFAULT_METHOD))
    seed, sampling = request.seed or 0, next((known for known in SAMPLING_METHODS if known == method), None)
    picture: Callable[[], Image] | None = None
    spans = list[tuple[int, int] | None]()
    features: Words | Patches
    if isinstance(task, ImageClassification):
        assert isinstance(given, bytes)
        a_side = PATCHES_A_SIDE
        if sampling is None:
            assert graph is not None
            assert graph.image_tokens is not None
            a_side = math.isqrt(graph.image_tokens)
        features = Patches(item.pixels_CHW, a_side)
        side, limit = OVERLAY_SIDE_PIXELS, max_image_pixels
        picture = partial(task.picture, given, field=field, side=side, max_image_pixels=limit, memory=memory)
    else:
        assert isinstance(given, str)
        spans = task.spans(given, truncate=truncate)
        features = Words(given, item.ids, spans)
        if not features.num_features:
            raise InvalidRequest(f"{field} has no words that could be taken away")
    target = None
    if not isinstance(task, Translation) and request.target is not None:
        target = task.labels.index(request.target)
    made = None if sampling is None else plan(sampling, features.num_features, request.n_samples, seed)
    num_steps = request.n_samples or DEFAULT_STEPS
    return ExplanationPlan(method, seed, features, made, num_steps, request.selector, target, spans, picture)


def _game_of(task: Explainable, question: ExplanationPlan, item: Any, answer: Any) -> _Game:
    """The game of an input, and what is explained."""
    features = question.features
    if isinstance(task, Translation):
        assert isinstance(features, Words)
        assert isinstance(answer, Sentence)
        target_ids = task.tokens_of(answer)
        return _Game(
            item_of=lambda kept_M: task.forced(features.ids_of(kept_M), target_ids),
            values_of=lambda forced: forced.log_probabilities,
            # The mean probability of a token: that of a whole translation is next to nothing.
            share_of=lambda values_K: math.exp(values_K.mean()),
            whole=None,
            target=task.postprocess(answer).text,
            row=lambda: translation_row(item.ids, target_ids),
            target_ids=target_ids,
        )
    number = int(answer.argmax()) if question.target is None else question.target

    def item_of(kept_M: NDArray[np.bool_]) -> Tokens | Pixels:
        if isinstance(features, Patches):
            return Pixels(features.pixels_of(kept_M))
        assert isinstance(task, TextClassification)
        return task.part(features.ids_of(kept_M))

    def values_of(logits_C: NDArray[np.float32]) -> list[float]:
        return [task.probability(logits_C, number)]

    def row() -> Arrays:
        return image_row(item.pixels_CHW, number) if isinstance(features, Patches) else text_row(item.ids, number)

    return _Game(item_of, values_of, lambda values_K: float(values_K[0]), values_of(answer), task.labels[number], row)
