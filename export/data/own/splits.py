"""Splits rows into training, validation and test rows: stratified, seeded, and with all copies of an input together.

The order of a split comes from sha256 sums of the inputs and the seed, not from a generator of random numbers. So it
depends neither on the order of the rows nor on the version of a library.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TRAIN, VALIDATION, TEST = "train", "validation", "test"
HELD_OUT_FRACTION = 0.15  # of the rows, for validation and for test each
MAX_HELD_OUT_ROWS = 10_000  # more would make figures hardly more certain, but training poorer
MIN_ROWS_FOR_VALIDATION, MIN_ROWS_FOR_TEST = 2, 3  # of one label
NUM_QUANTILES = 10  # strata of regression targets
SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Group:
    """Rows with the same input after `normalised`: they go to one split together."""

    key: str
    rows: list[int]
    labels: frozenset[Hashable]  # of the first row; the strata


@dataclass(frozen=True)
class Copies:
    """How many rows were copies of others."""

    duplicate_rows: int  # rows whose input an earlier row has, after `normalised`
    contradictory_inputs: int  # inputs whose copies have different labels


def normalised(*texts: str) -> str:
    """Join texts, with the case removed and all spaces made equal: texts that differ in this alone are copies."""
    return "\x1f".join(SPACES.sub(" ", text).strip().casefold() for text in texts)


def in_order(keys: Sequence[str], seed: int) -> list[str]:
    """Shuffle keys by their sha256 sums with the seed."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).digest())


def groups_of(keys: Sequence[str], labels: Sequence[frozenset[Hashable]]) -> tuple[list[Group], Copies]:
    """Collect the rows of each input, and count copies and contradictions."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        members[key].append(row)
    groups = [Group(key, rows, labels[rows[0]]) for key, rows in members.items()]
    contradictory = sum(len({labels[row] for row in group.rows}) > 1 for group in groups)
    return groups, Copies(len(keys) - len(groups), contradictory)


def split(
    keys: Sequence[str],
    labels: Sequence[frozenset[Hashable]],
    held_out: Sequence[str],
    seed: int,
    *,
    several: bool,
    max_rows: int = MAX_HELD_OUT_ROWS,
) -> dict[str, list[int]]:
    """Split rows into training rows and the held-out splits that are asked for.

    Args:
        keys: each row's input after `normalised`.
        labels: each row's labels; one label, or a stratum of a number, is a set of one.
        held_out: the splits to make of these rows beside `train`: VALIDATION, TEST, both or none.
        seed: another seed gives other splits.
        several: rows may have several labels. Then rows are distributed by iterative stratification (Sechidis et al.
            2011, "On the Stratification of Multi-label Data"), rarest label first.
        max_rows: the most rows of a held-out split, but for copies and the one row of each label.
    """
    groups, _ = groups_of(keys, labels)
    by_key = {group.key: group for group in groups}
    ordered = [by_key[key] for key in in_order([group.key for group in groups], seed)]
    fraction = min(HELD_OUT_FRACTION, max_rows / max(len(groups), 1))
    place = _iterative if several else _by_stratum
    chosen = place(ordered, held_out, fraction)
    names = (TRAIN, *held_out)
    return {name: sorted(row for group in chosen.get(name, []) for row in group.rows) for name in names}


def held_out_counts(count: int, held_out: Sequence[str], fraction: float) -> dict[str, int]:
    """Return how many of a label's inputs go to each held-out split; the others are for training.

    A label with one input is for training only. With two, one goes to the first split asked for; with three or more,
    each split gets one at least.
    """
    wanted = max(1, round(count * fraction))
    counts, left = {}, count - 1
    for name in held_out:
        enough = count >= (MIN_ROWS_FOR_TEST if name == TEST and len(held_out) > 1 else MIN_ROWS_FOR_VALIDATION)
        counts[name] = min(wanted, left) if enough else 0
        left -= counts[name]
    return counts


def _by_stratum(ordered: Sequence[Group], held_out: Sequence[str], fraction: float) -> dict[str, list[Group]]:
    strata: dict[frozenset[Hashable], list[Group]] = defaultdict(list)
    for group in ordered:
        strata[group.labels].append(group)
    chosen: dict[str, list[Group]] = defaultdict(list)
    for groups in strata.values():
        begin = 0
        for name, count in held_out_counts(len(groups), held_out, fraction).items():
            chosen[name] += groups[begin : begin + count]
            begin += count
        chosen[TRAIN] += groups[begin:]
    return chosen


def _iterative(ordered: Sequence[Group], held_out: Sequence[str], fraction: float) -> dict[str, list[Group]]:
    """Give each group to the split that lacks most of the group's rarest label; ties go to the earlier split."""
    # Rows without labels are a stratum of their own.
    labels = [group.labels or frozenset([None]) for group in ordered]
    left: dict[Hashable, dict[int, None]] = defaultdict(dict)
    for number, names in enumerate(labels):
        for name in names:
            left[name][number] = None
    splits = (TRAIN, *held_out)
    wanted: dict[Hashable, dict[str, int]] = {}
    for name, members in left.items():
        counts = held_out_counts(len(members), held_out, fraction)
        wanted[name] = {TRAIN: len(members) - sum(counts.values())} | counts
    chosen: dict[str, list[Group]] = defaultdict(list)
    while left:
        rarest = min(left, key=lambda name: (len(left[name]), str(name)))
        for number in list(left[rarest]):
            # The held-out splits of a label are filled before its training rows: they need few rows.
            best = max(splits, key=lambda name: (wanted[rarest][name] > 0 and name != TRAIN, wanted[rarest][name]))
            chosen[best].append(ordered[number])
            for name in labels[number]:
                wanted[name][best] -= 1
                left[name].pop(number, None)
        del left[rarest]
    return chosen


