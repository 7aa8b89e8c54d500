"""Cross entropy over a large vocabulary, without a float32 copy of all logits and of their gradient.

With 10,000 pieces and 4,096 tokens one such copy is 164 MB. Writing, reading and freeing several copies a step takes
longer than the network. Here the gradient is computed in the same pass as the loss, a few rows at a time, and
overwrites the logits (Wijmans et al. 2024, arXiv 2411.09009, do so in a GPU kernel).

Shapes: N tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from export.networks.transformer import NEGATIVE

ROW_BLOCK_ELEMENTS = 1 << 19  # float32 values that fit into a core's part of the cache


class _SmoothedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        x_ND, weight_VD, bias_V, labels_N, label_smoothing, dtype = arguments
        N, V = len(x_ND), len(weight_VD)
        x_ND, weight = x_ND.to(dtype), weight_VD.to(dtype)
        logits_NV = x_ND @ weight.T
        losses_N, correct_N = x_ND.new_empty(N, dtype=torch.float32), labels_N.new_empty(N, dtype=torch.bool)
        rows = max(1, ROW_BLOCK_ELEMENTS // V)
        possible_V = (bias_V > NEGATIVE / 2).float()
        smoothing_V = possible_V * (label_smoothing / possible_V.sum())
        for first in range(0, N, rows):
            block = slice(first, first + rows)
            label = labels_N[block, None]
            log_p = (logits_NV[block].float() + bias_V).log_softmax(1)
            picked = log_p.gather(1, label)
            correct_N[block] = (log_p.argmax(1, keepdim=True) == label)[:, 0]
            losses_N[block] = (label_smoothing - 1) * picked[:, 0] - log_p @ smoothing_V
            gradient = log_p.exp_().sub_(smoothing_V)
            gradient.scatter_add_(1, label, torch.full_like(picked, label_smoothing - 1))
            logits_NV[block] = gradient
        ctx.save_for_backward(logits_NV, x_ND, weight)
        ctx.dtypes = arguments[0].dtype, weight_VD.dtype
        ctx.mark_non_differentiable(correct_N)
        return losses_N.mean(), correct_N

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        gradient_NV, x_ND, weight_VD = ctx.saved_tensors
        scale = gradients[0] / len(x_ND)
        x_dtype, weight_dtype = ctx.dtypes
        towards_x = (gradient_NV @ weight_VD).to(x_dtype) * scale
        towards_weight = (gradient_NV.T @ x_ND).to(weight_dtype) * scale
        return towards_x, towards_weight, None, None, None, None


def smoothed_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_N: Tensor, label_smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute the mean cross entropy of `softmax(x weight' + bias)` with smoothed labels (arXiv 1512.00567).

    Args:
        x_ND: the input of the last layer.
        weight_VD: the weight of the last layer.
        bias_V: float32, without a gradient; `NEGATIVE` for a token that is never predicted.
        labels_N: the correct tokens, int64.
        label_smoothing: the fraction of each label that is spread evenly over the tokens that may be predicted. Spread
            over the others too, it would let their weights grow without bound.
        dtype: the type of the matrix products; the rest is in float32.

    Returns:
        the loss, and whether the correct token had the highest logit, bool [N].
    """
    settings = labels_N, label_smoothing, dtype
    loss, correct_N = _SmoothedCrossEntropy.apply(x_ND, weight_VD, bias_V, *settings)  # type: ignore[no-untyped-call] # torch has no types for it
    return loss, correct_N
