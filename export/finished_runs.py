"""Finds finished runs by their folders, without importing torch: an unknown name is refused at once."""

from pathlib import Path

from export.closest import closest_first

# The record of a finished run, and the state of an unfinished one.
RESULT, CHECKPOINT = "result.json", "checkpoint.pt"


def is_finished(run_dir: Path) -> bool:
    """Tell whether the folder has the record of a finished run."""
    return (run_dir / RESULT).is_file()


def finished_runs(folder: Path) -> list[str]:
    """List the names of the finished runs in a folder of run folders, which need not exist."""
    return sorted(path.parent.name for path in folder.glob(f"*/{RESULT}"))


def require_finished(run_dir: Path) -> None:
    """Raises FileNotFoundError: there is no finished run in this folder; the message lists those beside it."""
    if is_finished(run_dir):
        return
    found = ", ".join(closest_first(run_dir.name, finished_runs(run_dir.parent))) or "none"
    unfinished = "an unfinished run" if (run_dir / CHECKPOINT).is_file() else "no finished run"
    raise FileNotFoundError(
        f"{run_dir} has {unfinished}: train it first (python -m export train); finished in {run_dir.parent}: {found}"
    )
