"""What a model's explaining graph says of an input: where it looks, and what each token adds to the answer.

    row ──> attention weights of the answer ──> rollout, a layer or a head ──> what each token gets of it
        └─> steps of integrated gradients, a few at a time in spare time ──> shares of the answer, and what they leave

Shapes: T tokens, K tokens of a translation, N steps.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.explanation.methods.attention import alignment, of_layer, received, rollout
from service.explanation.methods.gradients import shared_out, steps
from service.models.explanation_graph import ExplainGraph
from service.scheduling.idle_executor import IdleExecutor
from service.tensors import Arrays

# A call may take so long, unless one step alone takes longer: as `service.scheduling.batcher` has it for low priority.
CALL_S = 5e-3
MAX_CALL_STEPS = 16  # attention weights of so many rows are computed beside; they take memory
# The view of an attention is given up to so many numbers: a square of 256 tokens, half a megabyte of JSON.
MAX_VIEW_NUMBERS = 65_536
VIEW_DECIMALS = 6
WHOLE, NOTHING = 1.0, 0.0  # alphas


class AttentionSelector(NamedTuple):
    """Which attention is asked for; None leaves the choice to the server."""

    part: str | None = None
    layer: int | None = None
    head: int | None = None


class AttentionMap(NamedTuple):
    """An attention as it was asked for.

    `weights` has a row for each token that looks, and a column for each token that is looked at; None where these would
    be too many numbers. Without a layer it is the rollout of the encoder's layers, or the mean of those of `cross`.
    """

    part: str
    layers: int
    heads: int
    layer: int | None
    head: int | None
    weights: list[list[float]] | None


class TokenAttributions(NamedTuple):
    """The weights of tokens, [T, K] or [T, 1]; from which view, or how far the steps miss their sum; calls' rows."""

    weights_TK: NDArray[np.float64]
    view: AttentionMap | None
    completeness_gap: float | None
    evaluations: int


def check_selector(graph: ExplainGraph, selector: AttentionSelector) -> None:
    """Refuse an attention that the model has not.

    Args:
        graph: of the model, open.
        selector: what is asked for.

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
        raise InvalidRequest("head is of a layer, and layer is missing")


async def open_graph(graph: ExplainGraph, idle_executor: IdleExecutor, deadline_s: float) -> None:
    """Make a graph ready, the first time.

    Raises:
        Unavailable: it is not what it should be.
        DeadlineExceeded: it passed first.
    """
    if not graph.ready:
        await idle_executor.run(graph.open, deadline_s)


async def look(
    graph: ExplainGraph, row: Arrays, selector: AttentionSelector, idle_executor: IdleExecutor, deadline_s: float
) -> TokenAttributions:
    """Where the model looks while it answers.

    Args:
        graph: of the model, open.
        row: the input, made by a function of `service.models.explanation_graph`.
        selector: what is asked for, passed by `check_selector`.
        idle_executor: what the graph is asked in.
        deadline_s: on `time.monotonic()`'s clock.

    Raises:
        EngineFailed, DeadlineExceeded: no answer, or none in time.
    """
    part = selector.part or next(iter(graph.attentions))
    kind = graph.attentions[part]

    def piece() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        outputs, _ = graph.ask(row, np.array([WHOLE], dtype=np.float32), [kind.output])
        attention = outputs[kind.output][0]
        if selector.layer is not None:
            seen = of_layer(attention, selector.layer, selector.head)
        else:
            seen = alignment(attention) if part == "cross" else rollout(attention)
        return seen, (seen.T if part == "cross" else received(seen)[:, None])

    seen, weights_TK = await idle_executor.run(piece, deadline_s)
    weights = seen.round(VIEW_DECIMALS).tolist() if seen.size <= MAX_VIEW_NUMBERS else None
    view = AttentionMap(part, kind.layers, kind.heads, selector.layer, selector.head, weights)
    return TokenAttributions(weights_TK, view, None, evaluations=1)


async def integrated_gradients(
    graph: ExplainGraph, row: Arrays, count: int, idle_executor: IdleExecutor, deadline_s: float
) -> TokenAttributions:
    """What each token adds to the answer, by `count` steps of integrated gradients; the rest as of `look`.

    Of a classifier the answer is the logit of a class, of a translation its log probability.
    """
    places_N, weights_N = steps(count)
    answers, attributions = list[NDArray[np.float64]](), list[NDArray[np.float32]]()
    alphas = np.concatenate([np.array([WHOLE, NOTHING], dtype=np.float32), places_N])
    answered = "log_probabilities" if "target_ids" in row else "logits"
    first, most = 0, 1  # `most` rows of a call; one, until it is known what a row takes
    while first < len(alphas):
        piece = partial(graph.ask, row, alphas[first : first + most], (answered, "attribution"))
        outputs, took_s = await idle_executor.run(piece, deadline_s)
        answers += list(outputs[answered].astype(np.float64))
        attributions += list(outputs["attribution"])
        first += most
        most = max(1, min(int(CALL_S * most / max(took_s, 1e-6)), MAX_CALL_STEPS))
    shares_T = shared_out(np.stack(attributions[2:]), weights_N)
    whole, nothing = (_answer(answer, row) for answer in answers[:2])
    gap = abs(float(shares_T.sum()) - (whole - nothing))
    return TokenAttributions(shares_T[:, None], None, gap, evaluations=len(alphas))


def _answer(answer: NDArray[np.float64], row: Arrays) -> float:
    """The number that is explained, out of the logits of a row or the log probabilities of its tokens."""
    return float(answer[int(row["target"])] if "target" in row else answer.sum())
