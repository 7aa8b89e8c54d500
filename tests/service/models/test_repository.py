"""The repository: what is served when folders fail, engines die, and versions are many."""

import shutil
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from onnx import TensorProto, helper

from model_store.folder import ModelFolder
from service.config import ServiceConfig
from service.engines.host import EngineHost
from service.engines.onnx import Engine
from service.engines.onnx_session import EngineError
from service.errors import Unavailable
from service.models.engine_opening import open_onnx
from service.models.repository import ModelRepository
from service.tasks.text.classification import TextClassification
from service.telemetry.metrics import Metrics
from tests.conftest import ROOT, write_onnx
from tests.service.held_engine import MODEL, held_app, request


async def steps_of_versions(store: Path, num_models: int) -> int:
    """Count the interpreter's steps to list the versions of one model among several."""
    strings = (TensorProto.STRING, ["rows"])
    for number in range(num_models):
        node = helper.make_node("Identity", ["text"], ["copy"])
        write_onnx(store / f"model-{number}/1", [node], {"text": strings}, {"copy": strings})
    repository = ModelRepository(ServiceConfig(model_store=store), Metrics(), num_cores=1)
    await repository.load_all()
    steps = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    versions = repository.versions("model-0")
    sys.settrace(before)
    repository.close()
    assert versions == ["1"]
    return steps


async def test_the_versions_of_a_model_cost_the_same_in_a_large_store(tmp_path: Path) -> None:
    """The index lists the versions of every model, so this must not visit all other models."""
    assert await steps_of_versions(tmp_path / "large", 8) == await steps_of_versions(tmp_path / "small", 1) > 0


async def test_a_folder_whose_engine_cannot_be_opened_leaves_the_others_alone(tmp_path: Path) -> None:
    """Its problem is reported, and an older version answers."""

    def open_engine(folder: ModelFolder, threads: int, host: EngineHost) -> Engine:
        if folder.version == 2:
            raise EngineError("no such operator")
        return open_onnx(folder, threads, host)

    for version in ("1", "2"):
        shutil.copytree(ROOT / "model_store" / MODEL / "1", tmp_path / "texts" / version)
    config = ServiceConfig(model_store=tmp_path)
    repository = ModelRepository(config, Metrics(), num_cores=1, open_engine=open_engine)
    assert repository.not_ready_because() == "models are loading"
    await repository.load_all()
    assert repository.problems() == {"texts/2": "no such operator"}
    assert repository.versions("texts") == ["1"]
    assert repository.get("texts").version == "1"
    assert repository.not_ready_because() is None
    with pytest.raises(Unavailable, match="version '2' is not ready: no such operator"):
        repository.get("texts", "2")
    await repository.drain()
    assert repository.not_ready_because() == "the server is shutting down"
    repository.close()


async def test_a_dead_engine_makes_the_server_unready(tmp_path: Path) -> None:
    """Its requests fail; those of another model are answered."""
    async with held_app(tmp_path, "ill", "well") as (app, engine):
        engine.broken = True
        with pytest.raises(Unavailable, match="the engine of ill/1 has failed"):
            await app.predictor.answer(request("ill"), TextClassification, ["a"])
        assert app.repository.not_ready_because() == "ill/1: EngineError: the test has broken it"
        with pytest.raises(Unavailable, match="the engine of ill/1 has failed"):
            await app.predictor.answer(request("ill"), TextClassification, ["b"])
        (answer,), _ = await app.predictor.answer(request("well"), TextClassification, ["c"])
        assert answer.labels
        assert app.repository.problems().keys() == {"ill/1"}
