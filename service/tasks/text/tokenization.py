"""Texts and text pairs to ids, within the limits of a model, for all tasks that read text."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from service.errors import InvalidRequest
from service.tasks.task import Preparation

TOKENIZER, TEXT_PAIR = "tokenizer.json", "text_pair"
# Texts of more characters in one request are tokenized in threads, so that they do not delay other requests: 2,000
# characters take about 0.5 ms, the hand-over 0.1 ms. A piece of that work ends with the text that takes it above
# PIECE_CHARACTERS; pieces that have not begun at the deadline are dropped.
LONG_TEXT_CHARACTERS, PIECE_CHARACTERS = 2_000, 8_000
# Weight of each character in a text that is not ASCII: normalization turns one into up to 18 (50 microseconds).
CHARACTER_WEIGHT = 8

# Limit of characters for each token that the model takes. Texts of any language have at most a sixth of that, and a
# text that is far too long is refused without being tokenized.
CHARACTERS_PER_TOKEN = 32
TRUNCATE_HINT = "shorten it, or ask for truncation"


class Pair(NamedTuple):
    """Two texts that a model reads together, such as a question and a passage."""

    first: str
    second: str


Text = str | Pair  # an input of a model that reads texts


class Encoded(NamedTuple):
    """The ids of one text, and whether it was truncated."""

    ids: list[int]
    truncated: bool


class EncodedPair(NamedTuple):
    """The ids of a pair, whether it was truncated, and for each id the text that it belongs to, 0 or 1."""

    ids: list[int]
    truncated: bool
    type_ids: list[int]


class TextEncoder:
    """A model's tokenizer, with the limits of the model's input."""

    def __init__(self, tokenizer_json: str, max_tokens: int) -> None:
        """Read `tokenizer.json`.

        Args:
            tokenizer_json: contents of the file. Its `truncation` names the side on which long texts are cut.
            max_tokens: longest text, including special tokens.
        """
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        direction = (self.tokenizer.truncation or {}).get("direction", "right")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # Truncation is a setting of a tokenizer and not of a call, so texts that may be cut need a second tokenizer.
        self._cutting = Tokenizer.from_str(tokenizer_json)
        self._cutting.no_padding()
        self._cutting.enable_truncation(max_tokens, direction=direction)
        self._cuts_left = direction == "left"
        self.max_tokens, self.max_characters = max_tokens, CHARACTERS_PER_TOKEN * max_tokens
        self._num_special_tokens = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        self._num_pair_tokens = self.tokenizer.num_special_tokens_to_add(is_pair=True)

    @property
    def takes_pairs(self) -> bool:
        """Whether the tokenizer separates the two texts of a pair; without a separator they would be one text."""
        return self._num_pair_tokens > self._num_special_tokens

    def encode(self, texts: Sequence[str], *, truncate: bool, field: str, first: int = 0) -> list[Encoded]:
        """Tokenize texts. May be called in any thread.

        Args:
            texts: the texts; an empty one is refused.
            truncate: cut a text that is too long instead of refusing it.
            field: the client's name of a text, for messages; `{}` in it becomes the text's number.
            first: the number of the first text.

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
        # The calls for several texts release the interpreter's lock, unlike the one for a single text. The fast call
        # does not record the position of each token in the text.
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

    def encode_pairs(self, pairs: Sequence[Pair], *, truncate: bool, field: str, first: int = 0) -> list[EncodedPair]:
        """Tokenize pairs of texts. May be called in any thread.

        Args:
            pairs: the pairs; an empty text is refused.
            truncate: cut the longer text of a pair that is too long, token by token, instead of refusing the pair.
            field: the client's name of a pair, for messages; `{}` in it becomes the pair's number.
            first: the number of the first pair.

        Raises:
            InvalidRequest: a text is empty, a pair is too long, or the model takes no pairs.
        """
        if not self.takes_pairs:
            raise InvalidRequest(f"{field.format(first)} is a pair of texts; the model takes single texts")
        limit = self.max_characters
        for number, pair in enumerate(pairs, first):
            for which, text in zip(("first", "second"), pair, strict=True):
                if not text.strip():
                    raise InvalidRequest(f"the {which} text of {field.format(number)} is empty")
            if sum(map(len, pair)) > limit and not truncate:
                raise InvalidRequest(
                    f"{field.format(number)} has {sum(map(len, pair))} characters, the model takes at most {limit}"
                    f" ({self.max_tokens} tokens); {TRUNCATE_HINT}"
                )
        tokenizer = self._cutting if truncate else self.tokenizer
        kept = [Pair(self._kept(pair.first), self._kept(pair.second)) for pair in pairs] if truncate else pairs
        encoded = []
        for number, (pair, encoding) in enumerate(
            zip(pairs, tokenizer.encode_batch_fast(list(kept)), strict=True), first
        ):
            if len(encoding.ids) > self.max_tokens:
                raise InvalidRequest(
                    f"{field.format(number)} has {len(encoding.ids)} tokens, the model takes at most"
                    f" {self.max_tokens}; {TRUNCATE_HINT}"
                )
            truncated = bool(encoding.overflowing) or any(len(text) > limit for text in pair)
            encoded.append(EncodedPair(encoding.ids, truncated, encoding.type_ids))
        return encoded

    def body(self, text: str) -> Encoding:
        """Tokenize a text of any length, with the place of each token in it."""
        (encoding,) = self.tokenizer.encode_batch([text])
        return encoding

    def pair_body(self, pair: Pair) -> Encoding:
        """Tokenize a pair of any length, with the place of each token in its text."""
        (encoding,) = self.tokenizer.encode_batch([tuple(pair)])
        return encoding

    def spans(self, text: str, *, truncate: bool) -> list[tuple[int, int] | None]:
        """Locate each token in a text that `encode` has accepted.

        Returns:
            for each token its first character and the one after its last; None for a special token.
        """
        tokenizer, kept = (self._cutting, self._kept(text)) if truncate else (self.tokenizer, text)
        (encoding,) = tokenizer.encode_batch([kept])
        before = len(text) - len(kept) if self._cuts_left else 0
        return [
            None if mask else (start + before, end + before)
            for (start, end), mask in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        ]

    def pair_spans(self, pair: Pair, *, truncate: bool) -> list[tuple[int, tuple[int, int]] | None]:
        """Locate each token in a pair that `encode_pairs` has accepted.

        Returns:
            for each token the text that it belongs to (0 or 1), and its characters in it; None for a special token.
        """
        tokenizer, kept = self.tokenizer, pair
        if truncate:
            tokenizer, kept = self._cutting, Pair(self._kept(pair.first), self._kept(pair.second))
        (encoding,) = tokenizer.encode_batch([tuple(kept)])
        before = [len(whole) - len(part) if self._cuts_left else 0 for whole, part in zip(pair, kept, strict=True)]
        return [
            None if number is None else (number, (start + before[number], end + before[number]))
            for (start, end), number in zip(encoding.offsets, encoding.sequence_ids, strict=True)
        ]

    def _kept(self, text: str) -> str:
        """Return the part of a text to be cut that is short enough to be tokenized."""
        return text[-self.max_characters :] if self._cuts_left else text[: self.max_characters]

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the tokenizer's name of each token."""
        return [str(self.tokenizer.id_to_token(token)) for token in ids]


