"""NVIDIA's `tritonclient` works unchanged: HTTP, gRPC and asyncio clients, binary and JSON tensors."""

from collections.abc import Sequence
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
from tests.conftest import LABELS, Server, running_server, write_onnx

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
        with pytest.raises(InferenceServerException, match="classification is for numbers"):
            client.infer(
                "sentiment", [text_input(module)], outputs=[module.InferRequestedOutput("label", class_count=1)]
            )


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
def test_images(module: ModuleType, image_server: Server) -> None:
    """Encoded image files are sent as BYTES."""
    files = list(golden_images().values())[:3]
    tensor = module.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object))
    with module.InferenceServerClient(address(image_server, module)) as client:
        result = client.infer("resnet9", [tensor])
    best_B = result.as_numpy("probabilities").argmax(axis=1)
    assert result.as_numpy("label").tolist() == [LABELS[number].encode() for number in best_B]
