"""The limits of a converted translation model."""

import pytest

from export.conversion.comparison.requirements import ConversionRefused
from export.conversion.comparison.translation import TranslationComparison, require_same


def test_only_equally_likely_translations_may_change() -> None:
    """A changed translation is accepted only if PyTorch scores it as high as its own."""
    require_same(TranslationComparison(500, 1e-6, 2, 5e-5), "test")
    with pytest.raises(ConversionRefused, match=r"2 of 500 translations change, by up to 0\.01"):
        require_same(TranslationComparison(500, 1e-6, 2, 0.01), "test")
