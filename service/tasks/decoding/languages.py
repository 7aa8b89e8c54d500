"""The languages of a model, and what a request's choice among them does to source and translation."""

from collections.abc import Sequence
from typing import NamedTuple

from service.errors import InvalidRequest
from service.tasks.decoding.settings import LanguageTokens, TextPrefix, TranslationConfig
from service.tasks.decoding.source_text import NO_FRAME, Frame

MAX_NAMED = 256  # languages in a message; the largest models have about 200


class Direction(NamedTuple):
    """The effect of a source language and a target language.

    Attributes:
        frame: surroundings of the source text.
        begin_id: begin token of the translation; None for the model's own.
        first_id: first token behind it; None for the model's own, if any.
    """

    frame: Frame = NO_FRAME
    begin_id: int | None = None
    first_id: int | None = None


class Languages:
    """The languages of a model: one pair, tokens for each language, or prefixes for some pairs."""

    def __init__(
        self,
        source: str,
        target: str,
        tokens: LanguageTokens | None = None,
        prefixes: Sequence[TextPrefix] = (),
    ) -> None:
        """Set up.

        Args:
            source: the source language where a request names none.
            target: the target language where a request names none.
            tokens: tokens of all languages, for a multilingual model.
            prefixes: texts for pairs of languages, for a model that is told in words.
        """
        self.source, self.target = source, target
        self._tokens, self._prefixes = tokens, prefixes
        self.default = self.choose(None, None)

    @classmethod
    def of(cls, config: TranslationConfig) -> "Languages":
        """Read the languages of a model from its `config.json`."""
        return cls(config.source_language, config.target_language, config.language_tokens, config.prefixes)

    def choose(self, source: str | None, target: str | None) -> Direction:
        """Return the effect of the languages of a request; None leaves one to the model.

        Raises:
            InvalidRequest: the model does not know a language or the pair; lists what it knows.
        """
        if self._tokens is not None:
            source_id = self._token_of("src_lang", source or self.source)
            target_id = self._token_of("tgt_lang", target or self.target)
            before = self._tokens.source_place == "before"
            frame = Frame(before=(source_id,)) if before else Frame(after=(source_id,))
            if self._tokens.target_place == "begin":
                return Direction(frame, begin_id=target_id)
            return Direction(frame, first_id=target_id)
        if self._prefixes:
            asked = source or self.source, target or self.target
            for known in self._prefixes:
                if (known.source_language, known.target_language) == asked:
                    return Direction(Frame(known.text))
            pairs = ", ".join(f"{known.source_language!r} to {known.target_language!r}" for known in self._prefixes)
            raise InvalidRequest(f"src_lang and tgt_lang are {asked[0]!r} and {asked[1]!r}, the model knows {pairs}")
        for field, asked_for, known_one in (("src_lang", source, self.source), ("tgt_lang", target, self.target)):
            if asked_for is not None and asked_for != known_one:
                raise InvalidRequest(f"{field} is {asked_for!r}, the model supports only {known_one!r}")
        return Direction()

    def _token_of(self, field: str, language: str) -> int:
        assert self._tokens is not None
        if language not in self._tokens.ids:
            known = ", ".join(map(repr, list(self._tokens.ids)[:MAX_NAMED]))
            raise InvalidRequest(f"{field} is {language!r}, the model supports {known}")
        return self._tokens.ids[language]
