"""Answers rows in order, with many of them in flight, so that batches fill and memory stays bounded.

rows ──> in flight: at most `max_in_flight` ──> answers, in the order of the rows
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from service.errors import HeedError
from service.offline.rows import Row


class Model(Protocol):
    """What answers rows: a model in this process, or on a server."""

    @property
    def max_in_flight(self) -> int:
        """Rows that may be asked at once."""

    async def ask(self, row: Row, folder: Path) -> Any:
        """Return the answer to a row; paths start from `folder`. Raises `HeedError` where the row has none."""


class Answered(NamedTuple):
    """A row with its answer, or with the problem that it has instead."""

    row: Row
    document: Any
    problem: str | None


async def answer_rows(rows: Iterator[Row], folder: Path, model: Model) -> AsyncIterator[Answered]:
    """Answer rows, and yield them in order; only rows in flight are in memory.

    Args:
        rows: the rows; read as far as rows are in flight.
        folder: the folder that paths start from.
        model: answers them.

    Yields:
        each row with its answer or its problem.

    Raises:
        FileRefused: the file cannot be read further, after the rows before have been yielded; or the server is gone.
    """

    async def answer(row: Row) -> Answered:
        if row.problem is not None:
            return Answered(row, None, row.problem)
        try:
            return Answered(row, await model.ask(row, folder), None)
        except HeedError as error:
            return Answered(row, None, str(error))

    in_flight: deque[asyncio.Task[Answered]] = deque()
    failure: ValueError | None = None
    try:
        while True:
            while failure is None and len(in_flight) < model.max_in_flight:
                try:
                    row = next(rows, None)
                except ValueError as error:  # `FileRefused`; the rows before it are answered all the same
                    failure = error
                    break
                if row is None:
                    break
                in_flight.append(asyncio.create_task(answer(row)))
            if not in_flight:
                break
            yield await in_flight.popleft()
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)
    if failure is not None:
        raise failure
