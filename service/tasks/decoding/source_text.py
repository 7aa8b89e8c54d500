"""From a source text to ids, with what a model wants around it: a prefix, a language code, or a language's token."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from service.errors import InvalidRequest
from service.tasks.decoding.settings import LanguageCodes
from service.tasks.text.tokenization import TRUNCATE_HINT, Encoded, TextEncoder

T = TypeVar("T")


class Frame(NamedTuple):
    """The surroundings of a source text.

    Attributes:
        prefix: text before the text ("translate English to German: ").
        before: tokens before all others.
        after: tokens behind all others, the end-of-sentence token included.
    """

    prefix: str = ""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


NO_FRAME = Frame()


class SourceEncoder:
    """Tokenizes source texts within the model's limit, with their surroundings."""

    def __init__(self, encoder: TextEncoder, codes: LanguageCodes | None = None) -> None:
        """Set up.

        Args:
            encoder: the tokenizer; its ids end with the end-of-sentence token.
            codes: codes such as `>>fra<<` that a text may begin with, if the model knows any.
        """
        self._encoder, self._codes = encoder, codes

    def encode(
        self, texts: Sequence[str], frame: Frame, *, truncate: bool, field: str, first: int = 0
    ) -> list[Encoded]:
        """Tokenize texts, see `TextEncoder.encode`.

        Raises:
            InvalidRequest: a text is empty or too long.
        """
        split = [self._split(text) for text in texts]
        if not frame.prefix:
            whole = [rest for _, rest in split]
        else:
            # A text without any character is not empty behind the prefix.
            for number, (_, rest) in enumerate(split, first):
                if not rest.strip():
                    raise InvalidRequest(f"{field.format(number)} is empty")
            whole = [frame.prefix + rest for _, rest in split]
        encoded = []
        found = self._encoder.encode(whole, truncate=truncate, field=field, first=first)
        for number, ((before, _), each) in enumerate(zip(split, found, strict=True), first):
            around = (*frame.before, *before, *frame.after)
            room = self._encoder.max_tokens - len(around)
            if not around:
                encoded.append(each)
                continue
            if len(each.ids) > room and not truncate:
                raise InvalidRequest(
                    f"{field.format(number)} has {len(each.ids) + len(around)} tokens, the model takes at most"
                    f" {self._encoder.max_tokens}; {TRUNCATE_HINT}"
                )
            ids = [*frame.before, *before, *shortened(each.ids, room), *frame.after]
            encoded.append(Encoded(ids, each.truncated or len(each.ids) > room))
        return encoded

    def spans(self, text: str, frame: Frame, *, truncate: bool) -> list[tuple[int, int] | None]:
        """Locate each token in a text that was encoded; None for a token that stands for no character of it."""
        before, rest = self._split(text)
        code, prefix = len(text) - len(rest), len(frame.prefix)
        found = self._encoder.spans(frame.prefix + rest, truncate=truncate)
        spans = [
            None if span is None or span[1] <= prefix else (max(span[0] - prefix, 0) + code, span[1] - prefix + code)
            for span in found
        ]
        around = [None] * len(frame.before) + [(0, code)] * len(before)
        room = self._encoder.max_tokens - len(around) - len(frame.after)
        return [*around, *shortened(spans, room), *[None] * len(frame.after)]

    def _split(self, text: str) -> tuple[tuple[int, ...], str]:
        """Split a text into the token of the code that it begins with, if any, and the rest."""
        code, rest = self._codes.split(text) if self._codes else ("", text)
        if self._codes is None or not code:
            return (), text
        return (self._codes.ids.get(code, self._codes.unknown_id),), rest


def shortened(items: list[T], room: int) -> list[T]:
    """Shorten a list to so many items; the last one is kept."""
    return items if len(items) <= room else [*items[: room - 1], items[-1]]
