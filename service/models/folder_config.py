"""Reads the settings of a model from its folder: limits in the manifest, and Hugging Face's JSON files."""

from typing import TypeVar

import msgspec

from model_store.folder import TARGET_TOKENIZER, TOKENIZER, FolderError, Manifest, ModelFolder
from service.tasks.translation import LanguageCodes, Translation
from service.tasks.translation_search import MAX_BEAMS, MAX_LENGTH_PENALTY, EarlyStopping, SearchDefaults

# Longest input of a text model. Costs and buffers are kept for each length, so a manifest must not claim any number.
MAX_TOKENS = 131_072

C = TypeVar("C")


class HubConfig(msgspec.Struct):
    """The fields of a Hugging Face `config.json` that text classification needs; others are ignored."""

    pad_token_id: int = 0


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
            FolderError: a number lies outside its limits.
        """
        for name, value, least, most in (
            ("num_beams", self.num_beams, 1, MAX_BEAMS),
            ("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
            ("max_new_tokens", 1 if self.max_new_tokens is None else self.max_new_tokens, 1, max_tokens),
        ):
            if not least <= value <= most:
                raise FolderError(f"generation_config.json: {name} is {value}, not between {least:g} and {most:g}")
        return SearchDefaults(
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            max_new_tokens=self.max_new_tokens,
        )


def read_config(folder: ModelFolder, name: str, kind: type[C]) -> C:
    """Decode a JSON file of a folder.

    Args:
        folder: the model folder.
        name: the file's name.
        kind: the type to decode into.

    Raises:
        FolderError: the file is not JSON of this type.
    """
    try:
        return msgspec.json.decode(folder.file(name).read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise FolderError(f"{name}: {error}") from error


def max_tokens_of(manifest: Manifest) -> int:
    """Read the longest input of a text model, in tokens.

    Raises:
        FolderError: it is missing, or outside the lengths that this server computes with.
    """
    max_tokens = manifest.limits.max_tokens
    if max_tokens is None:
        raise FolderError("manifest.json: limits.max_tokens is missing")
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise FolderError(f"manifest.json: limits.max_tokens is {max_tokens}; this server takes 1 to {MAX_TOKENS}")
    return max_tokens


def translation_task(folder: ModelFolder) -> Translation:
    """Set up the task of a translation model from its tokenizers, languages and search settings.

    Raises:
        FolderError: a file is damaged or a setting lies outside its limits.
    """
    assert folder.manifest is not None
    max_tokens = max_tokens_of(folder.manifest)
    languages = read_config(folder, "config.json", TranslationConfig)
    generation = read_config(folder, "generation_config.json", GenerationConfig)
    return Translation(
        folder.read_text(TOKENIZER),
        max_tokens=max_tokens,
        bos_id=generation.decoder_start_token_id,
        eos_id=generation.eos_token_id,
        source_language=languages.source_language,
        target_language=languages.target_language,
        target_tokenizer_json=(
            folder.read_text(TARGET_TOKENIZER) if TARGET_TOKENIZER in folder.manifest.files else None
        ),
        defaults=generation.defaults(max_tokens),
        language_codes=languages.codes(),
    )
