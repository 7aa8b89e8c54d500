"""Pages of figures: commit, command and machine, and the part of a page that is rewritten."""

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


def command_of(module: str) -> str:
    """Return the command that runs now."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def commit() -> str:
    """Return the commit that is measured."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def machine() -> str:
    """Return processor, cores, kernel and Python version."""
    names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cores = len(os.sched_getaffinity(0)) if not names else len(names)
    return f"{names[0].strip() if names else platform.machine()}, {cores} cores, Python {platform.python_version()}"


@dataclass(frozen=True)
class MarkedPart:
    """The part of a page between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

    document: Path
    name: str

    @classmethod
    def of(cls, document: Path, name: str) -> "MarkedPart":
        """Return a part that exists; call it before the measurement, which takes minutes.

        Raises:
            ValueError: the document has no such marks, or cannot be read.
        """
        part = cls(document, name)
        try:
            part._around()
        except OSError as error:
            raise ValueError(str(error)) from error
        return part

    def replace(self, page: str) -> None:
        """Replace the part by `page`.

        Raises:
            ValueError: the marks are gone.
        """
        before, after = self._around()
        _replace(self.document, f"{before}\n\n{page}\n{after}")

    def _around(self) -> tuple[str, str]:
        begin, end = f"<!-- {self.name}: begin -->", f"<!-- {self.name}: end -->"
        before, found, rest = self.document.read_text().partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{self.document} has no {begin} and {end}")
        return before + begin, end + after


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: a full disk leaves the page as it was."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
