"""Triton's extensions over HTTP and gRPC: configuration, statistics, index, and the calls that are refused."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from onnx import TensorProto, helper

from proto import inference_pb2, inference_pb2_grpc
from service.transport import extension_documents as documents
from tests.conftest import Server, running_server, write_endless, write_onnx

ROWS = 64  # --max-request-rows of the server


@pytest.fixture(scope="module")
def oip(server: Server) -> Iterator[inference_pb2_grpc.GRPCInferenceServiceStub]:
    """Open the Open Inference Protocol over gRPC."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def as_json(message: Any) -> Any:
    """Return the fields of a message that are set, in the form of Triton's JSON but for 64-bit numbers as texts."""
    return MessageToDict(message, preserving_proto_field_name=True)


def without_defaults(document: Any) -> Any:
    """Return a document as `as_json` would: without zeros and empty values, 64-bit numbers as texts."""
    if isinstance(document, dict):
        return {
            name: str(value) if name in ("count", "ns", "batch_size") else without_defaults(value)
            for name, value in document.items()
            if value not in (0, "", [], False)
        }
    return [without_defaults(each) for each in document] if isinstance(document, list) else document


def tensor(document: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    """Return the configuration of a tensor."""
    (found,) = [each for each in document[part] if each["name"] == name]
    return found


def test_the_configuration_says_which_requests_are_accepted(http: httpx.Client) -> None:
    """With a batch dimension, `max_batch_size` is the limit on rows, and one row more is refused."""
    config = http.get("/v2/models/sentiment/config").json()
    assert config == http.get("/v2/models/sentiment/versions/1/config").json()
    assert (config["platform"], config["backend"]) == ("onnxruntime_onnx", "onnxruntime")
    assert config["max_batch_size"] == ROWS
    text = {"name": "text", "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}, "format": "FORMAT_NONE"}
    assert tensor(config, "input", "text") == text
    assert tensor(config, "output", "score")["reshape"] == {"shape": []}
    assert "reshape" not in tensor(config, "output", "probabilities")
    assert tensor(config, "output", "probabilities")["dims"] == [2]
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 0}
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["version_policy"] == {"all": {}}
    for rows, status in ((ROWS, 200), (ROWS + 1, 400)):
        texts = {"name": "text", "shape": [rows], "datatype": "BYTES", "data": ["good"] * rows}
        assert http.post("/v2/models/sentiment/infer", json={"inputs": [texts]}).status_code == status


def test_dimensions_of_tensors_without_a_batch_dimension_are_whole(http: httpx.Client) -> None:
    """A graph that combines its elements has `max_batch_size` 0; one with rows leaves the first dimension out."""
    total, double = (http.get(f"/v2/models/{name}/config").json() for name in ("sum", "double"))
    assert (total["max_batch_size"], tensor(total, "input", "x")["dims"]) == (0, [2])
    assert "dynamic_batching" not in total
    assert (double["max_batch_size"], tensor(double, "input", "x")["dims"]) == (ROWS, [3])
    types = {each["data_type"] for each in http.get("/v2/models/all-types/config").json()["input"]}
    assert types <= set(inference_pb2.DESCRIPTOR.pool.FindEnumTypeByName("inference.DataType").values_by_name)
    assert len(types) == 12


def test_a_batched_model_without_further_dimensions_takes_both_shapes_of_its_configuration(tmp_path: Path) -> None:
    """`dims` [1] is how Triton writes it: clients that read it send [n, 1], others send the [n] of the metadata."""
    rows = (TensorProto.FLOAT, ["rows"])
    write_onnx(tmp_path / "twice/1", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": rows}, {"y": rows})
    whole = (TensorProto.FLOAT, [2])
    write_onnx(tmp_path / "whole/1", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": whole}, {"y": whole})
    with running_server(tmp_path) as server, httpx.Client(base_url=server.http, timeout=30) as client:
        config = client.get("/v2/models/twice/config").json()
        for each in (tensor(config, "input", "x"), tensor(config, "output", "y")):
            assert (each["dims"], each["reshape"]) == ([1], {"shape": []})
        assert client.get("/v2/models/twice").json()["inputs"][0]["shape"] == [-1]
        config = client.get("/v2/models/whole/config").json()
        assert (config["max_batch_size"], tensor(config, "input", "x")["dims"]) == (0, [2])
        assert "reshape" not in tensor(config, "input", "x")
        for model, shape, expected in (
            ("twice", [2], 200),
            ("twice", [2, 1], 200),
            ("twice", [1, 2], 400),
            ("twice", [2, 1, 1], 400),
            ("whole", [2], 200),
            ("whole", [2, 1], 400),  # here 2 does not count rows
        ):
            sent = {"name": "x", "shape": shape, "datatype": "FP32", "data": [1.5, 2.0]}
            answer = client.post(f"/v2/models/{model}/infer", json={"inputs": [sent]})
            assert answer.status_code == expected
            if expected == 200:
                (output,) = answer.json()["outputs"]
                assert (output["shape"], output["data"]) == ([2], [3.0, 4.0])


@pytest.mark.parametrize("model", ["sentiment", "double", "sum", "all-types"])
def test_the_configuration_is_the_same_over_grpc(
    model: str, http: httpx.Client, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """The message has the fields of the JSON document."""
    told = http.get(f"/v2/models/{model}/config").json()
    config = oip.ModelConfig(inference_pb2.ModelConfigRequest(name=model)).config
    assert config.HasField("dynamic_batching") == ("dynamic_batching" in told)
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    for part in ("input", "output"):
        for each, message in zip(told[part], getattr(config, part), strict=True):
            assert (message.name, list(message.dims)) == (each["name"], each["dims"])
            assert message.HasField("reshape") == ("reshape" in each)
            assert (
                inference_pb2.DESCRIPTOR.pool.FindEnumTypeByName("inference.DataType").values[message.data_type].name
                == (each["data_type"])
            )
    assert (config.name, config.max_batch_size, config.backend) == (model, told["max_batch_size"], told["backend"])


def test_a_translation_says_that_it_streams_on_request(translation_server: Server) -> None:
    """`decoupled` is false, because clients would refuse ordinary calls; a parameter names the request's own."""
    config = httpx.get(f"{translation_server.http}/v2/models/dogs/config").json()
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert "stream" in config["parameters"]["stream"]["string_value"]
    assert 1 <= config["max_batch_size"] <= 16


def test_the_beams_of_a_translation_are_no_inferences(translation_server: Server) -> None:
    """They take rows, so a request may have fewer texts; a step of the search is an engine call."""
    with httpx.Client(base_url=translation_server.http, timeout=30) as client:
        most = client.get("/v2/models/dogs/config").json()["max_batch_size"]
        before = statistics(client, "dogs")
        for texts, parameters, status in ((most, {}, 200), (2, {"num_beams": 4}, 200), (most + 1, {}, 400)):
            tensor = {"name": "text", "shape": [texts], "datatype": "BYTES", "data": ["three blue dogs"] * texts}
            body = {"inputs": [tensor], "parameters": parameters}
            assert client.post("/v2/models/dogs/infer", json=body).status_code == status
        after = statistics(client, "dogs")
    assert after["inference_count"] - before["inference_count"] == most + 2
    counts = [told["inference_stats"]["success"]["count"] for told in (before, after)]
    assert counts[1] - counts[0] == 2
    assert after["execution_count"] - before["execution_count"] > 2


@pytest.mark.parametrize(("model", "status"), [("nope", 404), ("damaged", 503), ("sentiment/versions/9", 404)])
def test_models_that_are_not_served_have_neither_configuration_nor_statistics(
    model: str, status: int, http: httpx.Client
) -> None:
    """The errors are those of a request."""
    for what in ("config", "stats"):
        answer = http.get(f"/v2/models/{model}/{what}")
        assert (answer.status_code, set(answer.json())) == (status, {"error"})


def statistics(http: httpx.Client, model: str) -> dict[str, Any]:
    """Return the statistics of a model's only version."""
    (document,) = http.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return dict(document)


def test_statistics_count_every_request_once(
    http: httpx.Client, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """Answers and failures of both interfaces, at any stage; rows are inferences; explanations are requests too."""
    before = statistics(http, "sentiment")
    rows = {"name": "text", "shape": [3], "datatype": "BYTES", "data": ["good", "bad", "dull"]}
    wrong = {"name": "words", "shape": [1], "datatype": "BYTES", "data": ["good"]}
    start_ms = 1e3 * time.time()
    assert http.post("/v2/models/sentiment/infer", json={"inputs": [rows]}).status_code == 200
    assert http.post("/models/sentiment", json={"inputs": "good"}).status_code == 200
    message = inference_pb2.ModelInferRequest(model_name="sentiment")
    message.inputs.add(name="text", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"good", b"bad"])
    oip.ModelInfer(message)
    one = rows | {"shape": [1], "data": ["good"]}
    assert http.post("/v2/models/sentiment/versions/1/explain", json={"inputs": [one]}).status_code == 200
    assert http.post("/v2/models/sentiment/infer", json={"inputs": [wrong]}).status_code == 400
    assert http.post("/v2/models/sentiment/infer", content=b"{").status_code == 400
    message.inputs[0].shape[0] = 5
    with contextlib.suppress(grpc.RpcError):
        oip.ModelInfer(message)
    after = statistics(http, "sentiment")

    def grown(*path: str) -> int:
        old, new = before, after
        for step in path:
            old, new = old[step], new[step]
        return int(new) - int(old)  # type: ignore[call-overload, no-any-return]

    assert grown("inference_count") == 3 + 1 + 2
    assert grown("inference_stats", "success", "count") == 4
    assert grown("inference_stats", "fail", "count") == 3
    assert grown("inference_stats", "fail", "ns") > 0
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert grown("inference_stats", stage, "count") == 3
    assert grown("inference_stats", "compute_infer", "ns") > 0
    assert start_ms - 1 <= after["last_inference"] <= 1e3 * time.time() + 1
    assert sum(size["compute_infer"]["count"] for size in after["batch_stats"]) == after["execution_count"]
    assert grown("execution_count") > 3  # the explanation evaluates the model
    totals = http.get("/metrics").text.splitlines()
    counted = sum(
        float(line.rsplit(" ", 1)[1]) for line in totals if line.startswith('heed_requests_total{model="sentiment"')
    )
    stats = after["inference_stats"]
    assert stats["success"]["count"] + stats["fail"]["count"] == counted


def test_statistics_are_the_same_over_grpc(
    http: httpx.Client, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """All models, the versions of one, and one version."""
    for name, version, path in (
        ("", "", "/v2/models/stats"),
        ("sentiment", "", "/v2/models/sentiment/stats"),
        ("sentiment", "1", "/v2/models/sentiment/versions/1/stats"),
    ):
        told = http.get(path).json()["model_stats"]
        messages = oip.ModelStatistics(inference_pb2.ModelStatisticsRequest(name=name, version=version)).model_stats
        assert [each["name"] for each in told] == [message.name for message in messages]
        for each, message in zip(told, messages, strict=True):
            assert int(each["inference_count"]) == message.inference_count
            stats = {stage: without_defaults(value) for stage, value in each["inference_stats"].items()}
            assert stats == {stage: as_json(getattr(message.inference_stats, stage)) for stage in stats}
            assert without_defaults(each["batch_stats"]) == [
                without_defaults(as_json(size)) | {"compute_input": {}, "compute_output": {}}
                for size in message.batch_stats
            ]
    assert "sentiment" in [each["name"] for each in http.get("/v2/models/stats").json()["model_stats"]]


def test_the_index_has_every_folder_with_its_state(
    http: httpx.Client, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """Folders that are not served say why; `ready` leaves them out."""
    entries = http.post("/v2/repository/index").json()
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name["sentiment"] == {"name": "sentiment", "version": "1", "state": "READY", "reason": ""}
    for name in ("broken", "damaged", "no-version"):
        assert by_name[name]["state"] == "UNAVAILABLE"
        assert by_name[name]["reason"]
    ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert ready == [entry for entry in entries if entry["state"] == "READY"]
    for only_ready, told in ((False, entries), (True, ready)):
        answer = oip.RepositoryIndex(inference_pb2.RepositoryIndexRequest(ready=only_ready))
        assert as_json(answer)["models"] == [without_defaults(entry) for entry in told]


def test_the_index_says_which_models_are_loading(tmp_path: Path) -> None:
    """Their state is not decided yet; they are not among the ready ones."""
    write_endless(tmp_path / "models/endless/1")
    with running_server(tmp_path / "models", until="listening") as running:
        with httpx.Client(base_url=running.http, timeout=30) as client:
            (entry,) = client.post("/v2/repository/index").json()
            assert (entry["name"], entry["version"], entry["state"]) == ("endless", "1", "LOADING")
            assert client.post("/v2/repository/index", content=b'{"ready": true}').json() == []
            assert client.get("/v2/models/endless/config").status_code == 503
        running.popen.kill()  # loading never ends


@pytest.mark.parametrize(
    ("body", "status"), [(b"[]", 400), (b'{"ready": 1}', 400), (b'{"redy": true}', 400), (b" " * 20_000, 413)]
)
def test_a_wrong_request_for_the_index_is_refused(body: bytes, status: int, http: httpx.Client) -> None:
    """Also a misspelt field, and a body beyond any index request."""
    assert http.post("/v2/repository/index", content=body).status_code == status


def test_another_repository_is_refused(oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """The server has one store."""
    with pytest.raises(grpc.RpcError) as refused:
        oip.RepositoryIndex(inference_pb2.RepositoryIndexRequest(repository_name="other"))
    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.UNIMPLEMENTED,
        documents.ONE_REPOSITORY,
    )


@pytest.mark.parametrize(
    ("method", "path", "why"),
    [
        ("POST", "/v2/repository/models/sentiment/load", documents.STORE_DECIDES),
        ("POST", "/v2/repository/models/sentiment/unload", documents.STORE_DECIDES),
        ("POST", "/v2/systemsharedmemory/region/a/register", documents.NO_SHARED_MEMORY),
        ("POST", "/v2/systemsharedmemory/region/a/unregister", documents.NO_SHARED_MEMORY),
        ("POST", "/v2/systemsharedmemory/unregister", documents.NO_SHARED_MEMORY),
        ("POST", "/v2/cudasharedmemory/region/a/register", documents.NO_SHARED_MEMORY),
        ("POST", "/v2/cudasharedmemory/unregister", documents.NO_SHARED_MEMORY),
        ("GET", "/v2/trace/setting", documents.NO_TRACE_SETTING),
        ("POST", "/v2/models/sentiment/trace/setting", documents.NO_TRACE_SETTING),
        ("GET", "/v2/logging", documents.NO_LOG_SETTINGS),
        ("POST", "/v2/logging", documents.NO_LOG_SETTINGS),
    ],
)
def test_routes_that_are_not_offered_say_so(method: str, path: str, why: str, http: httpx.Client) -> None:
    """They answer 501 with the reason, whatever the body."""
    answer = http.request(method, path, content=b"{}" if method == "POST" else None)
    assert (answer.status_code, answer.json()) == (501, {"error": why})


@pytest.mark.parametrize(
    ("call", "request_message", "why"),
    [
        ("RepositoryModelLoad", inference_pb2.RepositoryModelLoadRequest(model_name="m"), documents.STORE_DECIDES),
        ("RepositoryModelUnload", inference_pb2.RepositoryModelUnloadRequest(), documents.STORE_DECIDES),
        # KServe's dialect has the model's name in field 1, where Triton's has that of the repository.
        (
            "RepositoryModelLoad",
            inference_pb2.RepositoryModelLoadRequest(repository_name="m"),
            documents.STORE_DECIDES,
        ),
        ("SystemSharedMemoryRegister", inference_pb2.SystemSharedMemoryRegisterRequest(), documents.NO_SHARED_MEMORY),
        (
            "SystemSharedMemoryUnregister",
            inference_pb2.SystemSharedMemoryUnregisterRequest(),
            documents.NO_SHARED_MEMORY,
        ),
        ("CudaSharedMemoryRegister", inference_pb2.CudaSharedMemoryRegisterRequest(), documents.NO_SHARED_MEMORY),
        ("CudaSharedMemoryUnregister", inference_pb2.CudaSharedMemoryUnregisterRequest(), documents.NO_SHARED_MEMORY),
        ("TraceSetting", inference_pb2.TraceSettingRequest(), documents.NO_TRACE_SETTING),
        ("LogSettings", inference_pb2.LogSettingsRequest(), documents.NO_LOG_SETTINGS),
    ],
)
def test_calls_that_are_not_offered_say_so(
    call: str, request_message: Any, why: str, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """They answer UNIMPLEMENTED with the reason."""
    with pytest.raises(grpc.RpcError) as refused:
        getattr(oip, call)(request_message, timeout=60)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, why)


def test_the_files_of_a_model_do_not_hide_why_loading_is_refused(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    """A request with a model's content is longer than other administrative messages may be."""
    message = inference_pb2.RepositoryModelLoadRequest(model_name="m")
    message.parameters["file:1/model.onnx"].bytes_param = bytes(500_000)
    with pytest.raises(grpc.RpcError) as refused:
        oip.RepositoryModelLoad(message, timeout=60)
    assert refused.value.details() == documents.STORE_DECIDES


def test_there_are_no_regions_of_shared_memory(
    http: httpx.Client, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """The status of all is an empty list; that of a named region is an error."""
    for kind in ("system", "cuda"):
        assert http.get(f"/v2/{kind}sharedmemory/status").json() == []
        assert http.get(f"/v2/{kind}sharedmemory/region/a/status").status_code == 404
    assert not oip.SystemSharedMemoryStatus(inference_pb2.SystemSharedMemoryStatusRequest()).regions
    assert not oip.CudaSharedMemoryStatus(inference_pb2.CudaSharedMemoryStatusRequest()).regions
    with pytest.raises(grpc.RpcError) as unknown:
        oip.SystemSharedMemoryStatus(inference_pb2.SystemSharedMemoryStatusRequest(name="a"))
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_refused_administration_counts_as_no_inference(http: httpx.Client) -> None:
    """The metrics of requests do not change."""

    def counted() -> list[str]:
        lines = http.get("/metrics").text.splitlines()
        return [line for line in lines if line.startswith("heed_requests_total{")]

    before = counted()
    http.post("/v2/repository/models/sentiment/load")
    http.post("/v2/repository/index", content=b"[]")
    assert counted() == before


def test_an_unknown_model_is_not_ready(http: httpx.Client, oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """Over gRPC the answer is false, as Triton's; over HTTP the status is an error."""
    for name, version in (("nope", ""), ("sentiment", "9"), ("damaged", "")):
        assert not oip.ModelReady(inference_pb2.ModelReadyRequest(name=name, version=version)).ready
    assert oip.ModelReady(inference_pb2.ModelReadyRequest(name="sentiment")).ready
    assert http.get("/v2/models/nope/ready").status_code == 404
    assert http.get("/v2/models/sentiment/versions/9/ready").status_code == 404


def test_pieces_are_refused_by_calls_that_have_one_answer(
    http: httpx.Client, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """The error names the call that has them."""
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}
    answer = http.post("/v2/models/sentiment/infer", json={"inputs": [text], "parameters": {"stream": True}})
    assert answer.status_code == 501
    request = inference_pb2.ModelInferRequest(model_name="sentiment")
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"good")
    request.parameters["stream"].bool_param = True
    with pytest.raises(grpc.RpcError) as refused:
        oip.ModelInfer(request, timeout=60)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "ModelStreamInfer" in refused.value.details()


def test_offered_extensions_are_advertised(http: httpx.Client) -> None:
    """By Triton's names; those that are not offered are absent."""
    extensions = set(http.get("/v2").json()["extensions"])
    assert {"model_configuration", "statistics", "binary_tensor_data"} <= extensions
    assert extensions.isdisjoint({"model_repository", "system_shared_memory", "cuda_shared_memory", "trace", "logging"})
