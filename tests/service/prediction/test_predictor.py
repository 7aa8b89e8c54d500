"""The predictor, with an engine that the tests hold: batches, failures, deadlines, drain."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from service.app import App
from service.config import ServiceConfig
from service.errors import DeadlineExceeded, EngineFailed, InvalidRequest, NotFound, Overloaded, Unavailable
from service.models.repository import ModelRepository
from service.prediction.messages import Receipt, RequestOptions
from service.prediction.predictor import Predictor
from service.tasks.classification import Classification
from service.tasks.images.image_classification import ImageClassification
from service.tasks.text.classification import TextClassification
from service.telemetry.metrics import Metrics
from service.tensors import bytes_array
from tests.service.held_engine import MODEL, held_app, request

CALL = RequestOptions(model="same", version="", protocol="grpc", request_id="1")


async def test_before_the_store_is_read_no_model_is_unknown(tmp_path: Path) -> None:
    """Transports listen while models load: a request that comes so early is unavailable, its model not unknown."""
    repository = ModelRepository(config := ServiceConfig(model_store=tmp_path), metrics := Metrics(), num_cores=1)
    predictor = Predictor(repository, metrics, config)
    for version in ("", "1"):
        with pytest.raises(Unavailable, match="models are loading"):
            await predictor.infer(msgspec.structs.replace(CALL, version=version), {})
        assert predictor.catalog.problem_of("same", version) == "models are loading"
    predictor.accounting.count_failure("same", "", "grpc", "1", "unavailable", "models are loading")
    assert repository.not_ready_because() == "models are loading"
    await repository.load_all()
    with pytest.raises(NotFound, match="'same' is not in the store"):
        await predictor.infer(CALL, {})
    repository.close()


async def test_requests_that_wait_for_the_engine_share_its_next_call(tmp_path: Path) -> None:
    """The receipt of each says so."""
    async with held_app(tmp_path) as (app, engine):
        engine.held = True
        asking = [asyncio.create_task(classify(app, "film 0"))]
        assert await engine.next_call() == 1
        asking += [asyncio.create_task(classify(app, f"film {number}")) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        engine.release(2)
        assert await engine.next_call() == 3
        receipts = [(await request)[1] for request in asking]
    assert engine.calls == [1, 3]
    assert [receipt.batch_size for receipt in receipts] == [1, 3, 3, 3]
    assert {receipt.model_version for receipt in receipts} == {"1"}


async def test_a_text_on_which_the_engine_fails_fails_alone(tmp_path: Path) -> None:
    """Texts that share its call are answered."""
    async with held_app(tmp_path) as (app, engine):
        engine.held, engine.poison = True, poison_id(app)
        first = asyncio.create_task(classify(app, "a"))
        await engine.next_call()
        others = [asyncio.create_task(classify(app, text)) for text in ("good", POISON, "bad")]
        await asyncio.sleep(0)
        engine.held = False
        engine.release()
        outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [tuple, tuple, EngineFailed, tuple]
    assert sample(app, "heed_requests_total", outcome="ok") == 3
    assert sample(app, "heed_requests_total", outcome="failed") == 1


async def test_a_deadline_ends_the_wait_for_the_engine(tmp_path: Path) -> None:
    """The request is counted as expired, and its row is not computed."""
    async with held_app(tmp_path) as (app, engine):
        engine.held = True
        first = asyncio.create_task(classify(app, "a"))
        await engine.next_call()
        with pytest.raises(DeadlineExceeded):
            await classify(app, "b", timeout_s=0.02)
        engine.release()
        await first
    assert engine.calls == [1]
    assert sample(app, "heed_requests_total", outcome="expired") == 1


async def test_a_full_queue_refuses_requests(tmp_path: Path) -> None:
    """The error names the limit."""
    async with held_app(tmp_path, max_queue=2, max_request_rows=2) as (app, engine):
        engine.held = True
        waiting = [asyncio.create_task(classify(app, "a"))]
        await engine.next_call()
        waiting += [asyncio.create_task(classify(app, text)) for text in "bc"]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 rows wait, the limit is 2"):
            await classify(app, "d")
        engine.held = False
        engine.release()
        await asyncio.gather(*waiting)


async def test_a_drain_answers_what_was_admitted_and_refuses_the_rest(tmp_path: Path) -> None:
    """The server ends when the last answer is there."""
    async with held_app(tmp_path) as (app, engine):
        engine.held = True
        admitted = asyncio.create_task(classify(app, "a"))
        await engine.next_call()
        draining = asyncio.create_task(app.predictor.drain())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="the server is shutting down"):
            await classify(app, "b")
        assert not draining.done()
        engine.release()
        await draining
        assert (await admitted)[0][0].labels


async def test_requests_for_another_task_are_refused(tmp_path: Path) -> None:
    """The error says which inputs the model takes."""
    async with held_app(tmp_path) as (app, engine):
        with pytest.raises(InvalidRequest, match="is not an image-classification model; it takes texts"):
            await app.predictor.answer(request(), ImageClassification, [b"file"])
        with pytest.raises(InvalidRequest, match="is not a translation model; it takes texts"):
            await anext(app.predictor.stream_translation(request(), "a text"))
        with pytest.raises(InvalidRequest, match="unknown output other; the model has label, score, probabilities"):
            await app.predictor.infer(request(), {"text": bytes_array([b"a"])}, ["other"])
    assert engine.calls == []


POISON = "terrible"


def poison_id(app: App) -> int:
    """Return the id of a token that occurs in `POISON` alone."""
    task = app.repository.get(MODEL).task
    assert isinstance(task, TextClassification)
    ids = [{*task.preprocess(text, truncate=False, field="text").ids} for text in (POISON, "a", "good", "bad")]
    return (ids[0] - ids[1] - ids[2] - ids[3]).pop()


async def classify(app: App, text: str, timeout_s: float | None = None) -> tuple[list[Classification], Receipt]:
    """Classify one text."""
    return await app.predictor.answer(request(timeout_s=timeout_s), TextClassification, [text])


def sample(app: App, name: str, **labels: str) -> float | None:
    """Return a value of the server's metrics."""
    labels |= {"model": MODEL, "version": "1", "protocol": "grpc"}
    return app.metrics.registry.get_sample_value(name, labels)
