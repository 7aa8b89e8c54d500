"""Loads a model folder and proves that the model answers as the original PyTorch model did.

    folder ── read, checksums ──> engine ── golden examples replayed ──> costs measured

On a GPU the folder's graphs in half precision are tried first. Where they fail, the graphs for a CPU are served.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from model_store.folder import (
    EXPLAIN,
    EXPLAIN_GOLDEN,
    PREPROCESSOR,
    TOKENIZER,
    FolderError,
    FoundFolder,
    GoldenExample,
    ModelFolder,
    read,
)
from model_store.policy import BatchingDeclaration, read_batching_declaration
from model_store.private_files import PrivateFile, PrivateGraph
from service.engines.device import Place
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
from service.models.engine_opening import open_onnx, open_translation
from service.models.explanation_graph import ExplainGraph
from service.models.folder_config import HubConfig, max_tokens_of, read_config, translation_task
from service.models.golden import Golden, GoldenLogits, GoldenTranslations
from service.models.golden_replay import decode, replay_golden_logits, replay_golden_translations
from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_thread import RunningBatches
from service.tasks.image_classification import ImageClassification, Pixels, PreprocessorConfig
from service.tasks.raw_tensors import RawTensors
from service.tasks.text_classification import TextClassification, Tokens
from service.tasks.translation import Translation
from service.tasks.translation_search import GOLDEN_SEARCHES

log = structlog.get_logger(__name__)

# Longest row in the cost table of a bare model, 1 MiB. Costs of longer rows follow from the last two lengths.
MAX_BARE_ROW_LENGTH = 1024

Task = TextClassification | ImageClassification | Translation | RawTensors


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The common part of all loaded models.

    Attributes:
        probe: makes a call that any sound engine can compute.
        costs: what calls cost, as measured.
        batching: whether requests may share calls, and why.
        golden: the golden examples; None of a bare model.
        precision: precision of the served graphs; None of a bare model.
        cache_place: where a translation model keeps its keys and values.
        card: the model card.
        graph: the explanation graph, where the folder has one.
        remark: what the model's owner should know.
    """

    probe: Callable[[], None]
    costs: CostTable
    batching: Batching
    golden: Golden | None = None
    precision: str | None = None
    cache_place: Place | None = None
    card: str | None = None
    graph: ExplainGraph | None = None
    remark: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedTranslation(LoadedModel):
    """A translation model, whose sentences join and leave a running batch."""

    task: Translation
    open_batches: Callable[[], RunningBatches]


@dataclass(frozen=True, kw_only=True)
class Loaded(LoadedModel):
    """A model that answers with one engine call.

    Attributes:
        task: preprocessing and postprocessing.
        run: the engine call, from items to their results.
        skipped_padding_cost: relative cost of a padding token, as `Batcher` takes it.
        max_rows: largest number of rows of a call that several items share.
    """

    task: TextClassification | ImageClassification | RawTensors
    run: Run
    skipped_padding_cost: float | None
    max_rows: int


