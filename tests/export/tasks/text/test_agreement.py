"""How far answers agree with those in float32, and what is refused."""

import numpy as np
import pytest

from export.conversion.comparison.requirements import ConversionRefused
from export.tasks.text.agreement import rank_correlation
from export.tasks.text.question_answering import TASK as QUESTION_ANSWERING
from export.tasks.text.text_ranking import TASK as TEXT_RANKING
from export.tasks.text.token_classification import TASK as TOKEN_CLASSIFICATION

EXPECTED = [np.array([[0, 9], [8, 0], [0, 7]], np.float32), np.array([[1, 0]], np.float32)]


def test_labels_of_tokens_are_counted() -> None:
    """One of four has changed; that is too many in int8, and a change within rounding is none."""
    found = [EXPECTED[0].copy(), np.array([[0, 1]], np.float32)]
    measured = TOKEN_CLASSIFICATION.agreement(found, EXPECTED)
    assert (measured["agreement"], measured["num_answers"], measured["max_abs_logit_difference"]) == (0.75, 4, 1)
    with pytest.raises(ConversionRefused, match=r"int8 changes the answers: 75.00 % of 4 labels of tokens agree;"):
        TOKEN_CLASSIFICATION.check_loss(measured, measured, "int8")
    assert TOKEN_CLASSIFICATION.compare(found, EXPECTED).labels_changed == 1
    near = [np.array([[0, 1e-5]], np.float32)]
    assert TOKEN_CLASSIFICATION.compare(near, [np.array([[1e-5, 0]], np.float32)]).labels_changed == 0


def test_an_answer_is_its_start_and_end() -> None:
    """Of each question two tokens are counted: here the start is the same one, the end is not."""
    measured = QUESTION_ANSWERING.agreement([EXPECTED[0][::-1]], [EXPECTED[0]])
    assert measured["num_answers"] == 2
    assert measured["agreement"] == 0.5


def test_scores_are_compared_by_their_ranks() -> None:
    """Equal orders correlate fully, whatever the scores; a reversed order is refused."""
    scores = [np.array([[value]], np.float32) for value in (0.1, 0.5, 0.2, 0.9)]
    same = TEXT_RANKING.agreement([2 * each for each in scores], scores)
    assert same["rank_correlation"] == pytest.approx(1)
    assert TEXT_RANKING.check_loss(same, same, "int8") == {}
    reversed_ = TEXT_RANKING.agreement([-each for each in scores], scores)
    with pytest.raises(ConversionRefused, match=r"rank correlation -1.0000 over 4 scores; at least 99.5 %"):
        TEXT_RANKING.check_loss(reversed_, same, "int8")
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.5)
