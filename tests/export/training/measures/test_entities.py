"""Strict F1 of entities, in cases computed by hand."""

import json
import math

import pytest

from export.data.token_classification import Entity, entities_of_tags
from export.training.measures.entities import entity_quality

# The example of seqeval's README: one of two true entities is found whole, the other one is a word too long.
TRUE_TAGS = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
PREDICTED_TAGS = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def entities(tags: list[list[str]]) -> list[list[Entity]]:
    """Turn tags of one-letter words into entities."""
    return [entities_of_tags(each, [(2 * n, 2 * n + 1) for n in range(len(each))]) for each in tags]


def test_the_example_of_seqeval() -> None:
    """It reports precision, recall and F1 of 0.5, PER 1.0 and MISC 0.0."""
    quality = entity_quality(entities(PREDICTED_TAGS), entities(TRUE_TAGS), ["MISC", "PER"])
    assert (quality.precision, quality.recall, quality.f1_micro, quality.f1_macro) == (0.5, 0.5, 0.5, 0.5)
    assert [(label.label, label.f1, label.num_true) for label in quality.labels] == [("MISC", 0.0, 1), ("PER", 1.0, 1)]
    assert quality.num_entities == 2 and quality.whole_texts == 0.5


def test_a_wrong_label_is_wrong_for_both_labels() -> None:
    """Two of three true ones are found, among four that are predicted."""
    true = [[Entity(0, 4, "LOC"), Entity(5, 9, "PER")], [Entity(0, 3, "LOC")], []]
    predicted = [[Entity(5, 9, "PER"), Entity(0, 4, "ORG")], [Entity(0, 3, "LOC")], [Entity(1, 2, "PER")]]
    quality = entity_quality(predicted, true, ["LOC", "ORG", "PER"])
    assert quality.precision == pytest.approx(2 / 4) and quality.recall == pytest.approx(2 / 3)
    assert quality.f1_micro == pytest.approx(4 / 7)
    by_label = {label.label: label for label in quality.labels}
    assert by_label["LOC"].recall == 0.5 and by_label["LOC"].precision == 1.0
    assert math.isnan(by_label["ORG"].recall) and by_label["ORG"].precision == 0.0
    assert quality.f1_macro == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert quality.whole_texts == pytest.approx(1 / 3)


def test_intervals_lie_around_their_figures_and_narrow_with_texts() -> None:
    """Ten copies of the texts have the same F1 and a narrower interval."""
    true = [[Entity(0, 4, "LOC")], [Entity(0, 3, "LOC")], [], [Entity(2, 5, "LOC")]] * 5
    predicted = [[Entity(0, 4, "LOC")], [], [], [Entity(2, 4, "LOC")]] * 5
    few, many = entity_quality(predicted, true, ["LOC"]), entity_quality(predicted * 10, true * 10, ["LOC"])
    assert few.f1_micro == pytest.approx(many.f1_micro)
    assert few.f1_micro_interval[0] < many.f1_micro_interval[0] < few.f1_micro
    assert few.f1_micro < many.f1_micro_interval[1] < few.f1_micro_interval[1]


def test_nothing_found_is_no_error() -> None:
    """Precision is not defined then, which JSON says with null."""
    written = entity_quality([[]], [[Entity(0, 1, "LOC")]], ["LOC"]).as_dict()
    assert written["precision"] is None and written["recall"] == 0.0 and written["f1_micro"] == 0.0
    assert json.dumps(written, allow_nan=False)
