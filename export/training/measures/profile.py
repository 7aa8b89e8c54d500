"""What validation looked like, as histograms in JSON: later input and answers are compared with it for drift."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_QUANTILES = 10
CONFIDENCE_EDGES = tuple(round(0.05 * number, 2) for number in range(1, 20))
UNKNOWN_EDGES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # fractions of a text's tokens
PROFILE_FORMAT = 1


def histogram(values: Sequence[float] | NDArray[Any], edges: Sequence[float]) -> dict[str, list[Any]]:
    """Count values between edges.

    `counts` has one more entry than `edges`: counts[k] values lie in [edges[k - 1], edges[k]). The first entry counts
    values below all edges, the last one those at or above the last edge.
    """
    bins = np.searchsorted(np.asarray(edges, float), np.asarray(values, float), side="right")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}


def quantile_edges(values: Sequence[float] | NDArray[Any]) -> list[float]:
    """Return the different deciles of values, so that about as many values lie between any two edges."""
    inner = np.linspace(0, 1, NUM_QUANTILES + 1)[1:-1]
    return [float(edge) for edge in np.unique(np.quantile(np.asarray(values, float), inner))]


def profile(
    *,
    lengths: Sequence[int] | None = None,
    unknown_fractions: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    confidences: Sequence[float] | NDArray[Any] | None = None,
    scores: Sequence[float] | NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Collect the histograms of a split, for JSON; what a task does not have is left out.

    Args:
        lengths: tokens of each input.
        unknown_fractions: the fraction of each input's tokens that the tokenizer does not know.
        labels: the predicted labels; an example with several has one entry for each.
        confidences: the probability of each predicted label.
        scores: the predicted numbers of a regression.
    """
    document: dict[str, Any] = {"format": PROFILE_FORMAT}
    if lengths is not None:
        document["num_examples"] = len(lengths)
        document["length_tokens"] = histogram(lengths, quantile_edges(lengths))
    if unknown_fractions is not None:
        document["unknown_fraction"] = histogram(unknown_fractions, UNKNOWN_EDGES)
    if labels is not None:
        document["predicted_labels"] = dict(sorted(Counter(labels).items()))
    if confidences is not None:
        document["confidence"] = histogram(confidences, CONFIDENCE_EDGES)
    if scores is not None:
        document["score"] = histogram(scores, quantile_edges(scores))
    return document
