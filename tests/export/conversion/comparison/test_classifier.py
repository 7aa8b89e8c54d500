"""The limits of a converted classifier."""

import pytest

from export.conversion.comparison.classifier import Comparison, require_equal
from export.conversion.comparison.requirements import ConversionRefused


@pytest.mark.parametrize(("difference", "labels"), [(2e-4, 0), (0.0, 1), (float("nan"), 0)])
def test_logit_difference_or_label_change_is_refused(difference: float, labels: int) -> None:
    """Either one alone is enough to refuse a graph."""
    with pytest.raises(ConversionRefused):
        require_equal(Comparison(600, difference, labels), "it")
    require_equal(Comparison(600, 1e-4, 0), "it")


def test_large_numbers_are_compared_in_their_own_unit() -> None:
    """Prices in the thousands differ by more than probabilities do."""
    require_equal(Comparison(600, 0.09, 0), "it", unit=1000.0)
    with pytest.raises(ConversionRefused, match="allowed: 0.1"):
        require_equal(Comparison(600, 0.11, 0), "it", unit=1000.0)
