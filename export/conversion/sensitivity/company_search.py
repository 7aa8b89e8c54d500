"""Searches for the company (the other items of an engine call) that changes an answer most.

int8 graphs give all rows of a call one scale, which the largest activation sets. An answer therefore depends on the
other items of its call. The change is measured against the answer that the item gets alone.

    items alone ──> reference
    items in shuffled calls of several sizes ──> changes in random company: mean, worst, changed answers
    the items that moved most, and invented ones ──> random company of each ──> those that moved most
    ──> their company changed member by member, as long as the answer moves further ──> worst change
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

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
    """The sizes and counts that bound the search."""

    max_items: int = 512  # in random company
    batch_sizes: tuple[int, ...] = (2, 8, 32, 64)
    num_extremes: int = 16  # longest items, and as many shortest ones: unusual company, like the invented items
    num_targets: int = 24  # items that company is drawn for, up to a third of them invented
    company_sizes: tuple[int, ...] = (1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7)  # sizes of the company drawn for each target
    num_climbs: int = 8  # targets whose company is changed
    num_changes: int = 128  # of each
    seed: int = 20


@dataclass(kw_only=True)
class Found:
    """The changes of scores that a search has seen."""

    changes: list[float] = field(default_factory=list)  # in random company
    changed_answers: int = 0  # in random company: answers with another class or translation
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
    """Measure how far answers change with the other items of their engine call.

    Args:
        answer: one engine call: items to answers.
        items: items such as clients send.
        invented: items of unusual content, also used as company and as targets.
        length: returns the length of an item; the longest and the shortest items are unusual company.
        effort: the bounds of the search.
    """
    rng = random.Random(effort.seed)
    drawn = rng.sample(list(items), min(effort.max_items, len(items)))
    alone = [answer([item])[0] for item in drawn]
    found, moved = Found(), [0.0] * len(drawn)
    for size in effort.batch_sizes:
        _in_random_company(answer, drawn, alone, size, rng, found, moved)
    by_length = sorted(items, key=length)
    extremes = by_length[: effort.num_extremes] + by_length[max(0, len(items) - effort.num_extremes) :]
    pools = [drawn, [*invented, *extremes]]
    strange = rng.sample(list(invented), min(len(invented), effort.num_targets // 3))
    most_moved = sorted(range(len(drawn)), key=moved.__getitem__, reverse=True)[: effort.num_targets - len(strange)]
    targets = [(drawn[number], alone[number]) for number in most_moved]
    targets += [(item, answer([item])[0]) for item in strange]
    searches = [_ChosenCompany(answer, *target, pools, rng) for target in targets]
    for search in searches:
        search.draw(effort.company_sizes)
    searches.sort(key=attrgetter("worst"), reverse=True)
    for search in searches[: effort.num_climbs]:
        search.climb(effort.num_changes, max(effort.batch_sizes) - 1)
    found.worst_chosen = max(search.worst for search in searches)
    return found


def _in_random_company(
    answer: Callable[[Sequence[T]], list[Answer]],
    items: Sequence[T],
    alone: Sequence[Answer],
    size: int,
    rng: random.Random,
    found: Found,
    moved: list[float],
) -> None:
    """Compute all items in shuffled calls of `size`; `moved` has the largest change of each item."""
    order = rng.sample(range(len(items)), len(items))
    for first in range(0, len(order), size):
        members = order[first : first + size]
        if len(members) == 1:
            continue
        for number, got in zip(members, answer([items[number] for number in members]), strict=True):
            change = got.change(alone[number])
            found.changes.append(change)
            found.changed_answers += got.says != alone[number].says
            moved[number] = max(moved[number], change)


@dataclass
class _ChosenCompany(Generic[T]):
    """The search for one target: the company that has moved it most so far."""

    answer: Callable[[Sequence[T]], list[Answer]]
    target: T
    alone: Answer
    pools: Sequence[Sequence[T]]  # a member is drawn from each with equal chance
    rng: random.Random
    worst: float = 0.0
    company: list[T] = field(default_factory=list)

    def draw(self, sizes: Sequence[int]) -> None:
        """Try random company of these sizes."""
        for size in sizes:
            self._try([self._member() for _ in range(size)])

    def climb(self, num_changes: int, max_size: int) -> None:
        """Add, replace or leave out a member again and again, and keep what moves the target further."""
        for _ in range(num_changes):
            company, change = list(self.company), self.rng.choice(("add", "replace", "leave out"))
            if (change == "add" and len(company) < max_size) or not company:
                company.append(self._member())
            elif change == "leave out" and len(company) > 1:
                del company[self.rng.randrange(len(company))]
            else:
                company[self.rng.randrange(len(company))] = self._member()
            self._try(company)

    def _member(self) -> T:
        return self.rng.choice(self.rng.choice([pool for pool in self.pools if pool]))

    def _try(self, company: list[T]) -> None:
        change = self.answer([self.target, *company])[0].change(self.alone)
        if change > self.worst:
            self.worst, self.company = change, company