class Loader:
    """Loads folders for engines of one layout."""

    def __init__(
        self,
        max_rows: int,
        threads: int,
        engine_clock: Callable[[], float],
        host: EngineHost | None = None,
        open_engine: Callable[[ModelFolder, int, EngineHost], Engine] = open_onnx,
        open_translation_engine: Callable[[ModelFolder, int, EngineHost], TranslationEngine] = open_translation,
        state: Path | None = None,
    ) -> None:
        """Set up.

        Args:
            max_rows: largest number of rows of an engine call and of a running batch.
            threads: number of threads of an engine call.
            engine_clock: measures what a call costs, in seconds.
            host: where engines compute; None: on the CPU, shared with no other loader.
            open_engine: opens the engine of a model with one graph; gets folder, threads and host.
            open_translation_engine: opens the engine of a translation model; gets the same arguments.
            state: folder of trial outcomes and of declarations outside of the store.
        """
        self._max_rows, self._threads, self._engine_clock = max_rows, threads, engine_clock
        self._host, self._open_engine = host or EngineHost(), open_engine
        self._open_translation_engine = open_translation_engine
        self._state, self._batching_rule = state, BatchingRule(state)
        self._timer = CallTimer(max_rows, engine_clock, untimed_call=self._host.device == "cuda")

    def load(self, found: FoundFolder) -> Loaded | LoadedTranslation:
        """Read, check and prove one folder. This blocks for as long as that takes.

        Raises:
            FolderError: the folder must not be served; says why.
            EngineError: ONNX Runtime refuses a graph.
        """
        folder = read(found)
        loaded, graph = self._load_for_device(folder), None
        if folder.manifest is not None and {EXPLAIN, EXPLAIN_GOLDEN} <= folder.manifest.files.keys():
            assert not isinstance(loaded.task, RawTensors)
            assert loaded.golden is not None
            graph = ExplainGraph(folder, loaded.task, loaded.golden, self._host.on_cpu())
        if folder.remark is not None:
            log.warning("model folder is unusual", model=folder.name, version=str(folder.version), why=folder.remark)
        return replace(loaded, card=folder.card, graph=graph, remark=folder.remark)

    def _load_for_device(self, folder: ModelFolder) -> Loaded | LoadedTranslation:
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

    def _load(self, folder: ModelFolder) -> Loaded | LoadedTranslation:
        task = None if folder.manifest is None else folder.manifest.task
        load = _LOADERS.get(task)
        if load is None:
            raise FolderError(f"manifest.json: task {task!r} is not known to this server")
        return load(self, folder)

    def _load_bare(self, folder: ModelFolder) -> Loaded:
        graph = folder.graph

        def open_overridable() -> Engine:
            # The weights too must be private copies: a graph from bytes would read them from the working directory.
            changed = PrivateFile.of_bytes(with_overridable_initializers(graph.read_bytes()))
            return OnnxEngine(PrivateGraph(graph.name, changed, graph.weights), self._threads, self._host)

        opened = self._open_engine(folder, self._threads, self._host)
        engine = BareEngine(opened, read_graph(graph), open_overridable)
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
            equal_sizes=batching.equal_sizes,
        )
        return Loaded(
            task=task,
            run=_run_of(task, engine),
            probe=lambda: None,  # without golden examples, no input is known that a sound engine must compute
            costs=CostTable(self._max_rows, MAX_BARE_ROW_LENGTH),
            skipped_padding_cost=0.0,  # rows are never padded
            max_rows=max_rows,
            batching=batching,
        )

    def _load_text_classifier(self, folder: ModelFolder) -> Loaded:
        assert folder.manifest is not None
        skips_padding = folder.manifest.skips_padding
        engine = self._open_engine(folder, self._threads, self._host)
        hub_config = read_config(folder, "config.json", HubConfig)
        max_tokens = max_tokens_of(folder.manifest)
        task = TextClassification(
            folder.read_text(TOKENIZER),
            labels=folder.manifest.labels,
            max_tokens=max_tokens,
            pad_id=hub_config.pad_token_id,
            graph_inputs=[spec.name for spec in engine.inputs],
        )

        def item_of(example: GoldenExample) -> Tokens:
            truncate = example.inputs.get("truncate") == "true"
            tokens = task.preprocess(example.inputs["text"], truncate=truncate, field="text")
            if tokens.ids != example.tensors["input_ids"]:
                raise FolderError("the tokenizer gives other ids than in training")
            return tokens

        def measure(run: Run, items: list[Any]) -> tuple[CostTable, float | None]:
            ids = [number for item in items for number in item.ids]

            def item_of_length(length: int) -> Tokens:
                return Tokens((ids * (length // len(ids) + 1))[:length], truncated=False)

            costs = self._timer.cost_table(run, item_of_length, TEXT_PROBES, max_tokens)
            if not skips_padding:
                return costs, None
            return costs, measure_padding_cost(run, item_of_length, max_tokens, self._engine_clock)

        return self._prove_classifier(folder, task, engine, item_of, measure)

    def _load_image_classifier(self, folder: ModelFolder) -> Loaded:
        assert folder.manifest is not None
        engine = self._open_engine(folder, self._threads, self._host)
        if len(engine.inputs) != 1:
            raise FolderError(f"{folder.graph_name} has {len(engine.inputs)} inputs, an image classifier has one")
        task = ImageClassification(
            read_config(folder, PREPROCESSOR, PreprocessorConfig),
            labels=folder.manifest.labels,
            graph_input=engine.inputs[0].name,
        )

        def item_of(example: GoldenExample) -> Pixels:
            pixels = task.preprocess(example.inputs["image"].encode(), field="image")
            if pixels.digest() != example.tensors["pixel_values"]:
                raise FolderError("the image becomes other pixels than in training")
            return pixels

        def measure(run: Run, items: list[Any]) -> tuple[CostTable, float | None]:
            if self._host.device == "cuda":
                warm_up_buckets(run, items[0], self._max_rows)
            return self._timer.cost_table(run, lambda length: items[0], ROW_PROBES, 1), None

        return self._prove_classifier(folder, task, engine, item_of, measure)

    def _prove_classifier(
        self,
        folder: ModelFolder,
        task: TextClassification | ImageClassification,
        engine: Engine,
        item_of: Callable[[GoldenExample], Any],
        measure: Callable[[Run, list[Any]], tuple[CostTable, float | None]],
    ) -> Loaded:
        """Replay the golden examples of a classifier and measure its costs.

        Args:
            folder: the model folder.
            task: its preprocessing and postprocessing.
            engine: its graph.
            item_of: preprocesses a golden example; raises FolderError where the tensor is not that of training.
            measure: from the engine call and the golden items to call costs and the relative cost of padding.
        """
        assert folder.manifest is not None
        run, golden, batching = _run_of(task, engine), GoldenLogits(folder, item_of), self._batching_of(folder)
        items = replay_golden_logits(golden, run, together=batching.joined)
        costs, padding_cost = measure(run, items)

        def probe() -> None:
            run([items[0]])

        return Loaded(
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

    def _load_translation(self, folder: ModelFolder) -> LoadedTranslation:
        assert folder.manifest is not None
        if (declaration := self._declaration(folder)) is not None:
            raise FolderError(f"{declaration.source}: batching cannot be declared for a translation model")
        task = translation_task(folder)
        engine = self._open_translation_engine(folder, self._threads, self._host)

        def open_batches() -> RunningBatches:
            return engine.open(self._max_rows, task.max_tokens)

        golden = GoldenTranslations(folder, task)
        replay_golden_translations(golden, open_batches, self._max_rows)
        first_sentence = partial(task.preprocess, folder.golden[0].inputs["text"], truncate=False, field="text")
        greedy_sentence = partial(first_sentence, request=GOLDEN_SEARCHES["greedy"])
        return LoadedTranslation(
            task=task,
            open_batches=open_batches,
            probe=lambda: decode(open_batches(), [first_sentence()]),
            costs=measure_step_costs(open_batches, greedy_sentence, self._max_rows),
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
        graph = folder.encoder if folder.manifest.task == "translation" else folder.graph
        return self._batching_rule.of_folder(graph, folder.manifest, self._declaration(folder))


# How a folder is loaded, by the task in its manifest; None: it has no manifest.
_LOADERS: dict[str | None, Callable[[Loader, ModelFolder], Loaded | LoadedTranslation]] = {
    None: Loader._load_bare,
    "text-classification": Loader._load_text_classifier,
    "image-classification": Loader._load_image_classifier,
    "translation": Loader._load_translation,
}


def _run_of(task: TextClassification | ImageClassification | RawTensors, engine: Engine | BareEngine) -> Run:
    """Return the engine call of a task: items are collated, computed, and split again."""

    def run(items: list[Any]) -> list[Any]:
        return task.split_batch(engine.run(task.collate(items)), items)

    return run
