"""Counts of requests and engine calls in plain numbers, which only the event loop's thread changes.

`Metrics` converts them to Prometheus' form at each scrape.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.samples import Exemplar

Protocol = Literal["grpc", "http"]
# How a request can end; the only values of the label.
Outcome = Literal[
    "ok",
    "invalid",
    "not_found",
    "unavailable",
    "overloaded",
    "expired",
    "cancelled",
    "failed",
]

LATENCY_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Tally:
    """One series of a histogram, counted without locks."""

    __slots__ = ("_bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}  # the last one of each bucket, by the bucket's number

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound is not below it."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def exemplify(self, value: float, trace_id: str) -> None:
        """Attach a trace to the bucket of a counted value; only the OpenMetrics format shows it."""
        self.exemplars[bisect_left(self._bounds, value)] = Exemplar({"trace_id": trace_id}, value, time.time())

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Add this series to a metric family."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = [
            (bound, count, self.exemplars[number]) if number in self.exemplars else (bound, count)
            for number, (bound, count) in enumerate(zip(bounds, accumulate(self.counts), strict=True))
        ]
        family.add_metric(labels, buckets, self.sum)


class StageTimes:
    """Time spent in each stage by the requests of one model version and protocol, in seconds.

    Attributes:
        inferences: inputs answered by these requests.
        last_s: end of the last request, by `time.monotonic()`; 0 before the first.
    """

    def __init__(self) -> None:
        self.inferences, self.last_s = 0, 0.0
        self.total = Tally(LATENCY_BUCKETS_S)
        self.preprocess = Tally(LATENCY_BUCKETS_S)
        self.queue = Tally(LATENCY_BUCKETS_S)
        self.compute = Tally(LATENCY_BUCKETS_S)
        self.postprocess = Tally(LATENCY_BUCKETS_S)
        self._all = (self.total, self.preprocess, self.queue, self.compute, self.postprocess)

    def observe(self, *seconds: float) -> None:
        """Count an answered request: its total, preprocess, queue, compute and postprocess time."""
        for tally, value in zip(self._all, seconds, strict=True):
            tally.counts[bisect_left(LATENCY_BUCKETS_S, value)] += 1
            tally.sum += value

    def exemplify(self, trace_id: str, **seconds: float) -> None:
        """Attach a trace to the times of its stages, which are named like the attributes."""
        for stage, value in seconds.items():
            tally: Tally = getattr(self, stage)
            tally.exemplify(value, trace_id)


class BatchTally:
    """The engine calls of one model version.

    Attributes:
        rows: histogram of the rows of a call.
        tokens: computed tokens, including padding.
        padded_tokens: computed tokens that were padding.
        calls: number of calls, by their rows.
        seconds: time of these calls, by their rows.
    """

    def __init__(self) -> None:
        self.rows = Tally(ROW_BUCKETS)
        self.tokens = self.padded_tokens = 0
        self.calls: defaultdict[int, int] = defaultdict(int)  # as many sizes as a batch may have rows
        self.seconds: defaultdict[int, float] = defaultdict(float)

    def count(self, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Count one call."""
        self.rows.observe(rows)
        self.tokens += tokens
        self.padded_tokens += padded_tokens
        self.calls[rows] += 1
        self.seconds[rows] += seconds


class ExplainTally:
    """The explanations of one model version by one method."""

    def __init__(self) -> None:
        self.seconds = Tally(LATENCY_BUCKETS_S)
        self.evaluations = 0

    def count(self, seconds: float, evaluations: int) -> None:
        """Count one explanation."""
        self.seconds.observe(seconds)
        self.evaluations += evaluations


class ModelTotals(NamedTuple):
    """All that was counted for one model version.

    Attributes:
        requests: number of requests, by protocol and outcome.
        failed_s: time of the requests that failed.
        stages: stage times of each protocol; predictions alone.
        explained: explanations of each method.
        batches: the engine calls.
    """

    requests: dict[tuple[Protocol, Outcome], int]
    failed_s: float
    stages: list[StageTimes]
    explained: list[ExplainTally]
    batches: BatchTally
