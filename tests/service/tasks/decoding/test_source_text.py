"""Source texts with what surrounds them: ids within the limit, and the place of each token."""

import pytest

from service.errors import InvalidRequest
from service.tasks.decoding.settings import LanguageCodes
from service.tasks.decoding.source_text import NO_FRAME, Frame, SourceEncoder, shortened
from service.tasks.text.tokenization import TextEncoder
from tests.conftest import ROOT

TOKENIZER_JSON = (ROOT / "model_store/translation-en-de/1/tokenizer.json").read_text()
MAX_TOKENS, TEXT = 12, "Two dogs play."


def encoder(codes: LanguageCodes | None = None) -> SourceEncoder:
    """Use the tokenizer of the repository's translation model."""
    return SourceEncoder(TextEncoder(TOKENIZER_JSON, MAX_TOKENS), codes)


def test_tokens_and_prefixes_surround_a_text() -> None:
    """The end-of-sentence token stays between the text and what stands behind it; spans are those of the text."""
    plain = encoder().encode([TEXT], NO_FRAME, truncate=False, field="text")[0].ids
    for frame, expected in (
        (Frame(before=(900,)), [900, *plain]),
        (Frame(after=(901,)), [*plain, 901]),
        (Frame(before=(900,), after=(901,)), [900, *plain, 901]),
    ):
        assert encoder().encode([TEXT], frame, truncate=False, field="text")[0].ids == expected
        spans = encoder().spans(TEXT, frame, truncate=False)
        assert len(spans) == len(expected)
        assert [span for span in spans if span] == [
            span for span in encoder().spans(TEXT, NO_FRAME, truncate=False) if span
        ]
    prefix = Frame(prefix="Now: ")
    ids = encoder().encode([TEXT], prefix, truncate=False, field="text")[0].ids
    assert ids == encoder().encode([f"Now: {TEXT}"], NO_FRAME, truncate=False, field="text")[0].ids
    spans = encoder().spans(TEXT, prefix, truncate=False)
    assert len(spans) == len(ids)
    assert spans[0] is None
    assert "".join(TEXT[slice(*span)] for span in spans if span).replace(" ", "") == TEXT.replace(" ", "")


def test_what_surrounds_a_text_counts_for_the_limit() -> None:
    """A text is cut for it, before its end-of-sentence token, or refused."""
    long, frame = "dogs " * 40, Frame(before=(900,), after=(901,))
    (cut,) = encoder().encode([long], frame, truncate=True, field="text")
    assert cut.truncated
    assert len(cut.ids) == MAX_TOKENS == len(encoder().spans(long, frame, truncate=True))
    assert (cut.ids[0], cut.ids[-2:]) == (900, [2, 901])
    fitting = "dogs " * 10
    assert len(encoder().encode([fitting], NO_FRAME, truncate=False, field="text")[0].ids) <= MAX_TOKENS
    with pytest.raises(InvalidRequest, match=r"text\[3\] has 13 tokens, the model takes at most 12"):
        encoder().encode([fitting], frame, truncate=False, field="text[{}]", first=3)
    with pytest.raises(InvalidRequest, match="text is empty"):
        encoder().encode(["  "], Frame(prefix="Now: "), truncate=False, field="text")


def test_codes_of_a_text_stand_behind_those_of_the_frame() -> None:
    """A code that the model knows is one token; elsewhere in a text it is ordinary text."""
    codes = LanguageCodes({">>fra<<": 800}, 801)
    (known,) = encoder(codes).encode([f">>fra<<{TEXT}"], NO_FRAME, truncate=False, field="text")
    (plain,) = encoder(codes).encode([TEXT], NO_FRAME, truncate=False, field="text")
    assert known.ids == [800, *plain.ids]
    assert encoder(codes).spans(f">>fra<<{TEXT}", NO_FRAME, truncate=False)[0] == (0, 7)


def test_the_last_item_of_a_shortened_list_is_kept() -> None:
    """A list that fits is not changed."""
    assert shortened([1, 2, 3, 9], 3) == [1, 2, 9]
    assert shortened([1, 9], 3) == [1, 9]
