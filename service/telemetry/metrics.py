"""The Prometheus metrics: base units, bounded labels, one histogram for each stage of a request.

Values that every request changes are counted in plain numbers (`Tally`, `BatchTally`) and converted to the Prometheus
client's form at each scrape. Only the event loop's thread counts. The library's own locks and checks took 5 % of the
time of a request without a model (docs/decisions/process.md).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.process.memory_budget import ByteBudget
from service.telemetry.tallies import BatchTally, ExplainTally, ModelTotals, Outcome, Protocol, StageTimes

# How a replay of the canary can end.
CanaryOutcome = Literal["ok", "drifted", "failed", "skipped"]

SERIES_PER_PIECE = 250  # writing them takes about 2 ms; then other threads get the interpreter's lock
# Label of all requests for names that are not in the store, or clients could create any number of series.
UNKNOWN_MODEL = "(unknown)"
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

# Name and help text of each histogram of `StageTimes`, by attribute.
STAGES = {
    "total": ("heed_request_seconds", "From the decoded request to its answer"),
    "preprocess": ("heed_preprocess_seconds", "Text or image to model input"),
    "queue": ("heed_queue_seconds", "From submission to the start of the engine call"),
    "compute": ("heed_compute_seconds", "The engine call that computed the answer"),
    "postprocess": ("heed_postprocess_seconds", "Model output to answer"),
}

# Why an engine call was terminated.
Termination = Literal["abandoned", "overdue"]


class SchedulingTally:
    """Rows that the batcher of one model version has refused, or computed in vain."""

    def __init__(self) -> None:
        self.refused_rows = 0  # on arrival, because their deadline could not be met
        self.dropped_rows = 0  # from the queue, because their deadline could no longer be met
        self.rows_in_vain = 0  # computed although their caller had left
        self.terminated: dict[Termination, int] = {"abandoned": 0, "overdue": 0}


class _OneFamily(NamedTuple):
    """A registry with one family, as the library's encoders need it."""

    family: Metric

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        yield self.family


