"""Histograms that are compared with later input."""

import json

import numpy as np

from export.training.measures.profile import histogram, profile, quantile_edges


def test_every_value_is_counted_once() -> None:
    """A value on an edge belongs to the bin above."""
    assert histogram([0, 1, 1.5, 2, 9], [1, 2]) == {"edges": [1.0, 2.0], "counts": [1, 2, 2]}


def test_deciles_hold_about_as_many_values_each() -> None:
    """Equal values make fewer edges, not empty bins."""
    values = np.random.default_rng(0).gamma(2, 10, 1000)
    assert all(90 <= count <= 110 for count in histogram(values, quantile_edges(values))["counts"])
    assert quantile_edges([7, 7, 7]) == [7.0]


def test_a_profile_is_json_and_has_what_the_task_has() -> None:
    """A regression has scores, a classifier labels and confidence."""
    texts = profile(
        lengths=[3, 5, 8], unknown_fractions=[0, 0, 0.2], labels=["b", "a", "b"], confidences=[0.5, 0.99, 1.0]
    )
    assert json.loads(json.dumps(texts)) == texts
    assert texts["num_examples"] == 3 and texts["predicted_labels"] == {"a": 1, "b": 2}
    assert sum(texts["unknown_fraction"]["counts"]) == 3 and texts["unknown_fraction"]["counts"][0] == 2
    assert texts["confidence"]["counts"][-1] == 2
    assert set(profile(scores=[0.5, 2.0])) == {"format", "score"}
