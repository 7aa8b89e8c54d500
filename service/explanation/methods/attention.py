"""Attention weights of a Transformer: of one head, of one layer, or aggregated over all layers.

Shapes: L layers, H heads, T attending tokens, S attended tokens (S = T for self-attention).
"""

import numpy as np
from numpy.typing import NDArray


def rollout(attention_LHTT: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the fraction of each input token in each output token of the last layer, float64 [T, T].

    Attention rollout of Abnar and Zuidema 2020 (arXiv 2005.00928): each layer passes on half of each token unchanged
    (the residual connection) and half mixed by the mean of its heads; layers are composed by matrix products. Rows sum
    to one.
    """
    T = attention_LHTT.shape[-1]
    mixed_TT = np.eye(T)
    for layer_TT in attention_LHTT.astype(np.float64).mean(axis=1):
        mixed_TT = (layer_TT + np.eye(T)) / 2 @ mixed_TT
    return mixed_TT


def alignment(attention_LHTS: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cross-attention of target tokens to source tokens, mean over layers and heads, float64 [T, S]."""
    aligned_TS: NDArray[np.float64] = attention_LHTS.astype(np.float64).mean(axis=(0, 1))
    return aligned_TS


def layer_attention(attention_LHTS: NDArray[np.float32], layer: int, head: int | None) -> NDArray[np.float64]:
    """Return the weights of one head, or the mean over a layer's heads, float64 [T, S]; indices start at 0."""
    heads_HTS = attention_LHTS[layer].astype(np.float64)
    weights_TS: NDArray[np.float64] = heads_HTS.mean(axis=0) if head is None else heads_HTS[head]
    return weights_TS


def received_attention(weights_TS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the attention that each token receives, mean over the attending tokens, float64 [S]; it sums to one."""
    received_S: NDArray[np.float64] = weights_TS.mean(axis=0)
    return received_S
