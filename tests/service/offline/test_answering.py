"""Rows are answered in order, with a bounded number in flight."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import InvalidRequest
from service.offline.answering import Answered, answer_rows
from service.offline.rows import FileRefused, Row

FOLDER = Path()


class Echo:
    """Answers a row with its text once as many rows as possible are in flight; counts them."""

    max_in_flight = 4

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.asked, self.in_flight, self.most = num_rows, 0, 0, 0

    async def ask(self, row: Row, folder: Path) -> Any:
        """Answer later rows before earlier ones."""
        self.asked += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        for _ in range(10 - self.asked % 4):
            await asyncio.sleep(0)
        self.in_flight -= 1
        if row.given == "bad":
            raise InvalidRequest(f"{row.place} is bad")
        return row.given


async def answered(rows: Iterator[Row], model: Echo) -> list[Answered]:
    """Collect all answers."""
    return [each async for each in answer_rows(rows, FOLDER, model)]


async def test_answers_keep_the_order_of_the_rows() -> None:
    """Rows are read only as far as they are in flight."""
    model = Echo(20)
    read = []

    def rows() -> Iterator[Row]:
        for number in range(20):
            read.append(number)
            assert number < model.asked + model.max_in_flight
            yield Row(f"row {number}", {}, str(number))

    assert [each.document for each in await answered(rows(), model)] == [str(number) for number in range(20)]
    assert (model.most, len(read)) == (4, 20)


async def test_a_row_without_an_answer_keeps_its_place() -> None:
    """The model is not asked for a row with a problem."""
    rows = [Row("row 1", {}, "bad"), Row("row 2", {}, problem="unreadable"), Row("row 3", {}, "good")]
    model = Echo(3)
    problems = [(each.document, each.problem) for each in await answered(iter(rows), model)]
    assert problems == [(None, "row 1 is bad"), (None, "unreadable"), ("good", None)]
    assert model.asked == 2


async def test_rows_before_a_broken_place_of_the_file_are_answered() -> None:
    """Then the error of the file ends the iteration."""

    def rows() -> Iterator[Row]:
        yield Row("row 1", {}, "good")
        raise FileRefused("a.csv is not utf-8")

    answers = answer_rows(rows(), FOLDER, Echo(1))
    assert (await anext(answers)).document == "good"
    with pytest.raises(FileRefused, match="not utf-8"):
        await anext(answers)
