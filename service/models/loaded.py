"""Models that have been read and proved: one that answers with one engine call, one that decodes step by step.

The repository starts a batcher for each; programs without a server call `compute`.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.config import ServiceConfig
from service.engines.device import Place
from service.engines.preemption import Preemption
from service.models.batching import Batching
from service.models.cost_probes import Run
from service.models.explanation_graph import ExplainGraph
from service.models.golden import GoldenExamples
from service.models.golden_replay import decode
from service.process.worker_threads import Watchdog
from service.scheduling.admission import BatchStats
from service.scheduling.batch_forming import BatcherLimits
from service.scheduling.batcher import Batcher
from service.scheduling.continuous_batcher import ContinuousBatcher, InFlightLimits
from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_thread import RunningBatches
from service.tasks.stored_task import CollatedTask, StoredTask
from service.tasks.task import Task
from service.telemetry.metrics import SchedulingTally


@dataclass(frozen=True, kw_only=True)
class BatcherSettings:
    """Settings of a model's batcher.

    Attributes:
        config: limits of queues and batches.
        instances: number of engine threads.
        engine_clock: measures the cost of a call, in seconds.
        on_batch: called after every engine call.
        tally: counts rows that are refused, dropped, terminated, or computed in vain.
        preemption: stops low-priority calls for ordinary ones.
        watchdog: detects engine threads that the system has killed.
        name: name of the model, for thread names and messages.
    """

    config: ServiceConfig
    instances: int
    engine_clock: Callable[[], float]
    on_batch: Callable[[BatchStats], None]
    tally: SchedulingTally
    preemption: Preemption
    watchdog: Watchdog
    name: str


@dataclass(frozen=True, kw_only=True)
class LoadedModel(abc.ABC):
    """A model that has been read and proved.

    Attributes:
        task: prepares inputs and turns results into answers.
        probe: makes a call that any sound engine can compute.
        costs: measured costs of engine calls.
        batching: whether requests may share calls, and why.
        golden: the golden examples; None for a bare model.
        precision: precision of the served graphs; None for a bare model.
        cache_place: where a translation model keeps its keys and values.
        card: the model card.
        graph: the explanation graph, where the folder has one.
        remark: a warning for the model's owner.
    """

    task: Task[Any]
    probe: Callable[[], None]
    costs: CostTable
    batching: Batching
    golden: GoldenExamples | None = None
    precision: str | None = None
    cache_place: Place | None = None
    card: str | None = None
    graph: ExplainGraph | None = None
    remark: str | None = None

    @abc.abstractmethod
    def compute(self, items: list[Any]) -> list[Any]:
        """Compute the results of items in the calling thread, without a batcher.

        Raises:
            EngineError: the engine fails on these items.
        """

    @abc.abstractmethod
    def open_batcher(self, settings: BatcherSettings) -> Batcher | ContinuousBatcher:
        """Start the model's engine threads, behind a batcher; must be called in the event loop."""


@dataclass(frozen=True, kw_only=True)
class OneCallModel(LoadedModel):
    """A model that answers with one engine call.

    Attributes:
        task: prepares and collates inputs, and turns results into answers.
        run: the engine call, from items to their results.
        skipped_padding_cost: relative cost of a padding token, as `Batcher` takes it.
        max_rows: largest number of rows of a call that several items share.
    """

    task: CollatedTask
    run: Run
    skipped_padding_cost: float | None
    max_rows: int

    def compute(self, items: list[Any]) -> list[Any]:
        """Compute the results of items with one call."""
        return self.run(items)

    def open_batcher(self, settings: BatcherSettings) -> Batcher:
        """Start the engine threads, each of which makes one call at a time."""
        config = settings.config
        return Batcher(
            self.run,
            probe=self.probe,
            costs=self.costs,
            instances=settings.instances,
            skipped_padding_cost=self.skipped_padding_cost,
            limits=BatcherLimits(
                max_queue_rows=config.max_queue,
                max_batch_rows=self.max_rows,
                max_batch_tokens=config.max_batch_tokens,
                engine_timeout_s=config.engine_timeout_s,
            ),
            on_batch=settings.on_batch,
            engine_clock=settings.engine_clock,
            cost_follows_from_shapes=self.batching.constant_cost,
            tally=settings.tally,
            preemption=settings.preemption,
            watchdog=settings.watchdog,
            name=settings.name,
        )


@dataclass(frozen=True, kw_only=True)
class DecoderModel(LoadedModel):
    """A model that decodes step by step: its items join and leave a running batch.

    Attributes:
        task: prepares inputs and turns results into answers.
        open_batches: makes empty running batches.
    """

    task: StoredTask[Any]
    open_batches: Callable[[], RunningBatches]

    def compute(self, items: list[Any]) -> list[Any]:
        """Decode items together, to the end."""
        for item in items:
            item.restart()  # a failed computation may have begun it
        decode(self.open_batches(), items)
        return items

    def open_batcher(self, settings: BatcherSettings) -> ContinuousBatcher:
        """Start the engine threads, each of which has a running batch."""
        config = settings.config
        return ContinuousBatcher(
            self.open_batches,
            probe=self.probe,
            costs=self.costs,
            instances=settings.instances,
            limits=InFlightLimits(
                max_queue_rows=config.max_queue,
                max_running_rows=config.max_batch_rows,
                engine_timeout_s=config.engine_timeout_s,
            ),
            on_batch=settings.on_batch,
            tally=settings.tally,
            preemption=settings.preemption,
            watchdog=settings.watchdog,
            name=settings.name,
        )
