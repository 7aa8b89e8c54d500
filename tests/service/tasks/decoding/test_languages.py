"""Languages of a request: tokens around a source, the first token of an answer, and prefixes."""

import pytest

from service.errors import InvalidRequest
from service.tasks.decoding.languages import Languages
from service.tasks.decoding.settings import LanguageTokens, TextPrefix, TranslationConfig
from service.tasks.decoding.source_text import Frame

IDS = {"en": 100, "de": 101, "fr": 102}


def test_a_model_of_one_pair_takes_no_other_language() -> None:
    """Its own may be named; others are refused by the name of the field."""
    languages = Languages.of(TranslationConfig("en", "de"))
    assert languages.choose("en", "de") == languages.default == languages.choose(None, None)
    with pytest.raises(InvalidRequest, match="src_lang is 'fr', the model supports only 'en'"):
        languages.choose("fr", None)


def test_tokens_of_languages_stand_where_the_model_wants_them() -> None:
    """Before the text and first in the answer, as in M2M-100; or behind it and as the begin token, as in mBART."""
    first = Languages("en", "de", LanguageTokens(IDS, "before", "first"))
    assert first.default == (Frame(before=(100,)), None, 101)
    assert first.choose("fr", "en") == (Frame(before=(102,)), None, 100)
    begin = Languages("en", "de", LanguageTokens(IDS, "after", "begin"))
    assert begin.choose(None, "fr") == (Frame(after=(100,)), 102, None)
    with pytest.raises(InvalidRequest, match="tgt_lang is 'xx', the model supports 'en', 'de', 'fr'"):
        begin.choose(None, "xx")


def test_a_prefix_stands_for_a_pair_of_languages() -> None:
    """The first pair is the default; others are refused with the list."""
    prefixes = [TextPrefix("en", "de", "to German: "), TextPrefix("en", "fr", "to French: ")]
    languages = Languages("en", "de", prefixes=prefixes)
    assert languages.default.frame.prefix == "to German: "
    assert languages.choose(None, "fr").frame.prefix == "to French: "
    with pytest.raises(InvalidRequest, match="src_lang and tgt_lang are 'de' and 'en', the model knows 'en' to 'de'"):
        languages.choose("de", "en")
