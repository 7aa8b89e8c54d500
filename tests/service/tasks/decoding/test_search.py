"""The search is compared with exhaustive search, and its rules are tested one by one."""

import itertools
import math

import numpy as np
import pytest

from service.tasks.decoding.search import Hypothesis, Search, SearchOptions, top_k_log_probs

EOS, WORDS = 0, (1, 2, 3)
BOS = 9


def next_token(ids: tuple[int, ...]) -> np.ndarray:
    """Simulated log probabilities of [EOS, three words] after these tokens; deterministic."""
    logits = np.random.default_rng([7, *ids]).normal(size=(1, 4)).astype(np.float32) * 1.5
    return np.asarray((logits - np.log(np.exp(logits).sum()))[0])


def search_all(options: SearchOptions) -> Hypothesis:
    """Find the best translation by trying all of them."""
    found = []
    for length in range(options.max_new_tokens + 1):
        for ids in itertools.product(WORDS, repeat=length):
            total = sum(next_token(ids[:place])[token] for place, token in enumerate(ids))
            if length < options.max_new_tokens:
                total += next_token(ids)[EOS]
            steps = min(length + 1, options.max_new_tokens)
            found.append(Hypothesis(list(ids), float(total) / steps**options.length_penalty))
    return max(found, key=lambda hypothesis: hypothesis.score)


def run(options: SearchOptions) -> tuple[Hypothesis, int]:
    """Search with the simulated probabilities; return the translation and the number of steps."""
    search = Search(options, bos_id=BOS, eos_id=EOS)
    rows: list[tuple[int, ...]] = [()] * options.num_beams
    while not search.done:
        log_probabilities, ids = [], []
        for row in rows:
            known = next_token(row)
            order = np.argsort(-known)
            log_probabilities.append([*known[order].tolist(), *[-99.0] * 999][: search.num_candidates])
            ids.append([*order.tolist(), *[1] * 999][: search.num_candidates])
        parents = search.advance(log_probabilities, ids)
        if not search.done:
            rows = [(*rows[parent], token) for parent, token in zip(parents, search.next_ids, strict=True)]
    return search.best(), search.steps


def test_wide_beams_find_the_best_of_all() -> None:
    """With more beams than there are translations, beam search is exhaustive."""
    options = SearchOptions(max_new_tokens=4, num_beams=200, length_penalty=1.0)
    best, _ = run(options)
    expected = search_all(options)
    assert best.ids == expected.ids
    assert best.score == pytest.approx(expected.score, rel=1e-6)


def test_greedy_takes_the_likeliest_token_of_each_step() -> None:
    """One beam is greedy search, and its score the mean log probability, the end included."""
    best, steps = run(SearchOptions(max_new_tokens=20))
    ids: tuple[int, ...] = ()
    total = 0.0
    while True:
        known = next_token(ids)
        token = int(known.argmax())
        total += float(known[token])
        if token == EOS or len(ids) == 20:
            break
        ids = (*ids, token)
    assert tuple(best.ids) == ids
    assert best.score == pytest.approx(total / steps, rel=1e-6)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_limit_ends_the_search(num_beams: int) -> None:
    """If the end of the sentence is improbable, the translation has `max_new_tokens` tokens."""
    search = Search(SearchOptions(max_new_tokens=3, num_beams=num_beams), bos_id=BOS, eos_id=EOS)
    for _ in range(3):
        assert not search.done
        search.advance([[-0.1, *[-5.0] * 5]] * num_beams, [[1, 2, 3, 4, 5, 6]] * num_beams)
    assert search.done
    assert search.best() == Hypothesis([1, 1, 1], pytest.approx(-0.1))


def test_length_penalty_chooses_between_short_and_long() -> None:
    """Without a penalty the short hypothesis wins, with one the long one of the better mean."""
    answers = {}
    for length_penalty in (0.0, 2.0):
        search = Search(
            SearchOptions(max_new_tokens=5, num_beams=2, length_penalty=length_penalty), bos_id=BOS, eos_id=EOS
        )
        # First the end has -1.0 and a word -0.9; then the end has -0.2, and further words are unlikely.
        search.advance([[-0.9, -1.0, -7.0, -7.0]] * 2, [[1, EOS, 2, 3]] * 2)
        search.advance([[-0.2, -8.0, -9.0, -9.0]] * 2, [[EOS, 1, 2, 3]] * 2)
        assert search.done
        answers[length_penalty] = search.best().ids
    assert answers == {0.0: [], 2.0: [1]}


def test_an_unlikely_ending_is_not_kept() -> None:
    """An ending behind the best `num_beams` candidates does not count as found."""
    search = Search(SearchOptions(max_new_tokens=9, num_beams=2), bos_id=BOS, eos_id=EOS)
    assert search.advance([[-0.5, -1.0, -2.0, -9.0]] * 2, [[1, 2, EOS, 3]] * 2) == [0, 0]
    search.advance([[-0.1, -9.0, -9.0, -9.0], [-0.2, -9.0, -9.0, -9.0]], [[EOS, 1, 2, 3], [EOS, 1, 2, 3]])
    assert search.done
    assert search.best().ids == [1]


def test_rows_go_on_from_their_parents() -> None:
    """Both rows may continue the same row, and then share its tokens; the likeliest stays where its parent was."""
    search = Search(SearchOptions(max_new_tokens=9, num_beams=2), bos_id=BOS, eos_id=EOS)
    assert search.next_ids == [BOS, BOS]
    search.advance([[-0.5, -1.0, -8.0, -9.0]] * 2, [[1, 2, 3, EOS]] * 2)
    assert search.next_ids == [1, 2]
    parents = search.advance([[-9.0, -9.1, -9.2, -9.3], [-0.7, -0.8, -9.0, -9.0]], [[1, 2, 3, EOS], [3, 1, 2, EOS]])
    assert parents == [1, 1]
    assert search.next_ids == [1, 3]
    assert search.so_far == [2, 3]
    parents = search.advance([[-0.7, -9.1, -9.2, -9.3], [-0.1, -9.0, -9.1, -9.2]], [[1, 2, 3, EOS], [2, 1, 3, EOS]])
    assert parents == [0, 1]  # no row moves, although row 1 is more likely
    assert search.so_far == [2, 3, 2]


def test_likeliest_are_log_probabilities_in_order() -> None:
    """They equal a softmax over the whole row."""
    logits_RV = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32) * 4
    found_RN, ids_RN = top_k_log_probs(logits_RV, 6)
    for row, logits_V in enumerate(logits_RV):
        order = np.argsort(-logits_V)[:6]
        assert ids_RN[row].tolist() == order.tolist()
        normaliser = math.log(sum(math.exp(value) for value in logits_V))
        assert found_RN[row] == pytest.approx([logits_V[token] - normaliser for token in order], abs=1e-5)
