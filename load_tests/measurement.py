"""Figures of a run: from the record of each request to throughput, latency and quality of a phase.

Latency counts from when a request was due. For a user that is when it was sent; for scheduled arrivals it is the time
of the schedule, so that a slow server cannot hide the wait of later requests (coordinated omission).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from load_tests.drivers import mean_batch_rows
from load_tests.model_tasks import AnswerPair, ModelTask
from load_tests.processes import CpuReading
from load_tests.slo import Gate

NOT_STARTED = "not started: too many in flight"
SHARES = (50, 95, 99)
KNEE_SHARE = 0.9
TIMELINE = ("answered", "failures", "p50_ms", "p95_ms")


class Record(NamedTuple):
    """One request; times by one clock, in seconds."""

    phase: str
    model: str
    protocol: str
    due_s: float
    sent_s: float
    ended_s: float
    error: str  # empty: answered
    batch_rows: int | None  # None: unknown
    answer: str
    expected: str | None  # None: unknown

    @property
    def latency_s(self) -> float:
        """Seconds from when the request was due to its end."""
        return self.ended_s - self.due_s


@dataclass(frozen=True)
class Window:
    """The measured time of a phase."""

    phase: str
    kind: str  # "warm-up", "arrivals" or "users"
    users: int | None
    begin: CpuReading
    end: CpuReading

    @property
    def seconds(self) -> float:
        """Duration of the window."""
        return self.end.at_s - self.begin.at_s

    def of(self, records: Sequence[Record]) -> list[Record]:
        """Return the records of the window: arrivals that were due in it, requests of users that ended in it."""
        mine = (record for record in records if record.phase == self.phase)
        if self.kind == "arrivals":
            return list(mine)
        return [record for record in mine if self.begin.at_s <= record.ended_s < self.end.at_s]


def percentile_ms(ordered_s: Sequence[float], share: float) -> float | None:
    """Return a percentile of sorted latencies (nearest rank), in milliseconds; None if there are none."""
    if not ordered_s:
        return None
    return 1e3 * ordered_s[min(len(ordered_s), max(1, math.ceil(len(ordered_s) * share / 100))) - 1]


def figures(records: Sequence[Record], seconds: float) -> dict[str, Any]:
    """Return counts, throughput, latency of the answered requests and batch sizes, without quality."""
    answered = [record for record in records if not record.error]
    ordered_s = sorted(record.latency_s for record in answered)
    rows = Counter(record.batch_rows for record in answered if record.batch_rows is not None)
    return {
        "requests": len(records),
        "answered": len(answered),
        "failures": len(records) - len(answered),
        "refused_share": (len(records) - len(answered)) / max(1, len(records)),
        "requests_per_s": len(answered) / seconds if seconds else 0.0,
        **{f"p{share}_ms": percentile_ms(ordered_s, share) for share in SHARES},
        "errors": dict(Counter(f"{record.protocol} {record.error}" for record in records if record.error)),
        "batch_rows": dict(sorted(rows.items())) or None,
        "mean_batch_rows": mean_batch_rows(rows) if rows else None,
    }


def quality(records: Sequence[Record], task: ModelTask) -> dict[str, Any]:
    """Return the quality of the answers, and how many could be judged; no measure without labels."""
    answers = [
        AnswerPair(record.answer, record.expected)
        for record in records
        if not record.error and record.expected is not None
    ]
    return {"answers_checked": len(answers), "quality": task.quality(answers) if answers else {}}


def by_protocol(records: Sequence[Record], seconds: float) -> dict[str, dict[str, Any]]:
    """Return the figures of HTTP and of gRPC."""
    protocols = sorted({record.protocol for record in records})
    return {
        protocol: figures([record for record in records if record.protocol == protocol], seconds)
        for protocol in protocols
    }


def phase_report(window: Window, records: Sequence[Record], models: Sequence[str], origin_s: float) -> dict[str, Any]:
    """Return all figures of one phase; its begin counts from the run's origin."""
    mine = window.of(records)
    late_s = sorted(record.sent_s - record.due_s for record in mine if record.error != NOT_STARTED)
    answered = sum(not record.error for record in mine)
    seconds = window.seconds
    if window.kind == "arrivals" and mine:
        # The window lasts until Locust's next tick, but the arrivals ended with their last answer.
        seconds = max(record.ended_s for record in mine) - min(record.due_s for record in mine)
    return {
        "name": window.phase,
        "kind": window.kind,
        "users": window.users,
        "begin_s": window.begin.at_s - origin_s,
        "seconds": window.seconds,
        "all": figures(mine, seconds),
        "models": {name: figures([record for record in mine if record.model == name], seconds) for name in models},
        "by_protocol": by_protocol(mine, seconds),
        "not_started": sum(record.error == NOT_STARTED for record in mine),
        "late_p99_ms": percentile_ms(late_s, 99),
        "cpu": window.end.since(window.begin, answered),
        # The latency distribution for the drawing, also beyond the 99th percentile.
        "latency_ms_by_share": {
            name: spread([record.latency_s for record in mine if record.model == name and not record.error])
            for name in models
        },
    }


