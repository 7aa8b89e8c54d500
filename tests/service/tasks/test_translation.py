"""Texts to sentences and translations to texts, without a graph."""

from service.tasks.decoding.search import SearchDefaults, SearchRequest, longest_translation
from service.tasks.generation.explained_text import pieces_of
from service.tasks.translation import Translation
from tests.conftest import ROOT


def test_the_tokens_of_a_translation_include_its_end() -> None:
    """A translation that the limit cut off has no end token; the pieces of the tokens make up the text."""
    tokenizer_json = (ROOT / "model_store/translation-en-de/1/tokenizer.json").read_text()
    task = Translation(tokenizer_json, max_tokens=64, bos_id=1, eos_id=2, source_language="en", target_language="de")
    ids = task.preprocess("Zwei s\u00fc\u00dfe Hunde \u2744 spielen.", truncate=False, field="text").ids[:-1]
    for limit, expected in ((len(ids), ids), (len(ids) + 1, [*ids, 2])):
        request = SearchRequest(max_new_tokens=limit)
        sentence = task.preprocess("Two dogs.", truncate=False, field="text", request=request)
        for token in [*ids, 2][:limit]:
            sentence.advance([[-0.5]], [[token]])
        assert sentence.done
        assert task.tokens_of(sentence) == expected
        pieces = pieces_of(task, expected)
        assert len(pieces) == len(expected)
        assert "".join(pieces[: len(ids)]) == task.finish(sentence).text
        assert pieces[len(ids) :] == ["[EOS]"] * (limit - len(ids))


def test_a_bounded_search_ends_at_the_smaller_limit() -> None:
    """Comparisons bound translations by their sources; a client's own limit holds in any case."""
    tokenizer_json = (ROOT / "model_store/translation-en-de/1/tokenizer.json").read_text()
    defaults = SearchDefaults(max_new_tokens=50)
    task = Translation(
        tokenizer_json,
        max_tokens=64,
        bos_id=1,
        eos_id=2,
        source_language="en",
        target_language="de",
        defaults=defaults,
    )
    bound = longest_translation(len(task.preprocess("Two dogs.", truncate=False, field="text").ids), 64)
    assert 3 < bound < 50
    for request, expected in (
        (SearchRequest(), 50),
        (SearchRequest(max_new_tokens=60), 60),
        (SearchRequest(bounded=True), bound),
        (SearchRequest(bounded=True, max_new_tokens=48), bound),
        (SearchRequest(bounded=True, max_new_tokens=3), 3),
    ):
        sentence = task.preprocess("Two dogs.", truncate=False, field="text", request=request)
        assert sentence.max_steps == expected