class Metrics(Collector):
    """All metrics of one server, in a registry of its own so that two servers in one process stay separate."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        model = ["model", "version"]
        self.queue_rows = Gauge("heed_queue_rows", "Rows that wait for an engine", model, registry=self.registry)
        self.low_priority_queue_rows = Gauge(
            "heed_low_priority_queue_rows",
            "Rows of explanations that wait for an engine",
            model,
            registry=self.registry,
        )
        self.preparing_rows = Gauge(
            "heed_preparing_rows",
            "Texts and images that wait for a thread that prepares them, or are with one",
            registry=self.registry,
        )
        self.in_flight_rows = Gauge("heed_in_flight_rows", "Rows inside an engine call", model, registry=self.registry)
        self.ready = Gauge("heed_model_ready", "1 while the model is ready", model, registry=self.registry)
        self.queue_limit_rows = Gauge(
            "heed_queue_limit_rows",
            "Rows that may wait for one model before requests are refused",
            registry=self.registry,
        )
        self.canary_runs = Counter(
            "heed_canary_runs", "Golden examples replayed while serving", [*model, "outcome"], registry=self.registry
        )
        self.canary_difference = Gauge(
            "heed_canary_difference",
            "Difference of the last correct golden example: largest of its logits, or of a translation's score",
            model,
            registry=self.registry,
        )
        self.canary_last_success = Gauge(
            "heed_canary_last_success_timestamp_seconds",
            "Unix time of the last golden example that was answered correctly",
            model,
            registry=self.registry,
        )
        self._requests: defaultdict[tuple[str, str, Protocol, Outcome], int] = defaultdict(int)
        self._failed_s: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._stages: defaultdict[tuple[str, str, Protocol], StageTimes] = defaultdict(StageTimes)
        self._batches: defaultdict[tuple[str, str], BatchTally] = defaultdict(BatchTally)
        self._scheduling: defaultdict[tuple[str, str], SchedulingTally] = defaultdict(SchedulingTally)
        self._explained: defaultdict[tuple[str, str], dict[str, ExplainTally]] = defaultdict(dict)
        self._budgets: list[ByteBudget] = []
        self._count_lost_log_lines: Callable[[], int] = lambda: 0
        self.registry.register(self)

    def count(self, model: str, version: str, protocol: Protocol, outcome: Outcome) -> None:
        """Count one request that has ended."""
        self._requests[model, version, protocol, outcome] += 1

    def add_failed_time(self, model: str, version: str, seconds: float) -> None:
        """Add the time that a counted request took until it failed."""
        self._failed_s[model, version] += seconds

    def stages(self, model: str, version: str, protocol: Protocol) -> StageTimes:
        """Return the stage times of a model version."""
        return self._stages[model, version, protocol]

    def explained(self, model: str, version: str, method: str) -> ExplainTally:
        """Return the counts of explanations of a model version by one method."""
        return self._explained[model, version].setdefault(method, ExplainTally())

    def batches(self, model: str, version: str) -> BatchTally:
        """Return the counts of engine calls of a model version."""
        return self._batches[model, version]

    def totals(self, model: str, version: str) -> ModelTotals:
        """Add up all that was counted for a model version, over both protocols."""
        return ModelTotals(
            requests={
                (protocol, outcome): number
                for protocol in PROTOCOLS
                for outcome in OUTCOMES
                if (number := self._requests.get((model, version, protocol, outcome)))
            },
            failed_s=self._failed_s.get((model, version), 0.0),
            stages=[each for protocol in PROTOCOLS if (each := self._stages.get((model, version, protocol)))],
            explained=list(self._explained.get((model, version), {}).values()),
            batches=self._batches.get((model, version)) or BatchTally(),
        )

    def show_budget(self, budget: ByteBudget) -> None:
        """Export how much of a memory budget is in use and how often it was too small."""
        self._budgets.append(budget)

    def show_lost_log_lines(self, count: Callable[[], int]) -> None:
        """Export how many log lines were lost; `count` is called at each scrape."""
        self._count_lost_log_lines = count

    def scheduling(self, model: str, version: str) -> SchedulingTally:
        """Return the counts of rows that the batcher of a model version refused or computed in vain."""
        return self._scheduling[model, version]

    def _collect_scheduling(self) -> Iterator[CounterMetricFamily]:
        model = ("model", "version")
        refused = CounterMetricFamily(
            "heed_deadline_refused_rows", "Rows refused at once: their deadline could not be met", labels=model
        )
        dropped = CounterMetricFamily(
            "heed_deadline_dropped_rows",
            "Rows that waited and were not computed: their deadline could no longer be met",
            labels=model,
        )
        in_vain = CounterMetricFamily("heed_rows_in_vain", "Rows computed after their caller had left", labels=model)
        terminated = CounterMetricFamily(
            "heed_terminated_calls",
            "Engine calls that were terminated: no caller was left (abandoned), or --engine-timeout-s passed (overdue)",
            labels=(*model, "reason"),
        )
        for key, tally in list(self._scheduling.items()):
            refused.add_metric(key, tally.refused_rows)
            dropped.add_metric(key, tally.dropped_rows)
            in_vain.add_metric(key, tally.rows_in_vain)
            for reason, number in list(tally.terminated.items()):
                terminated.add_metric((*key, reason), number)
        yield from (refused, dropped, in_vain, terminated)

    def exposition(self, accept: str) -> tuple[Iterator[bytes], str]:
        """Encode all metrics as text, in pieces, and return them with their content type.

        Another thread may iterate over the pieces. They may or may not contain what is counted meanwhile.

        Args:
            accept: the scraper's Accept header, which chooses between Prometheus' text format and OpenMetrics.
        """
        encode, content_type = choose_encoder(accept)
        return self._pieces(encode, is_openmetrics="openmetrics" in content_type), content_type

    def _pieces(self, encode: Callable[[Any], bytes], *, is_openmetrics: bool) -> Iterator[bytes]:
        for family in self.registry.collect():
            samples = list(family.samples)
            if not is_openmetrics:  # these belong to a family of their own, which must not be interleaved
                samples.sort(key=lambda sample: sample.name.endswith("_created"))
            headers = {b"# EOF\n"}
            for start in range(0, max(1, len(samples)), SERIES_PER_PIECE):
                piece = Metric(family.name, family.documentation, family.type, family.unit)
                piece.samples = samples[start : start + SERIES_PER_PIECE]
                lines = encode(_OneFamily(piece)).splitlines(keepends=True)
                yield b"".join(line for line in lines if line not in headers)
                headers.update(line for line in lines if line.startswith(b"# "))
        if is_openmetrics:
            yield b"# EOF\n"

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """Yield the metrics that are counted in plain numbers."""
        model = ("model", "version")
        requests = CounterMetricFamily("heed_requests", "Requests by outcome", labels=(*model, "protocol", "outcome"))
        for labels, number in list(self._requests.items()):
            requests.add_metric(labels, number)
        yield requests
        for attribute, (name, text) in STAGES.items():
            seconds = HistogramMetricFamily(name, text, labels=(*model, "protocol"))
            for key, stages in list(self._stages.items()):
                getattr(stages, attribute).add_to(seconds, key)
            yield seconds
        rows = HistogramMetricFamily("heed_batch_rows", "Rows of one engine call", labels=model)
        tokens = CounterMetricFamily("heed_batch_tokens", "Tokens computed, padding included", labels=model)
        padded = CounterMetricFamily("heed_padded_tokens", "Tokens computed that were padding", labels=model)
        for name_version, batches in list(self._batches.items()):
            batches.rows.add_to(rows, name_version)
            tokens.add_metric(name_version, batches.tokens)
            padded.add_metric(name_version, batches.padded_tokens)
        yield from (rows, tokens, padded)
        yield from self._collect_scheduling()
        by_method = (*model, "method")
        explain = HistogramMetricFamily(
            "heed_explain_seconds", "From the decoded request to its explanation", labels=by_method
        )
        evaluations = CounterMetricFamily(
            "heed_explain_evaluations", "Inputs evaluated by a model for explanations", labels=by_method
        )
        for name_version, explained in list(self._explained.items()):
            for method, tally in list(explained.items()):
                tally.seconds.add_to(explain, (*name_version, method))
                evaluations.add_metric((*name_version, method), tally.evaluations)
        yield from (explain, evaluations)
        yield from self._budget_families()
        lost = CounterMetricFamily(
            "heed_log_lines_lost", "Log lines that were not written: their reader has stopped, or the disk is full"
        )
        lost.add_metric((), self._count_lost_log_lines())
        yield lost

    def _budget_families(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        in_use = GaugeMetricFamily(
            "heed_memory_reserved_bytes", "Bytes of a memory budget that requests hold", labels=("budget",)
        )
        limit = GaugeMetricFamily("heed_memory_limit_bytes", "Size of a memory budget", labels=("budget",))
        refused = CounterMetricFamily(
            "heed_memory_refused", "Requests refused because a memory budget was used up", labels=("budget",)
        )
        for budget in list(self._budgets):
            in_use.add_metric([budget.name], budget.reserved_bytes)
            limit.add_metric([budget.name], budget.limit_bytes)
            refused.add_metric([budget.name], budget.refused)
        yield from (in_use, limit, refused)
