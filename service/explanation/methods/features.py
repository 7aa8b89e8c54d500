"""The features of an input, and the input without some of them.

    text  ──> Words: the tokens of a removed word leave the ids; the others stay unchanged
    image ──> Patches of a grid: a removed patch becomes the image's mean colour

Shapes: M features, T tokens, C channels, H height, W width.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Trades resolution for cost: 8 patches a side are 64 features, 16 would be 256.
PATCHES_A_SIDE = 8
# Within a word: don't, well-known; within a number: 3.5, 1,000.
INNER_MARKS, INNER_MARKS_OF_NUMBERS = "'\u2019-", ".,"
# Scripts without spaces, where each character counts as a word: kana, and Han in its blocks and beyond the first plane.
WORD_EACH = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


class Word(NamedTuple):
    """A word of a text; `start` and `end` are character offsets."""

    text: str
    start: int
    end: int


class Words:
    """The words of a text, and the tokens of each.

    Words are separated by spaces; punctuation around them forms words of its own. Two words that share a token are
    joined. Words without a token (truncated by the model's limit) are left out.
    """

    def __init__(self, text: str, ids_T: Sequence[int], spans_T: Sequence[tuple[int, int] | None]) -> None:
        """Find the words of a text.

        Args:
            text: text as the tokenizer got it.
            ids_T: ids of its tokens.
            spans_T: start and end of each token in characters, None for a special token.
        """
        self.text, self.ids = text, list(ids_T)
        found = list(words_of(text))
        touched_T = [_touched(text, found, span) for span in spans_T]
        joined = {number for touched in touched_T for number in touched[1:]}  # joined to the previous word
        present = {number for touched in touched_T for number in touched}
        self.words: list[Word] = []
        feature_of: dict[int, int] = {}
        for number, word in enumerate(found):
            if number not in present:
                continue
            if number in joined:
                start = self.words[-1].start
                self.words[-1] = Word(text[start : word.end], start, word.end)
            else:
                self.words.append(word)
            feature_of[number] = len(self.words) - 1
        # A token outside all words is always kept, but a token of spaces alone belongs to the word that follows.
        self._feature_T = [-1] * len(self.ids)
        for place in range(len(self.ids) - 1, -1, -1):
            span = spans_T[place]
            if touched_T[place]:
                self._feature_T[place] = feature_of[touched_T[place][0]]
            elif span is not None and place + 1 < len(self.ids):
                self._feature_T[place] = self._feature_T[place + 1]

    @property
    def num_features(self) -> int:
        """Number of words."""
        return len(self.words)

    @property
    def word_of_token(self) -> list[int | None]:
        """Index of each token's word; None for a token outside all words."""
        return [None if feature < 0 else feature for feature in self._feature_T]

    def merged(self, weights_TK: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of the tokens' weights for each word, float64 [M, K]; tokens outside all words are dropped."""
        merged_MK = np.zeros((len(self.words), weights_TK.shape[1]))
        for feature, weights_K in zip(self._feature_T, weights_TK, strict=True):
            if feature >= 0:
                merged_MK[feature] += weights_K
        return merged_MK

    def part(self, kept_M: NDArray[np.bool_]) -> list[int]:
        """Return the ids of the text without the words that are not kept."""
        keeps = [*kept_M.tolist(), True]  # the last for -1
        return [id_ for id_, feature in zip(self.ids, self._feature_T, strict=True) if keeps[feature]]


def words_of(text: str) -> Iterator[Word]:
    """Yield the words and punctuation marks of a text, in order."""
    start, kind = 0, "space"
    for place in range(len(text)):
        its_kind = _kind(text, place)
        if its_kind != kind or its_kind == "each":
            if kind != "space":
                yield Word(text[start:place], start, place)
            start, kind = place, its_kind
    if kind != "space":
        yield Word(text[start:], start, len(text))


def _kind(text: str, place: int) -> str:
    """Return the class of a character: neighbours of one class form a word, except in class "each"."""
    character = text[place]
    if character.isspace():
        return "space"
    if any(first <= ord(character) <= last for first, last in WORD_EACH):
        return "each"
    if unicodedata.category(character)[0] not in "PS":
        return "word"
    if 0 < place < len(text) - 1:
        before, after = text[place - 1], text[place + 1]
        if character in INNER_MARKS and before.isalnum() and after.isalnum():
            return "word"
        if character in INNER_MARKS_OF_NUMBERS and before.isdecimal() and after.isdecimal():
            return "word"
    return "mark"


def _touched(text: str, found: Sequence[Word], span: tuple[int, int] | None) -> list[int]:
    """Return the indices of the words that a token overlaps."""
    if span is None:
        return []
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    low, high = 0, len(found)  # bisect for the first word that ends after the token's start
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if found[middle].end <= start else (low, middle)
    touched = []
    while low < len(found) and found[low].start < end:
        touched.append(low)
        low += 1
    return touched


class Patches:
    """An image as a grid of patches.

    A removed patch gets the image's mean colour. Black or the middle of the range would form shapes with edges that the
    model sees, and shift the overall colour away from the training data. The mean keeps brightness and colour, and an
    image without any patch is one flat colour, which carries the least information.
    """

    def __init__(self, pixels_CHW: NDArray[np.float32], a_side: int = PATCHES_A_SIDE) -> None:
        """Lay a grid over the graph's input, float32 [C, H, W]; its mean is the mean colour (normalising is linear)."""
        self._pixels_CHW = pixels_CHW
        self._mean_C11 = pixels_CHW.mean(axis=(1, 2), keepdims=True)
        _, H, W = pixels_CHW.shape
        self.rows: int = min(a_side, H)
        self.columns: int = min(a_side, W)
        self._row_of_H = np.arange(H) * self.rows // H
        self._column_of_W = np.arange(W) * self.columns // W

    @property
    def num_features(self) -> int:
        """Number of patches; they are numbered row by row."""
        return self.rows * self.columns

    def part(self, kept_M: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the image without the patches that are not kept, float32 [C, H, W]."""
        kept_HW = kept_M.reshape(self.rows, self.columns)[self._row_of_H][:, self._column_of_W]
        pixels_CHW: NDArray[np.float32] = np.where(kept_HW, self._pixels_CHW, self._mean_C11)
        return pixels_CHW
