"""Settings of a translation model, from the JSON files of its folder: languages, and how it searches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from service.tasks.decoding.constraints import MAX_NGRAM_SIZE, MAX_REPETITION_PENALTY, Constraints
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


class LanguageTokens(msgspec.Struct):
    """Tokens that name the languages of a multilingual model.

    Attributes:
        ids: id of each language's token.
        source_place: place of the source language's token, before the text or behind its end-of-sentence token.
        target_place: whether the target language's token is the first token behind the begin token, or the begin
            token itself.
    """

    ids: dict[str, int]
    source_place: Literal["before", "after"]
    target_place: Literal["first", "begin"]


class TextPrefix(msgspec.Struct):
    """Text before every source that tells the model what to do, with the languages that it stands for."""

    source_language: str
    target_language: str
    text: str


class TranslationConfig(msgspec.Struct):
    """The fields of a translation model's `config.json` that the server needs; others are ignored."""

    source_language: str = ""
    target_language: str = ""
    language_codes: dict[str, int] | None = None  # tokens that a text may begin with
    unknown_language_id: int = 0
    language_tokens: LanguageTokens | None = None
    prefixes: list[TextPrefix] = []
    vocab_size: int | None = None  # tokens that the decoder step knows; older folders have as many as their tokenizer
    log_normalizers: bool = False  # whether the decoder step has this output; older folders lack it

    def codes(self) -> LanguageCodes | None:
        """Return the tokens that choose the target language, or None for a model with one target language."""
        if self.language_codes is None:
            return None
        return LanguageCodes(self.language_codes, self.unknown_language_id)


class GenerationConfig(msgspec.Struct):
    """The fields of a Hugging Face `generation_config.json` that the server needs; others are ignored."""

    decoder_start_token_id: int
    eos_token_id: int | list[int]
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = True
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    bad_words_ids: list[list[int]] = []
    suppress_tokens: list[int] = []
    begin_suppress_tokens: list[int] = []
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    @property
    def eos_id(self) -> int:
        """The end-of-sentence token, the first one where there are several."""
        return self.eos_token_id if isinstance(self.eos_token_id, int) else self.eos_token_id[0]

    def defaults(self, max_tokens: int) -> SearchDefaults:
        """Check the search settings that apply where a client gives none.

        Raises:
            TaskError: a number lies outside its limits.
        """
        for name, value, least, most in (
            ("num_beams", self.num_beams, 1, MAX_BEAMS),
            ("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
            ("max_new_tokens", 1 if self.max_new_tokens is None else self.max_new_tokens, 1, max_tokens),
            ("min_new_tokens", self.min_new_tokens, 0, max_tokens),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, MAX_NGRAM_SIZE),
            ("encoder_no_repeat_ngram_size", self.encoder_no_repeat_ngram_size, 0, MAX_NGRAM_SIZE),
            ("repetition_penalty", self.repetition_penalty, 1, MAX_REPETITION_PENALTY),
        ):
            if not least <= value <= most:
                raise TaskError(f"generation_config.json: {name} is {value}, not between {least:g} and {most:g}")
        if self.eos_token_id == [] or not all(self.bad_words_ids):
            raise TaskError("generation_config.json: eos_token_id or a sequence of bad_words_ids is empty")
        return SearchDefaults(
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            max_new_tokens=self.max_new_tokens,
            constraints=self._constraints(),
        )

    def _constraints(self) -> Constraints:
        eos_ids = [self.eos_token_id] if isinstance(self.eos_token_id, int) else self.eos_token_id
        if self.forced_eos_token_id not in (None, *eos_ids):
            raise TaskError(
                f"generation_config.json: forced_eos_token_id is {self.forced_eos_token_id}, not one of eos_token_id"
            )
        return Constraints(
            min_new_tokens=self.min_new_tokens,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            encoder_no_repeat_ngram_size=self.encoder_no_repeat_ngram_size,
            repetition_penalty=self.repetition_penalty,
            bad_words_ids=tuple(map(tuple, self.bad_words_ids)),
            suppress_tokens=tuple(self.suppress_tokens),
            begin_suppress_tokens=tuple(self.begin_suppress_tokens),
            forced_bos_token_id=self.forced_bos_token_id,
            forces_eos=self.forced_eos_token_id is not None,
            more_eos_token_ids=tuple(eos_ids[1:]),
        )
