"""Columns of the tables of runs in docs/models.md."""

from typing import Any

from export.tasks.task import Records

# The last columns of every run's row.
HOW = ("minutes", "best epoch", "seed", "hardware", "commit")


def how(record: dict[str, Any]) -> list[str]:
    """Return a run's cells under the columns `HOW`."""
    return [
        f"{record['training_s'] / 60:.1f}",
        str(record["best_epoch"]),
        str(record["config"]["seed"]),
        f"{record['hardware']}{', bf16' if record['bf16'] else ''}",
        f"`{record['commit']}`",
    ]


def best_first(records: Records) -> list[tuple[str, dict[str, Any]]]:
    """Sort classification runs by accuracy, best first."""
    return sorted(records.items(), key=lambda entry: -entry[1]["quality"]["accuracy"])


def accuracy(record: dict[str, Any]) -> str:
    """Format a run's accuracy with its standard error, in percent."""
    return accuracy_of(record["quality"])


def accuracy_of(quality: dict[str, Any]) -> str:
    """Format a measured accuracy with its standard error, in percent."""
    return f"{100 * quality['accuracy']:.2f} ({100 * quality['accuracy_standard_error']:.2f})"