def texts_of(inputs: Mapping[str, NDArray[Any]], name: str = "text") -> list[str]:
    """Decode the elements of a tensor, BYTES [n].

    Raises:
        InvalidRequest: an element is not UTF-8.
    """
    texts = []
    for number, element in enumerate(inputs[name]):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name}[{number}] is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts


def texts_or_pairs_of(inputs: Mapping[str, NDArray[Any]]) -> Sequence[Text]:
    """Decode the tensor `text`, and `text_pair` where a request has it; BYTES [n] each.

    Raises:
        InvalidRequest: an element is not UTF-8, or the tensors differ in length.
    """
    texts = texts_of(inputs)
    if TEXT_PAIR not in inputs:
        return texts
    seconds = texts_of(inputs, TEXT_PAIR)
    if len(seconds) != len(texts):
        raise InvalidRequest(f"text has {len(texts)} elements, {TEXT_PAIR} has {len(seconds)}; a pair has one of each")
    return [Pair(*pair) for pair in zip(texts, seconds, strict=True)]


def characters_of(text: Text) -> int:
    """Return the length of a text, or of both texts of a pair, weighted by what a character costs to tokenize."""
    if isinstance(text, Pair):
        return characters_of(text.first) + characters_of(text.second)
    return len(text) if text.isascii() else CHARACTER_WEIGHT * len(text)


def tokenization(
    texts: Sequence[Any],
    preprocess_all: Callable[..., list[Any]],
    weight_of: Callable[[Any], int] = characters_of,
) -> Preparation:
    """Plan the tokenization of texts: inline, or in pieces of limited size where the texts are long.

    Args:
        texts: at least one text, pair, or other input.
        preprocess_all: from texts, and the number of the first of them as `first`, to items.
        weight_of: length of an input, weighted by what a character costs to tokenize.
    """
    weights = [weight_of(text) for text in texts]
    if sum(weights) <= LONG_TEXT_CHARACTERS:
        return Preparation([partial(preprocess_all, texts)], len(texts), True, "texts", "tokenized")
    steps: list[Callable[[], list[Any]]] = []
    first, piece = 0, 0
    for number, weight in enumerate(weights, 1):
        piece += weight
        if piece > PIECE_CHARACTERS or number == len(texts):
            steps.append(partial(preprocess_all, texts[first:number], first=first))
            first, piece = number, 0
    return Preparation(steps, len(texts), False, "texts", "tokenized")
