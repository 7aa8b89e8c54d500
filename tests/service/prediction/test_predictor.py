"""The predictor answers only when the store has been read."""

from pathlib import Path

import msgspec
import pytest

from service.config import ServiceConfig
from service.errors import NotFound, Unavailable
from service.models.repository import ModelRepository
from service.prediction.messages import RequestOptions
from service.prediction.predictor import Predictor
from service.telemetry.metrics import Metrics

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
