"""Text to text: preprocessing and postprocessing around the graphs of a translation model.

    text ── tokenizer ──> ids ──> encoder ──> ┌─> decoder step ──> likeliest next tokens ─┐ ── tokenizer ──> text
                                              └──── Search.advance: which rows go on <────┘

The search in between is in `translation_search.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from service.errors import InvalidRequest
from service.tasks.tokenization import TRUNCATE_HINT, Encoded, TextEncoder
from service.tasks.translation_search import (
    DEFAULT_SEARCH,
    MAX_BEAMS,
    MAX_LENGTH_PENALTY,
    MODEL_DEFAULTS,
    Forced,
    SearchDefaults,
    SearchOptions,
    SearchRequest,
    Sentence,
    longest_translation,
)
from service.tensors import Arrays, TensorSpec, bytes_array

CODE_BEGINS, CODE_ENDS = ">>", "<<"  # around a language code
INCOMPLETE = "\ufffd"  # decoded from a character of which some bytes are still missing


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


class Translated(NamedTuple):
    """The answer for one text; `score` is its log probability divided by length**length_penalty."""

    text: str
    score: float
    num_tokens: int


class Translation:
    """Preprocessing and postprocessing of a translation model."""

    inputs = (TensorSpec("text", "BYTES", (-1,)),)
    outputs = (TensorSpec("translation", "BYTES", (-1,)), TensorSpec("score", "FP32", (-1,)))

    def __init__(
        self,
        tokenizer_json: str,
        *,
        max_tokens: int,
        bos_id: int,
        eos_id: int,
        source_language: str,
        target_language: str,
        target_tokenizer_json: str | None = None,
        defaults: SearchDefaults = MODEL_DEFAULTS,
        language_codes: LanguageCodes | None = None,
    ) -> None:
        """Set up from the contents of a model folder.

        Args:
            tokenizer_json: contents of `tokenizer.json`; encoded texts end with the end-of-sentence token.
            max_tokens: longest source and longest translation, including special tokens.
            bos_id: first token of every translation, which is not part of its text.
            eos_id: the end-of-sentence token.
            source_language: a language code such as "en".
            target_language: a language code such as "de".
            target_tokenizer_json: the tokenizer of translations, if it is another one.
            defaults: search settings that apply where a client gives none.
            language_codes: codes at the beginning of a text that choose the target language, if the model has any.
        """
        self.defaults, self._codes = defaults, language_codes
        self._encoder = TextEncoder(tokenizer_json, max_tokens)
        self._decoding = Tokenizer.from_str(target_tokenizer_json) if target_tokenizer_json else self._encoder.tokenizer
        self.max_tokens, self._bos_id, self._eos_id = max_tokens, bos_id, eos_id
        self.source_language, self.target_language = source_language, target_language

    def preprocess(self, text: str, *, truncate: bool, field: str, request: SearchRequest = DEFAULT_SEARCH) -> Sentence:
        """Tokenize a text into a sentence to decode; see `preprocess_all`."""
        return self.preprocess_all([text], truncate=truncate, field=field, request=request)[0]

    def preprocess_all(
        self,
        texts: Sequence[str],
        *,
        truncate: bool,
        field: str,
        first: int = 0,
        request: SearchRequest = DEFAULT_SEARCH,
    ) -> list[Sentence]:
        """Tokenize texts into sentences to decode; takes search settings and the arguments of `TextEncoder.encode`.

        Raises:
            InvalidRequest: a text is empty or too long, or a search parameter lies outside its limits.
        """
        self.check(request)
        return [
            Sentence(
                ids, self._options(request, len(ids)), bos_id=self._bos_id, eos_id=self._eos_id, truncated=truncated
            )
            for ids, truncated in self._encoded(texts, truncate=truncate, field=field, first=first)
        ]

    def _encoded(self, texts: Sequence[str], *, truncate: bool, field: str, first: int) -> list[Encoded]:
        """Tokenize each text; a language code at its beginning is one token, and the rest is tokenized separately."""
        split = [self._codes.split(text) if self._codes else ("", text) for text in texts]
        rests = self._encoder.encode([rest for _, rest in split], truncate=truncate, field=field, first=first)
        encoded = []
        for number, ((code, _), (ids, truncated)) in enumerate(zip(split, rests, strict=True), first):
            if self._codes is None or not code:
                encoded.append(Encoded(ids, truncated))
                continue
            room = self.max_tokens - 1
            if len(ids) > room and not truncate:
                raise InvalidRequest(
                    f"{field.format(number)} has {len(ids) + 1} tokens, the model takes at most {self.max_tokens};"
                    f" {TRUNCATE_HINT}"
                )
            whole = [self._codes.ids.get(code, self._codes.unknown_id), *ids[:-1][: room - 1], ids[-1]]
            encoded.append(Encoded(whole, truncated or len(ids) > room))
        return encoded

    def spans(self, text: str, *, truncate: bool) -> list[tuple[int, int] | None]:
        """Locate each token in a text that was preprocessed, its language code included; see `TextEncoder.spans`."""
        code, rest = self._codes.split(text) if self._codes else ("", text)
        spans = self._encoder.spans(rest, truncate=truncate)
        if not code:
            return spans
        moved = [None if span is None else (span[0] + len(code), span[1] + len(code)) for span in spans]
        room = self.max_tokens - 1
        return [(0, len(code)), *(moved if len(moved) <= room else [*moved[: room - 1], moved[-1]])]

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the source tokenizer's name of each token."""
        return self._encoder.names(ids)

    def tokens_of(self, sentence: Sentence) -> list[int]:
        """Return the translation of a finished sentence, with its end-of-sentence token if the model wrote one."""
        ids = sentence.search.best().ids
        # A translation of the maximum length was cut off. Any other ended by itself, one token later.
        return ids if len(ids) == sentence.options.max_new_tokens else self.ended(ids)

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Append the end-of-sentence token."""
        return [*ids, self._eos_id]

    def forced(self, ids: list[int], target_ids: Sequence[int]) -> Forced:
        """Make an item that computes the log probability of a given translation of a source."""
        return Forced(ids, target_ids, bos_id=self._bos_id, num_candidates=self._decoding.get_vocab_size())

    def pieces_of(self, target_ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds to a translation; the end-of-sentence token gives its name."""
        pieces, before = [], ""
        for number, token in enumerate(target_ids, 1):
            if token == self._eos_id:
                pieces.append(str(self._decoding.id_to_token(token)))
                continue
            text = self.text_so_far(list(target_ids[:number]))
            pieces.append(text[len(before) :])
            before = text
        return pieces

    def check(self, request: SearchRequest) -> None:
        """Check the search settings of a request.

        Raises:
            InvalidRequest: a parameter lies outside its limits.
        """
        beams, new_tokens, penalty, _ = request
        if beams is not None and not 1 <= beams <= MAX_BEAMS:
            raise InvalidRequest(f"num_beams must lie between 1 and {MAX_BEAMS}, not {beams}")
        if new_tokens is not None and not 1 <= new_tokens <= self.max_tokens:
            raise InvalidRequest(f"max_new_tokens must lie between 1 and {self.max_tokens}, not {new_tokens}")
        if penalty is not None and not abs(penalty) <= MAX_LENGTH_PENALTY:
            limit = MAX_LENGTH_PENALTY
            raise InvalidRequest(f"length_penalty must lie between {-limit:g} and {limit:g}, not {penalty}")

    def check_languages(self, source: str | None, target: str | None) -> None:
        """Check the languages that a request names.

        Raises:
            InvalidRequest: they are not those of the model.
        """
        for field, asked, known in (
            ("src_lang", source, self.source_language),
            ("tgt_lang", target, self.target_language),
        ):
            if asked is not None and asked != known:
                raise InvalidRequest(f"{field} is {asked!r}, the model knows {known!r} alone")

    def _options(self, request: SearchRequest, source_tokens: int) -> SearchOptions:
        beams, new_tokens, penalty, bounded = request
        most = None if bounded else self.defaults.max_new_tokens
        return SearchOptions(
            max_new_tokens=new_tokens or most or longest_translation(source_tokens, self.max_tokens),
            num_beams=beams or self.defaults.num_beams,
            length_penalty=self.defaults.length_penalty if penalty is None else penalty,
            early_stopping=self.defaults.early_stopping,
        )

    def text_so_far(self, ids: list[int]) -> str:
        """Decode the first tokens of a translation, without a last character that is incomplete."""
        return self.text_of(ids).rstrip(INCOMPLETE)

    def text_of(self, ids: list[int]) -> str:
        """Decode a whole translation."""
        return str(self._decoding.decode(ids))

    def postprocess(self, sentence: Sentence) -> Translated:
        """Make the answer for a finished sentence."""
        ids, score = sentence.search.best()
        return Translated(self.text_of(ids), score, len(ids))

    def tensors(self, sentences: Sequence[Sentence]) -> Arrays:
        """Make the output tensors of n results, as the metadata describes them."""
        translated = [self.postprocess(sentence) for sentence in sentences]
        return {
            "translation": bytes_array([each.text.encode() for each in translated]),
            "score": np.array([each.score for each in translated], dtype=np.float32),
        }
