"""Graphs of the encoder-decoder families, in running batches, give what `generate` of `transformers` gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from export.conversion.seq2seq.weights import network_of
from export.onnx_graphs.passes import use_standard_attention
from export.onnx_graphs.translation import export_decoder_step, export_encoder
from model_store.folder import ENCODER, GRAPH
from service.engines.host import EngineHost
from service.engines.translation import TranslationEngine
from service.tasks.decoding.constraints import Constraints
from service.tasks.decoding.search import SearchOptions
from service.tasks.decoding.sentence import Sentence
from tests.toy_seq2seq import BART_LIKE, T5_LIKE

MAX_TOKENS, NEW_TOKENS = 32, 14
GATED = {"feed_forward_proj": "gated-gelu"}


def marian() -> MarianMTModel:
    """Build a model with a vocabulary for each language, whose decoder begins with the padding."""
    config = {**BART_LIKE, "decoder_vocab_size": 52, "pad_token_id": 51, "decoder_start_token_id": 51}
    return MarianMTModel(MarianConfig(vocab_size=60, share_encoder_decoder_embeddings=False, **config))


MODELS = {
    "t5, gated, untied": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=60, **T5_LIKE, **GATED, tie_word_embeddings=False)
    ),
    "t5": lambda: T5ForConditionalGeneration(T5Config(vocab_size=60, **T5_LIKE)),
    "mt5": lambda: MT5ForConditionalGeneration(MT5Config(vocab_size=60, **T5_LIKE, **GATED)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(vocab_size=60, **BART_LIKE)),
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(vocab_size=60, **BART_LIKE)),
    "m2m_100": lambda: M2M100ForConditionalGeneration(M2M100Config(vocab_size=60, **BART_LIKE)),
    "marian": marian,
}
SLOW = tuple(MODELS)[1:]


def built(name: str) -> Any:
    """Build a model with random weights, whose likeliest tokens are clear."""
    torch.manual_seed(5)
    model: Any = MODELS[name]().eval()
    config = model.config
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return model


def generated(model: Any, sentence: Sentence) -> list[int]:
    """Generate with `transformers` what a sentence's search finds."""
    options, eos_id = sentence.options, model.config.eos_token_id
    beams: dict[str, Any] = {"early_stopping": True} if options.num_beams > 1 else {}
    rules = {"repetition_penalty": options.constraints.repetition_penalty} if options.constraints else {}
    if model.config.model_type == "marian":
        rules["bad_words_ids"] = [[model.config.pad_token_id]]  # which the network itself never predicts
    (ids,) = model.generate(
        torch.tensor([sentence.ids]),
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        do_sample=False,
        **beams,
        **rules,
    )
    written = [int(token) for token in ids[1:]]
    return written[: written.index(eos_id)] if eos_id in written else written


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def test_families_equal_transformers_in_running_batches(name: str, tmp_path: Path) -> None:
    """Sentences of several lengths and searches join at different steps; each gets the tokens that it gets alone."""
    model = built(name)
    network = network_of(model, MAX_TOKENS)
    export_encoder(network, tmp_path / ENCODER)
    export_decoder_step(network, tmp_path / GRAPH)
    use_standard_attention(tmp_path / ENCODER)
    engine = TranslationEngine(tmp_path / ENCODER, tmp_path / GRAPH, 1, EngineHost(), max_tokens=MAX_TOKENS)
    batches, rng = engine.open(max_rows=40, max_places=MAX_TOKENS), np.random.default_rng(4)
    penalty = Constraints(repetition_penalty=1.3)
    sentences = [
        Sentence(
            [*rng.integers(3, 50, length).tolist(), model.config.eos_token_id],
            SearchOptions(max_new_tokens=NEW_TOKENS, num_beams=beams, constraints=rules),
            bos_id=model.config.decoder_start_token_id,
            eos_id=model.config.eos_token_id,
            truncated=False,
            vocab_size=network.config.vocab_size,
        )
        for length, beams, rules in (
            *((length, beams, None) for length in (1, 9, 30, 4, 17) for beams in (1, 3)),
            *((length, 1, penalty) for length in (12, 5)),
        )
    ]
    waiting, running = list(sentences), list[Sentence]()
    while waiting or running:
        joining = [waiting.pop() for _ in range(min(2, len(waiting)))]
        if joining:
            batches.join(joining)
            running += joining
        batches.step()
        for sentence in [each for each in running if each.done]:
            batches.leave(sentence)
            running.remove(sentence)
    for sentence in sentences:
        assert sentence.search.best().ids == generated(model, sentence), (len(sentence.ids), sentence.options)
    assert len({tuple(sentence.search.best().ids) for sentence in sentences}) > 3
