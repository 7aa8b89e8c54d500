"""Loads a model folder and proves that the model answers as the original PyTorch model did.

    folder ── read, checksums ──> engine ── golden examples replayed ──> costs measured

On a GPU the folder's graphs in half precision are tried first. Where they fail, the graphs for a CPU are served.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from model_store.folder import EXPLAIN, EXPLAIN_GOLDEN, FolderError, FoundFolder, ModelFolder, read
from model_store.policy import BatchingDeclaration, read_batching_declaration
from model_store.private_files import PrivateFile, PrivateGraph
from service.engines.host import EngineHost
from service.engines.onnx import Engine, OnnxEngine
from service.engines.onnx_session import EngineError
from service.engines.translation import TranslationEngine
from service.models.bare_engine import BareEngine, read_graph, run_within, with_overridable_initializers
from service.models.batching import Batching, BatchingRule
from service.models.cost_probes import (
    ROW_PROBES,
    TEXT_PROBES,
    CallTimer,
    Run,
    measure_padding_cost,
    measure_step_costs,
    warm_up_buckets,
)
from service.models.engine_opening import OpenEngine, open_onnx, open_translation
from service.models.explanation_graph import ExplainGraph
from service.models.folder_files import FolderFiles
from service.models.golden import GoldenExamples
from service.models.golden_replay import decode, replay_in_calls, replay_in_steps
from service.models.loaded import DecoderModel, LoadedModel, OneCallModel
from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_thread import RunningBatches
from service.tasks.raw_tensors import RawTensors
from service.tasks.stored_task import Collating, OneCallTask, StoredTask, TaskError
from service.tasks.table import TASKS

log = structlog.get_logger(__name__)

# Longest row in the cost table of a bare model, 1 MiB. Costs of longer rows follow from the last two lengths.
MAX_BARE_ROW_LENGTH = 1024


class Loader:
    """Loads folders for engines of one layout."""

    def __init__(
        self,
        max_rows: int,
        threads: int,
        engine_clock: Callable[[], float],
        host: EngineHost | None = None,
        open_engine: OpenEngine = open_onnx,
        open_translation_engine: Callable[[ModelFolder, int, EngineHost], TranslationEngine] = open_translation,
        state: Path | None = None,
    ) -> None:
        """Set up.

        Args:
            max_rows: largest number of rows of an engine call and of a running batch.
            threads: number of threads of an engine call.
            engine_clock: measures the cost of a call, in seconds.
            host: the engines' device and locks; None: the CPU, not shared with other loaders.
            open_engine: opens the engine of a model with one graph; gets folder, threads and host.
            open_translation_engine: opens the engine of a translation model; gets the same arguments.
            state: folder of trial outcomes and of declarations outside of the store.
        """
        self._max_rows, self._threads, self._engine_clock = max_rows, threads, engine_clock
        self._host, self._open_engine = host or EngineHost(), open_engine
        self._open_translation_engine = open_translation_engine
        self._state, self._batching_rule = state, BatchingRule(state)
        self._timer = CallTimer(max_rows, engine_clock, untimed_call=self._host.device == "cuda")

    def load(self, found: FoundFolder) -> LoadedModel:
        """Read, check and prove one folder. This blocks for as long as that takes.

        Raises:
            FolderError: the folder must not be served; says why.
            EngineError: ONNX Runtime refuses a graph.
        """
        folder = read(found)
        loaded, graph = self._load_for_device(folder), None
        if folder.manifest is not None and {EXPLAIN, EXPLAIN_GOLDEN} <= folder.manifest.files.keys():
            assert loaded.task.explainable is not None
            assert loaded.golden is not None
            graph = ExplainGraph(folder, loaded.task.explainable, loaded.golden, self._host.on_cpu())
        if folder.remark is not None:
            log.warning("model folder is unusual", model=folder.name, version=str(folder.version), why=folder.remark)
        return replace(loaded, card=folder.card, graph=graph, remark=folder.remark)

    def _load_for_device(self, folder: ModelFolder) -> LoadedModel:
        if self._host.device == "cuda" and (halved := folder.in_half_precision()) is not None:
            try:
                return self._load(halved)
            except (FolderError, EngineError) as error:
                log.error(
                    "model is not served in half precision",
                    model=folder.name,
                    version=str(folder.version),
                    why=str(error),
                )
        return self._load(folder)

    def _load(self, folder: ModelFolder) -> LoadedModel:
        if folder.manifest is None:
            return self._load_bare(folder)
        task = TASKS.get(folder.manifest.task)
        if task is None:
            raise FolderError(f"manifest.json: task {folder.manifest.task!r} is not known to this server")
        try:
            return self._load_decoder(folder, task) if task.decodes else self._load_one_call(folder, task)
        except TaskError as error:
            raise FolderError(str(error)) from error

    def _load_bare(self, folder: ModelFolder) -> OneCallModel:
        graph = folder.graph

        def open_overridable() -> Engine:
            # The weights too must be private copies: a graph from bytes would read them from the working directory.
            changed = PrivateFile.of_bytes(with_overridable_initializers(graph.read_bytes()))
            return OnnxEngine(PrivateGraph(graph.name, changed, graph.weights), self._threads, self._host)

        opened, labels = self._open_engine(folder, self._threads, self._host), folder.labels()
        engine = BareEngine(opened, read_graph(graph), open_overridable, labels)
        batching = self._batching_rule.of_bare_graph(
            graph,
            engine.inputs,
            engine.outputs,
            partial(run_within, engine, self._host.preemption),
            self._declaration(folder),
        )
        if not batching.joined:
            why = batching.describe()
            log.info("model is served without batching", model=folder.name, version=str(folder.version), why=why)
        max_rows = self._row_limit(batching)
        task = RawTensors(
            engine.inputs,
            engine.outputs,
            max_rows=max_rows,
            joined=batching.joined,
            optional_inputs=engine.optional_inputs,
            labels=labels,
            equal_sizes=batching.equal_sizes,
        )
        return OneCallModel(
            task=task,
            run=_run_of(task, engine),
            probe=lambda: None,  # without golden examples, no input is known that a sound engine must compute
            costs=CostTable(self._max_rows, MAX_BARE_ROW_LENGTH),
            skipped_padding_cost=0.0,  # rows are never padded
            max_rows=max_rows,
            batching=batching,
        )

    def _load_one_call(self, folder: ModelFolder, task_type: type[StoredTask[Any]]) -> OneCallModel:
        """Open the only graph of a folder, replay its golden examples, and measure the cost of its calls."""
        assert folder.manifest is not None
        engine = self._open_engine(folder, self._threads, self._host)
        opened: Any = task_type.open(FolderFiles(folder), [spec.name for spec in engine.inputs])
        task: OneCallTask = opened
        run, golden, batching = _run_of(task, engine), GoldenExamples(folder, task), self._batching_of(folder)
        items = replay_in_calls(golden, run, together=batching.joined)

        def item_of_length(length: int) -> Any:
            return task.probe_item(items, length)

        if self._host.device == "cuda" and not task.pads_rows:
            warm_up_buckets(run, items[0], self._max_rows)
        probes = TEXT_PROBES if task.pads_rows else ROW_PROBES
        costs, padding_cost = self._timer.cost_table(run, item_of_length, probes, task.max_length), None
        if folder.manifest.skips_padding:
            padding_cost = measure_padding_cost(run, item_of_length, task.max_length, self._engine_clock)

        def probe() -> None:
            run([items[0]])

        return OneCallModel(
            task=task,
            run=run,
            probe=probe,
            costs=costs,
            skipped_padding_cost=padding_cost,
            max_rows=self._row_limit(batching) if batching.joined else 1,
            golden=golden,
            precision=folder.manifest.precision,
            batching=batching,
        )

    def _load_decoder(self, folder: ModelFolder, task_type: type[StoredTask[Any]]) -> DecoderModel:
        """Open the encoder and the decoder of a folder, replay its golden examples, and measure the cost of steps."""
        assert folder.manifest is not None
        if (declaration := self._declaration(folder)) is not None:
            raise FolderError(f"{declaration.source}: batching cannot be declared for a {task_type.name} model")
        task = task_type.open(FolderFiles(folder), ())
        engine = self._open_translation_engine(folder, self._threads, self._host)

        def open_batches() -> RunningBatches:
            return engine.open(self._max_rows, task.max_length)

        golden = GoldenExamples(folder, task)
        replay_in_steps(golden, open_batches, self._max_rows)
        return DecoderModel(
            task=task,
            open_batches=open_batches,
            probe=lambda: decode(open_batches(), [golden.item(0)]),
            costs=measure_step_costs(open_batches, lambda: task.probe_item([golden.item(0)], 1), self._max_rows),
            golden=golden,
            precision=folder.manifest.precision,
            cache_place=engine.cache_place,
            batching=self._batching_of(folder),
        )

    def _row_limit(self, batching: Batching) -> int:
        """Largest number of rows of a call: the server's limit, or the declared one if that is smaller."""
        return min(self._max_rows, batching.max_rows or self._max_rows)

    def _declaration(self, folder: ModelFolder) -> BatchingDeclaration | None:
        state = None if self._state is None else self._state / folder.name
        return read_batching_declaration(folder.path.parent, state)

    def _batching_of(self, folder: ModelFolder) -> Batching:
        """Decide whether rows of several requests share a call of a folder with a manifest."""
        assert folder.manifest is not None
        graph = folder.encoder if TASKS[folder.manifest.task].decodes else folder.graph
        return self._batching_rule.of_folder(graph, folder.manifest, self._declaration(folder))


def _run_of(task: Collating, engine: Engine | BareEngine) -> Run:
    """Return the engine call of a task: items are collated, computed, and split again."""

    def run(items: list[Any]) -> list[Any]:
        return list(task.split_batch(engine.run(task.collate(items)), items))

    return run
