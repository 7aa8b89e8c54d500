"""What attention weights look at, in figures; pure functions of arrays.

Every figure has a counterpart for even attention (all weights alike) on the same input, without which it says little:
in a sentence of ten tokens a tenth of the weight goes to any one of them by chance.

Shapes: L layers, H heads, T tokens, S source tokens, G kinds of tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Where the weight of a query may go in a text; each token is of the first kind that fits.
TEXT_KINDS = ("first", "last", "mark", "itself", "before", "after", "other")
SOURCE_KINDS = ("last", "mark", "other")
# The same in an image: itself, the eight places around it, all others.
IMAGE_KINDS = ("itself", "around", "other")


def entropy(attention: NDArray[np.float32]) -> Floats:
    """Mean entropy of the rows, as a share of what even attention has; [..., T, S] to [...]."""
    weights = attention.astype(np.float64)
    rows = -(weights * np.log(np.maximum(weights, 1e-30))).sum(axis=-1)
    found: Floats = rows.mean(axis=-1) / np.log(max(2, attention.shape[-1]))
    return found


def even(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """Even attention of the same shape, of one head: [1, 1, T, S]."""
    return np.full((1, 1, *attention.shape[-2:]), 1 / attention.shape[-1], dtype=np.float32)


def shares(attention_LHTS: NDArray[np.float32], kind_TS: NDArray[np.int64], num_kinds: int) -> Floats:
    """Of the weight, the part that goes to each kind of token; [L, H, G], sums to one."""
    return np.stack(
        [
            (attention_LHTS * (kind_TS == kind)).sum(axis=-1, dtype=np.float64).mean(axis=-1)
            for kind in range(num_kinds)
        ],
        axis=-1,
    )


def kinds_of_text(is_mark_T: Sequence[bool], *, has_first: bool) -> NDArray[np.int64]:
    """For each pair of tokens the number of its kind among `TEXT_KINDS`.

    Args:
        is_mark_T: whether a token is punctuation; the last token is a special one.
        has_first: whether the first one is, too.
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
    """For each target and source token the number of its kind among `SOURCE_KINDS`."""
    kind_S = np.where(is_mark_S, SOURCE_KINDS.index("mark"), SOURCE_KINDS.index("other"))
    kind_S[-1] = SOURCE_KINDS.index("last")
    return np.tile(kind_S, (num_queries, 1))


def kinds_of_image(side: int) -> NDArray[np.int64]:
    """For each pair of places in a square grid the number of its kind among `IMAGE_KINDS`."""
    row_T, column_T = np.divmod(np.arange(side * side), side)
    steps_TT = np.maximum(abs(row_T[:, None] - row_T[None]), abs(column_T[:, None] - column_T[None]))
    return np.minimum(steps_TT, 2)


def distance_in_text(num_tokens: int) -> Floats:
    """Tokens between each pair, [T, T]."""
    place_T = np.arange(num_tokens, dtype=np.float64)
    return np.abs(place_T[:, None] - place_T[None])


def distance_in_image(side: int, pixels: float) -> Floats:
    """Pixels between each pair of places in a square grid, [T, T]; `pixels` lie between neighbours."""
    row_T, column_T = np.divmod(np.arange(side * side), side)
    return np.asarray(pixels * np.hypot(row_T[:, None] - row_T[None], column_T[:, None] - column_T[None]))


def off_the_diagonal(num_queries: int, num_keys: int) -> Floats:
    """How far a target and a source token lie apart, each place counted from 0 to 1; [T, S]."""
    query_T, key_S = np.linspace(0, 1, num_queries), np.linspace(0, 1, num_keys)
    return np.asarray(np.abs(query_T[:, None] - key_S[None]))


def mean_distance(attention: NDArray[np.float32], distance_TS: Floats) -> Floats:
    """What lies between a query and where it looks, by weight; [..., T, S] to [...].

    As in figure 7 of Dosovitskiy et al. 2021 (arXiv 2010.11929).
    """
    found: Floats = (attention * distance_TS).sum(axis=-1).mean(axis=-1)
    return found
