"""Splits: strata, copies, seeds, and what small sets get."""

import random
from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.data.own.splits import (
    HELD_OUT_FRACTION,
    MAX_HELD_OUT_ROWS,
    TEST,
    TRAIN,
    VALIDATION,
    arrange,
    digest,
    groups_of,
    held_out_counts,
    normalised,
    quantile_strata,
    rare_label_notes,
    split,
)

BOTH = (VALIDATION, TEST)


def one_each(labels: str) -> list[frozenset[Hashable]]:
    """Make a set of one label for each letter."""
    return [frozenset([label]) for label in labels]


def test_every_row_is_in_one_split_and_labels_keep_their_fractions() -> None:
    """Four hundred rows of one label, forty of another."""
    labels = one_each("a" * 400 + "b" * 40)
    rows = split([f"text {number}" for number in range(440)], labels, BOTH, 0, several=False)
    assert sorted(row for each in rows.values() for row in each) == list(range(440))
    for name in BOTH:
        counts = Counter(next(iter(labels[row])) for row in rows[name])
        assert counts == {"a": 400 * HELD_OUT_FRACTION, "b": 40 * HELD_OUT_FRACTION}


def test_the_order_of_rows_does_not_matter_but_the_seed_does() -> None:
    """A file that was sorted anew keeps its held-out texts."""
    texts = [f"text {number}" for number in range(100)]
    labels = one_each("ab" * 50)
    first = {texts[row] for row in split(texts, labels, BOTH, 0, several=False)[TEST]}
    pairs = list(zip(texts, labels, strict=True))
    random.Random(1).shuffle(pairs)
    shuffled, their_labels = zip(*pairs, strict=True)
    assert {shuffled[row] for row in split(shuffled, their_labels, BOTH, 0, several=False)[TEST]} == first
    assert {texts[row] for row in split(texts, labels, BOTH, 1, several=False)[TEST]} != first


def test_copies_stay_together() -> None:
    """Case and spaces make no difference; contradictory labels are counted."""
    texts = ["Good  film", "good film ", "other", "good film"] + [f"text {number}" for number in range(60)]
    keys = [normalised(text) for text in texts]
    labels = one_each("aaab" + "ab" * 30)
    for seed in range(10):
        rows = split(keys, labels, BOTH, seed, several=False)
        homes = {name for name, numbers in rows.items() for row in (0, 1, 3) if row in numbers}
        assert len(homes) == 1
    _, copies = groups_of(keys, labels)
    assert (copies.duplicate_rows, copies.contradictory_inputs) == (2, 1)


def test_pairs_are_copies_only_if_both_texts_are() -> None:
    """The two texts are not run together."""
    assert normalised("a b", "c") != normalised("a", "b c")
    assert normalised(" A\tb", "C") == normalised("a b", "c ")


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (10, (2, 2)), (100, (15, 15))],
)
def test_small_labels_get_one_row_for_each_split_as_far_as_they_reach(count: int, expected: tuple[int, int]) -> None:
    """Training comes first, then validation."""
    assert tuple(held_out_counts(count, BOTH, HELD_OUT_FRACTION).values()) == expected
    assert held_out_counts(2, [TEST], HELD_OUT_FRACTION) == {TEST: 1}


def test_large_sets_hold_out_no_more_than_the_limit() -> None:
    """About as many as the limit says, over all labels."""
    rows = split([str(number) for number in range(2_000)], one_each("ab") * 1_000, BOTH, 0, several=False, max_rows=100)
    assert len(rows[VALIDATION]) == len(rows[TEST]) == 100
    assert held_out_counts(1_000_000, BOTH, MAX_HELD_OUT_ROWS / 1_000_000) == dict.fromkeys(BOTH, MAX_HELD_OUT_ROWS)


def test_several_labels_are_distributed_label_by_label() -> None:
    """Each label's rows reach each split about by its fraction, also rare ones and rows without any."""
    rng = random.Random(3)
    labels: list[frozenset[Hashable]] = [
        frozenset(name for name, chance in {"a": 0.5, "b": 0.3, "c": 0.05}.items() if rng.random() < chance)
        for _ in range(400)
    ]
    rows = split([str(number) for number in range(400)], labels, BOTH, 0, several=True)
    assert sorted(row for each in rows.values() for row in each) == list(range(400))
    for name in BOTH:
        for label in "abc":
            wanted = HELD_OUT_FRACTION * sum(label in each for each in labels)
            assert abs(sum(label in labels[row] for row in rows[name]) - wanted) <= max(2, 0.15 * wanted)
        assert any(not labels[row] for row in rows[name])


