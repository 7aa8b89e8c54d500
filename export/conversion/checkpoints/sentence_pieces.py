"""Compares a tokenizer that `transformers` made of a SentencePiece model with SentencePiece itself.

Some versions of `transformers` leave out the model's own normalisation: "…" stays, where SentencePiece makes "..." of
it. The answers are then still those of `transformers`, but the model card says so.
"""

import unicodedata
from collections.abc import Iterator
from typing import Any

import sentencepiece

from export.conversion.checkpoints.reading import ODD_TEXTS, few, path_of, reading
from export.conversion.golden_texts import GOLDEN_TEXTS


def remark_on_pieces(name_or_path: str, tokenizer: Any) -> dict[str, str]:
    """Return what a model card must say of a tokenizer that was made of a SentencePiece model.

    Args:
        name_or_path: the folder, or the hub id.
        tokenizer: the tokenizer of `transformers`.

    Returns:
        an entry for the provenance; nothing where `tokenizer.json` was saved, or the cuts are the same.

    Raises:
        LoadRefused: the model is damaged.
    """
    file_name = tokenizer.vocab_files_names.get("vocab_file", "")
    path = path_of(name_or_path, file_name) if file_name.endswith(".model") else None
    if path is None or path_of(name_or_path, "tokenizer.json") is not None:
        return {}
    with reading(f"{file_name} is damaged"):
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = [text for text in (*GOLDEN_TEXTS, *ODD_TEXTS) if "<" not in text]  # special tokens are no text there
    apart = [text for text in texts if not any(_same(tokenizer, text, pieces, form) for form in _forms(text))]
    if not apart:
        return {}
    return {
        "tokenizer": f"made by transformers of {file_name}; it cuts {len(apart)} of {len(texts)} texts differently than"
        f" SentencePiece does: {few(map(repr, apart))}"
    }


def _forms(text: str) -> Iterator[str]:
    """Return the forms that a tokenizer of a family may give to its model: as it is, in lower case, without accents."""
    yield text
    yield text.lower()
    letters = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    yield plain
    yield plain.lower()


def _same(tokenizer: Any, text: str, pieces: sentencepiece.SentencePieceProcessor, form: str) -> bool:
    """Compare ids, for the two name unknown characters differently."""
    found: list[int] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    expected: list[int] = tokenizer.convert_tokens_to_ids(pieces.encode(form, out_type=str))
    return found == expected
