"""Settings of a translation model, from the JSON files of its folder: languages, and how it searches."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from service.tasks.decoding.search import MAX_BEAMS, MAX_LENGTH_PENALTY, EarlyStopping, SearchDefaults
from service.tasks.stored_task import TaskError

CODE_BEGINS, CODE_ENDS = ">>", "<<"  # around a language code


@dataclass(frozen=True)
class LanguageCodes:
    """Language codes such as `>>fra<<`, which begin a text and choose the target language.

    Attributes:
        ids: ids of the codes that the model knows.
        unknown_id: id of any other text between `>>` and `<<` at the beginning.
    """

    ids: Mapping[str, int]
    unknown_id: int

    def split(self, text: str) -> tuple[str, str]:
        """Split a text into the code that it begins with (empty if there is none) and the rest."""
        end = text.find(CODE_ENDS) if text.startswith(CODE_BEGINS) else -1
        return (text[: end + len(CODE_ENDS)], text[end + len(CODE_ENDS) :]) if end >= 0 else ("", text)


class TranslationConfig(msgspec.Struct):
    """The fields of a translation model's `config.json` that the server needs; others are ignored."""

    source_language: str
    target_language: str
    language_codes: dict[str, int] | None = None  # tokens that a text may begin with
    unknown_language_id: int = 0

    def codes(self) -> LanguageCodes | None:
        """Return the tokens that choose the target language, or None for a model with one target language."""
        if self.language_codes is None:
            return None
        return LanguageCodes(self.language_codes, self.unknown_language_id)


class GenerationConfig(msgspec.Struct):
    """The fields of a Hugging Face `generation_config.json` that the server needs; others are ignored."""

    decoder_start_token_id: int
    eos_token_id: int
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = True
    max_new_tokens: int | None = None

    def defaults(self, max_tokens: int) -> SearchDefaults:
        """Check the search settings that apply where a client gives none.

        Raises:
            TaskError: a number lies outside its limits.
        """
        for name, value, least, most in (
            ("num_beams", self.num_beams, 1, MAX_BEAMS),
            ("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
            ("max_new_tokens", 1 if self.max_new_tokens is None else self.max_new_tokens, 1, max_tokens),
        ):
            if not least <= value <= most:
                raise TaskError(f"generation_config.json: {name} is {value}, not between {least:g} and {most:g}")
        return SearchDefaults(
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            max_new_tokens=self.max_new_tokens,
        )
