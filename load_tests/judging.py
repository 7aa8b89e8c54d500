"""Verdicts on measured figures by the limits of slo.toml."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.table import Table

from load_tests.slo import QUALITY, Gate, Limits

LATENCY = {"max_p95_ms": "p95_ms", "max_p99_ms": "p99_ms"}


@dataclass(frozen=True)
class Verdict:
    """One limit and whether it was kept."""

    model: str  # empty: all models
    limit: str
    where: str
    value: float
    measured: float | None  # None: nothing was measured
    kept: bool | None  # None: cannot be judged

    @property
    def name(self) -> str:
        """The limit with its model and place, for use in a sentence."""
        return self.limit + (f" of {self.model}" if self.model else "") + (f" ({self.where})" if self.where else "")


def verdict(model: str, limit: str, where: str, value: float, measured: float | None) -> Verdict:
    """Judge one limit: max_* pass at or below, min_* at or above; a missing measurement fails."""
    if measured is None:
        return Verdict(model, limit, where, value, None, kept=False)
    kept = measured <= value if limit.startswith("max_") else measured >= value
    return Verdict(model, limit, where, value, measured, kept)


def limits_of(limits: Limits) -> dict[str, float]:
    """Return the limits that are set, by name."""
    return {name: value for name, value in msgspec.to_builtins(limits).items() if name != "task"}


def judge(report: Mapping[str, Any], limits: Limits, model: str) -> list[Verdict]:
    """Judge every limit of a model by the figures of one run."""
    return [judge_one(report, name, value, model, "") for name, value in limits_of(limits).items()]


def judge_one(report: Mapping[str, Any], name: str, value: float, model: str, where: str) -> Verdict:
    """Judge one limit.

    Raises:
        ValueError: it is a measure that this task does not have.
    """
    if name not in QUALITY:
        measure = LATENCY.get(name) or name.removeprefix("max_").removeprefix("min_")
        return verdict(model, name, where, value, report[measure])
    measure = name.removeprefix("min_")
    if measure in report["quality"]:
        return verdict(model, name, where, value, report["quality"][measure])
    if report["quality"]:
        raise ValueError(f"{model} has no limit {name}: its task is judged by {', '.join(report['quality'])}")
    if report["answered"] == 0:
        return verdict(model, name, where, value, None)
    return Verdict(model, name, f"{report['sent']}: nobody knows what is right", value, None, kept=None)


def judge_gate(report: Mapping[str, Any], gate: Gate) -> Iterator[Verdict]:
    """Judge every limit of a gate run.

    Latency is judged at the constant rate and up to `judged_users` users (beyond saturation it only says how many users
    there are); refusals and quality over the whole run.
    """
    arrivals = next(phase for phase in report["phases"] if phase["kind"] == "arrivals")
    up_to = f"up to {gate.steps.judged_users} users"
    for model, limits in gate.models.items():
        whole = report["whole"][model] | {"sent": report["sent"][model]}
        for name, value in limits_of(limits).items():
            if name in LATENCY:
                yield judge_one(arrivals["models"][model], name, value, model, arrivals["name"])
                yield judge_one(report["judged_steps"][model], name, value, model, up_to)
            elif name == "min_requests_per_s":
                yield judge_one(report["judged_steps"][model], name, value, model, up_to)
            else:
                yield judge_one(whole, name, value, model, "whole run")
    if gate.min_knee_requests_per_s is not None:
        measured = report["knee"]["requests_per_s"] if report["knee"] else None
        yield verdict("", "min_knee_requests_per_s", "", gate.min_knee_requests_per_s, measured)


def table_of(verdicts: list[Verdict], title: str) -> Table:
    """Format the verdicts as a table for the terminal."""
    table = Table("model", "limit", "where", "value", "measured", "kept", title=title)
    for each in verdicts:
        measured = "-" if each.measured is None else f"{each.measured:.4g}"
        kept = {True: "yes", False: "NO", None: "not judged"}[each.kept]
        style = "red" if each.kept is False else None
        table.add_row(each.model, each.limit, each.where, f"{each.value:g}", measured, kept, style=style)
    return table


def missed(verdicts: list[Verdict]) -> list[str]:
    """Return the names of the limits that were not kept."""
    return [each.name for each in verdicts if each.kept is False]
