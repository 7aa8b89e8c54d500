"""The error for data that cannot be used, and the form of lists in its sentences."""

from collections.abc import Iterable

from export.closest import closest_first

MAX_LISTED = 10  # names or places in one sentence


class DataRefused(ValueError):
    """Data that cannot be used; the sentence names the file, the row and the column where there is one."""


def listed(names: Iterable[object]) -> str:
    """Join names for a sentence: the first ones, and the number of the others."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more


def closest(given: str, known: Iterable[str]) -> str:
    """List the known names for a sentence, the closest to the given one first."""
    return listed(repr(name) for name in closest_first(given, known))


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, or the kind of the error if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
