"""NVIDIA's `tritonclient` works unchanged: HTTP, gRPC, asyncio and streams, binary and JSON tensors, administration."""

import json
import queue
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from export.conversion.golden_images import golden_images
from tests.conftest import ROOT, Server, running_server, write_onnx

TEXTS = ["A wonderful film.", "An awful, tedious mess."]
EXPECTED = [b"POSITIVE", b"NEGATIVE"]
SLOW = [" ".join(TEXTS * 15)] * 64  # some tenths of a second of work


def address(server: Server, module: ModuleType) -> str:
    """Return the address that the client of a module connects to."""
    return server.grpc if "grpc" in module.__name__ else server.http.removeprefix("http://")


def text_input(module: ModuleType, texts: Sequence[str] = TEXTS, **options: Any) -> Any:
    """Make a BYTES tensor of texts."""
    tensor = module.InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object), **options)
    return tensor


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_sync_clients(module: ModuleType, server: Server) -> None:
    """Readiness, metadata, inference and errors work over HTTP and gRPC."""
    with module.InferenceServerClient(address(server, module)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sentiment")
        assert client.is_model_ready("sentiment", "1")
        assert not client.is_model_ready("damaged")
        result = client.infer("sentiment", [text_input(module)], request_id="7")
        assert result.as_numpy("label").tolist() == EXPECTED
        assert result.as_numpy("probabilities").shape == (2, 2)
        wanted = [module.InferRequestedOutput("score")]
        only = client.infer("sentiment", [text_input(module)], model_version="1", outputs=wanted, timeout=10_000_000)
        assert only.as_numpy("label") is None
        assert (only.as_numpy("score") > 0.5).all()
        floats = module.InferInput("x", [1, 3], "FP32")
        floats.set_data_from_numpy(np.array([[1, 2, 3]], np.float32))
        assert client.infer("double", [floats]).as_numpy("y").tolist() == [[2, 4, 6]]
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.infer("nope", [text_input(module)])


@pytest.mark.parametrize("binary", [True, False])
def test_http_tensors_as_binary_and_as_json(binary: bool, server: Server) -> None:
    """Inputs and outputs are both binary, or both JSON."""
    module = tritonclient.http
    with module.InferenceServerClient(address(server, module)) as client:
        metadata = client.get_model_metadata("sentiment")
        assert [tensor["name"] for tensor in metadata["outputs"]] == ["label", "score", "probabilities"]
        extensions = client.get_server_metadata()["extensions"]
        assert {"binary_tensor_data", "explain", "explain:shap", "explain:attention", "device:cpu"} <= set(extensions)
        wanted = [module.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
        result = client.infer("sentiment", [text_input(module, binary_data=binary)], outputs=wanted)
        assert [np.asarray(label).item() for label in result.as_numpy("label")] in (
            EXPECTED,
            [e.decode() for e in EXPECTED],
        )
        np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_classification(module: ModuleType, server: Server) -> None:
    """`class_count` of a requested output gives its best classes, in Triton's format and shape."""
    with module.InferenceServerClient(address(server, module)) as client:
        plain = client.infer("sentiment", [text_input(module)]).as_numpy("probabilities")
        wanted = [module.InferRequestedOutput("probabilities", class_count=1)]
        best = client.infer("sentiment", [text_input(module)], outputs=wanted).as_numpy("probabilities")
        assert best.tolist() == [[b"%f:1:POSITIVE" % plain[0, 1]], [b"%f:0:NEGATIVE" % plain[1, 0]]]
        floats = module.InferInput("x", [2, 3], "FP32")
        floats.set_data_from_numpy(np.array([[1, 2, 3], [6, 5, 4]], np.float32))
        wanted = [module.InferRequestedOutput("y", class_count=2)]
        best = client.infer("double", [floats], outputs=wanted).as_numpy("y")
        assert best.tolist() == [[b"6.000000:2", b"4.000000:1"], [b"12.000000:0", b"10.000000:1"]]
        # A label is the best of the probabilities, so that all outputs of a classifier can be asked for in this form.
        wanted = [module.InferRequestedOutput("label", class_count=1)]
        best = client.infer("sentiment", [text_input(module)], outputs=wanted).as_numpy("label")
        assert best.tolist() == [[b"%f:1:POSITIVE" % plain[0, 1]], [b"%f:0:NEGATIVE" % plain[1, 0]]]
        wanted = [module.InferRequestedOutput("copy", class_count=1)]
        with pytest.raises(InferenceServerException, match="classification is for numbers"):
            client.infer("same", [text_input(module)], outputs=wanted)


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_what_is_not_offered(module: ModuleType, server: Server) -> None:
    """Sequences and shared memory are refused by name; priorities change no answer."""
    with module.InferenceServerClient(address(server, module)) as client:
        for sequence in (7, "seven"):
            with pytest.raises(InferenceServerException, match="'sequence_id' is not offered"):
                client.infer("sentiment", [text_input(module)], sequence_id=sequence, sequence_start=True)
        shared = module.InferInput("text", [2], "BYTES")
        shared.set_shared_memory("region", 64)
        with pytest.raises(InferenceServerException, match="shared_memory_region is not offered"):
            client.infer("sentiment", [shared])
        wanted = module.InferRequestedOutput("score")
        wanted.set_shared_memory("region", 8)
        with pytest.raises(InferenceServerException, match="shared_memory_region is not offered"):
            client.infer("sentiment", [text_input(module)], outputs=[wanted])
        neutral = client.infer("sentiment", [text_input(module)], sequence_id=0, priority=1, timeout=10_000_000)
        assert neutral.as_numpy("label").tolist() == EXPECTED


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_texts_as_rows_of_one_element(module: ModuleType, server: Server) -> None:
    """Models on Triton take BYTES [n, 1], with a batch dimension."""
    tensor = module.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=object))
    with module.InferenceServerClient(address(server, module)) as client:
        assert client.infer("sentiment", [tensor]).as_numpy("label").tolist() == EXPECTED


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(algorithm: str, server: Server) -> None:
    """Requests over HTTP may be compressed, answers are not; over gRPC the error names the algorithm."""
    texts = TEXTS * 30
    with tritonclient.http.InferenceServerClient(address(server, tritonclient.http)) as client:
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        result = client.infer("sentiment", [text_input(tritonclient.http, texts)], **options)
        assert result.as_numpy("label").tolist() == EXPECTED * 30
    with tritonclient.grpc.InferenceServerClient(address(server, tritonclient.grpc)) as client:
        with pytest.raises(InferenceServerException, match=f"Compression algorithm '{algorithm}' is disabled"):
            client.infer("sentiment", [text_input(tritonclient.grpc, texts)], compression_algorithm=algorithm)
        assert client.infer("sentiment", [text_input(tritonclient.grpc)]).as_numpy("label").tolist() == EXPECTED


