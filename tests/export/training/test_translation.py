"""Training of translation networks: learning, resuming, batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from export.networks.translation import RecurrentTranslationConfig, TranslationConfig
from export.training.translation import (
    Pair,
    batches_of_tokens,
    load_run_model,
    measure,
    train_translation,
    translate_texts,
)
from tests.toy_translation import toy_config, toy_data


def test_a_small_transformer_learns_to_translate(toy_translation_run: Path, quiet: Console) -> None:
    """It translates new sentences by greedy and by beam search; the record has both kinds of BLEU."""
    result = json.loads((toy_translation_run / "result.json").read_text())
    quality = result["quality"]["dogs"]
    assert quality["greedy"]["bleu"] > 90
    assert quality["beam 5"]["bleu_lower_tokenised"] > 90
    assert "13a" in quality["beam 5"]["bleu_signature"]
    assert "Moses" in quality["beam 5"]["bleu_lower_tokenised_signature"]
    assert result["num_training_examples"] == 3000
    model, tokenizer = (
        load_run_model(toy_translation_run),
        Tokenizer.from_file(str(toy_translation_run / "tokenizer.json")),
    )
    sources = ["three blue dogs", "one red"]
    texts = translate_texts(model, tokenizer, sources, torch.device("cpu"), quiet, num_beams=4)
    assert texts == ["Hunde drei blaue", "rote eins"]
    assert measure(toy_translation_run, toy_data(), torch.device("cpu"), quiet) == {"quality": result["quality"]}
    assert len((toy_translation_run / "translations.tsv").read_text().splitlines()) == 60


@pytest.mark.slow
def test_a_recurrent_network_learns_to_translate(tmp_path: Path, quiet: Console) -> None:
    """The baseline has the same data, loop and search."""
    model = RecurrentTranslationConfig(vocab_size=300, d_model=48, dropout=0.0, max_tokens=24)
    assert train_translation(toy_data(), toy_config(model=model, learning_rate=2e-2), tmp_path / "lstm", quiet)
    result = json.loads((tmp_path / "lstm" / "result.json").read_text())
    assert result["network"] == "translation-lstm"
    assert result["quality"]["dogs"]["greedy"]["bleu"] > 90


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_weights(tmp_path: Path, quiet: Console) -> None:
    """A run that is stopped again and again ends with bit-identical weights, with both kinds of dropout."""
    model = TranslationConfig(**{**vars(toy_config().model), "dropout": 0.2})
    config = toy_config(epochs=1, model=model, subword_dropout=0.2)
    train_translation(toy_data(), config, tmp_path / "whole", quiet)
    slices = 1
    while not train_translation(toy_data(), config, tmp_path / "sliced", quiet, time_budget_s=0.0):
        slices += 1
    assert slices > 5
    whole, sliced = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "sliced"))
    for name, weight in whole.items():
        np.testing.assert_array_equal(weight, sliced[name])


def test_bpe_dropout_needs_sentences_within_the_limit(tmp_path: Path, quiet: Console) -> None:
    """Segmentations are stored for every sentence; leaving one out would shift them all."""
    model = TranslationConfig(**{**vars(toy_config().model), "max_tokens": 5})
    with pytest.raises(ValueError, match="subword_dropout needs sentences of at most 5 tokens"):
        train_translation(toy_data(), toy_config(model=model, subword_dropout=0.1), tmp_path / "short", quiet)


def test_lowercase_is_an_option(tmp_path: Path, quiet: Console) -> None:
    """The tokenizer then has no capitals in either language."""
    train_translation(toy_data(), toy_config(epochs=1, lowercase=True), tmp_path / "lower", quiet)
    tokenizer = Tokenizer.from_file(str(tmp_path / "lower" / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("Hunde UND Hunde").ids) == "hunde und hunde"


def test_batches_hold_every_pair_once_within_the_limit() -> None:
    """Padding counts; only a pair that is too large by itself exceeds the limit, alone in its batch."""
    rng = np.random.default_rng(4)
    pairs = [Pair([7] * int(rng.integers(1, 30)), [7] * int(rng.integers(1, 30))) for _ in range(500)]
    pairs.append(Pair([7] * 300, [7]))
    batches = batches_of_tokens(pairs, 200, rng)
    assert sorted(member for batch in batches for member in batch) == list(range(501))
    for batch in batches:
        longest = max(max(len(pairs[member].source), len(pairs[member].target)) for member in batch)
        assert longest * len(batch) <= 200 or len(batch) == 1
    again = batches_of_tokens(pairs, 200, rng)
    assert [len(batch) for batch in again] == [len(batch) for batch in batches]
    assert any((a != b).any() for a, b in zip(again, batches, strict=True))