def quantile_strata(targets: Sequence[float]) -> list[frozenset[Hashable]]:
    """Number the quantiles of regression targets, fewer where there are few rows."""
    values = np.asarray(targets)
    count = max(1, min(NUM_QUANTILES, len(values) // (2 * MIN_ROWS_FOR_TEST)))
    edges = np.quantile(values, np.linspace(0, 1, count + 1)[1:-1])
    return [frozenset([int(number)]) for number in np.searchsorted(edges, values, side="right")]


@dataclass(frozen=True)
class Arrangement:
    """Which rows of which source make each split, and what was left out so that no input is in two of them."""

    rows: dict[str, list[int]]
    sources: dict[str, str]  # the source of each split: the split itself, or TRAIN where it was made of training rows
    facts: dict[str, int]


def arrange(
    keys: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[frozenset[Hashable]]],
    seed: int,
    *,
    several: bool = False,
    strata: Sequence[frozenset[Hashable]] | None = None,
    max_rows: int = MAX_HELD_OUT_ROWS,
) -> Arrangement:
    """Complete the given sources to training, validation and test rows.

    A given held-out source stays whole, but for validation rows that the test source has too. Copies of held-out inputs
    are removed from the training rows. Splits that are not given are made of training rows, by `split`.

    Args:
        keys: each row's input after `normalised`, by source; TRAIN is one of them.
        labels: each row's labels, by source; copies with different ones are counted.
        seed: the seed of the splits that are made.
        several: see `split`.
        strata: what the training rows are stratified by, if not by their labels.
        max_rows: see `split`.
    """
    test = set(keys.get(TEST, ()))
    rows = {name: [row for row, key in enumerate(keys[name]) if name == TEST or key not in test] for name in keys}
    removed = {f"{name}_rows_also_in_test": len(keys[name]) - len(rows[name]) for name in keys if TEST in keys}
    if VALIDATION in keys:
        held_out = {keys[VALIDATION][row] for row in rows[VALIDATION]}
        kept = [row for row in rows[TRAIN] if keys[TRAIN][row] not in held_out]
        removed["train_rows_also_in_validation"] = len(rows[TRAIN]) - len(kept)
        rows[TRAIN] = kept
    removed.pop("test_rows_also_in_test", None)
    every = [(key, label) for name in keys for key, label in zip(keys[name], labels[name], strict=True)]
    _, counted = groups_of([key for key, _ in every], [label for _, label in every])
    made = split(
        [keys[TRAIN][row] for row in rows[TRAIN]],
        [(strata or labels[TRAIN])[row] for row in rows[TRAIN]],
        [name for name in (VALIDATION, TEST) if name not in keys],
        seed,
        several=several,
        max_rows=max_rows,
    )
    own = rows[TRAIN]
    rows |= {name: [own[number] for number in numbers] for name, numbers in made.items()}
    return Arrangement(
        {name: rows[name] for name in (TRAIN, VALIDATION, TEST)},
        {name: name if name in keys else TRAIN for name in (TRAIN, VALIDATION, TEST)},
        {"duplicate_rows": counted.duplicate_rows, "contradictory_inputs": counted.contradictory_inputs} | removed,
    )


def digest(rows: Sequence[Any]) -> str:
    """Return the sha256 of a split's rows, by which a rebuilt split is compared with the first."""
    sums = hashlib.sha256()
    for row in rows:
        sums.update(json.dumps(row).encode() + b"\n")
    return sums.hexdigest()


def rare_label_notes(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return a sentence for each split that lacks labels; `counts` has the rows of each label by split."""
    notes = []
    for name, by_label in counts.items():
        missing = [label for label, count in by_label.items() if not count]
        if missing:
            totals = Counter({label: sum(each[label] for each in counts.values()) for label in missing})
            shown = ", ".join(f"{label!r} ({totals[label]} in all)" for label in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            notes.append(f"the {name} split has no row of {shown}{more}: the labels have too few rows for every split")
    return notes
