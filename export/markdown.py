"""Tables and plots for the pages of docs/."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Write a Markdown table, with an empty line before it."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
    return ["", *lines]


def pyplot_without_a_screen() -> Any:
    """Return matplotlib's pyplot, set to draw into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
