"""Where a Transformer looks: of its attention weights, those of a head, a layer, or of all layers together.

Shapes: L layers, H heads, T tokens that look, S tokens that are looked at (T of them where a text looks at itself).
"""

import numpy as np
from numpy.typing import NDArray


def rollout(attention_LHTT: NDArray[np.float32]) -> NDArray[np.float64]:
    """How much of each input token is in each token behind the last layer, [T, T]; rows sum to one.

    Attention rollout of Abnar and Zuidema 2020 (arXiv 2005.00928): a layer hands on half of each token as it was (the
    residual connection) and half as its heads mix it, on average; the layers follow each other, as products do.
    """
    T = attention_LHTT.shape[-1]
    mixed_TT = np.eye(T)
    for layer_TT in attention_LHTT.astype(np.float64).mean(axis=1):
        mixed_TT = (layer_TT + np.eye(T)) / 2 @ mixed_TT
    return mixed_TT


def alignment(attention_LHTS: NDArray[np.float32]) -> NDArray[np.float64]:
    """How much each written token looks at each token of the source, [T, S]: the mean of all layers and heads."""
    aligned_TS: NDArray[np.float64] = attention_LHTS.astype(np.float64).mean(axis=(0, 1))
    return aligned_TS


def of_layer(attention_LHTS: NDArray[np.float32], layer: int, head: int | None) -> NDArray[np.float64]:
    """The weights of one head, or the mean of a layer's heads, [T, S]; both are counted from 0."""
    heads_HTS = attention_LHTS[layer].astype(np.float64)
    looked_TS: NDArray[np.float64] = heads_HTS.mean(axis=0) if head is None else heads_HTS[head]
    return looked_TS


def received(looked_TS: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each token gets of the attention of all tokens, [S]; sums to one."""
    received_S: NDArray[np.float64] = looked_TS.mean(axis=0)
    return received_S
