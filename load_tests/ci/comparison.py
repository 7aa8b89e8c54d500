"""Two gate runs side by side: what changed, and what got worse than slo.toml tolerates.

It marks, and fails nothing: a machine that others use is never the same twice. The gate is slo.toml's limits.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from load_tests.slo import Tolerance

Kind = Literal["latency", "cost", "throughput", "quality"]


@dataclass(frozen=True)
class Change:
    """One figure of both runs, None where a run does not have it."""

    name: str
    kind: Kind
    before: float | None
    now: float | None
    regressed: bool

    @property
    def share(self) -> float | None:
        """The change as a fraction of the figure before; None where it cannot be computed."""
        return self.now / self.before - 1 if self.before and self.now is not None else None


def compare(before: Mapping[str, Any], now: Mapping[str, Any], tolerance: Tolerance) -> list[Change]:
    """Compare every figure of either run."""
    old, new = dict(figures_of(before)), dict(figures_of(now))
    changes = []
    for name, kind in dict.fromkeys([*new, *old]):
        was, is_now = old.get((name, kind)), new.get((name, kind))
        worse = was is not None and is_now is not None and is_worse(kind, was, is_now, tolerance)
        changes.append(Change(name, kind, was, is_now, worse))
    return changes


def is_worse(kind: Kind, before: float, now: float, tolerance: Tolerance) -> bool:
    """Return whether a figure is worse than the tolerance permits."""
    if kind == "latency":
        return now > before * (1 + tolerance.latency_share) and now > before + tolerance.latency_ms
    if kind == "cost":
        return now > before * (1 + tolerance.throughput_share)
    share = tolerance.throughput_share if kind == "throughput" else tolerance.quality_share
    return now < before * (1 - share)


def figures_of(report: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Kind], float | None]]:
    """Return the figures that are compared, each with its name and kind."""
    arrivals = next(phase for phase in report["phases"] if phase["kind"] == "arrivals")
    where = {arrivals["name"]: arrivals["models"], "judged steps": report["judged_steps"]}
    for model, whole in report["whole"].items():
        for place, figures in where.items():
            for share in (50, 95, 99):
                yield (f"{model}: p{share} ms, {place}", "latency"), figures[model][f"p{share}_ms"]
        for name, value in whole["quality"].items():
            yield (f"{model}: {name}", "quality"), value
        yield (f"{model}: share answered", "quality"), 1 - whole["refused_share"]
    if report["knee"]:
        yield ("knee: answers/s", "throughput"), report["knee"]["requests_per_s"]
        yield ("highest: answers/s", "throughput"), report["knee"]["highest_requests_per_s"]
    for name, who in (("load", "load generator"), ("server", "server")):
        yield (f"{who}: CPU ms an answer, {arrivals['name']}", "cost"), arrivals["cpu"][f"{name}_ms_per_answer"]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the circumstances that differ, which may explain other figures."""
    return [
        f"{name}: {before.get(name)} then, {now.get(name)} now"
        for name in ("target", "machine", "sent", "course")
        if before.get(name) != now.get(name)
    ]


def previous(folder: Path, target: str, but: Path) -> Path | None:
    """Return the latest readable run of this target in a folder, other than `but`; None if there is none."""
    for path in sorted(folder.glob("ci-*.json"), reverse=True):
        if path != but:
            try:
                if read_run(path)["target"] == target:
                    return path
            except ValueError:
                continue
    return None


def read_run(path: Path) -> dict[str, Any]:
    """Read the report of a gate run.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(report, dict) or report.get("kind") != "load-ci":
        raise ValueError(f"{path} is no result of load-ci")
    return report


def table_of(changes: list[Change], title: str) -> Table:
    """Format the changes as a table for the terminal."""
    table = Table("figure", "before", "now", "change", "", title=title)
    for change in changes:
        table.add_row(*cells_of(change), style="yellow" if change.regressed else None)
    return table


def cells_of(change: Change) -> list[str]:
    """Format one change: name, before, now, change, mark."""
    before, now = ("-" if value is None else f"{value:.4g}" for value in (change.before, change.now))
    share = "-" if change.share is None else f"{change.share:+.1%}"
    return [change.name, before, now, share, "REGRESSED" if change.regressed else ""]
