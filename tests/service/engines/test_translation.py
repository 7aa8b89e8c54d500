"""Running batches against decoding each sentence alone."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.networks.translation import BOS_ID, EOS_ID, TranslationConfig, TranslationTransformer
from export.onnx_graphs.translation import OnnxTranslator, export_decoder_step, export_encoder, halve_translation
from export.training.translation import translate
from service.engines.host import EngineHost
from service.engines.onnx_session import EngineError
from service.engines.translation import RunningBatches, TranslationEngine
from service.tasks.decoding.search import SearchOptions
from service.tasks.decoding.sentence import Forced, Sentence

MAX_TOKENS = 40


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the graphs of a small network with random weights."""
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


def engine_of(graphs: Path, host: EngineHost | None = None, *, keeps_on_device: bool = False) -> TranslationEngine:
    """On one thread; keys and values in numpy's memory, or as on a GPU in that of the device, which is the CPU here."""
    encoder, decoder = graphs / "encoder.onnx", graphs / "model.onnx"
    return TranslationEngine(
        encoder, decoder, 1, host or EngineHost(), max_tokens=MAX_TOKENS, keeps_on_device=keeps_on_device
    )


def random_sentences(count: int, seed: int) -> list[Sentence]:
    """Make sentences of random lengths and searches, which end early or late."""
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


def decode_all(batches: RunningBatches, running: list[Any]) -> None:
    """Step until all are done; each leaves as soon as it is."""
    while running:
        batches.step()
        for sentence in [each for each in running if each.done]:
            batches.leave(sentence)
            running.remove(sentence)


