"""Search for the company in an engine call that moves an answer most.

int8 graphs give all rows of a call one scale, which the largest activation sets. An answer therefore depends on the
other items of its call. How far it moves is measured here against the answer that the item gets alone.

    items alone ──> reference
    items in shuffled calls of several sizes ──> changes in random company: mean, worst, changed answers
    candidates x probes, in pairs ──> the neighbours that move answers most ──> greedily combined ──> worst change
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Answer(NamedTuple):
    """The answer to one item: what it says (a class, the tokens of a translation), and its scores."""

    says: tuple[int, ...]
    scores: tuple[float, ...]

    def change(self, other: "Answer") -> float:
        """Largest absolute difference of a score."""
        return max(abs(mine - its) for mine, its in zip(self.scores, other.scores, strict=True))


@dataclass(frozen=True, kw_only=True)
class SearchEffort:
    """How much is computed."""

    max_items: int = 256  # in random company
    batch_sizes: tuple[int, ...] = (2, 8, 32, 64)
    num_probes: int = 6  # items that each candidate is paired with
    num_candidates: int = 32  # drawn from the items, beside the longest, the shortest and the invented ones
    num_extremes: int = 4  # longest items, and as many shortest ones
    num_targets: int = 24  # items that company is chosen for
    num_neighbours: int = 6  # best candidates, which company is chosen from
    num_rounds: int = 3  # neighbours that are chosen one after another
    seed: int = 20


@dataclass(kw_only=True)
class Found:
    """Changes that were seen."""

    changes: list[float] = field(default_factory=list)  # in random company
    changed_answers: int = 0  # in random company: the answer says something else
    worst_chosen: float = 0.0  # in chosen company

    @property
    def worst_random(self) -> float:
        """Largest change in random company."""
        return max(self.changes, default=0.0)

    @property
    def mean(self) -> float:
        """Mean change in random company."""
        return sum(self.changes) / max(1, len(self.changes))

    @property
    def worst(self) -> float:
        """Largest change of all."""
        return max(self.worst_random, self.worst_chosen)


def search_company(
    answer: Callable[[Sequence[T]], list[Answer]],
    items: Sequence[T],
    invented: Sequence[T],
    length: Callable[[T], int],
    effort: SearchEffort,
) -> Found:
    """Measure how far answers move with their company.

    Args:
        answer: one engine call: items to answers.
        items: such as clients send.
        invented: items of unusual content, which company and targets are chosen from as well.
        length: of an item; the longest and the shortest items are candidates.
        effort: how much is computed.
    """
    rng = random.Random(effort.seed)
    drawn = rng.sample(list(items), min(effort.max_items, len(items)))
    alone = [answer([item])[0] for item in drawn]
    found = Found()
    for size in effort.batch_sizes:
        _in_random_company(answer, drawn, alone, size, rng, found)
    by_length = sorted(items, key=length)
    candidates = [
        *invented,
        *by_length[: effort.num_extremes],
        *by_length[-effort.num_extremes :],
        *rng.sample(drawn, min(effort.num_candidates, len(drawn))),
    ]
    neighbours = _strongest(answer, candidates, drawn[: effort.num_probes], alone[: effort.num_probes], effort)
    num_invented = min(len(invented), effort.num_targets // 3)
    strange = rng.sample(list(invented), num_invented)
    targets = list(zip(drawn, alone, strict=True))[: effort.num_targets - num_invented]
    targets += [(item, answer([item])[0]) for item in strange]
    filling = drawn[: max(effort.batch_sizes)]
    for target, reference in targets:
        change = _in_chosen_company(answer, target, reference, neighbours, filling, effort)
        found.worst_chosen = max(found.worst_chosen, change)
    return found


def _in_random_company(
    answer: Callable[[Sequence[T]], list[Answer]],
    items: Sequence[T],
    alone: Sequence[Answer],
    size: int,
    rng: random.Random,
    found: Found,
) -> None:
    order = rng.sample(range(len(items)), len(items))
    for first in range(0, len(order), size):
        members = order[first : first + size]
        if len(members) == 1:
            continue
        for number, got in zip(members, answer([items[number] for number in members]), strict=True):
            found.changes.append(got.change(alone[number]))
            found.changed_answers += got.says != alone[number].says


def _strongest(
    answer: Callable[[Sequence[T]], list[Answer]],
    candidates: Sequence[T],
    probes: Sequence[T],
    alone: Sequence[Answer],
    effort: SearchEffort,
) -> list[T]:
    """The candidates that, as only company, move one of the probes most."""

    def strength(candidate: T) -> float:
        pairs = zip(probes, alone, strict=True)
        return max(answer([probe, candidate])[0].change(reference) for probe, reference in pairs)

    return sorted(candidates, key=strength, reverse=True)[: effort.num_neighbours]


def _in_chosen_company(
    answer: Callable[[Sequence[T]], list[Answer]],
    target: T,
    reference: Answer,
    neighbours: Sequence[T],
    filling: Sequence[T],
    effort: SearchEffort,
) -> float:
    """Largest change of one target: neighbours added while they help, all of them, and both in calls filled up."""
    company: list[T] = []
    worst = 0.0
    for _ in range(effort.num_rounds):
        changes = [answer([target, *company, each])[0].change(reference) for each in neighbours]
        if max(changes) <= worst:
            break
        worst = max(changes)
        company.append(neighbours[changes.index(worst)])
    largest = max(effort.batch_sizes)
    for chosen in (neighbours, [*company, *filling][: largest - 1], filling[: largest - 1]):
        worst = max(worst, answer([target, *chosen])[0].change(reference))
    return worst
