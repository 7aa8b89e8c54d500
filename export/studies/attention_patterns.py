"""Figures of attention weights: where they go and how far; pure functions of arrays.

Every figure has a counterpart for even attention (equal weights) on the same input, because chance alone sends a tenth
of the weight to any one of ten tokens.

Shapes: L layers, H heads, T tokens, S source tokens, G kinds of tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Kinds of tokens that a query in a text may attend to; the first kind that fits counts.
TEXT_KINDS = ("first", "last", "mark", "itself", "before", "after", "other")
SOURCE_KINDS = ("last", "mark", "other")
# Kinds of places that a query in an image may attend to: itself, the eight around it, all others.
IMAGE_KINDS = ("itself", "around", "other")


def entropy(attention: NDArray[np.float32]) -> Floats:
    """Compute the mean entropy of the rows, as a fraction of even attention's; [..., T, S] to [...]."""
    weights = attention.astype(np.float64)
    rows = -(weights * np.log(np.maximum(weights, 1e-30))).sum(axis=-1)
    found: Floats = rows.mean(axis=-1) / np.log(max(2, attention.shape[-1]))
    return found


def even(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return even attention of the same shape for one head: [1, 1, T, S]."""
    return np.full((1, 1, *attention.shape[-2:]), 1 / attention.shape[-1], dtype=np.float32)


def shares(attention_LHTS: NDArray[np.float32], kind_TS: NDArray[np.int64], num_kinds: int) -> Floats:
    """Compute the fraction of the weight that goes to each kind of token; [L, H, G], sums to one."""
    return np.stack(
        [
            (attention_LHTS * (kind_TS == kind)).sum(axis=-1, dtype=np.float64).mean(axis=-1)
            for kind in range(num_kinds)
        ],
        axis=-1,
    )


def kinds_of_text(is_mark_T: Sequence[bool], *, has_first: bool) -> NDArray[np.int64]:
    """Return for each pair of tokens the index of its kind in `TEXT_KINDS`; int64 [T, T].

    Args:
        is_mark_T: whether a token is punctuation; the last token is a special one.
        has_first: whether the first token is a special one too.
    """
    T = len(is_mark_T)
    offset_TT = np.arange(T)[None, :] - np.arange(T)[:, None]
    kind_TT = np.full((T, T), TEXT_KINDS.index("other"))
    for kind, offset in (("after", 1), ("before", -1), ("itself", 0)):
        kind_TT[offset_TT == offset] = TEXT_KINDS.index(kind)
    kind_TT[:, np.array(is_mark_T)] = TEXT_KINDS.index("mark")
    kind_TT[:, -1] = TEXT_KINDS.index("last")
    if has_first:
        kind_TT[:, 0] = TEXT_KINDS.index("first")
    return kind_TT


def kinds_of_source(is_mark_S: Sequence[bool], num_queries: int) -> NDArray[np.int64]:
    """Return for each target and source token the index of its kind in `SOURCE_KINDS`; int64 [T, S]."""
    kind_S = np.where(is_mark_S, SOURCE_KINDS.index("mark"), SOURCE_KINDS.index("other"))
    kind_S[-1] = SOURCE_KINDS.index("last")
    return np.tile(kind_S, (num_queries, 1))


def kinds_of_image(side: int) -> NDArray[np.int64]:
    """Return for each pair of places in a square grid the index of its kind in `IMAGE_KINDS`; int64 [T, T]."""
    row_T, column_T = np.divmod(np.arange(side * side), side)
    steps_TT = np.maximum(abs(row_T[:, None] - row_T[None]), abs(column_T[:, None] - column_T[None]))
    kinds_TT: NDArray[np.int64] = np.minimum(steps_TT, 2)
    return kinds_TT


def distance_in_text(num_tokens: int) -> Floats:
    """Return the distance of each pair of tokens in tokens; [T, T]."""
    place_T = np.arange(num_tokens, dtype=np.float64)
    return np.abs(place_T[:, None] - place_T[None])


def distance_in_image(side: int, pixels: float) -> Floats:
    """Return the distance of each pair of places in a square grid; [T, T]. Neighbours lie `pixels` apart."""
    row_T, column_T = np.divmod(np.arange(side * side), side)
    return np.asarray(pixels * np.hypot(row_T[:, None] - row_T[None], column_T[:, None] - column_T[None]))


def off_the_diagonal(num_queries: int, num_keys: int) -> Floats:
    """Return the distance of target and source tokens, with positions scaled to 0 to 1; [T, S]."""
    query_T, key_S = np.linspace(0, 1, num_queries), np.linspace(0, 1, num_keys)
    return np.asarray(np.abs(query_T[:, None] - key_S[None]))


def mean_distance(attention: NDArray[np.float32], distance_TS: Floats) -> Floats:
    """Compute the mean attention distance, weighted by attention; [..., T, S] to [...].

    Figure 7 of Dosovitskiy et al. 2021 (arXiv 2010.11929).
    """
    found: Floats = (attention * distance_TS).sum(axis=-1).mean(axis=-1)
    return found