def test_a_model_without_inputs(tmp_path: Path) -> None:
    """Its answer is raw over gRPC, the only form that the client reads."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [2, 3], [0.5, 2, 1, 4, 8, 6])
    outputs = {"y": (TensorProto.FLOAT, [2, 3])}
    write_onnx(tmp_path / "constant/1", [helper.make_node("Constant", [], ["y"], value=value)], {}, outputs)
    with running_server(tmp_path) as server:
        for module in (tritonclient.http, tritonclient.grpc):
            with module.InferenceServerClient(address(server, module)) as client:
                assert client.infer("constant", []).as_numpy("y").tolist() == [[0.5, 2, 1], [4, 8, 6]]
                wanted = [module.InferRequestedOutput("y", class_count=1)]
                best = client.infer("constant", [], outputs=wanted).as_numpy("y")
                assert best.tolist() == [[b"2.000000:1"], [b"8.000000:1"]]


def test_grpc_metadata_and_client_deadline(server: Server) -> None:
    """A client's own deadline ends the call with an error that says so."""
    module = tritonclient.grpc
    with module.InferenceServerClient(address(server, module)) as client:
        assert [tensor.name for tensor in client.get_model_metadata("sentiment").inputs] == ["text"]
        assert client.get_server_metadata().name == "heed"
        with pytest.raises(InferenceServerException, match="Deadline Exceeded|deadline"):
            client.infer("sentiment", [text_input(module, SLOW)], client_timeout=0.01)


@pytest.mark.parametrize("module", [tritonclient.http.aio, tritonclient.grpc.aio])
async def test_asyncio_clients(module: ModuleType, server: Server) -> None:
    """The asyncio clients get the same answers as the blocking ones."""
    async with module.InferenceServerClient(address(server, module)) as client:
        assert await client.is_server_ready()
        result = await client.infer("sentiment", [text_input(module)])
        assert result.as_numpy("label").tolist() == EXPECTED


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_images(module: ModuleType, committed_server: Server) -> None:
    """Encoded image files are sent as BYTES."""
    files = list(golden_images().values())[:3]
    tensor = module.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object))
    with module.InferenceServerClient(address(committed_server, module)) as client:
        result = client.infer("cifar10-vit", [tensor])
    labels = json.loads((ROOT / "model_store/cifar10-vit/1/manifest.json").read_text())["labels"]
    best_B = result.as_numpy("probabilities").argmax(axis=1)
    assert result.as_numpy("label").tolist() == [labels[number].encode() for number in best_B]


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_configuration_statistics_and_index(module: ModuleType, server: Server) -> None:
    """The answers have the same content over HTTP and gRPC; a model that is unknown is not ready."""
    as_json = {} if module is tritonclient.http else {"as_json": True}
    with module.InferenceServerClient(address(server, module)) as client:
        config = client.get_model_config("sentiment", **as_json)
        config = config.get("config", config)
        assert config["max_batch_size"] == 64
        assert config["input"][0]["data_type"] == "TYPE_STRING"
        before = client.get_inference_statistics("sentiment", **as_json)["model_stats"][0]
        client.infer("sentiment", [text_input(module)])
        after = client.get_inference_statistics("sentiment", "1", **as_json)["model_stats"][0]
        assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == len(TEXTS)
        assert int(after["inference_stats"]["queue"]["count"]) > 0
        everything = client.get_inference_statistics(**as_json)["model_stats"]
        assert "sentiment" in [each["name"] for each in everything]
        index = client.get_model_repository_index(**as_json)
        entries = index["models"] if isinstance(index, dict) else index
        assert {each["name"]: each["state"] for each in entries}.items() >= {
            "sentiment": "READY",
            "damaged": "UNAVAILABLE",
        }.items()
        assert not client.is_model_ready("nope")
        assert not client.is_model_ready("sentiment", "9")
        assert {"statistics", "model_configuration"} <= set(client.get_server_metadata(**as_json)["extensions"])


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_what_is_not_offered_is_refused_with_the_reason(module: ModuleType, server: Server) -> None:
    """Loading, shared memory, trace and log settings; the status of shared memory is an empty list."""
    with module.InferenceServerClient(address(server, module)) as client:
        for call, why in (
            (lambda: client.load_model("sentiment"), "the folders of the store"),
            (lambda: client.unload_model("sentiment"), "the folders of the store"),
            (lambda: client.register_system_shared_memory("a", "/a", 8), "shared memory is not offered"),
            (client.unregister_cuda_shared_memory, "shared memory is not offered"),
            (client.get_trace_settings, "trace settings"),
            (lambda: client.update_log_settings({"log_info": False}), "log settings"),
        ):
            with pytest.raises(InferenceServerException, match=why):
                call()
        for status in (client.get_system_shared_memory_status(), client.get_cuda_shared_memory_status()):
            assert not getattr(status, "regions", status)


class Answers:
    """Collects the results and errors of a stream."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def __call__(self, result: Any, error: Any) -> None:
        """Keep a result or an error; called by the client's thread."""
        self._queue.put((result, error))

    def next(self) -> tuple[Any, Any]:
        """Return the next result and error, one of which is None."""
        return self._queue.get(timeout=60)


def test_a_stream_of_requests(server: Server) -> None:
    """Answers come in the order of the requests, an error among them; each is marked as the last one to its request."""
    module, answers = tritonclient.grpc, Answers()
    with module.InferenceServerClient(address(server, module)) as client:
        client.start_stream(answers)
        client.async_stream_infer("sentiment", [text_input(module)], request_id="1", enable_empty_final_response=True)
        client.async_stream_infer("nope", [text_input(module)], request_id="2")
        client.async_stream_infer("sentiment", [text_input(module, TEXTS[:1])], request_id="3")
        got = [answers.next() for _ in range(3)]
        client.stop_stream()
    (first, _), (_, error), (third, _) = got
    assert first.as_numpy("label").tolist() == EXPECTED
    assert "Request for unknown model" in str(error)
    assert third.as_numpy("label").tolist() == EXPECTED[:1]
    for result, request_id in ((first, "1"), (third, "3")):
        assert result.get_response().id == request_id
        assert result.get_response().parameters["triton_final_response"].bool_param


def test_a_translation_is_streamed_as_a_client_of_decoupled_models_reads_it(committed_server: Server) -> None:
    """The loop ends at the answer that is marked as the last one, and has the whole text by then."""
    module, answers, pieces = tritonclient.grpc, Answers(), []
    with module.InferenceServerClient(address(committed_server, module)) as client:
        text = text_input(module, ["The dog is asleep."])
        whole = client.infer("translation-en-de", [text], parameters={"num_beams": 1})
        client.start_stream(answers)
        client.async_stream_infer(
            "translation-en-de",
            [text],
            enable_empty_final_response=True,
            parameters={"stream": True},
        )
        while True:
            result, error = answers.next()
            assert error is None
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
            pieces += result.as_numpy("translation").tolist()
        client.stop_stream()
    assert len(pieces) > 1
    assert b"".join(pieces) == whole.as_numpy("translation").tolist()[0]
    np.testing.assert_allclose(result.as_numpy("score"), whole.as_numpy("score"), rtol=1e-5)


async def test_an_asyncio_stream_of_requests(server: Server) -> None:
    """The asyncio client iterates over the answers."""
    module = tritonclient.grpc.aio

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            yield {"model_name": "sentiment", "inputs": [text_input(module)], "request_id": str(number)}

    async with module.InferenceServerClient(address(server, module)) as client:
        ids = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            assert result.as_numpy("label").tolist() == EXPECTED
            ids.append(result.get_response().id)
    assert ids == ["0", "1", "2"]
