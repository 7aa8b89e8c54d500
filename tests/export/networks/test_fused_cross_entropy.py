"""The fused cross entropy equals PyTorch's loss over all logits."""

import torch
from torch import Tensor
from torch.nn import functional

from export.networks.fused_cross_entropy import smoothed_cross_entropy
from export.networks.transformer import NEGATIVE

TOKENS, WIDTH, VOCABULARY, SMOOTHING = 400, 16, 3001, 0.1  # three blocks of rows, the last not full


def both(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Compute the loss, the correct tokens, and the gradients of features and weight: PyTorch's, then ours."""
    torch.manual_seed(4)
    labels_N = torch.randint(1, VOCABULARY, (TOKENS,))
    weight, bias_V = torch.randn(VOCABULARY, WIDTH), torch.zeros(VOCABULARY)
    bias_V[0] = NEGATIVE  # never predicted
    features = weight[labels_N] + 2 * torch.randn(TOKENS, WIDTH)  # so that some are right and some are not
    found = []
    for ours in (False, True):
        x_ND, weight_VD = features.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            loss, correct_N = smoothed_cross_entropy(x_ND, weight_VD, bias_V, labels_N, SMOOTHING, dtype)
        else:
            logits_NV = x_ND @ weight_VD[1:].T  # as if that token did not exist
            loss = functional.cross_entropy(logits_NV, labels_N - 1, label_smoothing=SMOOTHING)
            correct_N = logits_NV.argmax(1) == labels_N - 1
        (3 * loss).backward()  # the factor must come through
        assert x_ND.grad is not None and weight_VD.grad is not None
        found.append((loss.detach(), correct_N, x_ND.grad, weight_VD.grad))
    return found


def test_loss_and_gradients_equal_pytorchs() -> None:
    """Compares with the cross entropy over all logits."""
    expected, ours = both(torch.float32)
    assert 5 < expected[1].sum() < TOKENS - 5
    for ours_part, expected_part in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_part, expected_part)


def test_bfloat16_products_round_and_leave_float32_results() -> None:
    """Loss and gradients stay in float32."""
    expected, ours = both(torch.bfloat16)
    assert {part.dtype for part in ours} == {torch.float32, torch.bool}
    torch.testing.assert_close(ours[0], expected[0], rtol=0.01, atol=0)
    for ours_part, expected_part in zip(ours[2:], expected[2:], strict=True):
        assert (ours_part - expected_part).norm() < 0.02 * expected_part.norm()
