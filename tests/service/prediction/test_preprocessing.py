"""Preprocessing runs inline where it is short, and in threads where it would delay other requests."""

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from service.config import ServiceConfig
from service.errors import InvalidRequest
from service.models.repository import ModelRepository
from service.prediction.messages import RequestOptions
from service.prediction.predictor import Predictor
from service.tasks.raw_tensors import MAX_STRINGS_IN_LOOP
from service.telemetry.metrics import Metrics
from tests.conftest import write_onnx

CALL = RequestOptions(model="same", version="", protocol="grpc", request_id="1")


@pytest.fixture
async def predictor(tmp_path: Path) -> AsyncIterator[Predictor]:
    """A predictor of one model, which returns its strings."""
    strings = (TensorProto.STRING, ["rows", "columns"])
    write_onnx(
        tmp_path / "same/1", [helper.make_node("Identity", ["text"], ["copy"])], {"text": strings}, {"copy": strings}
    )
    config = ServiceConfig(model_store=tmp_path)
    repository = ModelRepository(config, metrics := Metrics(), num_cores=1)
    await repository.load_all()
    yield Predictor(repository, metrics, config)
    repository.close()


def preparers() -> set[threading.Thread]:
    """Return the threads of preprocessing pools."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("preparer")}


@pytest.mark.parametrize(("count", "in_thread"), [(MAX_STRINGS_IN_LOOP, False), (MAX_STRINGS_IN_LOOP + 1, True)])
async def test_many_strings_are_decoded_in_a_thread(predictor: Predictor, count: int, in_thread: bool) -> None:
    """The strings come back unchanged; a few are decoded inline."""
    before, text = preparers(), np.array([[b"caf\xc3\xa9"] * count], dtype=object)
    outputs, _ = await predictor.infer(CALL, {"text": text})
    assert (outputs["copy"] == text).all()
    assert bool(preparers() - before) is in_thread


async def test_strings_that_cannot_be_decoded_are_named_wherever_that_is_noticed(predictor: Predictor) -> None:
    """The message names the input and the number of the string."""
    text = np.array([[b"a"] * MAX_STRINGS_IN_LOOP + [b"\xff"]], dtype=object)
    with pytest.raises(InvalidRequest, match=rf"text\[{MAX_STRINGS_IN_LOOP}\] is not UTF-8"):
        await predictor.infer(CALL, {"text": text})
