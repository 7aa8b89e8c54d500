"""Finds the kind of problem that labels pose, and reads labels: one of many, any number of many, or a number."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.data.own.refusals import DataRefused, closest
from export.data.own.tables import Table

SINGLE_LABEL = "single_label_classification"  # the names that `transformers` gives a `problem_type`
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
SEPARATOR = "|"  # between the labels of one row in a text file
MAX_NUMERIC_LABELS = 50  # more whole numbers than this are taken as numbers, not as labels
WHOLE_NUMBER = re.compile(r"[+-]?\d+")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class Problem:
    """The kind of problem, and a sentence about how it was found."""

    kind: str
    reason: str


def find_problem(values: Sequence[Any], column: str) -> Problem:
    """Find the kind of problem from a column's values; missing values say nothing.

    Lists, or texts with `|`, are sets of labels. Numbers with a fraction are regression targets. Whole numbers are
    labels, unless there are more than MAX_NUMERIC_LABELS different ones. All other texts are labels.
    """
    present = [value for value in values if not is_missing(value) and value != ""]
    lists = any(isinstance(value, list) for value in present)
    if lists or any(isinstance(value, str) and SEPARATOR in value for value in present):
        what = "lists" if lists else f"labels with {SEPARATOR!r} between them"
        return Problem(MULTI_LABEL, f"column {column!r} holds {what}")
    numbers = [number_of(value) for value in present]
    if present and all(isinstance(value, str) and DECIMAL_COMMA.fullmatch(value.strip()) for value in present):
        return Problem(REGRESSION, f"column {column!r} holds numbers with a comma")
    if not numbers or any(number is None for number in numbers):
        return Problem(SINGLE_LABEL, f"column {column!r} holds one label in each row")
    if any(number is not None and not number.is_integer() for number in numbers):
        return Problem(REGRESSION, f"column {column!r} holds numbers with a fraction")
    different = len(set(numbers))
    found = f"column {column!r} holds {different} different whole numbers"
    if different > MAX_NUMERIC_LABELS:
        return Problem(REGRESSION, f"{found}, more than {MAX_NUMERIC_LABELS}: they are taken as numbers, not as labels")
    return Problem(SINGLE_LABEL, f"{found}: they are taken as labels, not as numbers")


def number_of(value: Any) -> float | None:
    """Return a value as a finite number, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def is_missing(value: Any) -> bool:
    """Return whether a cell has no value: null, or the NaN that tables of numbers have for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_labels(table: Table, column: str, rows: Sequence[int], kind: str) -> list[str] | list[list[str]] | list[float]:
    """Read the labels of rows as names, lists of different names in order, or numbers, by the kind of problem.

    Raises:
        DataRefused: a label cannot be read so; the sentence names the file, the row and the column.
    """
    values = table.column(column)
    if kind == REGRESSION:
        return [_target(table, row, column, values[row]) for row in rows]
    if kind == MULTI_LABEL:
        return [_label_set(table, row, column, values[row]) for row in rows]
    return [_label(table, row, column, values[row]) for row in rows]


def lacks_label(value: Any, kind: str) -> bool:
    """Return whether a row has no label; an empty set of labels is one."""
    if isinstance(value, str) and not value.strip():
        return kind != MULTI_LABEL
    return is_missing(value)


def _target(table: Table, row: int, column: str, value: Any) -> float:
    number = number_of(value)
    if number is None:
        raise DataRefused(
            f"{table.place(row, column)}: {value!r} is not a number, as regression needs; decimals have a point"
        )
    return number


def _label(table: Table, row: int, column: str, value: Any) -> str:
    if isinstance(value, list | dict):
        raise DataRefused(f"{table.place(row, column)}: {value!r} is not one label, as {SINGLE_LABEL} needs")
    return _written(value)


def _label_set(table: Table, row: int, column: str, value: Any) -> list[str]:
    parts = value if isinstance(value, list) else str(value).split(SEPARATOR) if str(value).strip() else []
    names = [_written(part) for part in parts]
    if any(part is None or isinstance(part, list | dict) or not name for part, name in zip(parts, names, strict=True)):
        raise DataRefused(f"{table.place(row, column)}: {value!r} has an empty label or one that is not a text")
    return list(dict.fromkeys(names))


def _written(value: Any) -> str:
    """Return a label as its file has it; JSON writes true and false in small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def names_of(labels: Sequence[str]) -> list[str]:
    """Return the different labels in order: whole numbers by their value, others by their letters."""
    names = set(labels)
    if all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def check_known(
    table: Table, column: str, rows: Sequence[int], labels: Sequence[Sequence[str]], known: set[str]
) -> None:
    """Refuse labels of a held-out file that no training row has: nothing could learn them.

    Raises:
        DataRefused: the sentence names the first such row and the closest known labels.
    """
    for row, names in zip(rows, labels, strict=True):
        for name in names:
            if name not in known:
                raise DataRefused(
                    f"{table.place(row, column)}: no training row has the label {name!r}; the labels are"
                    f" {closest(name, known)}"
                )


def counts_by_label(names: Sequence[str], labels: Sequence[Any], kind: str) -> dict[str, int]:
    """Count the rows of each label, by its name; empty for regression."""
    if kind == REGRESSION:
        return {}
    counts = Counter(number for each in labels for number in (each if kind == MULTI_LABEL else [each]))
    return {name: counts[number] for number, name in enumerate(names)}


def check_labels_differ(labels: Sequence[Any], kind: str, where: str) -> None:
    """Refuse labels that leave nothing to decide.

    Raises:
        DataRefused: all rows have the same label or number, or no row has any label.
    """
    first = labels[0]
    if kind == MULTI_LABEL:
        if not any(labels):
            raise DataRefused(f"{where}: no row has any label")
    elif all(label == first for label in labels):
        value = first[0] if isinstance(first, list) else first
        what = "number" if kind == REGRESSION else "label"
        raise DataRefused(f"{where}: every row has the {what} {value!r}; at least two different ones are needed")
