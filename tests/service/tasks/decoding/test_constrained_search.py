"""Searches under constraints find the tokens that `generate` of `transformers` finds on small random models."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

from service.tasks.decoding.constrained_search import ConstrainedSearch, new_search
from service.tasks.decoding.constraints import Constraints, following
from service.tasks.decoding.search import EarlyStopping, Search, SearchOptions, top_k_log_probs
from service.tasks.decoding.sentence import Sentence

PAD, BOS, EOS, VOCAB = 1, 2, 3, 40
SOURCES = [[5, 9, 17, 9, 17, 22, EOS], [30, 31, 5, EOS], [8, 11, 11, 17, 34, 34, EOS]]


@functools.cache
def small_model() -> Any:
    """Build a model whose next tokens have clear orders and repeat themselves."""
    torch.manual_seed(8)
    config = BartConfig(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        init_std=0.8,
        forced_eos_token_id=None,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
    )
    model = BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.final_logits_bias[0, EOS] = 4.0  # so that some answers end early
    return model


@torch.inference_mode()
def searched(source: list[int], options: SearchOptions, eos_id: int = EOS) -> list[int]:
    """Search with the model, given as many candidates as the sentence asks for."""
    model = small_model()
    sentence = Sentence(source, options, bos_id=BOS, eos_id=eos_id, truncated=False, vocab_size=VOCAB)
    rows = [[BOS] for _ in range(options.num_beams)]
    encoded = model.get_encoder()(input_ids=torch.tensor([source] * len(rows)))
    while not sentence.done:
        decoded = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor(rows)).logits[:, -1].numpy()
        top, ids = top_k_log_probs(decoded, min(sentence.num_candidates, VOCAB))
        if sentence.reads_normalizers:
            sentence.set_log_normalizers((decoded.max(axis=1) - top[:, 0]).tolist())
        parents = sentence.advance(top.tolist(), ids.tolist())
        if not sentence.done:
            rows = [[*rows[parent], token] for parent, token in zip(parents, sentence.next_ids, strict=True)]
    return sentence.search.best().ids


def generated(source: list[int], eos_ids: tuple[int, ...] = (EOS,), **settings: Any) -> list[int]:
    """Generate with `transformers`; without the begin token, the end and padding."""
    config = GenerationConfig(
        decoder_start_token_id=BOS, eos_token_id=list(eos_ids), pad_token_id=PAD, do_sample=False, **settings
    )
    (ids,) = small_model().generate(torch.tensor([source]), generation_config=config)
    written = [int(token) for token in ids[1:]]
    ends = [place for place, token in enumerate(written) if token in eos_ids]
    return written[: ends[0]] if ends else written


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"min_new_tokens": 7}, {"min_new_tokens": 7}),
    ({"min_new_tokens": 7}, {"min_length": 8}),
    ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
    ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    ({"no_repeat_ngram_size": 3, "min_new_tokens": 12}, {"no_repeat_ngram_size": 3, "min_new_tokens": 12}),
    ({"encoder_no_repeat_ngram_size": 1}, {"encoder_no_repeat_ngram_size": 1}),
    ({"encoder_no_repeat_ngram_size": 2}, {"encoder_no_repeat_ngram_size": 2}),
    ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    (
        {"repetition_penalty": 2.5, "no_repeat_ngram_size": 2, "min_new_tokens": 9},
        {"repetition_penalty": 2.5, "no_repeat_ngram_size": 2, "min_new_tokens": 9},
    ),
    ({"bad_words_ids": ((35,), (34, 34), (11, 37, 11))}, {"bad_words_ids": [[35], [34, 34], [11, 37, 11], [EOS]]}),
    ({"suppress_tokens": (16, 34)}, {"suppress_tokens": [16, 34]}),
    ({"begin_suppress_tokens": tuple(range(4, 30))}, {"begin_suppress_tokens": list(range(4, 30))}),
    ({"forced_bos_token_id": 21}, {"forced_bos_token_id": 21}),
    (
        {"forced_bos_token_id": 21, "begin_suppress_tokens": tuple(range(4, 30))},
        {"forced_bos_token_id": 21, "begin_suppress_tokens": list(range(4, 30))},
    ),
    ({"forces_eos": True}, {"forced_eos_token_id": EOS}),
    ({"forces_eos": True, "min_new_tokens": 10}, {"forced_eos_token_id": EOS, "min_new_tokens": 10}),
]


SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 1, "length_penalty": 1.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": 0.6, "early_stopping": False},
]


@functools.cache
def unconstrained() -> list[list[int]]:
    """Search without rules."""
    return [searched(source, SearchOptions(max_new_tokens=13, **search)) for search in SEARCHES for source in SOURCES]


@pytest.mark.parametrize(("rules", "settings"), CASES, ids=[str(settings) for _, settings in CASES])
def test_constrained_searches_equal_those_of_transformers(rules: dict[str, Any], settings: dict[str, Any]) -> None:
    """Greedy and with beams; each rule changes an answer, or the comparison would be worthless."""
    all_found = []
    for search in SEARCHES:
        options = SearchOptions(max_new_tokens=13, constraints=Constraints(**rules), **search)
        for source in SOURCES:
            found = searched(source, options)
            assert found == generated(source, max_new_tokens=13, **search, **settings), (search, source)
            all_found.append(found)
    assert all_found != unconstrained()


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_searches_without_rules_equal_those_of_transformers(early_stopping: EarlyStopping) -> None:
    """Beams under each rule of stopping, with penalties that prefer short and long answers."""
    for num_beams, length_penalty in ((4, 2.0), (2, 0.0), (3, -1.0)):
        search: dict[str, Any] = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_new_tokens": 9,
        }
        for source in SOURCES:
            assert searched(source, SearchOptions(**search)) == generated(source, **search), (search, source)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_every_token_of_several_ends_a_translation(num_beams: int) -> None:
    """The likeliest ordinary tokens are made ends, so that searches meet all of them."""
    plain = searched(SOURCES[0], SearchOptions(max_new_tokens=13))
    more = tuple(dict.fromkeys(plain))[1:3]
    options = SearchOptions(
        max_new_tokens=13, num_beams=num_beams, constraints=Constraints(more_eos_token_ids=more, min_new_tokens=1)
    )
    found = {tuple(searched(source, options)) for source in SOURCES}
    assert found == {
        tuple(
            generated(
                source, (EOS, *more), max_new_tokens=13, num_beams=num_beams, min_new_tokens=1, early_stopping=True
            )
        )
        for source in SOURCES
    }
    assert min(map(len, found)) < len(plain)


def test_candidates_are_enough_for_all_that_may_be_forbidden() -> None:
    """A plain search asks for few, and one with rules for a power of two that covers them, or for the vocabulary."""

    def asked(vocab_size: int = 50_000, num_beams: int = 4, **rules: Any) -> int:
        options = SearchOptions(max_new_tokens=100, num_beams=num_beams, constraints=Constraints(**rules))
        return Sentence(
            [1] * 20, options, bos_id=BOS, eos_id=EOS, truncated=False, vocab_size=vocab_size
        ).num_candidates

    assert Sentence([1], SearchOptions(max_new_tokens=9), bos_id=0, eos_id=1, truncated=False).num_candidates == 1
    assert asked(min_new_tokens=3) == 16
    assert asked(no_repeat_ngram_size=3) == 128
    assert asked(no_repeat_ngram_size=3, encoder_no_repeat_ngram_size=3, suppress_tokens=tuple(range(9))) == 256
    assert asked(num_beams=1, repetition_penalty=1.2, vocab_size=90) == 90
    assert asked(num_beams=1, forced_bos_token_id=7) == 1
    assert asked(more_eos_token_ids=(7, 8)) == 16


def test_only_constraints_change_the_kind_of_search() -> None:
    """The plain search has no step that asks for rules."""
    plain = new_search(SearchOptions(max_new_tokens=3), [1], bos_id=BOS, eos_id=EOS)
    assert type(plain) is Search
    ruled = SearchOptions(max_new_tokens=3, constraints=Constraints(min_new_tokens=1))
    assert isinstance(new_search(ruled, [1], bos_id=BOS, eos_id=EOS), ConstrainedSearch)


def test_a_row_without_a_possible_token_ends() -> None:
    """If every candidate is forbidden, the translation ends with probability 0 and not with an error."""
    options = SearchOptions(max_new_tokens=3, constraints=Constraints(suppress_tokens=(5, 6)))
    search = new_search(options, [1], bos_id=BOS, eos_id=EOS)
    search.advance([[-0.5, -1.0]], [[5, 6]])
    assert search.done
    assert search.best() == ([], -np.inf)


def test_following_tokens_complete_an_n_gram() -> None:
    """The tokens behind each place at which the last tokens occurred before."""
    assert following([1, 2, 3, 1, 2, 4, 1, 2], 3, [1, 2, 3, 1, 2, 4, 1, 2]) == {3, 4}
    assert following([1, 2, 3], 1, [9]) == {1, 2, 3}
    assert following([1, 2, 3], 3, [2]) == set()
