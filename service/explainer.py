"""Explanations: which parts of an input an answer rests on, by asking the model again without some of them.

    answer ──> parts, plan ──> variants, a few at a time at low priority ──> weights ──> what they are worth

The model is asked through its batcher like for any request, so an explanation needs no graph of its own; it gives way
to whatever else the model has to do, and ends when its caller leaves or its deadline passes.

What is explained is a number: of a classifier the probability of a class; of a translation the log probability of that
very translation. The second is exact, not a comparison of texts: the decoder step is fed the translation's own tokens
and asked for all candidates (`service.tasks.translation.Forced`), which gives a log probability for each token, and so
a weight of each word of the source for each token of the translation.

Shapes: S samples, M features, K values of one answer.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.admission import Done
from service.errors import EngineFailed, InvalidRequest, Overloaded
from service.explain.features import Patches, Word, Words
from service.explain.fidelity import Fidelity, area, curves
from service.explain.overlay import overlay_png
from service.explain.perturbation import METHODS, Method, Plan, estimate, plan
from service.repository import ServedModel
from service.tasks.image_classification import ImageClassification, Pixels
from service.tasks.text_classification import TextClassification, Tokens
from service.tasks.translation import Sentence, Translation

# Methods that would be further graphs of a model's folder, written at export. None has them yet.
GRAPH_METHODS = ("attention", "gradients")
DEFAULT_METHOD: Method = "occlusion"
MAX_SEED = 2**63 - 1  # what a parameter over gRPC can be
# Variants that are made and submitted together: enough for the batcher to choose from, few enough that those of large
# images (600 kB each at 224 x 224) take no memory to speak of.
PIECE_ROWS = 16
OVERLAY_SIDE_PIXELS = 448
RETRY_AFTER_S = 1.0

Explainable = TextClassification | ImageClassification | Translation


class ExplainRequest(NamedTuple):
    """What a client may ask of an explanation; None leaves the choice to the server."""

    method: str | None = None
    target: str | None = None  # the class whose probability is explained; the predicted one if None
    n_samples: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A weight for each part of an input: how much it adds to `score`.

    Of a text there are `words` and their weights [M]; of a translation also the text and the weights of each of its
    tokens, `influence` [M, K], whose rows sum to the weights; of an image `patches` [rows, columns] and a picture.
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


class Question(NamedTuple):
    """An input taken apart, before the model is asked."""

    method: Method
    seed: int
    features: Words | Patches
    plan: Plan
    target: int | None  # the class that is asked for
    picture: Any = None  # of an image, to draw on


class _Game(NamedTuple):
    """What is played with the features: which of them are there, and what the model says to that."""

    item_of: Callable[[NDArray[np.bool_]], Any]  # features that are kept, to an item of the batcher
    values_of: Callable[[Any], Sequence[float]]  # the item's result, to K values that sum to the score
    share_of: Callable[[NDArray[np.float64]], float]  # the K values, to a number between 0 and 1 for the curves
    whole: Sequence[float] | None  # the values of the input itself, where the answer has told them


class Explainer:
    """Explains answers; bounds how many at once."""

    def __init__(self, max_queue_rows: int) -> None:
        """`max_queue_rows` may wait at low priority for one model: so many that no explanation is refused half-way."""
        self._piece_rows = min(PIECE_ROWS, max_queue_rows)
        self._most = max_queue_rows // self._piece_rows
        self._running = 0

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

    async def explain(
        self, model: ServedModel, question: Question, item: Any, answer: Any, deadline_s: float
    ) -> tuple[Explanation, list[Done]]:
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
            HeedError: as `submit_low` of the batchers.
        """
        started_s = time.monotonic()
        assert isinstance(model.task, Explainable)
        game, target, target_ids = _game_of(model.task, question, item, answer)
        method, features, made = question.method, question.features, question.plan
        asked = _Asked(model, game, self._piece_rows, deadline_s)
        whole_M = np.ones(features.num_features, dtype=np.bool_)
        if game.whole is not None:
            asked.know(whole_M, game.whole)
        values = await asked.values(np.concatenate([whole_M[None], ~whole_M[None], made.kept_SM]))
        whole_K, empty_K, values_SK = values[0], values[1], values[2:]
        weights_MK = await asyncio.to_thread(estimate, method, made, values_SK, whole_K, empty_K)
        weights_M = weights_MK.sum(axis=1)
        areas = []
        for kept_SM in curves(weights_M):
            scores = [game.share_of(values_K) for values_K in await asked.values(kept_SM)]
            areas.append(area(kept_SM, scores))
        gap = abs(weights_M.sum() - (whole_K.sum() - empty_K.sum()))
        details: dict[str, Any] = {}
        if isinstance(features, Patches):
            patches_RC = weights_M.reshape(features.rows, features.columns)
            details["overlay"] = await asyncio.to_thread(overlay_png, question.picture, patches_RC)
            details["patches"] = patches_RC.tolist()
        else:
            details |= {"words": features.words, "weights": weights_M.tolist()}
        if isinstance(model.task, Translation):
            details["target_tokens"] = await asyncio.to_thread(model.task.pieces_of, target_ids)
            details["influence"] = weights_MK.tolist()
        fidelity = Fidelity(
            deletion_area=areas[0],
            insertion_area=areas[1],
            completeness_gap=float(gap) if method == "shap" else None,
            evaluations=len(asked.known),
            seed=question.seed,
            seconds=time.monotonic() - started_s,
        )
        return Explanation(method, target, float(whole_K.sum()), fidelity, **details), asked.done


