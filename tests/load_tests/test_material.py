"""Inputs of the load tests without data sets."""

import pytest

from load_tests.material import load_sentences


def test_our_own_sentences_are_labelled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent where the data set is not at hand."""
    monkeypatch.delenv("HEED_DATASETS", raising=False)
    sentences = load_sentences()
    assert len(set(sentences.texts)) == len(sentences.texts) >= 32
    assert sentences.labels.count("POSITIVE") * 2 == len(sentences.labels)
