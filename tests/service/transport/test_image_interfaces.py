"""The same image gives the same answer and the same error over every interface."""

import base64
import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from export.conversion.golden_images import golden_images, gradient, shapes
from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.conftest import LABELS, Server, running_server
from tests.service.tasks.images.test_image_classification import file_of, png_header

MODELS = ("vit", "resnet9")
FILES = golden_images()


@pytest.fixture(scope="module")
def channel(image_server: Server) -> Iterator[grpc.Channel]:
    """Open a connection to the server."""
    with grpc.insecure_channel(image_server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def oip(channel: grpc.Channel) -> inference_pb2_grpc.GRPCInferenceServiceStub:
    """Open the Open Inference Protocol over gRPC."""
    return inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def typed(channel: grpc.Channel) -> heed_pb2_grpc.HeedStub:
    """Open the typed calls."""
    return heed_pb2_grpc.HeedStub(channel)


@pytest.fixture(scope="module")
def http(image_server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=image_server.http, timeout=30) as client:
        yield client


def image_request(files: list[bytes], model: str, *, raw: bool = False) -> inference_pb2.ModelInferRequest:
    """Make a request with files as typed or raw contents."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[len(files)])
    request = inference_pb2.ModelInferRequest(model_name=model, inputs=[tensor])
    if raw:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(file)) + file for file in files))
    else:
        request.inputs[0].contents.bytes_contents.extend(files)
    return request


def image_json(files: list[bytes]) -> dict[str, Any]:
    """Make the same request as JSON with base64."""
    data = [base64.b64encode(file).decode() for file in files]
    return {"inputs": [{"name": "image", "shape": [len(files)], "datatype": "BYTES", "data": data}]}


def binary_body(files: list[bytes]) -> tuple[bytes, dict[str, str]]:
    """Make the same request with the binary extension; return body and headers."""
    blob = b"".join(struct.pack("<I", len(file)) + file for file in files)
    tensor = {
        "name": "image",
        "shape": [len(files)],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(blob)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + blob, {"inference-header-content-length": str(len(head))}


def answers_of(response: httpx.Response) -> dict[str, list[Any]]:
    """Return the output tensors of a JSON answer."""
    return {output["name"]: output["data"] for output in response.raise_for_status().json()["outputs"]}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("what", FILES)
def test_every_interface_gives_the_same_answer(
    what: str,
    model: str,
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    typed: heed_pb2_grpc.HeedStub,
    http: httpx.Client,
) -> None:
    """gRPC (typed, raw), REST (JSON, binary, bare file), typed call and task API (file, JSON) agree."""
    file = FILES[what]
    outputs = {output.name: output.contents for output in oip.ModelInfer(image_request([file], model)).outputs}
    label = outputs["label"].bytes_contents[0].decode()
    probabilities = list(outputs["probabilities"].fp32_contents)
    assert label == LABELS[int(np.argmax(probabilities))]
    assert outputs["score"].fp32_contents[0] == max(probabilities)
    assert sum(probabilities) == pytest.approx(1.0)
    expected = pytest.approx(probabilities, abs=1e-6)

    raw = oip.ModelInfer(image_request([file], model, raw=True)).raw_output_contents
    assert np.frombuffer(raw[2], np.float32).tolist() == expected
    path = f"/v2/models/{model}/infer"
    body, headers = binary_body([file])
    for response in (http.post(path, json=image_json([file])), http.post(path, content=body, headers=headers)):
        found = answers_of(response)
        assert (found["label"], found["probabilities"]) == ([label], expected)
    bare = http.post(path, content=file, headers={"inference-header-content-length": "0"})
    assert np.frombuffer(bare.content[-4 * len(LABELS) :], np.float32).tolist() == expected

    answer = typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model=model, image=file))
    assert (answer.label, answer.score) == (label, pytest.approx(max(probabilities), abs=1e-6))
    by_label = {entry.label: entry.score for entry in answer.scores}
    assert [by_label[name] for name in LABELS] == expected
    assert list(by_label.values()) == sorted(by_label.values(), reverse=True)
    task = http.post(f"/models/{model}", content=file)
    document = {"inputs": base64.b64encode(file).decode()}
    assert task.json() == http.post(f"/models/{model}", json=document).json()
    assert [entry["score"] for entry in task.json()] == pytest.approx(sorted(probabilities, reverse=True)[:5], abs=1e-6)
    assert task.json()[0]["label"] == label


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_gives_the_same_answers_as_single_requests(model: str, http: httpx.Client) -> None:
    """Files of every kind and size agree within 1e-5, together and alone."""
    path, files = f"/v2/models/{model}/infer", list(FILES.values())
    together = answers_of(http.post(path, json=image_json(files)))
    alone = [answers_of(http.post(path, json=image_json([file]))) for file in files]
    assert together["label"] == [answer["label"][0] for answer in alone]
    rows = np.array(together["probabilities"]).reshape(len(files), len(LABELS))
    np.testing.assert_allclose(rows, [answer["probabilities"] for answer in alone], atol=1e-5)
    assert rows.std(axis=0).max() > 0.01


def refusals(
    file: bytes, oip: inference_pb2_grpc.GRPCInferenceServiceStub, typed: heed_pb2_grpc.HeedStub, http: httpx.Client
) -> dict[str, str]:
    """Return the errors of every interface by its name of the image; check codes and statuses."""
    texts = {}
    calls = {
        "image[0]": lambda: oip.ModelInfer(image_request([file], "vit")),
        "image": lambda: typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model="vit", image=file)),
    }
    for field, call in calls.items():
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        texts[field] = raised.value.details()
    body, headers = binary_body([file])
    rest = http.post("/v2/models/vit/infer", content=body, headers=headers)
    assert rest.json()["error"] == texts["image[0]"]
    in_json = http.post("/models/vit", json={"inputs": base64.b64encode(file).decode()})
    plain = http.post("/models/vit", content=file)
    assert [response.status_code for response in (rest, in_json, plain)] == [400, 400, 400]
    return texts | {"inputs": in_json.json()["error"], "the body": plain.json()["error"]}


JPEG = FILES["a JPEG"]
BAD_FILES = {
    "a text": (b"A wonderful film.", "is not a JPEG, PNG or WebP file, or its header is damaged"),
    "nothing": (b"", "is not a JPEG, PNG or WebP file, or its header is damaged"),
    "a GIF": (file_of(gradient(8, 8), "GIF"), "is not a JPEG, PNG or WebP file, or its header is damaged"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "cannot be decoded, the file is damaged: image file is truncated"),
    "a bomb": (png_header(9000, 9000), "has 9000 x 9000 pixels, more than the limit of 20000000 (max_image_pixels)"),
    "a larger bomb": (png_header(60000, 60000), "has more pixels than the limit of 20000000 (max_image_pixels)"),
    "an animation": (
        file_of(gradient(8, 8), "WEBP", save_all=True, append_images=[shapes(8, 8)]),
        "is animated, with 2 frames; send one of them",
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_gets_the_same_error_over_every_interface(
    what: str,
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    typed: heed_pb2_grpc.HeedStub,
    http: httpx.Client,
) -> None:
    """The text names the field as the client wrote it, and the limit."""
    file, expected = BAD_FILES[what]
    for field, text in refusals(file, oip, typed, http).items():
        # Base64 of data that is no image is not read as base64, and gets the same error.
        assert text.startswith(f"{field} {expected}"), field


def test_the_first_bad_file_of_a_request_is_named(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, http: httpx.Client
) -> None:
    """It is named by its index; too many, none, and a wrong name are refused as with texts."""
    files = [JPEG, file_of(gradient(3000, 3000))[:-2000], b"short", JPEG]
    with pytest.raises(grpc.RpcError) as raised:
        oip.ModelInfer(image_request(files, "vit"))
    assert raised.value.details().startswith("image[1] cannot be decoded")
    for bad, expected in (([JPEG] * 17, "17 inputs, the limit is 16"), ([], "the request has no inputs")):
        assert expected in http.post("/v2/models/vit/infer", json=image_json(bad)).json()["error"]
    wrong = image_json([JPEG])
    wrong["inputs"][0]["name"] = "text"
    assert "unknown input text; the model has image" in http.post("/v2/models/vit/infer", json=wrong).json()["error"]


def test_models_refuse_inputs_of_another_task(http: httpx.Client, typed: heed_pb2_grpc.HeedStub) -> None:
    """The interfaces are those without tensors."""
    with pytest.raises(grpc.RpcError, match="'vit' is not a text-classification model; it takes images"):
        typed.ClassifyText(heed_pb2.ClassifyTextRequest(model="vit", text="fine"))
    with pytest.raises(grpc.RpcError, match="'sentiment' is not an image-classification model; it takes texts"):
        typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model="sentiment", image=JPEG))
    with pytest.raises(grpc.RpcError, match="unknown model: 'nope'"):
        typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model="nope", image=JPEG))
    for request in ({"content": JPEG}, {"json": {"inputs": "fine"}}):
        unknown = http.post("/models/nope", **request)
        assert (unknown.status_code, "unknown model: 'nope'" in unknown.json()["error"]) == (404, True)
    refused = http.post("/models/vit", json={"inputs": "A wonderful film."})
    assert refused.json()["error"].startswith("inputs is not a JPEG, PNG or WebP file")
    assert "the body is not JSON" in http.post("/models/sentiment", content=JPEG).json()["error"]
    assert http.post("/models/sentiment", json={"inputs": "fine"}).json()[0][0]["label"] == "POSITIVE"


@pytest.mark.parametrize("content_type", [None, "image/jpeg", "application/x-www-form-urlencoded", "application/json"])
def test_the_content_type_of_a_file_does_not_matter(content_type: str | None, http: httpx.Client) -> None:
    """The types are those that curl, browsers and other clients send."""
    headers = {"content-type": content_type} if content_type else {}
    assert len(http.post("/models/vit", content=JPEG, headers=headers).raise_for_status().json()) == 5


def test_task_api_parameters(http: httpx.Client, typed: heed_pb2_grpc.HeedStub) -> None:
    """top_k and function_to_apply work; an invalid parameter is named."""

    def ask(**parameters: Any) -> httpx.Response:
        return http.post("/models/vit", json={"inputs": base64.b64encode(JPEG).decode(), "parameters": parameters})

    assert [len(ask(top_k=count).json()) for count in (1, 3, 100)] == [1, 3, len(LABELS)]
    logits = [entry["score"] for entry in ask(function_to_apply="none", top_k=7).json()]
    sigmoids = [entry["score"] for entry in ask(function_to_apply="sigmoid", top_k=7).json()]
    assert sigmoids == pytest.approx([1 / (1 + np.exp(-logit)) for logit in logits])
    assert "$.parameters.top_k" in ask(top_k=0).json()["error"]
    owners = "'truncation' belongs to tasks that read texts"
    assert f"{owners}; model 'vit' is an image-classification" in ask(truncation=True).json()["error"]
    assert ask(top_k=3.0, function_to_apply="SOFTMAX", explain=None).json() == ask(top_k=3).json()
    url = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
    by_url = http.post("/models/vit", json={"inputs": url, "parameters": None, "options": None, "stream": None})
    assert by_url.raise_for_status().json() == http.post("/models/vit", content=JPEG).json()
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [url]}
    answer = http.post("/v2/models/vit/infer", json={"inputs": [tensor]}).raise_for_status().json()["outputs"]
    assert (answer[0]["shape"], answer[0]["data"]) == ([1], [by_url.json()[0]["label"]])
    refused = http.post("/v2/models/vit/infer", json={"inputs": [tensor], "parameters": {"truncate": True}})
    assert (refused.status_code, "'truncate' belongs to text-classification, " in refused.text) == (400, True)
    assert http.post("/models/vit", json={"inputs": ["x"]}).status_code == 400
    assert len(typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model="vit", image=JPEG, top_k=2)).scores) == 2


def test_metadata_and_receipt(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub, typed: heed_pb2_grpc.HeedStub, http: httpx.Client
) -> None:
    """Tensors match the contract; every interface returns the stage times, decoding included."""
    document = http.get("/v2/models/vit").json()
    assert document["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [(output["name"], output["shape"]) for output in document["outputs"]] == [
        ("label", [-1]),
        ("score", [-1]),
        ("probabilities", [-1, len(LABELS)]),
    ]
    large = file_of(gradient(2000, 1500))
    receipt = typed.ClassifyImage(heed_pb2.ClassifyImageRequest(model="vit", image=large)).receipt
    assert (receipt.model_version, receipt.batch_size) == ("1", 1)
    assert receipt.preprocess_us > 1_000
    assert oip.ModelInfer(image_request([JPEG], "vit")).parameters["compute_us"].int64_param > 0
    assert http.post("/models/vit", content=JPEG).headers["x-heed-batch-size"] == "1"


def slow_file() -> bytes:
    """Make an image of a few kilobytes that takes a tenth of a second to decode."""
    return file_of(Image.new("RGB", (4000, 4000), "green"))


def test_a_deadline_ends_the_wait_for_decoding(http: httpx.Client) -> None:
    """The engine is not called."""
    response = http.post("/models/vit", content=slow_file(), headers={"x-request-timeout-ms": "5"})
    assert (response.status_code, response.json()["error"]) == (
        504,
        "the deadline passed before the images were decoded",
    )


def test_decoding_does_not_block_the_event_loop(http: httpx.Client, image_server: Server) -> None:
    """While slow images are decoded, far more other requests are answered than there are images."""
    num_images, num_answered = 8, 0
    body, headers = binary_body([slow_file()] * num_images)
    with ThreadPoolExecutor(1) as pool:
        url = f"{image_server.http}/v2/models/vit/infer"
        slow = pool.submit(httpx.post, url, content=body, headers=headers, timeout=60)
        while not slow.done():
            assert http.get("/healthz").status_code == 200
            num_answered += not slow.done()
    slow.result().raise_for_status()
    # A loop that were blocked for each image would answer once before, between and after them.
    assert num_answered > num_images + 1


def test_images_beyond_the_queue_are_refused_at_once(image_store: Any) -> None:
    """Of sixteen requests with four slow images the first are answered, the others get a time to retry.

    This holds over HTTP and over gRPC.
    """
    body, headers = binary_body([slow_file()] * 4)
    with (
        running_server(image_store, "--max-queue", "8", "--max-request-rows", "8") as server,
        ThreadPoolExecutor(16) as pool,
    ):

        def ask(number: int) -> httpx.Response:
            return httpx.post(f"{server.http}/v2/models/vit/infer", content=body, headers=headers, timeout=60)

        def ask_grpc(number: int) -> dict[str, str]:
            with grpc.insecure_channel(server.grpc) as channel:
                tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[4])
                tensor.contents.bytes_contents.extend([slow_file()] * 4)
                request = inference_pb2.ModelInferRequest(model_name="vit", inputs=[tensor])
                try:
                    inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                    return dict(error.trailing_metadata())
                return {}

        responses = list(pool.map(ask, range(16)))
        told = [metadata for metadata in pool.map(ask_grpc, range(16)) if metadata]
    assert told
    assert all(int(metadata["grpc-retry-pushback-ms"]) >= 1 for metadata in told)
    refused = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    assert all(
        "texts and images wait for preprocessing, the limit is 8" in response.json()["error"] for response in refused
    )
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)


def test_the_openapi_page_has_files_as_a_body(http: httpx.Client) -> None:
    """The JSON forms of both tasks are there too."""
    operation = http.get("/openapi.json").json()["paths"]["/models/{model}"]["post"]
    assert operation["requestBody"]["content"].keys() == {"application/json", "application/octet-stream"}
    assert "image classification" in operation["summary"]


def test_a_rotated_file_is_decoded_upright(http: httpx.Client) -> None:
    """An upright file gives the answer of the file that EXIF rotates."""
    turned = FILES["a JPEG that EXIF turns upright"]
    upright = Image.open(BytesIO(turned)).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    first, second = (http.post("/models/vit", content=file).json() for file in (turned, file_of(upright)))
    assert [entry["score"] for entry in first] == pytest.approx([entry["score"] for entry in second], abs=1e-6)
