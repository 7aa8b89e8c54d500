"""Traces of a real server, received by an OTLP collector."""

import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from onnx import TensorProto, helper
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.conftest import ROOT, Server, running_server, write_onnx

WAIT_S = 60.0  # only a failing test waits this long
ERROR, UNSET = trace_pb2.Status.STATUS_CODE_ERROR, trace_pb2.Status.STATUS_CODE_UNSET
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0; charset=utf-8"}
STAGES = ["preprocess", "queue", "compute", "postprocess"]
TEXT = "two blue dogs"
LONG = 4000  # tokens of a translation that is cancelled


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OpenTelemetry collector that accepts all traces."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.spans: list[trace_pb2.Span] = []
        self.resources: list[dict[str, Any]] = []
        self._came = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, the protocol's name
        """Keep the spans of a request."""
        with self._came:
            for resource_spans in request.resource_spans:
                self.resources.append(values(resource_spans.resource.attributes))
                for scope_spans in resource_spans.scope_spans:
                    self.spans.extend(scope_spans.spans)
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: str) -> list[trace_pb2.Span]:
        """Return the received spans of a trace."""
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def trace(self, trace_id: str) -> tuple[trace_pb2.Span, list[trace_pb2.Span]]:
        """Return the server span of a trace, which ends last, and the others by their start."""

        def server_spans() -> list[trace_pb2.Span]:
            return [span for span in self.of(trace_id) if span.kind == trace_pb2.Span.SPAN_KIND_SERVER]

        with self._came:
            assert self._came.wait_for(server_spans, WAIT_S), f"no server span of {trace_id}"
            (server_span,) = server_spans()
            children = [span for span in self.of(trace_id) if span is not server_span]
        return server_span, sorted(children, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))


def values(attributes: Any) -> dict[str, Any]:
    """Return attributes as Python values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    """Run a collector; return it with its address."""
    collecting, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collecting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collecting, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def traced(collector: tuple[Collector, str], translation_store: Path) -> Iterator[Server]:
    """Run a server that samples all requests unless their caller decides otherwise."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[1])
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        with running_server(translation_store, "--tracing", "on", "--max-request-rows", "16") as running:
            yield running


class Caller:
    """The W3C trace context that a caller sends with one request."""

    def __init__(self, *, sampled: bool = True) -> None:
        """A new trace."""
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        parent = f"00-{self.trace_id}-{self.span_id}-{'01' if sampled else '00'}"
        self.headers = {"traceparent": parent, "tracestate": "vendor=abc,other=1"}
        self.metadata = tuple(self.headers.items())


def ask(server: Server, protocol: str, model: str, text: str, caller: Caller, timeout_s: float = WAIT_S) -> Any:
    """Send one text to a classifier or to the translation model `dogs`; return the receipt or the error's code."""
    if protocol == "http":
        headers = caller.headers | {"x-request-id": "mine", "x-request-timeout-ms": str(int(1e3 * timeout_s))}
        body = {"inputs": text} | ({"parameters": {"max_new_tokens": LONG}} if model == "endless" else {})
        answer = httpx.post(f"{server.http}/models/{model}", json=body, headers=headers, timeout=WAIT_S)
        if answer.status_code != 200:
            return answer.status_code
        return {name: int(answer.headers[f"x-heed-{name}-us"]) for name in STAGES}
    with grpc.insecure_channel(server.grpc) as channel:
        stub = heed_pb2_grpc.HeedStub(channel)
        metadata = (*caller.metadata, ("x-request-id", "mine"))
        try:
            if model in ("dogs", "endless"):
                most = LONG if model == "endless" else None
                request = heed_pb2.TranslateRequest(model=model, text=text, max_new_tokens=most)
                receipt = stub.Translate(request, metadata=metadata, timeout=timeout_s).receipt
            else:
                request = heed_pb2.ClassifyTextRequest(model=model, text=text)
                receipt = stub.ClassifyText(request, metadata=metadata, timeout=timeout_s).receipt
        except grpc.RpcError as error:
            return error.code().name
        return {name: getattr(receipt, f"{name}_us") for name in STAGES}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("model", "compute"), [("sentiment", "compute"), ("dogs", "decode")])
def test_a_request_continues_its_callers_trace(
    protocol: str, model: str, compute: str, traced: Server, collector: tuple[Collector, str]
) -> None:
    """Stages are children of the server span, in order, with the durations of the receipt."""
    caller = Caller()
    receipt = ask(traced, protocol, model, TEXT, caller)
    server_span, stages = collector[0].trace(caller.trace_id)
    assert (server_span.parent_span_id.hex(), server_span.trace_state) == (caller.span_id, "vendor=abc,other=1")
    assert [stage.name for stage in stages] == ["preprocess", "queue", compute, "postprocess"]
    assert {stage.parent_span_id for stage in stages} == {server_span.span_id}
    for stage, receipt_us in zip(stages, receipt.values(), strict=True):
        assert 0 <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert abs((stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e3 - receipt_us) <= 2, stage.name
    ends = [server_span.start_time_unix_nano]
    for stage in stages:
        assert stage.start_time_unix_nano >= ends[-1]
        ends.append(stage.end_time_unix_nano)
    assert stages[1].start_time_unix_nano == stages[0].end_time_unix_nano
    assert stages[2].start_time_unix_nano == stages[1].end_time_unix_nano
    assert ends[-1] <= server_span.end_time_unix_nano
    assert abs(server_span.start_time_unix_nano - time.time_ns()) < WAIT_S * 1e9
    assert {stage.status.code for stage in (server_span, *stages)} == {UNSET}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("model", "compute"), [("sentiment", "compute"), ("dogs", "decode")])
def test_an_explanation_is_one_stage_after_the_prediction(
    protocol: str, model: str, compute: str, traced: Server, collector: tuple[Collector, str]
) -> None:
    """Everything that is computed for it is in that stage."""
    caller = Caller()
    if protocol == "http":
        body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}
        path = f"/v2/models/{model}/explain"
        answer = httpx.post(f"{traced.http}{path}", json=body, headers=caller.headers, timeout=WAIT_S)
        assert answer.status_code == 200
    else:
        with grpc.insecure_channel(traced.grpc) as channel:
            request = heed_pb2.ExplainRequest(model=model, text=TEXT)
            heed_pb2_grpc.HeedStub(channel).Explain(request, metadata=caller.metadata, timeout=WAIT_S)
    server_span, stages = collector[0].trace(caller.trace_id)
    assert server_span.name == ("POST /v2/models/{model}/explain" if protocol == "http" else "heed.v1.Heed/Explain")
    assert [stage.name for stage in stages] == ["preprocess", "queue", compute, "explain", "postprocess"]
    for before, after in itertools.pairwise(stages):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    assert values(server_span.attributes)["heed.engine_calls"] > 1


def test_spans_have_attributes(traced: Server, collector: tuple[Collector, str]) -> None:
    """Attributes use the semantic conventions where there are any."""
    callers = {"http": Caller(), "grpc": Caller()}
    found = {}
    for protocol, caller in callers.items():
        ask(traced, protocol, "sentiment", TEXT, caller)
        found[protocol], stages = collector[0].trace(caller.trace_id)
        batch = values(stages[2].attributes)
        assert (batch["heed.batch.rows"], batch["heed.batch.tokens"] > 3) == (1, True)
        ours = {name: value for name, value in values(found[protocol].attributes).items() if name.startswith("heed.")}
        described = {"heed.model.name": "sentiment", "heed.model.version": "1", "heed.request_id": "mine"}
        assert ours == described | batch | {"heed.outcome": "ok", "heed.engine_calls": 1}
    assert found["http"].name == "POST /models/{model}"
    assert found["grpc"].name == "heed.v1.Heed/ClassifyText"
    theirs = values(found["http"].attributes) | values(found["grpc"].attributes)
    assert {name: value for name, value in theirs.items() if not name.startswith("heed.")} == {
        "http.request.method": "POST",
        "http.route": "/models/{model}",
        "http.response.status_code": 200,
        "url.path": "/models/sentiment",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "rpc.system.name": "grpc",
        "rpc.method": "heed.v1.Heed/ClassifyText",
        "rpc.response.status_code": "OK",
    }
    assert {resource["service.name"] for resource in collector[0].resources} == {"heed"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_stream_is_traced_to_its_end(protocol: str, traced: Server, collector: tuple[Collector, str]) -> None:
    """The first piece comes during decoding, and the server span ends after it."""
    caller = Caller()
    if protocol == "http":
        body = {"inputs": TEXT, "stream": True}
        answer = httpx.post(f"{traced.http}/models/dogs", json=body, headers=caller.headers, timeout=WAIT_S)
        assert "translation_text" in answer.text
    else:
        with grpc.insecure_channel(traced.grpc) as channel:
            request = heed_pb2.TranslateRequest(model="dogs", text=TEXT)
            chunks = list(heed_pb2_grpc.HeedStub(channel).TranslateStream(request, metadata=caller.metadata))
        assert chunks[-1].whole.translation
    server_span, stages = collector[0].trace(caller.trace_id)
    assert [stage.name for stage in stages] == ["preprocess", "queue", "decode", "postprocess"]
    (event,) = server_span.events
    assert event.name == "first piece"
    assert stages[2].start_time_unix_nano < event.time_unix_nano <= server_span.end_time_unix_nano
    assert stages[-1].end_time_unix_nano <= server_span.end_time_unix_nano
    assert values(server_span.attributes)["heed.outcome"] == "ok"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_cancelled_stream_is_traced_as_cancelled(
    protocol: str, traced: Server, collector: tuple[Collector, str]
) -> None:
    """It is no error of the server."""
    caller = Caller()
    if protocol == "http":
        body = {"inputs": TEXT, "stream": True, "parameters": {"max_new_tokens": LONG}}
        with httpx.stream(
            "POST", f"{traced.http}/models/endless", json=body, headers=caller.headers, timeout=WAIT_S
        ) as answer:
            next(answer.iter_bytes())
    else:
        with grpc.insecure_channel(traced.grpc) as channel:
            request = heed_pb2.TranslateRequest(model="endless", text=TEXT, max_new_tokens=LONG)
            stream = heed_pb2_grpc.HeedStub(channel).TranslateStream(request, metadata=caller.metadata)
            next(stream)
            stream.cancel()
    server_span, stages = collector[0].trace(caller.trace_id)
    assert values(server_span.attributes)["heed.outcome"] == "cancelled"
    assert server_span.status.code == UNSET
    assert [(stage.name, stage.status.code) for stage in stages] == [("submit", ERROR)]


FAILURES = {
    "invalid": ("sentiment", "", WAIT_S, (400, "INVALID_ARGUMENT"), UNSET),
    "not_found": ("nothing", TEXT, WAIT_S, (404, "NOT_FOUND"), UNSET),
    "expired": ("endless", TEXT, 0.15, (504, "DEADLINE_EXCEEDED"), ERROR),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("outcome", FAILURES)
def test_failures_have_a_status_and_a_stage(
    protocol: str, outcome: str, traced: Server, collector: tuple[Collector, str]
) -> None:
    """Both protocols are alike; invalid requests are no errors of the server."""
    model, text, timeout_s, codes, status = FAILURES[outcome]
    caller = Caller()
    assert ask(traced, protocol, model, text, caller, timeout_s) == codes[protocol == "grpc"]
    server_span, stages = collector[0].trace(caller.trace_id)
    attributes = values(server_span.attributes)
    assert (attributes["heed.outcome"], attributes["error.type"]) == (outcome, outcome)
    assert server_span.status.code == status
    assert attributes["heed.model.name"] == ("(unknown)" if outcome == "not_found" else model)
    if protocol == "http":
        assert attributes["http.response.status_code"] == codes[0]
    failed = {"invalid": ["preprocess"], "not_found": [], "expired": ["submit"]}[outcome]
    assert [(stage.name, stage.status.code) for stage in stages] == [(name, ERROR) for name in failed]
    assert all(stage.status.message for stage in stages)


def test_the_caller_decides_what_is_sampled(traced: Server, collector: tuple[Collector, str]) -> None:
    """A trace that the caller does not sample has no spans."""
    silent, heard = Caller(sampled=False), Caller()
    for protocol in ("http", "grpc"):
        ask(traced, protocol, "sentiment", TEXT, silent)
    ask(traced, "grpc", "sentiment", TEXT, heard)
    collector[0].trace(heard.trace_id)  # earlier spans have arrived
    assert collector[0].of(silent.trace_id) == []


def test_each_request_of_a_stream_of_requests_has_its_span(traced: Server, collector: tuple[Collector, str]) -> None:
    """One is answered, one is refused; both continue the trace of the stream's caller."""
    caller, method = Caller(), "inference.GRPCInferenceService/ModelStreamInfer"
    requests = []
    for model in ("sentiment", "nope"):
        request = inference_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"good")
        requests.append(request)
    with grpc.insecure_channel(traced.grpc) as channel:
        stream = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        answers = list(stream(iter(requests), metadata=caller.metadata, timeout=WAIT_S))
    assert [bool(answer.error_message) for answer in answers] == [False, True]

    def spans() -> list[trace_pb2.Span]:
        return [span for span in collector[0].of(caller.trace_id) if span.kind == trace_pb2.Span.SPAN_KIND_SERVER]

    with collector[0]._came:
        assert collector[0]._came.wait_for(lambda: len(spans()) == 2, WAIT_S)
    assert {span.name for span in spans()} == {method}
    assert [values(span.attributes)["heed.outcome"] for span in spans()] == ["ok", "not_found"]


def test_exemplars_lead_from_a_latency_to_its_trace(traced: Server) -> None:
    """Only OpenMetrics has them, only for sampled requests, in the bucket of their time."""
    callers = {"http": Caller(), "grpc": Caller()}
    for protocol, caller in callers.items():
        ask(traced, protocol, "sentiment", TEXT, caller)
    answer = httpx.get(f"{traced.http}/metrics", headers=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    for name in ("request", *STAGES):
        exemplars = {
            sample.labels["protocol"]: sample
            for sample in families[f"heed_{name}_seconds"].samples
            if sample.exemplar and sample.exemplar.labels["trace_id"] in {each.trace_id for each in callers.values()}
        }
        assert exemplars.keys() == callers.keys(), name
        for protocol, sample in exemplars.items():
            assert sample.labels["model"] == "sentiment"
            assert sample.exemplar.labels == {"trace_id": callers[protocol].trace_id}
            assert sample.exemplar.value <= float(sample.labels["le"])
    silent = Caller(sampled=False)
    ask(traced, "http", "sentiment", TEXT, silent)
    assert silent.trace_id not in httpx.get(f"{traced.http}/metrics", headers=OPENMETRICS).text
    plain = httpx.get(f"{traced.http}/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert "heed_request_seconds_bucket" in plain.text
    assert "trace_id" not in plain.text


def make_bare(store: Path) -> Path:
    """Make a store with a model that loads at once."""
    rows = (TensorProto.FLOAT, ["rows", 1])
    write_onnx(store / "double/1", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": rows}, {"y": rows})
    return store


def double(server: Server, rows: int = 1, headers: dict[str, str] | None = None) -> list[float]:
    """Return the answer of that model."""
    body = {"inputs": [{"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": list(range(rows))}]}
    request = urllib.request.Request(
        f"{server.http}/v2/models/double/infer", json.dumps(body).encode(), headers=headers or {}
    )
    with urllib.request.urlopen(request, timeout=WAIT_S) as response:
        data: list[float] = json.load(response)["outputs"][0]["data"]
        return data


def test_standard_variables_apply_and_shutdown_exports_pending_spans(
    tmp_path: Path, collector: tuple[Collector, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables set sampler and service name."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[1])
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "doubles")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    caller, others = Caller(), Caller(sampled=False)
    with running_server(make_bare(tmp_path), "--tracing", "on", "--max-batch-rows", "4") as server:
        before = len(collector[0].spans)
        for _ in range(5):
            assert double(server) == [0.0]  # these are roots, none of which is sampled
        assert double(server, headers=others.headers) == [0.0]
        assert double(server, rows=6, headers=caller.headers) == [0, 2, 4, 6, 8, 10]
        assert len(collector[0].spans) == before
        assert server.stop() == 0
    server_span, stages = collector[0].trace(caller.trace_id)
    assert len(collector[0].spans) == before + 1 + len(stages)
    assert server_span.name == "POST /v2/models/{model}/infer"
    assert collector[0].resources[-1]["service.name"] == "doubles"
    calls = values(server_span.attributes)["heed.engine_calls"]
    computing = [values(stage.attributes) for stage in stages if stage.name == "compute"]
    assert 2 <= calls == len(computing) == len([stage for stage in stages if stage.name == "queue"])
    assert sum(each["heed.batch.rows"] for each in computing) == 6


@pytest.mark.parametrize("away", ["refuses", "never answers"])
def test_a_missing_collector_blocks_nothing(away: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered beyond the span buffer, and the server drains and ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
        if away == "refuses":
            listener.close()
        with running_server(make_bare(tmp_path), "--tracing", "on", "--drain-timeout-s", "60") as server:
            for _ in range(50):
                assert double(server) == [0.0]
            began_s = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began_s < 30  # a fraction of what the drain may take
            server.wait_for("stopped")
            errors = [entry for entry in server.log if entry.get("level") == "error"]
            # The exporter may log its own failure.
            assert not [entry for entry in errors if not entry.get("logger", "").startswith("opentelemetry.")]


def run_service(store: Path, *options: str, without_extra: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a server that ends by itself."""
    hidden = "sys.modules['opentelemetry'] = None; " if without_extra else ""
    code = f"import sys; {hidden}from service.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--http-port", "0", "--grpc-port", "0", "--model-store", str(store)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEED_")}
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, cwd=ROOT, timeout=WAIT_S, env=environment
    )


def test_without_its_extra_tracing_is_refused_at_start(tmp_path: Path) -> None:
    """Tracing is never silently off."""
    store = make_bare(tmp_path)
    run = run_service(store, "--tracing", "on", without_extra=True)
    assert run.returncode == 1
    assert '"event": "cannot trace"' in run.stderr
    assert "--tracing on needs the extra: pip install 'heed[tracing]'" in run.stderr
    # With tracing off it starts as usual, and fails at the missing store.
    run = run_service(tmp_path / "nowhere", without_extra=True)
    assert (run.returncode, "is not a folder" in run.stderr) == (1, True), run.stderr


def test_unsupported_variables_are_refused_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the standard variable."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    run = run_service(make_bare(tmp_path), "--tracing", "on")
    assert run.returncode == 1
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; the protocol offered is grpc" in run.stderr


def test_a_server_without_tracing_does_not_import_opentelemetry() -> None:
    """A new process imports all modules of the server."""
    code = "import sys, service.__main__, service.server; print('opentelemetry' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "False"
