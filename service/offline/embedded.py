"""Answers rows with a model in this process, through the same predictor and batches as the server's."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from service.app import App, build
from service.config import ServiceConfig, available_cores
from service.engines.device import Device
from service.offline.requests import RequestSettings, inputs_of, num_values_of
from service.offline.rows import FileRefused, Row
from service.prediction.messages import RequestOptions
from service.tasks.stored_task import StoredTask

# A row waits for the rows before it, however many there are: nobody waits for this one alone.
ROW_TIMEOUT_S = 7 * 86_400.0
MAX_IN_FLIGHT = 512


class EmbeddedModel:
    """A model of a store in this process."""

    def __init__(self, app: App, name: str, settings: RequestSettings) -> None:
        """Use the model `name` of a running app."""
        self._app, self._name, self._settings = app, name, settings
        self.task: StoredTask[Any] = app.predictor.catalog.hub_task(name)
        self.num_values = num_values_of({spec.name for spec in self.task.outputs}, self.task.labels)
        # Rows in the queue and in engine calls; a search takes a row for each of its beams.
        self.max_in_flight = max(1, min(MAX_IN_FLIGHT, self.task.max_inputs(app.config.max_queue) // 2))

    async def ask(self, row: Row, folder: Path) -> Any:
        """Return the task API's answer to a row.

        Raises:
            HeedError: the row cannot be answered.
        """
        document = {"inputs": inputs_of(row, folder, self.task.takes_files), "parameters": self._settings.parameters}
        call = self.task.read_hub(msgspec.convert(document, self.task.hub_request))
        options = RequestOptions(
            model=self._name, version="", protocol="http", request_id=row.place, truncate=call.truncate
        )
        (answer,), _ = await self._app.predictor.answer(options, type(self.task), call.inputs, row.place, call.answer)
        return self.task.hub_document(answer)


@contextlib.asynccontextmanager
async def embedded_model(store: Path, device: Device, settings: RequestSettings) -> AsyncIterator[EmbeddedModel]:
    """Load the only model of a store, and answer with it.

    Args:
        store: the model store.
        device: device that computes.
        settings: settings of all requests.

    Raises:
        FileRefused: the model is not there or cannot be served.
        InvalidRequest: it is a bare graph, which has no task.
        FolderError: the store cannot be read.
    """
    config = ServiceConfig(model_store=store, default_timeout_s=ROW_TIMEOUT_S, canary_interval_s=0.0)
    app = build(config, available_cores(), device)
    async with app.running():
        names = sorted({state.name for state in app.repository.states.values()})
        if len(names) != 1:
            raise FileRefused(f"{store} has the models {', '.join(names) or 'none'}; name the folder of one of them")
        if (problem := app.predictor.catalog.problem_of(names[0])) is not None:
            raise FileRefused(f"model {names[0]!r} cannot be served: {problem}")
        yield EmbeddedModel(app, names[0], settings)
