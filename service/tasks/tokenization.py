"""Text to ids: what the tasks share that read text, and the bounds of a text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.errors import InvalidRequest

# A text may have so many characters for each token that the model takes: six times as many as texts of any language
# have, and few enough that one that is far too long is not tokenized only to be refused.
CHARACTERS_PER_TOKEN = 32
TRUNCATE_HINT = "shorten it, or ask for truncation"


class Encoded(NamedTuple):
    """The ids of one text, and whether some of it was cut off."""

    ids: list[int]
    truncated: bool


class TextEncoder:
    """The tokenizer of a model, within its limits."""

    def __init__(self, tokenizer_json: str, max_tokens: int) -> None:
        """Read `tokenizer.json`.

        Args:
            tokenizer_json: the file's contents. A text that is too long is cut on the side that its `truncation` names.
            max_tokens: the longest text, special tokens included.
        """
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        direction = (self.tokenizer.truncation or {}).get("direction", "right")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # Cutting is a setting of a tokenizer, not of a call: texts that may be cut have one of their own.
        self._cutting = Tokenizer.from_str(tokenizer_json)
        self._cutting.no_padding()
        self._cutting.enable_truncation(max_tokens, direction=direction)
        self._cuts_left = direction == "left"
        self.max_tokens, self.max_characters = max_tokens, CHARACTERS_PER_TOKEN * max_tokens
        self._num_special_tokens = self.tokenizer.num_special_tokens_to_add(is_pair=False)

    def encode(self, texts: Sequence[str], *, truncate: bool, field: str, first: int = 0) -> list[Encoded]:
        """The ids of each text; safe to be called in any thread.

        Args:
            texts: any but empty ones.
            truncate: cut a text beyond the limits, instead of refusing it.
            field: what the client calls a text, for messages; `{}` in it becomes the text's number.
            first: the number of the first one.

        Raises:
            InvalidRequest: a text is empty, has nothing that the model can read, or is too long.
        """
        limit = self.max_characters
        for number, text in enumerate(texts, first):
            if len(text) > limit and not truncate:
                raise InvalidRequest(
                    f"{field.format(number)} has {len(text)} characters, the model takes at most {limit}"
                    f" ({self.max_tokens} tokens); {TRUNCATE_HINT}"
                )
            if not text.strip():
                raise InvalidRequest(f"{field.format(number)} is empty")
        # The calls for several texts, unlike the one for a single text, let other threads run meanwhile; the fast one
        # does not note where in the text each token came from.
        if truncate:
            cut = self._cutting.encode_batch_fast([self._kept(text) for text in texts])
            encoded = [
                Encoded(encoding.ids, len(text) > limit or bool(encoding.overflowing))
                for text, encoding in zip(texts, cut, strict=True)
            ]
        else:
            encoded = [Encoded(encoding.ids, False) for encoding in self.tokenizer.encode_batch_fast(texts)]
        for number, (ids, truncated) in enumerate(encoded, first):
            if len(ids) <= self._num_special_tokens:
                side = "last" if self._cuts_left else "first"
                where = f" in its {side} {limit} characters, all that is left of it," if truncated else ""
                raise InvalidRequest(f"{field.format(number)} has no character{where} that the model can read")
            if len(ids) > self.max_tokens:
                raise InvalidRequest(
                    f"{field.format(number)} has {len(ids)} tokens, the model takes at most {self.max_tokens};"
                    f" {TRUNCATE_HINT}"
                )
        return encoded

    def spans(self, text: str, *, truncate: bool) -> list[tuple[int, int] | None]:
        """Where each token of a text stands that `encode` has taken.

        Its first character and the one behind its last; None for a special token.
        """
        tokenizer, kept = (self._cutting, self._kept(text)) if truncate else (self.tokenizer, text)
        (encoding,) = tokenizer.encode_batch([kept])
        before = len(text) - len(kept) if self._cuts_left else 0
        return [
            None if mask else (start + before, end + before)
            for (start, end), mask in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        ]

    def _kept(self, text: str) -> str:
        """The part of a text that may be cut which is tokenized at all."""
        return text[-self.max_characters :] if self._cuts_left else text[: self.max_characters]

    def names(self, ids: Sequence[int]) -> list[str]:
        """What the tokenizer calls each token."""
        return [str(self.tokenizer.id_to_token(token)) for token in ids]


def texts_of(inputs: Mapping[str, NDArray[Any]]) -> list[str]:
    """The elements of the tensor `text`, BYTES [n], as text.

    Raises:
        InvalidRequest: an element is not UTF-8.
    """
    texts = []
    for number, element in enumerate(inputs["text"]):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"text[{number}] is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts
