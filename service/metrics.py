"""The Prometheus metrics: base units, bounded labels, one histogram for each stage of a request."""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

Protocol = Literal["grpc", "http"]
# How a request can end; the label is bounded by this list.
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
# Requests for names that are not in the store share this label value, or a client could make series without end.
UNKNOWN_MODEL = "(unknown)"


@dataclass(frozen=True)
class StageTimes:
    """The stages' histograms of one model version and protocol, label look-ups done."""

    total: Histogram
    preprocess: Histogram
    queue: Histogram
    compute: Histogram
    postprocess: Histogram


class Metrics:
    """All series of one server, on a registry of its own: two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        r, model = self.registry, ["model", "version"]
        self.requests = Counter(
            "heed_requests_total",
            "Requests by how they ended",
            [*model, "protocol", "outcome"],
            registry=r,
        )
        self._seconds = {
            stage: Histogram(
                f"heed_{name}_seconds",
                text,
                [*model, "protocol"],
                buckets=LATENCY_BUCKETS_S,
                registry=r,
            )
            for stage, name, text in (
                ("total", "request", "From the decoded request to its answer"),
                ("preprocess", "preprocess", "Text or image to model input"),
                ("queue", "queue", "From submission to the start of the engine call"),
                ("compute", "compute", "The engine call that computed the answer"),
                ("postprocess", "postprocess", "Model output to answer"),
            )
        }
        self.batch_rows = Histogram(
            "heed_batch_rows",
            "Rows of one engine call",
            model,
            buckets=ROW_BUCKETS,
            registry=r,
        )
        self.batch_tokens = Counter(
            "heed_batch_tokens_total",
            "Tokens computed, padding included",
            model,
            registry=r,
        )
        self.padded_tokens = Counter(
            "heed_padded_tokens_total",
            "Tokens computed that were padding",
            model,
            registry=r,
        )
        self.queue_rows = Gauge("heed_queue_rows", "Rows that wait for an engine", model, registry=r)
        self.in_flight_rows = Gauge("heed_in_flight_rows", "Rows inside an engine call", model, registry=r)
        self.ready = Gauge(
            "heed_model_ready",
            "1 while the model would answer correctly",
            model,
            registry=r,
        )
        self._stages: dict[tuple[str, str, Protocol], StageTimes] = {}
        self._outcomes: dict[tuple[str, str, Protocol, Outcome], Counter] = {}

    def stages(self, model: str, version: str, protocol: Protocol) -> StageTimes:
        """The stage histograms of a model version."""
        key = (model, version, protocol)
        if key not in self._stages:
            self._stages[key] = StageTimes(**{stage: series.labels(*key) for stage, series in self._seconds.items()})
        return self._stages[key]

    def count(self, model: str, version: str, protocol: Protocol, outcome: Outcome) -> None:
        """Count one request that has ended."""
        key = (model, version, protocol, outcome)
        if key not in self._outcomes:
            self._outcomes[key] = self.requests.labels(*key)
        self._outcomes[key].inc()
