"""The limits of a converted translation model."""

import pytest

from export.conversion.comparison.requirements import ConversionRefused
from export.conversion.comparison.translation import TranslationComparison, require_same


def test_two_that_are_as_likely_may_change_places() -> None:
    """A changed translation is right where PyTorch finds it as good as its own, and only there."""
    require_same(TranslationComparison(500, 1e-6, 2, 5e-5), "test")
    with pytest.raises(ConversionRefused, match=r"2 of 500 translations change, by up to 0\.01"):
        require_same(TranslationComparison(500, 1e-6, 2, 0.01), "test")
