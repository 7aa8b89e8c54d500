"""Pages of figures: what stands beside every one, and the part of a page that is made anew."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def command_of(module: str) -> str:
    """The command that runs now."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def commit() -> str:
    """The commit that is measured."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def machine() -> str:
    """Processor, cores, kernel, Python."""
    names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cores = len(os.sched_getaffinity(0)) if not names else len(names)
    return f"{names[0].strip() if names else platform.machine()}, {cores} cores, Python {platform.python_version()}"


def replace_marked(document: Path, name: str, page: str) -> None:
    """Put `page` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Raises:
        ValueError: the document has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = document.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} has no {begin} and {end}")
    document.write_text(f"{before}{begin}\n\n{page}\n{end}{after}")
