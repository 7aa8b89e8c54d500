"""Figures of attention, on weights with known values."""

import numpy as np
import pytest

from export.studies import attention_patterns as patterns


def to_one(T: int, offset: int) -> np.ndarray:
    """Build two layers of three heads that attend to the token `offset` places ahead, or to the last one."""
    attention_LHTT = np.zeros((2, 3, T, T), dtype=np.float32)
    attention_LHTT[:, :, np.arange(T), np.clip(np.arange(T) + offset, 0, T - 1)] = 1
    return attention_LHTT


def test_entropy_is_one_for_even_attention_and_zero_for_one_token() -> None:
    """Entropy is a fraction of the maximum, for any length."""
    for T in (2, 7, 40):
        assert patterns.entropy(patterns.even(to_one(T, 0))) == pytest.approx(1.0)
        np.testing.assert_allclose(patterns.entropy(to_one(T, 1)), 0.0, atol=1e-6)


def test_fractions_sum_to_one_and_go_to_the_attended_kind() -> None:
    """The kinds are previous token, same token and next token; special tokens and punctuation come first."""
    kind_TT = patterns.kinds_of_text([False, False, True, False, False, False, False], has_first=True)
    for offset, kind in ((-1, "before"), (0, "itself"), (1, "after")):
        shares_LHG = patterns.shares(to_one(7, offset), kind_TT, len(patterns.TEXT_KINDS))
        np.testing.assert_allclose(shares_LHG.sum(axis=-1), 1.0)
        assert shares_LHG[0, 0, patterns.TEXT_KINDS.index(kind)] >= 3 / 7
        assert shares_LHG[0, 0, patterns.TEXT_KINDS.index("mark")] == pytest.approx(1 / 7)
        assert shares_LHG[0, 0, patterns.TEXT_KINDS.index("other")] == 0
    first = patterns.shares(to_one(7, -7), kind_TT, len(patterns.TEXT_KINDS))[1, 2]
    assert first[patterns.TEXT_KINDS.index("first")] == 1.0
    without = patterns.kinds_of_text([False] * 7, has_first=False)
    assert patterns.shares(to_one(7, -7), without, 7)[1, 2][patterns.TEXT_KINDS.index("first")] == 0.0


def test_neighbouring_patches_have_their_own_kind() -> None:
    """A patch has eight neighbours, or three in a corner."""
    kind_TT = patterns.kinds_of_image(4)
    around = patterns.IMAGE_KINDS.index("around")
    assert (kind_TT == around).sum(axis=1).reshape(4, 4).tolist() == [
        [3, 5, 5, 3],
        [5, 8, 8, 5],
        [5, 8, 8, 5],
        [3, 5, 5, 3],
    ]
    assert (np.diag(kind_TT) == patterns.IMAGE_KINDS.index("itself")).all()


def test_distances_in_tokens_pixels_and_off_the_diagonal() -> None:
    """Checks texts, images, and a translation that is longer than its source."""
    assert patterns.mean_distance(to_one(9, 0), patterns.distance_in_text(9))[0, 0] == 0
    assert patterns.mean_distance(to_one(9, 2), patterns.distance_in_text(9))[1, 2] == pytest.approx((7 * 2 + 1) / 9)
    image_TT = patterns.distance_in_image(8, 4.0)
    assert image_TT[0, 7] == 28
    assert image_TT[0, 63] == pytest.approx(28 * 2**0.5)
    off_TS = patterns.off_the_diagonal(3, 5)
    assert (off_TS[0, 0], off_TS[2, 4], off_TS[0, 4], off_TS[1, 2]) == (0, 0, 1, 0)
