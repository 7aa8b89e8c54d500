"""Explanation methods that run a model's explanation graph: attention and integrated gradients.

    row ──> attention weights of the answer ──> rollout, a layer or a head ──> attention that each token receives
        └─> steps of integrated gradients, a few at a time on an idle core ──> attributions, and the completeness gap

Shapes: T tokens, K tokens of a translation, N steps.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.explanation.methods.attention import alignment, layer_attention, received_attention, rollout
from service.explanation.methods.gradients import integrate_gradients, quadrature
from service.models.explanation_graph import ExplainGraph
from service.scheduling.idle_executor import IdleExecutor
from service.tensors import Arrays

# Target duration of a call, as for low priority in `service.scheduling.batcher`. A single step may exceed it.
CALL_S = 5e-3
MAX_CALL_STEPS = 16  # bounds memory: each row of a call also computes its attention weights
# Larger attention maps are left out of the answer: 256 x 256 tokens are half a megabyte of JSON.
MAX_MAP_NUMBERS = 65_536
MAP_DECIMALS = 6
WHOLE, EMPTY = 1.0, 0.0  # values of alpha: the complete input, and the baseline without any word


class AttentionSelector(NamedTuple):
    """Selects the attention to return; None leaves the choice to the server."""

    part: str | None = None
    layer: int | None = None
    head: int | None = None


class AttentionMap(NamedTuple):
    """The attention that a selector names.

    `weights` has a row per attending token and a column per attended token, or is None where it would be too large.
    Without a layer it is the rollout over the encoder's layers, or the mean over all layers of `cross`.
    """

    part: str
    layers: int
    heads: int
    layer: int | None
    head: int | None
    weights: list[list[float]] | None


class TokenAttributions(NamedTuple):
    """The weights of tokens, float64 [T, K] or [T, 1], and how they were computed."""

    weights_TK: NDArray[np.float64]
    attention: AttentionMap | None  # only for method `attention`
    completeness_gap: float | None  # only for method `gradients`: difference between the actual and the expected sum
    evaluations: int  # rows that the graph computed


def check_selector(graph: ExplainGraph, selector: AttentionSelector) -> None:
    """Refuse an attention that the model does not have.

    Args:
        graph: explanation graph of the model, open.
        selector: attention that the request names.

    Raises:
        InvalidRequest: names the parameter and its limits.
    """
    part, layer, head = selector
    if part is not None and part not in graph.attentions:
        raise InvalidRequest(f"part {part!r} is not known; the model has {', '.join(graph.attentions)}")
    kind = graph.attentions[part or next(iter(graph.attentions))]
    for name, value, count in (("layer", layer, kind.layers), ("head", head, kind.heads)):
        if value is not None and not 0 <= value < count:
            raise InvalidRequest(f"{name} must lie between 0 and {count - 1}, not {value}")
    if head is not None and layer is None:
        raise InvalidRequest("head needs a layer, which is missing")


async def open_graph(graph: ExplainGraph, idle_executor: IdleExecutor, deadline_s: float) -> None:
    """Open a graph if it is not open yet.

    Raises:
        Unavailable: the graph failed its checks.
        DeadlineExceeded: the deadline passed first.
    """
    if not graph.ready:
        await idle_executor.run(graph.open, deadline_s)


async def attention_attributions(
    graph: ExplainGraph, row: Arrays, selector: AttentionSelector, idle_executor: IdleExecutor, deadline_s: float
) -> TokenAttributions:
    """Weigh tokens by the attention that they receive.

    Args:
        graph: explanation graph of the model, open.
        row: the input, made by a function of `service.models.explanation_graph`.
        selector: attention that has passed `check_selector`.
        idle_executor: runs the graph.
        deadline_s: on `time.monotonic()`'s clock.

    Returns:
        weights [T, 1], or [T, K] for cross-attention, and the attention map.

    Raises:
        EngineFailed, DeadlineExceeded: the graph failed, or not in time.
    """
    part = selector.part or next(iter(graph.attentions))
    kind = graph.attentions[part]

    def piece() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        outputs, _ = graph.ask(row, np.array([WHOLE], dtype=np.float32), [kind.output])
        attention = outputs[kind.output][0]
        if selector.layer is not None:
            seen = layer_attention(attention, selector.layer, selector.head)
        else:
            seen = alignment(attention) if part == "cross" else rollout(attention)
        return seen, (seen.T if part == "cross" else received_attention(seen)[:, None])

    seen, weights_TK = await idle_executor.run(piece, deadline_s)
    weights = seen.round(MAP_DECIMALS).tolist() if seen.size <= MAX_MAP_NUMBERS else None
    attention_map = AttentionMap(part, kind.layers, kind.heads, selector.layer, selector.head, weights)
    return TokenAttributions(weights_TK, attention_map, None, evaluations=1)


async def integrated_gradients(
    graph: ExplainGraph, row: Arrays, count: int, idle_executor: IdleExecutor, deadline_s: float
) -> TokenAttributions:
    """Weigh tokens by integrated gradients of the answer.

    For a classifier, the answer is the logit of a class; for a translation, its log probability.

    Args:
        graph: explanation graph of the model, open.
        row: the input, made by a function of `service.models.explanation_graph`.
        count: number of steps.
        idle_executor: runs the graph, a few steps per call.
        deadline_s: on `time.monotonic()`'s clock.

    Returns:
        weights [T, 1] and the completeness gap.

    Raises:
        EngineFailed, DeadlineExceeded: the graph failed, or not in time.
    """
    places_N, weights_N = quadrature(count)
    answers, attributions = list[NDArray[np.float64]](), list[NDArray[np.float32]]()
    alphas = np.concatenate([np.array([WHOLE, EMPTY], dtype=np.float32), places_N])
    answered = "log_probabilities" if "target_ids" in row else "logits"
    first, call_rows = 0, 1  # one row in the first call, until the time of a row is known
    while first < len(alphas):
        piece = partial(graph.ask, row, alphas[first : first + call_rows], (answered, "attribution"))
        outputs, took_s = await idle_executor.run(piece, deadline_s)
        answers += list(outputs[answered].astype(np.float64))
        attributions += list(outputs["attribution"])
        first += call_rows
        call_rows = max(1, min(int(CALL_S * call_rows / max(took_s, 1e-6)), MAX_CALL_STEPS))
    weights_T = integrate_gradients(np.stack(attributions[2:]), weights_N)
    whole, empty = (_score(answer, row) for answer in answers[:2])
    gap = abs(float(weights_T.sum()) - (whole - empty))
    return TokenAttributions(weights_T[:, None], None, gap, evaluations=len(alphas))


def _score(answer: NDArray[np.float64], row: Arrays) -> float:
    """Return the explained number: the logit of the target class, or the sum of the tokens' log probabilities."""
    return float(answer[int(row["target"])] if "target" in row else answer.sum())
