"""The counters and histograms of `/metrics`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.telemetry.metrics import SERIES_PER_PIECE, Metrics
from service.telemetry.tallies import LATENCY_BUCKETS_S

seconds = st.floats(0, 100) | st.sampled_from(LATENCY_BUCKETS_S)


@given(st.lists(seconds, max_size=30))
def test_stages_are_exported_like_a_library_histogram(observed_s: list[float]) -> None:
    """Bounds, cumulation and sum are those of `prometheus_client.Histogram`, without its locks."""
    metrics, registry = Metrics(), CollectorRegistry()
    names = ["model", "version", "protocol"]
    library = Histogram("heed_queue_seconds", "", names, buckets=LATENCY_BUCKETS_S, registry=registry)
    ours, theirs = metrics.stages("a", "1", "grpc").queue, library.labels("a", "1", "grpc")
    for value_s in observed_s:
        ours.observe(value_s)
        theirs.observe(value_s)

    def lines(registry: CollectorRegistry) -> list[str]:
        text = generate_latest(registry).decode().splitlines()
        return [line for line in text if line.startswith("heed_queue_seconds_") and "_created" not in line]

    assert lines(metrics.registry) == lines(registry)


def test_counters_count() -> None:
    """Requests are counted by outcome, and batches with their tokens and padding."""
    metrics = Metrics()
    metrics.count("a", "1", "http", "ok")
    metrics.count("a", "1", "http", "ok")
    for _ in range(3):
        metrics.batches("a", "1").count(rows=4, tokens=40, padded_tokens=5, seconds=0.1)
    text = generate_latest(metrics.registry).decode()
    assert 'heed_requests_total{model="a",outcome="ok",protocol="http",version="1"} 2.0' in text
    assert 'heed_batch_rows_bucket{le="2.0",model="a",version="1"} 0.0' in text
    assert 'heed_batch_rows_bucket{le="4.0",model="a",version="1"} 3.0' in text
    assert 'heed_batch_tokens_total{model="a",version="1"} 120.0' in text
    assert 'heed_padded_tokens_total{model="a",version="1"} 15.0' in text


def test_an_exemplar_is_in_the_bucket_of_its_value() -> None:
    """OpenMetrics has the last one of each bucket; the plain text format has none."""
    metrics = Metrics()
    stages = metrics.stages("a", "1", "grpc")
    for value_s in (0.0002, 0.0003, 0.7, 70.0):
        stages.total.observe(value_s)
    plain = generate_latest(metrics.registry)
    for value_s, trace_id in ((0.0002, "first"), (0.0002, "second"), (0.7, "third"), (70.0, "fourth")):
        stages.exemplify(trace_id, total=value_s)
    families = text_string_to_metric_families(openmetrics.generate_latest(metrics.registry).decode())
    samples = next(family for family in families if family.name == "heed_request_seconds").samples
    found = {sample.labels["le"]: sample.exemplar for sample in samples if sample.exemplar}
    assert {bound: (each.labels["trace_id"], each.value) for bound, each in found.items()} == {
        "0.00025": ("second", 0.0002),
        "1.0": ("third", 0.7),
        "+Inf": ("fourth", 70.0),
    }
    changing = re.compile(rb"^(process|python)_.*$", re.MULTILINE)
    assert changing.sub(b"", generate_latest(metrics.registry)) == changing.sub(b"", plain)


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_a_scrape_of_many_models_is_written_in_pieces(accept: str) -> None:
    """Each piece has a bounded number of series, and together they equal the library's output."""
    metrics = Metrics()
    for number in range(300):
        metrics.count(f"model {number}", "1", "http", "ok")
        metrics.stages(f"model {number}", "1", "http").observe(*[0.1] * 5)
        metrics.canary_runs.labels(f"model {number}", "1", "ok").inc()
        metrics.ready.labels(f"model {number}", "1").set(1)
    pieces, content_type = metrics.exposition(accept)
    texts = list(pieces)
    assert len(texts) > 300 * 5 * len(LATENCY_BUCKETS_S) / SERIES_PER_PIECE
    series = [[line for line in text.splitlines() if not line.startswith(b"# ")] for text in texts]
    assert max(map(len, series)) <= SERIES_PER_PIECE
    encode, expected_type = choose_encoder(accept)
    changing = re.compile(rb"^(process|python)_.*$", re.MULTILINE)
    assert changing.sub(b"", b"".join(texts)) == changing.sub(b"", encode(metrics.registry))
    assert content_type == expected_type