@pytest.mark.parametrize("keeps_on_device", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_company_changes_nothing(graphs: Path, seed: int, keeps_on_device: bool) -> None:
    """Sentences that join and leave at random get the translations that they get alone, beam by beam."""
    rng = np.random.default_rng(seed)
    batches = engine_of(graphs, keeps_on_device=keeps_on_device).open(max_rows=24, max_places=MAX_TOKENS)
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


@pytest.mark.parametrize("keeps_on_device", [False, True])
def test_steps_that_are_stopped_change_nothing(graphs: Path, keeps_on_device: bool) -> None:
    """At low priority, stopped for requests again and again: what a step had written, it writes once more."""
    sentences, host = random_sentences(20, 5), EngineHost()

    def decode() -> None:
        host.preemption.lower_engine_priority()
        batches = engine_of(graphs, host, keeps_on_device=keeps_on_device).open(max_rows=200, max_places=MAX_TOKENS)
        running = list(sentences)
        batches.join(running)
        decode_all(batches, running)

    with ThreadPoolExecutor(1) as thread:
        decoding = thread.submit(decode)
        while not decoding.done():
            host.preemption.preempt_background()
            host.preemption.resume_background()
            with suppress(TimeoutError):
                decoding.result(0.0005)
    alone = OnnxTranslator(graphs)
    for sentence in sentences:
        (expected,) = translate(alone, [sentence.ids], [sentence.options])
        assert sentence.search.best().ids == expected.ids
        assert sentence.search.best().score == pytest.approx(expected.score, abs=1e-4)


def test_given_translations_get_the_log_probabilities_of_their_tokens(graphs: Path) -> None:
    """A given translation has the same log probabilities in a running batch as when it is decoded alone."""
    rng = np.random.default_rng(7)
    batches, alone = engine_of(graphs).open(max_rows=24, max_places=MAX_TOKENS), OnnxTranslator(graphs)
    searches = random_sentences(6, 7)
    forced = [
        Forced(search.ids, rng.integers(2, 60, rng.integers(1, 20)).tolist(), bos_id=BOS_ID, num_candidates=60)
        for search in searches
    ]
    running: list[Sentence | Forced] = [*searches, *forced]
    batches.join(running)
    decode_all(batches, running)
    for sentence in forced:
        state, expected, last = alone.begin([sentence.ids]), [], BOS_ID
        for token in sentence.target_ids:
            top, ids, state = alone.next_tokens([last], state, 60)
            expected.append(float(top[0][ids[0].tolist().index(token)]))
            last = token
        np.testing.assert_allclose(sentence.log_probabilities, expected, atol=1e-4)
        assert sentence.so_far == sentence.target_ids


@pytest.fixture(scope="module")
def halved(graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the graphs to half precision, as a GPU gets them."""
    folder = tmp_path_factory.mktemp("halved")
    for name in ("encoder.onnx", "model.onnx"):
        shutil.copy(graphs / name, folder)
    halve_translation(folder / "encoder.onnx", folder / "model.onnx")
    return folder


@pytest.mark.parametrize("precision", ["graphs", "halved"])
def test_host_and_device_keep_the_same(request: pytest.FixtureRequest, precision: str) -> None:
    """Bit for bit, whoever joins and leaves: every sentence has the same tokens and the same score."""

    def decoded(*, keeps_on_device: bool) -> list[tuple[list[int], float]]:
        rng, engine = np.random.default_rng(4), engine_of(folder, keeps_on_device=keeps_on_device)
        assert engine.dtype == (np.float16 if precision == "halved" else np.float32)
        batches, found = engine.open(max_rows=24, max_places=MAX_TOKENS), []
        waiting, running = random_sentences(40, 4), []
        while waiting or running:
            while waiting and rng.random() < 0.7 and sum(s.rows for s in (*running, waiting[-1])) <= 24:
                running.append(waiting.pop())
                batches.join(running[-1:])
            batches.step()
            for sentence in [each for each in running if each.done or rng.random() < 0.02]:
                batches.leave(sentence)
                running.remove(sentence)
                found.append((sentence.so_far, sentence.search.best().score if sentence.done else 0.0))
        return found

    folder = request.getfixturevalue(precision)
    on_host, on_device = decoded(keeps_on_device=False), decoded(keeps_on_device=True)
    assert len(on_host) == 40
    assert on_host == on_device


@pytest.mark.parametrize("keeps_on_device", [False, True])
def test_a_step_without_sentences_does_nothing(graphs: Path, keeps_on_device: bool) -> None:
    """Also after the last one has left."""
    batches = engine_of(graphs, keeps_on_device=keeps_on_device).open(max_rows=4, max_places=MAX_TOKENS)
    batches.step()
    (sentence,) = random_sentences(1, 5)
    batches.join([sentence])
    batches.leave(sentence)
    batches.step()
    assert not sentence.so_far


@pytest.mark.parametrize("keeps_on_device", [False, True])
def test_a_sentence_that_leaves_at_once_leaves_nothing(graphs: Path, keeps_on_device: bool) -> None:
    """Between joining and the first step: the last one, and one whose place the last one takes."""
    sentences = random_sentences(30, 7)
    one_by_one = [sentence for sentence in sentences if sentence.rows == 1][:5]
    with_beams = [sentence for sentence in sentences if sentence.rows == 5][:3]
    batches = engine_of(graphs, keeps_on_device=keeps_on_device).open(max_rows=24, max_places=MAX_TOKENS)
    staying = []
    for kind in (one_by_one, with_beams):
        batches.join(kind[:2])
        batches.leave(kind[1])
        batches.join(kind[2:])
        batches.leave(kind[0])
        staying += kind[2:]
    while staying_now := [sentence for sentence in staying if not sentence.done]:
        batches.step()
        for sentence in [each for each in staying_now if each.done]:
            batches.leave(sentence)
    alone = OnnxTranslator(graphs)
    for sentence in staying:
        (expected,) = translate(alone, [sentence.ids], [sentence.options])
        assert sentence.search.best().ids == expected.ids


def sources(*lengths: int) -> list[Sentence]:
    """Greedy sentences of so many tokens, all of them different."""
    rng = np.random.default_rng(lengths)
    options = SearchOptions(max_new_tokens=12)
    ids = [[*rng.integers(EOS_ID + 1, 60, length - 1).tolist(), EOS_ID] for length in lengths]
    return [Sentence(each, options, bos_id=BOS_ID, eos_id=EOS_ID, truncated=False) for each in ids]


def test_the_encoder_computes_in_buckets_on_the_device(graphs: Path) -> None:
    """Their memory is used again for whoever joins next, at any number and length, and gives nobody another's source.

    A call of more tokens than are kept has memory of its own.
    """
    engine = engine_of(graphs, keeps_on_device=True)
    batches, alone = engine.open(max_rows=64, max_places=MAX_TOKENS), OnnxTranslator(graphs)
    running: list[Sentence] = []
    for lengths in ((3, 9, 5), (16, 2, 8, 1), (20,), (4, 4, 4), (7,), (33,), tuple([MAX_TOKENS] * 33)):
        joining = sources(*lengths)
        batches.join(joining)
        running += joining
        batches.step()
    assert engine.encoder_buffers == {(4, 16): 1, (1, 32): 1, (1, 16): 1, (1, 40): 1, (64, 40): 1}
    for _ in range(2):
        for sentence in running[-33:]:
            batches.leave(sentence)
        del running[-33:]
        joining = sources(*[MAX_TOKENS] * 33)
        batches.join(joining)
        running += joining
    assert engine.encoder_buffers[64, 40] == 3
    while unfinished := [sentence for sentence in running if not sentence.done]:
        batches.step()
        for sentence in [each for each in unfinished if each.done]:
            batches.leave(sentence)
    for sentence in running:
        (expected,) = translate(alone, [sentence.ids], [sentence.options])
        assert sentence.search.best().ids == expected.ids
    assert engine_of(graphs).encoder_buffers == {}


@pytest.mark.parametrize("keeps_on_device", [False, True])
def test_all_join_or_none(graphs: Path, keeps_on_device: bool) -> None:
    """Where one has no room, or what the encoder cannot read: those who run go on, and the others may come again."""
    batches = engine_of(graphs, keeps_on_device=keeps_on_device).open(max_rows=5, max_places=MAX_TOKENS)
    first, second, third = sources(5, 7, 6)
    batches.join([first])
    options = SearchOptions(max_new_tokens=12, num_beams=5)
    with_beams = [Sentence(second.ids, options, bos_id=BOS_ID, eos_id=EOS_ID, truncated=False) for _ in range(2)]
    with pytest.raises(AssertionError):
        batches.join([second, *with_beams])
    unknown = Sentence([10_000, EOS_ID], second.options, bos_id=BOS_ID, eos_id=EOS_ID, truncated=False)
    with pytest.raises(EngineError):
        batches.join([third, unknown])
    batches.step()
    assert [len(sentence.so_far) for sentence in (first, second, third)] == [1, 0, 0]
    batches.join([second, third])
    running = [first, second, third]
    while unfinished := [sentence for sentence in running if not sentence.done]:
        batches.step()
        for sentence in [each for each in unfinished if each.done]:
            batches.leave(sentence)
    for sentence in running:
        (expected,) = translate(OnnxTranslator(graphs), [sentence.ids], [sentence.options])
        assert sentence.search.best().ids == expected.ids


def test_other_graphs_are_refused(graphs: Path, tmp_path: Path) -> None:
    """Files that are no graphs, and graphs that are not those of a translation model."""
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"^model\.onnx: "):
        TranslationEngine(graphs / "encoder.onnx", tmp_path / "model.onnx", 1, EngineHost(), max_tokens=MAX_TOKENS)
    with pytest.raises(EngineError, match="not the two graphs"):
        TranslationEngine(graphs / "encoder.onnx", graphs / "encoder.onnx", 1, EngineHost(), max_tokens=MAX_TOKENS)
