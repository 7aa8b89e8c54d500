"""The canary replays golden examples at a low rate while the server answers, through the batcher as requests do.

A model that loaded correctly can fail later: memory breaks, a library or driver is replaced, a batch mixes rows. An
answer that differs by more than the manifest allows is logged and counted, for an alert. Readiness does not change:
answers of quantized models depend a little on the other rows of a batch, and one of them must not take a server out of
service.
"""

import asyncio
import time
from typing import get_args

import structlog

from model_store.folder import FolderError
from service.errors import EngineFailed, HeedError
from service.models.golden import GoldenExamples
from service.models.repository import ModelRepository, ServedModel
from service.telemetry.metrics import CanaryOutcome, Metrics

log = structlog.get_logger(__name__)

TIMEOUT_S = 30.0  # a busier server skips the replay


class Canary:
    """Replays the golden examples of each model version in turn."""

    def __init__(self, repository: ModelRepository, metrics: Metrics, interval_s: float) -> None:
        """Set up.

        Args:
            repository: the models; those without golden examples are left out.
            metrics: count the outcomes.
            interval_s: time between two examples of a model.
        """
        self._repository, self._metrics, self._interval_s = repository, metrics, interval_s
        self._replayed: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        """Replay until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.replay_next()

    async def replay_next(self) -> None:
        """Replay the next example of every model version, one after another."""
        for state in list(self._repository.states.values()):
            if state.served is not None and state.served.loaded.golden is not None:
                await self._replay(state.served, state.served.loaded.golden)

    async def _replay(self, model: ServedModel, golden: GoldenExamples) -> None:
        key = (model.name, model.version)
        if key not in self._replayed:
            self._replayed[key] = 0
            for each in get_args(CanaryOutcome):  # or the first failure would begin a series, and show no increase
                self._metrics.canary_runs.labels(*key, each)
        number = self._replayed[key] % golden.num_examples
        self._replayed[key] += 1
        outcome: CanaryOutcome = "ok"
        why = ""
        try:
            # In a thread, because decoding a golden image may take milliseconds.
            item = await asyncio.to_thread(golden.item, number)
            (done,) = await model.batcher.submit([item], time.monotonic() + TIMEOUT_S)
            difference = golden.difference(number, done.result, "while serving")
        except FolderError as error:
            outcome, why = "drifted", str(error)
        except EngineFailed as error:
            outcome, why = "failed", str(error)
        except HeedError as error:  # the queue is full, the time is over, the server shuts down
            outcome, why = "skipped", str(error)
        except Exception as error:  # whatever it was, the next example is replayed
            log.exception("canary", model=model.name, version=model.version)
            outcome, why = "failed", type(error).__name__
        else:
            self._metrics.canary_difference.labels(*key).set(difference)
            self._metrics.canary_last_success.labels(*key).set_to_current_time()
        self._metrics.canary_runs.labels(*key, outcome).inc()
        if outcome in {"drifted", "failed"}:
            log.error("canary", model=model.name, version=model.version, outcome=outcome, why=why)
        elif why:
            log.info("canary", model=model.name, version=model.version, outcome=outcome, why=why)
