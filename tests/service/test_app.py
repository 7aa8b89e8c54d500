"""A server without sockets answers as one with sockets does."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio

from export.conversion.golden_images import golden_images
from proto import heed_pb2, heed_pb2_grpc
from service.app import App, build
from service.config import ServiceConfig
from service.errors import NotFound, Unavailable
from service.prediction.messages import ExplainRequest, RequestOptions
from service.tasks.images.image_classification import ImageClassification
from service.tasks.text.classification import TextClassification
from service.tasks.translation import Translation
from service.tensors import bytes_array
from tests.conftest import ROOT, Server

pytestmark = pytest.mark.asyncio(loop_scope="module")  # all tests share an app, which belongs to its event loop

TEXTS = ["A wonderful film.", "Two hours of my life that I will never get back."]
SOURCE = "Two children are playing in the snow."
FILE = next(iter(golden_images().values()))
# Values that say how and when an answer was computed.
TIMES = {"x-request-id", "x-heed-preprocess-us", "x-heed-queue-us", "x-heed-compute-us", "x-heed-postprocess-us"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[App]:
    """A server of this process with the models of the repository."""
    app = build(ServiceConfig(model_store=ROOT / "model_store", canary_interval_s=0.0), num_cores=2)
    async with app.running():
        yield app


def options(model: str) -> RequestOptions:
    """Return the options of a request in this process."""
    return RequestOptions(model=model, version="", protocol="http", request_id="1")


@pytest.mark.parametrize(
    ("path", "content", "body"),
    [
        ("/models/sentiment-small", None, {"inputs": TEXTS, "parameters": {"top_k": 2}}),
        (
            "/models/sentiment-small",
            None,
            {"inputs": TEXTS[0], "parameters": {"explain": {"method": "shap", "seed": 7}}},
        ),
        ("/models/translation-en-de", None, {"inputs": SOURCE, "parameters": {"num_beams": 2}}),
        ("/models/translation-en-de", None, {"inputs": SOURCE, "stream": True}),
        ("/models/cifar10-vit", FILE, None),
        ("/models/sentiment-small", None, {"inputs": ""}),
        ("/models/unknown", None, {"inputs": "x"}),
        ("/v2/models/translation-en-de", None, None),
        ("/v2/models", None, None),
        ("/openapi.json", None, None),
        ("/readyz", None, None),
    ],
)
async def test_http_answers_are_those_of_a_server(
    app: App, committed_server: Server, path: str, content: bytes | None, body: dict[str, Any] | None
) -> None:
    """Status, body and headers are equal, but for times and ids."""
    method = "GET" if content is None and body is None else "POST"
    transport = httpx.ASGITransport(app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as here:
        embedded = await here.request(method, path, content=content, json=body)
    async with httpx.AsyncClient(base_url=committed_server.http) as there:
        served = await there.request(method, path, content=content, json=body)
    assert (embedded.status_code, content_of(embedded)) == (served.status_code, content_of(served))
    assert {*embedded.headers} - {*served.headers} <= TIMES
    assert embedded.headers.get("content-type") == served.headers.get("content-type")


def content_of(response: httpx.Response) -> Any:
    """Return a response's content without what differs between two runs."""
    if response.headers["content-type"].startswith("application/json"):
        return without_times(response.json())
    return [line for line in response.text.splitlines() if "receipt" not in line]


def without_times(document: Any) -> Any:
    """Remove times, ids, and the port that a server has."""
    if isinstance(document, dict):
        changing = {"id", "receipt", "parameters", "seconds", "grpc_port", "evaluations"}
        return {name: without_times(value) for name, value in document.items() if name not in changing}
    if isinstance(document, list):
        return [without_times(value) for value in document]
    return round(document, 5) if isinstance(document, float) else document


async def test_predictor_answers_are_those_of_typed_calls(app: App, committed_server: Server) -> None:
    """Texts, images and translations, and the tensors of the Open Inference Protocol."""
    classified, _ = await app.predictor.answer(options("sentiment-small"), TextClassification, TEXTS)
    (recognised,), _ = await app.predictor.answer(options("cifar10-vit"), ImageClassification, [FILE])
    (translated,), receipt = await app.predictor.answer(options("translation-en-de"), Translation, [SOURCE])
    tensors, _ = await app.predictor.infer(options("cifar10-vit"), {"image": bytes_array([base64.b64encode(FILE)])})
    async with grpc.aio.insecure_channel(committed_server.grpc) as channel:
        call = heed_pb2_grpc.HeedStub(channel)
        for text, classification in zip(TEXTS, classified, strict=True):
            served = await call.ClassifyText(heed_pb2.ClassifyTextRequest(model="sentiment-small", text=text))
            assert served.label == classification.labels[0]
            assert served.score == pytest.approx(classification.scores[0], abs=1e-5)
        served = await call.ClassifyImage(heed_pb2.ClassifyImageRequest(model="cifar10-vit", image=FILE))
        assert served.label == recognised.labels[0] == tensors["label"].item(0).decode()
        served = await call.Translate(heed_pb2.TranslateRequest(model="translation-en-de", text=SOURCE))
        assert (served.translation, served.num_tokens) == (translated.text, translated.num_tokens)
    assert receipt.model_version == "1"
    np.testing.assert_allclose(tensors["probabilities"].sum(), 1, atol=1e-5)


async def test_an_embedded_server_explains_and_counts(app: App) -> None:
    """Its metrics are its own."""
    inputs = {"text": bytes_array([TEXTS[0].encode()])}
    explained, _ = await app.predictor.explain(options("sentiment-small"), inputs, ExplainRequest("gradients"))
    assert explained.explanation.weights
    labels = {"model": "sentiment-small", "version": "1", "protocol": "http", "outcome": "ok"}
    assert app.metrics.registry.get_sample_value("heed_requests_total", labels)
    with pytest.raises(NotFound):
        await app.predictor.answer(options("unknown"), TextClassification, TEXTS)


async def test_two_apps_of_one_process_are_independent(app: App) -> None:
    """The end of one refuses its requests and leaves the other alone."""
    other = build(ServiceConfig(model_store=ROOT / "model_store", canary_interval_s=0.0), num_cores=1)
    async with other.running():
        await other.predictor.answer(options("sentiment-small"), TextClassification, TEXTS)
    with pytest.raises(Unavailable, match="the server is shutting down"):
        await other.predictor.answer(options("sentiment-small"), TextClassification, TEXTS)
    await app.predictor.answer(options("sentiment-small"), TextClassification, TEXTS)
