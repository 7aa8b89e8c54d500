"""Inputs that are used without data sets."""

import pytest

from load_tests.material import load_sentences


def test_our_own_sentences_have_as_many_positive_as_negative_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are used where the data set is missing."""
    monkeypatch.delenv("HEED_DATASETS", raising=False)
    sentences = load_sentences()
    assert len(set(sentences.texts)) == len(sentences.texts) >= 32
    assert sentences.labels.count("POSITIVE") * 2 == len(sentences.labels)
