"""Queries of the repository."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from onnx import TensorProto, helper

from service.config import ServiceConfig
from service.models.repository import ModelRepository
from service.telemetry.metrics import Metrics
from tests.conftest import write_onnx


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
