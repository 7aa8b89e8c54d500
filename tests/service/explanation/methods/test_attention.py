"""Aggregated attention weights, compared with sums written out."""

import numpy as np
import pytest

from service.explanation.methods.attention import alignment, layer_attention, received_attention, rollout

L, H, T, S = 3, 2, 4, 5


def attention(tokens: int) -> np.ndarray:
    """Return random weights whose rows sum to one, [L, H, T, tokens]."""
    drawn = np.random.default_rng(0).random((L, H, T, tokens)).astype(np.float32)
    return drawn / drawn.sum(axis=-1, keepdims=True)


def test_rollout_is_the_sum_over_all_paths() -> None:
    """Each path from an output token of the last layer to an input token contributes its product of weights."""
    weights = attention(T).astype(np.float64)
    expected = np.zeros((T, T))
    for end in range(T):
        for second in range(T):
            for first in range(T):
                for start in range(T):
                    way = ((end, second, 2), (second, first, 1), (first, start, 0))
                    steps = [
                        (sum(weights[layer, head, a, b] for head in range(H)) / H + (a == b)) / 2 for a, b, layer in way
                    ]
                    expected[end, start] += steps[0] * steps[1] * steps[2]
    found = rollout(attention(T))
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_rollout_of_tokens_that_attend_only_to_themselves_is_the_identity() -> None:
    """Each output token consists of its own input token only."""
    np.testing.assert_array_equal(rollout(np.broadcast_to(np.eye(T, dtype=np.float32), (L, H, T, T))), np.eye(T))


def test_layer_attention_is_a_head_or_a_mean() -> None:
    """The mean is over a layer's heads, or over all layers and heads; received attention sums to one."""
    weights = attention(S)
    np.testing.assert_array_equal(layer_attention(weights, 1, 0), weights[1, 0])
    np.testing.assert_allclose(layer_attention(weights, 2, None), (weights[2, 0] + weights[2, 1]) / 2, atol=1e-7)
    mean = sum(weights[layer, head] for layer in range(L) for head in range(H)) / (L * H)
    np.testing.assert_allclose(alignment(weights), mean, atol=1e-7)
    got = received_attention(alignment(weights))
    assert got[3] == pytest.approx(sum(mean[row, 3] for row in range(T)) / T)
    assert got.sum() == pytest.approx(1)
