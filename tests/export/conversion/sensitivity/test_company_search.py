"""The search for batch neighbours that change an answer most, on arithmetic with a known worst case."""

import random
from collections.abc import Sequence

import pytest

from export.conversion.sensitivity.company_search import Answer, SearchEffort, search_company

EFFORT = SearchEffort(max_items=40, batch_sizes=(2, 8, 16), num_targets=12)


def rounded_by_the_largest(items: Sequence[float]) -> list[Answer]:
    """Compute answers as int8 does: numbers rounded to a 127th of the largest number of the call."""
    step = max(abs(item) for item in items) / 127 or 1.0
    return [Answer((round(item / step) * step > 0.5,), (round(item / step) * step,)) for item in items]


def each_by_itself(items: Sequence[float]) -> list[Answer]:
    """Compute answers that do not depend on the other items."""
    return [Answer((item > 0.5,), (item / 3,)) for item in items]


@pytest.fixture
def items() -> list[float]:
    """Numbers between 0 and 1."""
    rng = random.Random(3)
    return [rng.random() for _ in range(100)]


def test_independent_items_have_no_sensitivity(items: list[float]) -> None:
    """No change is found where each answer depends only on its own item."""
    found = search_company(each_by_itself, items, [1000.0], abs, EFFORT)
    assert (found.worst, found.mean, found.changed_answers) == (0.0, 0.0, 0)
    assert len(found.changes) == 3 * 40


def test_a_neighbour_that_sets_the_scale_is_found(items: list[float]) -> None:
    """One invented neighbour of 30 coarsens the steps to 0.24; among the items themselves no step exceeds 0.008."""
    found = search_company(rounded_by_the_largest, items, [30.0, 0.1], abs, EFFORT)
    assert 0 < found.mean < found.worst_random <= 0.5 / 127 + 1e-12
    assert found.worst == found.worst_chosen > 10 * found.worst_random
    # Nothing of the search can exceed half of the coarsest step.
    assert found.worst <= 0.5 * 30 / 127 + 1e-12


def test_changed_answers_are_counted() -> None:
    """A number just above a half rounds to another answer once its neighbours coarsen the steps."""
    found = search_company(rounded_by_the_largest, [0.501, 200.0] * 8, [], abs, EFFORT)
    assert found.changed_answers > 0


def test_equal_seeds_find_equal_figures(items: list[float]) -> None:
    """Another seed draws other neighbours."""
    first, second = (search_company(rounded_by_the_largest, items, [30.0], abs, EFFORT) for _ in range(2))
    assert first == second
    other = search_company(rounded_by_the_largest, items, [30.0], abs, SearchEffort(max_items=40, seed=21))
    assert first.changes != other.changes


def test_neighbours_are_chosen_for_the_items_that_changed_most(items: list[float]) -> None:
    """Only the item 0.5 changes: a little beside any others, and by a tenth for each different invented neighbour."""

    def one_is_sensitive(call: Sequence[float]) -> list[Answer]:
        strange = len({item for item in call if item >= 2})
        moved = 0.1 * strange + (0.01 if len(call) > 1 else 0.0)
        return [Answer((0,), (item + moved * (item == 0.5),)) for item in call]

    effort = SearchEffort(max_items=101, batch_sizes=(2, 8), num_extremes=0, num_targets=4)
    found = search_company(one_is_sensitive, [*items, 0.5], [2.0, 3.0, 4.0, 5.0, 6.0], abs, effort)
    assert found.worst_random == pytest.approx(0.01)
    assert found.worst_chosen == pytest.approx(0.51)
