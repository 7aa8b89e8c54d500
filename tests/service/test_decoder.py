"""Running batches against decoding each sentence alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.train_translation import translate
from export.translation_graphs import OnnxTranslator, export_decoder_step, export_encoder
from export.translation_networks import BOS_ID, EOS_ID, TranslationConfig, TranslationTransformer
from service.decoder import TranslationEngine
from service.engine import EngineError
from service.tasks.translation import Forced, SearchOptions, Sentence

MAX_TOKENS = 40


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small network with random weights."""
    torch.manual_seed(12)
    config = TranslationConfig(
        vocab_size=60, d_model=32, num_layers=1, num_decoder_layers=2, num_heads=4, d_ff=64, max_tokens=MAX_TOKENS
    )
    network = TranslationTransformer(config).eval()
    for weight in network.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("graphs")
    export_encoder(network, folder / "encoder.onnx")
    export_decoder_step(network, folder / "model.onnx")
    return folder


def engine_of(graphs: Path) -> TranslationEngine:
    """On one thread."""
    return TranslationEngine(graphs / "encoder.onnx", graphs / "model.onnx", threads=1)


def random_sentences(count: int, seed: int) -> list[Sentence]:
    """Of any length, greedy and with beams, that end early or late."""
    rng = np.random.default_rng(seed)
    return [
        Sentence(
            [*rng.integers(EOS_ID + 1, 60, rng.integers(0, MAX_TOKENS - 1)).tolist(), EOS_ID],
            SearchOptions(max_new_tokens=int(rng.integers(1, MAX_TOKENS)), num_beams=int(rng.choice([1, 1, 2, 5]))),
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            truncated=False,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_company_changes_nothing(graphs: Path, seed: int) -> None:
    """Sentences that join and leave at random get the translations that they get alone, beam by beam."""
    rng = np.random.default_rng(seed)
    batches = engine_of(graphs).open(max_rows=24, max_places=MAX_TOKENS)
    waiting, running, done = random_sentences(40, seed), [], []
    while waiting or running:
        joining = []
        while waiting and rng.random() < 0.6 and sum(s.rows for s in (*running, *joining, waiting[-1])) <= 24:
            joining.append(waiting.pop())
        if joining:
            batches.join(joining)
            running += joining
        batches.step()
        for sentence in [each for each in running if each.done or rng.random() < 0.02]:
            batches.leave(sentence)
            running.remove(sentence)
            if sentence.done:
                done.append(sentence)
    alone = OnnxTranslator(graphs)
    assert len(done) > 20
    for sentence in done:
        (expected,) = translate(alone, [sentence.ids], [sentence.options])
        found = sentence.search.best()
        assert found.ids == expected.ids
        assert found.score == pytest.approx(expected.score, abs=1e-4)


def test_given_translations_get_the_log_probabilities_of_their_tokens(graphs: Path) -> None:
    """Of any tokens, in company of others and of searches, what the graphs say where each is decoded by itself."""
    rng = np.random.default_rng(7)
    batches, alone = engine_of(graphs).open(max_rows=24, max_places=MAX_TOKENS), OnnxTranslator(graphs)
    searches = random_sentences(6, 7)
    forced = [
        Forced(search.ids, rng.integers(2, 60, rng.integers(1, 20)).tolist(), bos_id=BOS_ID, num_candidates=60)
        for search in searches
    ]
    running: list[Sentence | Forced] = [*searches, *forced]
    batches.join(running)
    while running:
        batches.step()
        for sentence in [each for each in running if each.done]:
            batches.leave(sentence)
            running.remove(sentence)
    for sentence in forced:
        state, expected, last = alone.begin([sentence.ids]), [], BOS_ID
        for token in sentence.target_ids:
            top, ids, state = alone.next_tokens([last], state, 60)
            expected.append(float(top[0][ids[0].tolist().index(token)]))
            last = token
        np.testing.assert_allclose(sentence.log_probabilities, expected, atol=1e-4)
        assert sentence.so_far == sentence.target_ids


def test_a_step_without_sentences_does_nothing(graphs: Path) -> None:
    """Also after the last one has left."""
    batches = engine_of(graphs).open(max_rows=4, max_places=MAX_TOKENS)
    batches.step()
    (sentence,) = random_sentences(1, 5)
    batches.join([sentence])
    batches.leave(sentence)
    batches.step()
    assert not sentence.so_far


def test_other_graphs_are_refused(graphs: Path, tmp_path: Path) -> None:
    """Files that are no graphs, and graphs that are not those of a translation model."""
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"^model\.onnx: "):
        TranslationEngine(graphs / "encoder.onnx", tmp_path / "model.onnx", threads=1)
    with pytest.raises(EngineError, match="not the two graphs"):
        TranslationEngine(graphs / "encoder.onnx", graphs / "encoder.onnx", threads=1)
