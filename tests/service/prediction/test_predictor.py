"""What a request's work is done by: the event loop's thread, or others where that would hold up everybody."""

import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from service.config import ServiceConfig
from service.errors import InvalidRequest, NotFound, Unavailable
from service.models.repository import ModelRepository
from service.prediction.messages import RequestOptions
from service.prediction.predictor import Predictor
from service.prediction.preprocessing import MAX_STRINGS_IN_LOOP
from service.telemetry.metrics import Metrics
from tests.conftest import write_onnx

CALL = RequestOptions(model="same", version="", protocol="grpc", request_id="1")


@pytest.fixture
async def predictor(tmp_path: Path) -> AsyncIterator[Predictor]:
    """Of a model that gives back its strings."""
    strings = (TensorProto.STRING, ["rows", "columns"])
    write_onnx(
        tmp_path / "same/1", [helper.make_node("Identity", ["text"], ["copy"])], {"text": strings}, {"copy": strings}
    )
    config = ServiceConfig(model_store=tmp_path)
    repository = ModelRepository(config, metrics := Metrics(), num_cores=1)
    await repository.load_all()
    yield Predictor(repository, metrics, config)
    repository.close()


async def test_before_the_store_is_read_no_model_is_unknown(tmp_path: Path) -> None:
    """The faces listen before: a call that comes so early is told to come again."""
    repository = ModelRepository(config := ServiceConfig(model_store=tmp_path), metrics := Metrics(), num_cores=1)
    predictor = Predictor(repository, metrics, config)
    for version in ("", "1"):
        with pytest.raises(Unavailable, match="models are loading"):
            await predictor.infer(msgspec.structs.replace(CALL, version=version), {})
        assert predictor.problem_of("same", version) == "models are loading"
    predictor.count_failure("same", "", "grpc", "1", "unavailable", "models are loading")
    assert repository.not_ready_because() == "models are loading"
    await repository.load_all()
    with pytest.raises(NotFound, match="'same' is not in the store"):
        await predictor.infer(CALL, {})
    repository.close()


def preparers() -> set[threading.Thread]:
    """Threads that prepare requests."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("preparer")}


@pytest.mark.parametrize(("count", "in_thread"), [(MAX_STRINGS_IN_LOOP, False), (MAX_STRINGS_IN_LOOP + 1, True)])
async def test_many_strings_are_decoded_in_a_thread(predictor: Predictor, count: int, in_thread: bool) -> None:
    """And come back as they were; a few are decoded at once."""
    before, text = preparers(), np.array([[b"caf\xc3\xa9"] * count], dtype=object)
    outputs, _ = await predictor.infer(CALL, {"text": text})
    assert (outputs["copy"] == text).all()
    assert bool(preparers() - before) is in_thread


async def test_strings_that_cannot_be_decoded_are_named_wherever_that_is_noticed(predictor: Predictor) -> None:
    """By input and number."""
    text = np.array([[b"a"] * MAX_STRINGS_IN_LOOP + [b"\xff"]], dtype=object)
    with pytest.raises(InvalidRequest, match=rf"text\[{MAX_STRINGS_IN_LOOP}\] is not UTF-8"):
        await predictor.infer(CALL, {"text": text})


async def steps_of_versions(store: Path, num_models: int) -> int:
    """Steps of the interpreter that it takes to list the versions of one model among so many."""
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
    """The index asks for them for every model, so they must not take a look at every other model."""
    assert await steps_of_versions(tmp_path / "large", 8) == await steps_of_versions(tmp_path / "small", 1) > 0
