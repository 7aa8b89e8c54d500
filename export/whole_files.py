"""Writes files whole or not at all: a full disk or an interruption leaves the file that was there before."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Yield a path beside the file; what is written there takes its place at the end, or is removed after an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file."""
    with in_place_of(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8."""
    write_bytes(path, text.encode())


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure of matplotlib in the form that the file's name ends with."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format=path.suffix[1:])
    write_bytes(path, buffer.getbuffer())