def spread(latencies_s: Sequence[float]) -> list[tuple[float, float]]:
    """Return percentages with the latency in ms that they stay within."""
    ordered_s, shares = sorted(latencies_s), (1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 100)
    return [(share, value) for share in shares if (value := percentile_ms(ordered_s, share)) is not None]


def gate_report(
    records: Sequence[Record], windows: Sequence[Window], tasks: Mapping[str, ModelTask], gate: Gate
) -> dict[str, Any]:
    """Return all figures of a gate run: by phase, of the judged steps together, of the whole run."""
    origin_s = windows[0].begin.at_s if windows else 0.0
    phases = [phase_report(window, records, list(tasks), origin_s) for window in windows]
    judged = [window for window in windows if window.kind == "users" and (window.users or 0) <= gate.steps.judged_users]
    judged_s = sum(window.seconds for window in judged)
    of_judged = [record for window in judged for record in window.of(records)]
    whole_s = windows[-1].end.at_s - origin_s if windows else 0.0
    steps = [phase for phase in phases if phase["kind"] == "users"]
    return {
        "sent": {name: task.material.source for name, task in tasks.items()},
        "phases": phases,
        "judged_steps": {
            name: figures([record for record in of_judged if record.model == name], judged_s) for name in tasks
        },
        "whole": {name: whole_report(records, name, task, whole_s) for name, task in tasks.items()},
        "knee": knee([(step["users"], step["all"]["requests_per_s"], step["all"]["p95_ms"]) for step in steps]),
        "timeline": timeline(records, origin_s),
    }


def whole_report(records: Sequence[Record], model: str, task: ModelTask, seconds: float) -> dict[str, Any]:
    """Return the figures of one model over all phases, with the quality of its answers."""
    mine = [record for record in records if record.model == model]
    return figures(mine, seconds) | quality(mine, task)


def knee(steps: Sequence[tuple[int, float, float | None]]) -> dict[str, Any] | None:
    """Return where latency breaks: the fewest users who get 90 % of the highest throughput of all steps.

    More users hardly raise the throughput from there on, so each of them only waits longer.

    Args:
        steps: users, requests/s, p95 in ms.
    """
    if not steps:
        return None
    most = max(requests_per_s for _, requests_per_s, _ in steps)
    users, requests_per_s, p95_ms = next(step for step in steps if step[1] >= KNEE_SHARE * most)
    return {
        "users": users,
        "requests_per_s": requests_per_s,
        "p95_ms": p95_ms,
        "highest_requests_per_s": most,
        "reached": users != steps[-1][0],
    }


def timeline(records: Sequence[Record], origin_s: float) -> list[dict[str, Any]]:
    """Return answers and failures of each second since the run's origin."""
    by_second: dict[int, list[Record]] = {}
    for record in records:
        by_second.setdefault(int(record.ended_s - origin_s), []).append(record)
    return [
        {"s": second} | {name: value for name, value in figures(these, 1.0).items() if name in TIMELINE}
        for second, these in sorted(by_second.items())[:-1]  # the last second is not complete
    ]