def test_the_only_row_of_a_label_is_for_training() -> None:
    """Among several labels too."""
    labels: list[frozenset[Hashable]] = [frozenset("ab"), *[frozenset("a")] * 30]
    for seed in range(5):
        assert 0 in split([str(number) for number in range(31)], labels, BOTH, seed, several=True)[TRAIN]
        assert (
            0
            in split([str(number) for number in range(31)], one_each("b" + "a" * 30), BOTH, seed, several=False)[TRAIN]
        )


def test_numbers_are_stratified_by_quantiles() -> None:
    """Each split gets small and large ones."""
    targets = [float(number) for number in range(200)]
    strata = quantile_strata(targets)
    assert len(set(strata)) == 10 and strata == sorted(strata, key=min)
    rows = split([str(number) for number in range(200)], strata, BOTH, 0, several=False)
    for name in BOTH:
        assert {row // 20 for row in rows[name]} == set(range(10))
    assert quantile_strata([1.0, 1.0]) == [frozenset([0])] * 2


def test_rows_of_given_held_out_files_leave_training_rows() -> None:
    """Test rows stay all; validation rows that are test rows go."""
    keys = {TRAIN: ["a", "b", "c", "d"], VALIDATION: ["b", "e", "f"], TEST: ["a", "f", "f"]}
    labels = {name: one_each("x" * len(each)) for name, each in keys.items()}
    made = arrange(keys, labels, 0)
    assert made.rows == {TRAIN: [2, 3], VALIDATION: [0, 1], TEST: [0, 1, 2]}
    assert made.sources == {name: name for name in keys}
    assert made.facts == {
        "duplicate_rows": 4,
        "contradictory_inputs": 0,
        "train_rows_also_in_test": 1,
        "validation_rows_also_in_test": 1,
        "train_rows_also_in_validation": 1,
    }


SOURCE = st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.frozensets(st.sampled_from("xyz"), max_size=3)))


@settings(max_examples=200, deadline=None)
@given(
    train=SOURCE, validation=st.none() | SOURCE, test=st.none() | SOURCE, seed=st.integers(0, 9), several=st.booleans()
)
def test_no_input_is_in_two_splits_and_every_other_row_is_in_one(
    train: list[tuple[str, frozenset[str]]],
    validation: list[tuple[str, frozenset[str]]] | None,
    test: list[tuple[str, frozenset[str]]] | None,
    seed: int,
    several: bool,
) -> None:
    """Whatever is given, with any copies and contradictions."""
    given_sources = {TRAIN: train, VALIDATION: validation, TEST: test}
    sources = {name: rows for name, rows in given_sources.items() if rows is not None}
    keys = {name: [key for key, _ in rows] for name, rows in sources.items()}
    labels: dict[str, list[frozenset[Hashable]]] = {
        name: [frozenset(label if several else [min(label, default="")]) for _, label in rows]
        for name, rows in sources.items()
    }
    made = arrange(keys, labels, seed, several=several)
    inputs = {name: {keys[made.sources[name]][row] for row in rows} for name, rows in made.rows.items()}
    assert not inputs[TRAIN] & inputs[VALIDATION] and not inputs[TRAIN] & inputs[TEST]
    assert not inputs[VALIDATION] & inputs[TEST]
    kept = sum(len(rows) for rows in made.rows.values())
    removed = sum(count for name, count in made.facts.items() if "_rows_also_in_" in name)
    assert kept + removed == sum(map(len, keys.values()))


def test_the_missing_split_is_made_of_the_training_rows_that_are_left() -> None:
    """Copies of the given test rows are gone before."""
    keys = {TRAIN: [str(number) for number in range(40)], TEST: ["0", "1"]}
    made = arrange(keys, {TRAIN: one_each("xy" * 20), TEST: one_each("xx")}, 0)
    assert made.sources == {TRAIN: TRAIN, VALIDATION: TRAIN, TEST: TEST}
    assert sorted(made.rows[TRAIN] + made.rows[VALIDATION]) == list(range(2, 40))
    assert len(made.rows[VALIDATION]) == 6


def test_labels_that_a_split_lacks_are_named() -> None:
    """With the rows that they have in all."""
    counts = {TRAIN: {"a": 8, "b": 1}, VALIDATION: {"a": 2, "b": 0}}
    (note,) = rare_label_notes(counts)
    assert note.startswith("the validation split has no row of 'b' (1 in all)")
    many = {TRAIN: {str(number): 1 for number in range(30)}, TEST: {str(number): 0 for number in range(30)}}
    assert "and 20 more" in rare_label_notes(many)[0]


def test_digests_differ_by_content_and_order() -> None:
    """Two columns are not one."""
    assert digest([["a", "b"]]) != digest([["a"], ["b"]]) != digest([["b"], ["a"]])
