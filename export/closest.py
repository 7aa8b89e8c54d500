"""Sorts the names that a command knows by how close they are to the one that was given."""

from collections.abc import Iterable
from difflib import SequenceMatcher


def closest_first(given: str, known: Iterable[str]) -> list[str]:
    """Sort names by likeness to the given one; names that are equally like it keep their order."""
    return sorted(known, key=lambda name: -SequenceMatcher(None, given.lower(), name.lower()).ratio())
