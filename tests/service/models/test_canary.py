"""The canary on real models: correct answers, drifted answers, and a server that refuses."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from model_store.folder import FoundFolder, GoldenExample, read
from service.config import ServiceConfig
from service.models.canary import Canary
from service.models.golden import GoldenExamples
from service.models.repository import ModelRepository
from service.telemetry.metrics import Metrics
from tests.conftest import ROOT


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[ModelRepository]:
    """Models of every task, loaded."""
    for name in ("sentiment-small", "cifar10-vit", "translation-en-de"):
        (tmp_path / name).symlink_to(ROOT / "model_store" / name)
    config = ServiceConfig(model_store=tmp_path, instances=1, max_queue=8, max_request_rows=8)
    repository = ModelRepository(config, Metrics(), num_cores=1)
    await repository.load_all()
    yield repository
    repository.close()


def runs(repository: ModelRepository, model: str, outcome: str) -> float:
    """Number of replays with an outcome."""
    labels = {"model": model, "version": "1", "outcome": outcome}
    return repository.metrics.registry.get_sample_value("heed_canary_runs_total", labels) or 0.0


def drift(repository: ModelRepository, model: str) -> None:
    """Change a model's golden logits so that its answers no longer match."""
    folder = read(FoundFolder(model, "1", ROOT / "model_store" / model / "1"))
    state = repository.states[model, "1"]
    assert state.served
    task = state.served.task.explainable
    assert task is not None
    moved = [
        GoldenExample(each.inputs, each.tensors, {"logits": [logit + 0.5 for logit in each.outputs["logits"]]})
        for each in folder.golden
    ]
    golden = GoldenExamples(dataclasses.replace(folder, golden=moved), task)
    loaded = dataclasses.replace(state.served.loaded, golden=golden)
    state.served = dataclasses.replace(state.served, loaded=loaded)


async def test_every_task_is_replayed(repository: ModelRepository) -> None:
    """Replays go on after the last example, and are not counted as clients' requests."""
    canary = Canary(repository, repository.metrics, 30.0)
    for _ in range(20):
        await canary.replay_next()
    for model in ("sentiment-small", "cifar10-vit", "translation-en-de"):
        assert [runs(repository, model, outcome) for outcome in ("ok", "drifted", "failed", "skipped")] == [20, 0, 0, 0]
        value = repository.metrics.registry.get_sample_value
        difference = value("heed_canary_difference", {"model": model, "version": "1"})
        assert difference is not None
        assert 0 <= difference <= 1e-4
        assert value("heed_canary_last_success_timestamp_seconds", {"model": model, "version": "1"})
        labels = {"model": model, "version": "1", "protocol": "grpc", "outcome": "ok"}
        assert value("heed_requests_total", labels) is None


async def test_an_answer_that_has_drifted_is_counted_and_the_model_serves_on(repository: ModelRepository) -> None:
    """Drift is counted for an alert and does not change readiness."""
    drift(repository, "sentiment-small")
    canary = Canary(repository, repository.metrics, 30.0)
    await canary.replay_next()
    assert runs(repository, "sentiment-small", "drifted") == 1
    assert runs(repository, "cifar10-vit", "ok") == 1
    labels = {"model": "sentiment-small", "version": "1"}
    assert not repository.metrics.registry.get_sample_value("heed_canary_last_success_timestamp_seconds", labels)
    assert repository.not_ready_because() is None
    assert repository.get("sentiment-small")


async def test_a_refused_replay_is_no_drift(repository: ModelRepository) -> None:
    """A server that shuts down refuses the canary, which is counted as skipped."""
    await repository.drain()
    canary = Canary(repository, repository.metrics, 30.0)
    await canary.replay_next()
    for model in ("sentiment-small", "cifar10-vit", "translation-en-de"):
        assert [runs(repository, model, outcome) for outcome in ("ok", "drifted", "failed", "skipped")] == [0, 0, 0, 1]
