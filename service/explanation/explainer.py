"""Explanations: the weight of each part of an input in the answer, and how faithful these weights are.

    answer ──> features, plan ──> samples, a few at a time at low priority ──> weights ──> fidelity
           └─> attention or gradients, from a graph of the model's folder ──┘

Occlusion, LIME and SHAP evaluate the model without some of the features, through its batcher like any request, so they
need no graph of their own; `service.explanation.graph_methods` evaluates the explanation graph that a folder may have.
Either way an explanation yields to all other work, and ends when its caller leaves or its deadline passes. The fidelity
curves evaluate the model itself while the features with the largest weights are removed.

The explained score is a number. For a classifier it is the probability of a class; for a translation it is the log
probability of that very translation. The latter is exact, not a comparison of texts: the decoder is fed the
translation's own tokens and scores all candidates (`service.tasks.decoding.search.Forced`), which gives a log
probability for each token, and so a weight of each source word for each token of the translation.

Shapes: S samples, M features, K values of one answer, T tokens.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from service.errors import Overloaded
from service.explanation.evaluation import EvaluationCache
from service.explanation.graph_methods import (
    AttentionMap,
    TokenAttributions,
    attention_attributions,
    check_selector,
    integrated_gradients,
    open_graph,
)
from service.explanation.messages import GRAPH_METHODS, ExplainRequest, Explanation, Token
from service.explanation.methods.features import Patches, Words
from service.explanation.methods.fidelity import Fidelity, area, curves
from service.explanation.methods.overlay import overlay_png
from service.explanation.methods.perturbation import METHODS as SAMPLING_METHODS
from service.explanation.methods.perturbation import Method as SamplingMethod
from service.explanation.methods.perturbation import Plan as SamplingPlan
from service.explanation.methods.perturbation import estimate
from service.explanation.planning import ExplanationPlan
from service.models.repository import ServedModel
from service.scheduling.admission import ItemResult
from service.scheduling.idle_executor import IdleExecutor
from service.tasks.explainable import TextParts, ValueFunction

# Samples that are made and submitted together: enough for the batcher to choose from, few enough that those of large
# images (600 kB each at 224 x 224) take no memory to speak of.
PIECE_ROWS = 16
RETRY_AFTER_S = 1.0
OVERLAY_SIDE_PIXELS = 448


class _Attribution(NamedTuple):
    """The weights that a method computes, and the details it adds to the explanation."""

    weights_MK: NDArray[np.float64]
    completeness_gap: float | None
    evaluations: int = 0  # evaluations of the explanation graph; `EvaluationCache` counts evaluations of the model
    tokens: list[Token] | None = None
    attention: AttentionMap | None = None
    per_target_token: bool = True  # for a translation: whether its K values are one per token


class Explainer:
    """Explains answers, and limits the number of explanations that run at once."""

    def __init__(self, max_queue_rows: int, idle_executor: IdleExecutor) -> None:
        """Derive the limit, so that no running explanation is refused by the batcher's queue.

        Args:
            max_queue_rows: rows that may wait at low priority for one model.
            idle_executor: runs explanation graphs and estimators.
        """
        self._piece_rows = min(PIECE_ROWS, max_queue_rows)
        self._max_running = max_queue_rows // self._piece_rows
        self._running = 0
        self._idle_executor = idle_executor

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place among the running explanations.

        Raises:
            Overloaded: the limit is reached.
        """
        if self._running >= self._max_running:
            raise Overloaded(
                f"{self._running} explanations are being computed, the limit is {self._max_running}", RETRY_AFTER_S
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def get_ready(self, model: ServedModel, request: ExplainRequest, deadline_s: float) -> None:
        """Open the graph that a method needs, and refuse a layer or head that it does not have.

        Args:
            model: model that answers.
            request: options that have passed `check_request`.
            deadline_s: on `time.monotonic()`'s clock.

        Raises:
            Unavailable: the graph failed its checks.
            InvalidRequest: the graph has no such layer or head.
            DeadlineExceeded: the deadline passed first.
        """
        if request.method in GRAPH_METHODS:
            assert model.loaded.graph is not None
            await open_graph(model.loaded.graph, self._idle_executor, deadline_s)
            check_selector(model.loaded.graph, request.selector)

    async def explain(
        self, model: ServedModel, plan: ExplanationPlan, item: Any, answer: Any, deadline_s: float
    ) -> tuple[Explanation, list[ItemResult]]:
        """Explain one answer of a model.

        Args:
            model: model that answers texts or images.
            plan: features of the input and the samples to evaluate.
            item: the input as the batcher got it.
            answer: result of the batcher for it.
            deadline_s: on `time.monotonic()`'s clock.

        Returns:
            the explanation, and the results of all rows that were computed for it.

        Raises:
            HeedError: as `submit_low` of the batchers, or of `service.explanation.graph_methods`.
        """
        started_s = time.monotonic()
        assert model.task.explainable is not None
        function = model.task.explainable.value_function(item, answer, plan.target)
        cache = EvaluationCache(model, plan.features, function, self._piece_rows, deadline_s)
        whole_M = np.ones(plan.features.num_features, dtype=np.bool_)
        if function.whole is not None:
            cache.add(whole_M, function.whole)
        if plan.samples is None:
            found = await self._attribute_by_graph(model, plan, function, deadline_s)
        else:
            found = await self._attribute_by_samples(cache, plan, plan.samples, deadline_s)
        weights_M = found.weights_MK.sum(axis=1)
        areas = []
        for kept_SM in curves(weights_M):
            scores = [function.fraction_of(values_K) for values_K in await cache.values(kept_SM)]
            areas.append(area(kept_SM, scores))
        (whole_K,) = await cache.values(whole_M[None])
        details = await self._details(plan, function, found, deadline_s)
        fidelity = Fidelity(
            deletion_area=areas[0],
            insertion_area=areas[1],
            completeness_gap=found.completeness_gap,
            evaluations=len(cache.known) + found.evaluations,
            seed=plan.seed,
            seconds=time.monotonic() - started_s,
        )
        return Explanation(plan.method, function.target, float(whole_K.sum()), fidelity, **details), cache.done

    async def _attribute_by_samples(
        self, cache: EvaluationCache, plan: ExplanationPlan, samples: SamplingPlan, deadline_s: float
    ) -> _Attribution:
        """Estimate the weights of features from the model's values without some of them."""
        whole_M = np.ones(plan.features.num_features, dtype=np.bool_)
        values = await cache.values(np.concatenate([whole_M[None], ~whole_M[None], samples.kept_SM]))
        whole_K, empty_K, values_SK = values[0], values[1], values[2:]
        method: SamplingMethod = next(known for known in SAMPLING_METHODS if known == plan.method)
        estimating = partial(self._idle_executor.compute, estimate, method, samples, values_SK, whole_K, empty_K)
        weights_MK = await self._idle_executor.run(estimating, deadline_s)
        gap = abs(weights_MK.sum() - (whole_K.sum() - empty_K.sum()))
        return _Attribution(weights_MK, float(gap) if method == "shap" else None)

    async def _attribute_by_graph(
        self, model: ServedModel, plan: ExplanationPlan, function: ValueFunction, deadline_s: float
    ) -> _Attribution:
        """Weigh tokens with the explanation graph, and sum those of each word; an image's tokens are its patches."""
        graph, row = model.loaded.graph, function.row()
        assert graph is not None
        found: TokenAttributions
        if plan.method == "attention":
            found = await attention_attributions(graph, row, plan.selector, self._idle_executor, deadline_s)
        else:
            found = await integrated_gradients(graph, row, plan.steps, self._idle_executor, deadline_s)
        weights_MK, tokens = found.weights_TK, None
        if isinstance(plan.features, Words):
            assert plan.text is not None
            weights_MK = plan.features.merged(found.weights_TK)
            tokens = _weighted_tokens(plan.text, plan.features, found.weights_TK.sum(axis=1))
        is_aligned = found.attention is not None and found.attention.part == "cross"
        return _Attribution(weights_MK, found.completeness_gap, found.evaluations, tokens, found.attention, is_aligned)

    async def _details(
        self, plan: ExplanationPlan, function: ValueFunction, found: _Attribution, deadline_s: float
    ) -> dict[str, Any]:
        """Return the fields of `Explanation` that depend on the kind of input."""
        weights_M = found.weights_MK.sum(axis=1)
        details: dict[str, Any] = {"tokens": found.tokens, "attention": found.attention}
        if isinstance(plan.features, Patches):
            assert plan.picture is not None
            patches_RC = weights_M.reshape(plan.features.rows, plan.features.columns)
            # Attention is never exactly zero: shift it so that the least attended patch is transparent.
            shown_RC = patches_RC - patches_RC.min() if plan.method == "attention" else patches_RC
            details["overlay"] = await self._idle_executor.run(
                partial(self._idle_executor.compute, _draw_overlay, plan.picture, shown_RC), deadline_s
            )
            details["patches"] = patches_RC.tolist()
        else:
            details |= {"words": plan.features.words, "weights": weights_M.tolist()}
        if function.target_pieces is not None:
            details["target_tokens"] = await asyncio.to_thread(function.target_pieces)
            if found.per_target_token:
                details["influence"] = found.weights_MK.tolist()
        return details


def _draw_overlay(picture: Callable[[int], Image], weights_RC: NDArray[np.float64]) -> bytes:
    return overlay_png(picture(OVERLAY_SIDE_PIXELS), weights_RC)


def _weighted_tokens(parts: TextParts, features: Words, weights_T: NDArray[np.float64]) -> list[Token]:
    """Return the tokens of a text with their weights; tokens that the tokenizer inserts have no span."""
    text = parts.text
    return [
        Token(name, 0, 0, weight, word) if span is None else Token(text[slice(*span)], *span, weight, word)
        for name, span, weight, word in zip(
            parts.names, parts.spans, weights_T.tolist(), features.word_of_token, strict=True
        )
    ]
