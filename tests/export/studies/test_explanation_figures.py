"""Figures of one answer, from a small committed model and a committed translation model."""

import numpy as np
import pytest

from export.studies.explained_answers import TextModel, TranslationModel
from export.studies.explanation_figures import METHODS, RANDOM, figures_of, rank_correlations, to_words
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def small() -> TextModel:
    """The small sentiment model."""
    return TextModel(ROOT / "model_store/sentiment-small/1")


def test_rank_correlation_ignores_scale() -> None:
    """Opposite orders correlate with -1, and constant rows with nothing."""
    found = rank_correlations(np.array([[1, 2, 3, 9], [10, 20, 30, 31], [4, 3, 2, 1], [5, 5, 5, 5]], dtype=np.float64))
    np.testing.assert_allclose(found[:3, :3], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    assert not found[3].any()


def test_the_decisive_word_has_the_largest_weight(small: TextModel) -> None:
    """Every method that asks the model finds it, and deletion finds it sooner than a random order."""
    answer = small.answer("It was a wonderful film about my two old uncles.")
    figures = figures_of(answer, 0)
    assert figures["features"] == len(answer.names) == 11
    assert figures["areas"].keys() == {*METHODS, RANDOM}
    places = [METHODS.index(method) for method in ("occlusion", "lime", "shap")]
    assert figures["same_top"][np.ix_(places, places)].all()
    assert answer.names[int(answer.by_perturbation("shap", 0)[:, 0].argmax())] == "wonderful"
    for method in ("occlusion", "lime", "shap"):
        assert figures["areas"][method][0] < figures["areas"][RANDOM][0]
        assert figures["areas"][method][1] > figures["areas"][RANDOM][1]
    whole, empty = figures["scores"]
    assert whole > 0.9 > empty


def test_gradients_and_attention_are_summed_by_word(small: TextModel) -> None:
    """Special tokens are left out; attention sums to one."""
    answer = small.answer("A dull, dull film.")
    assert answer.names == ["A", "dull", ",", "dull", "film", "."]
    for numbers_T in (answer.gradients_of_tokens(32), answer.attention_of_tokens(answer.outputs())):
        weights_M = answer.of_features(numbers_T)
        assert weights_M.sum() == pytest.approx(numbers_T[answer.feature_of_T >= 0].sum())
        assert (answer.feature_of_T[[0, -1]] == -1).all()
    assert int(answer.gradients().argmax()) in {1, 3}
    assert answer.attention_of_tokens(answer.outputs()).sum() == pytest.approx(1.0, abs=1e-5)


def test_cross_attention_is_summed_by_source_word() -> None:
    """Rows sum to one with the end-of-sentence token; the translation is the served one."""
    answer = TranslationModel(ROOT / "model_store/translation-en-de/1").answer("The dog is asleep.")
    assert (answer.text, answer.names) == ("Der Hund schläft.", ["The", "dog", "is", "asleep", "."])
    cross_LHTS = answer.outputs()["cross_attention"]
    words_LHTM = to_words(answer, cross_LHTS)
    np.testing.assert_allclose(words_LHTM.sum(axis=-1) + cross_LHTS[..., -1], 1.0, atol=1e-5)
    assert answer.names[int(answer.by_perturbation("occlusion", 0)[:, 1].argmax())] == "dog"  # of " Hund"