class _Asked:
    """What the model was asked in one explanation, each variant once."""

    def __init__(self, model: ServedModel, game: _Game, piece_rows: int, deadline_s: float) -> None:
        self._model, self._game, self._piece_rows, self._deadline_s = model, game, piece_rows, deadline_s
        self.known: dict[bytes, NDArray[np.float64]] = {}
        self.done: list[Done] = []

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


def check(model: ServedModel, request: ExplainRequest) -> None:
    """Refuse what can be refused before the input is looked at.

    Raises:
        InvalidRequest: the model cannot be explained, or not so.
    """
    task, name = model.task, f"model {model.name!r}"
    if not isinstance(task, Explainable):
        raise InvalidRequest(f"{name} takes tensors; texts and images can be explained")
    method = request.method
    if method in GRAPH_METHODS:
        raise InvalidRequest(f"{name} has no graph for method {method!r}; it has {', '.join(METHODS)}")
    if method is not None and method not in METHODS:
        raise InvalidRequest(f"method {method!r} is not known; {name} has {', '.join(METHODS)}")
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
    request: ExplainRequest,
    item: Any,
    given: str | bytes,
    *,
    truncate: bool,
    field: str,
    max_image_pixels: int,
) -> Question:
    """Find the parts of an input and plan which of them to take away; may be called in any thread.

    Args:
        task: of the model.
        request: one that `check` has passed.
        item: what the task has made of the input.
        given: the input itself.
        truncate: as for the task.
        field: what the client calls the input, for messages.
        max_image_pixels: as for the task.

    Raises:
        InvalidRequest: it has no parts, or `n_samples` lies outside its limits.
    """
    method = next(known for known in METHODS if known == (request.method or DEFAULT_METHOD))
    seed = request.seed or 0
    picture = None
    features: Words | Patches
    if isinstance(task, ImageClassification):
        assert isinstance(given, bytes)
        features = Patches(item.pixels_CHW)
        picture = task.picture(given, field=field, side=OVERLAY_SIDE_PIXELS, max_image_pixels=max_image_pixels)
    else:
        assert isinstance(given, str)
        features = Words(given, item.ids, task.spans(given, truncate=truncate))
        if not features.num_features:
            raise InvalidRequest(f"{field} has no words that could be taken away")
    target = None
    if not isinstance(task, Translation) and request.target is not None:
        target = task.labels.index(request.target)
    return Question(
        method, seed, features, plan(method, features.num_features, request.n_samples, seed), target, picture
    )


def _game_of(task: Explainable, question: Question, item: Any, answer: Any) -> tuple[_Game, str, list[int]]:
    """The game of an input, what is explained, and of a translation its tokens."""
    features = question.features
    if isinstance(task, Translation):
        assert isinstance(features, Words)
        assert isinstance(answer, Sentence)
        target_ids = task.tokens_of(answer)
        return (
            _Game(
                item_of=lambda kept_M: task.forced(features.ids_of(kept_M), target_ids),
                values_of=lambda forced: forced.log_probabilities,
                # The mean probability of a token: that of a whole translation is next to nothing.
                share_of=lambda values_K: math.exp(values_K.mean()),
                whole=None,
            ),
            task.postprocess(answer).text,
            target_ids,
        )
    number = int(answer.argmax()) if question.target is None else question.target

    def item_of(kept_M: NDArray[np.bool_]) -> Tokens | Pixels:
        if isinstance(features, Patches):
            return Pixels(features.pixels_of(kept_M))
        assert isinstance(task, TextClassification)
        return task.part(features.ids_of(kept_M))

    def values_of(logits_C: NDArray[np.float32]) -> list[float]:
        return [task.probability(logits_C, number)]

    return _Game(item_of, values_of, lambda values_K: float(values_K[0]), values_of(answer)), task.labels[number], []
