"""The models of the store: loads each folder, proves it, and knows at any time which would answer correctly.

    folder ── read, checksums ──> engine ── golden examples replayed ──> costs measured ──> batcher: ready

A folder that fails on the way is not served and says why; the others are not touched by it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import structlog

from model_store.folder import (
    ENCODER,
    GRAPH,
    PREPROCESSOR,
    TARGET_TOKENIZER,
    TOKENIZER,
    FolderError,
    FoundFolder,
    GoldenExample,
    ModelFolder,
    read,
    scan,
)
from service.batcher import Batcher, BatcherLimits
from service.config import ServiceConfig
from service.cost_table import CostTable
from service.decoder import TranslationEngine
from service.engine import EngineError, OnnxEngine
from service.errors import InvalidRequest, NotFound, Unavailable
from service.inflight_batcher import InFlightBatcher, InFlightLimits, RunningBatches
from service.metrics import Metrics
from service.tasks.image_classification import ImageClassification, Pixels, PreprocessorConfig
from service.tasks.tensor_rows import TensorRows
from service.tasks.text_classification import TextClassification, Tokens
from service.tasks.translation import SearchRequest, Sentence, Translation

log = structlog.get_logger(__name__)

# Calls that are timed at load, cheapest first, while the budget lasts: rows, tokens.
COST_PROBES = (
    (1, 8),
    (1, 16),
    (4, 8),
    (1, 32),
    (4, 16),
    (1, 64),
    (4, 32),
    (8, 32),
    (16, 32),
    (4, 128),
    (32, 32),
)
# The same of models whose rows all have one length.
ROW_COST_PROBES = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1))
COST_BUDGET_S = 0.25

# Steps of a translation model that are timed at load: rows.
STEP_COST_PROBES = (1, 4, 16, 32, 64)
# The searches that golden translations are made by, and their beams.
GOLDEN_SEARCHES = {"greedy": 1, "beam 4": 4}

Task = TextClassification | ImageClassification | Translation | TensorRows
C = TypeVar("C")


@dataclass(frozen=True)
class ServedModel:
    """A version of a model that answers requests."""

    name: str
    version: str
    task: Task
    batcher: Batcher | InFlightBatcher


@dataclass
class ModelState:
    """What became of one folder of the store."""

    name: str
    version: str
    served: ServedModel | None = None
    problem: str | None = "loading"  # None while the model would answer correctly

    def current_problem(self) -> str | None:
        """Why the model would not answer now, or None when it would."""
        return self.problem if self.served is None else self.served.batcher.trouble()


@dataclass(frozen=True)
class _LoadedTranslation:
    """What a worker thread makes of the folder of a translation model."""

    task: Translation
    open_batches: Callable[[], RunningBatches]
    probe: Callable[[], None]
    costs: CostTable


@dataclass(frozen=True)
class _Loaded:
    """What a worker thread makes of any other folder."""

    task: Task
    run: Callable[[list[Any]], list[Any]]
    probe: Callable[[], None]
    costs: CostTable
    skips_padding: bool


@dataclass
class ModelRepository:
    """All models of one store."""

    config: ServiceConfig
    metrics: Metrics
    num_cores: int
    draining: bool = False
    states: dict[tuple[str, str], ModelState] = field(default_factory=dict)
    _newest_first: dict[str, list[ModelState]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Share out the cores."""
        self.instances, self.threads = self.config.engine_layout(self.num_cores)
        self._engine_clock = time.thread_time if self.threads == 1 else time.monotonic

    async def load_all(self) -> None:
        """Load every folder of the store, a few at a time.

        Raises:
            FolderError: the store itself cannot be read.
        """
        found = scan(self.config.model_store)
        for folder in found:
            state = ModelState(folder.name, folder.version)
            self.states[folder.name, folder.version] = state
            self._newest_first.setdefault(folder.name, []).insert(0, state)
        at_once = asyncio.Semaphore(self.num_cores)

        async def load(folder: FoundFolder) -> None:
            async with at_once:
                await self._load(folder)

        await asyncio.gather(*(load(folder) for folder in found))

    async def _load(self, folder: FoundFolder) -> None:
        state = self.states[folder.name, folder.version]
        started_s = time.perf_counter()
        try:
            loaded = await asyncio.to_thread(self._prepare, folder)
        except (FolderError, EngineError) as error:
            state.problem = str(error)
        except Exception as error:  # one bad folder must not take the others down, whatever is wrong with it
            log.exception("model failed to load", model=folder.name, version=folder.version)
            state.problem = f"{type(error).__name__}: {error}"
        else:
            state.served = self._start(folder, loaded)
            state.problem = None
        ready = self.metrics.ready.labels(folder.name, folder.version)
        ready.set_function(lambda: float(state.current_problem() is None))
        if state.problem:
            log.error(
                "model is not served",
                model=folder.name,
                version=folder.version,
                why=state.problem,
            )
        else:
            seconds = round(time.perf_counter() - started_s, 3)
            log.info("model ready", model=folder.name, version=folder.version, load_s=seconds)

    def _start(self, folder: FoundFolder, loaded: _Loaded | _LoadedTranslation) -> ServedModel:
        labels = (folder.name, folder.version)
        batches = self.metrics.batches(*labels)
        batcher: Batcher | InFlightBatcher
        if isinstance(loaded, _LoadedTranslation):
            batcher = InFlightBatcher(
                loaded.open_batches,
                probe=loaded.probe,
                costs=loaded.costs,
                instances=self.instances,
                limits=InFlightLimits(
                    max_queue_rows=self.config.max_queue,
                    max_running_rows=self.config.max_batch_rows,
                    engine_timeout_s=self.config.engine_timeout_s,
                ),
                on_batch=lambda report: batches.count(report.rows, report.tokens, report.padded_tokens),
                name=f"{folder.name}/{folder.version}",
            )
        else:
            batcher = Batcher(
                loaded.run,
                probe=loaded.probe,
                costs=loaded.costs,
                instances=self.instances,
                skips_padding=loaded.skips_padding,
                limits=BatcherLimits(
                    max_queue_rows=self.config.max_queue,
                    max_batch_rows=self.config.max_batch_rows,
                    max_batch_tokens=self.config.max_batch_tokens,
                    engine_timeout_s=self.config.engine_timeout_s,
                ),
                on_batch=lambda report: batches.count(report.rows, report.tokens, report.padded_tokens),
                engine_clock=self._engine_clock,
                name=f"{folder.name}/{folder.version}",
            )
        self.metrics.queue_rows.labels(*labels).set_function(lambda: batcher.queued_rows)
        self.metrics.in_flight_rows.labels(*labels).set_function(lambda: batcher.in_flight_rows)
        return ServedModel(folder.name, folder.version, loaded.task, batcher)

    def _prepare(self, found: FoundFolder) -> _Loaded | _LoadedTranslation:
        """In a worker thread: everything of loading that takes time."""
        folder = read(found)
        if folder.manifest is not None and folder.manifest.task == "translation":
            return self._prepare_translation(folder)
        engine = OnnxEngine(folder.path / "model.onnx", self.threads)
        if folder.manifest is None:
            return self._prepare_bare(engine)
        if folder.manifest.task == "text-classification":
            return self._prepare_text_classifier(folder, engine)
        if folder.manifest.task == "image-classification":
            return self._prepare_image_classifier(folder, engine)
        raise FolderError(f"manifest.json: task {folder.manifest.task!r} is not known to this server")

    def _prepare_bare(self, engine: OnnxEngine) -> _Loaded:
        task = TensorRows(engine.inputs, engine.outputs, self.config.max_batch_rows)
        return _Loaded(
            task,
            run=lambda items: task.separate(engine.run(task.collate(items)), items),
            # Without golden examples nothing is known that a sound engine must be able to compute.
            probe=lambda: None,
            costs=CostTable(self.config.max_batch_rows, 2),
            skips_padding=False,
        )

    def _prepare_text_classifier(self, folder: ModelFolder, engine: OnnxEngine) -> _Loaded:
        assert folder.manifest is not None
        hub_config = _read_json(folder.path / "config.json", _HubConfig)
        max_tokens = folder.manifest.limits.max_tokens
        if max_tokens is None:
            raise FolderError("manifest.json: limits.max_tokens is missing")
        task = TextClassification(
            (folder.path / TOKENIZER).read_text(),
            labels=folder.manifest.labels,
            max_tokens=max_tokens,
            pad_id=hub_config.pad_token_id,
            graph_inputs=[spec.name for spec in engine.inputs],
        )

        def run(items: list[Any]) -> list[Any]:
            return task.separate(engine.run(task.collate(items)), items)

        def item_of(example: GoldenExample) -> Tokens:
            tokens = task.preprocess(example.inputs["text"], truncate=False, field="text")
            if tokens.ids != example.tensors["input_ids"]:
                raise FolderError("the tokenizer gives other ids than in training")
            return tokens

        items = replay_golden(folder, item_of, run)
        ids = [number for item in items for number in item.ids]

        def item_of_length(length: int) -> Tokens:
            return Tokens((ids * (length // len(ids) + 1))[:length], truncated=False)

        costs = self._measure_costs(run, item_of_length, COST_PROBES, max_tokens)
        return _Loaded(task, run, lambda: _probe(run, items[0]), costs, folder.manifest.skips_padding)

    def _prepare_image_classifier(self, folder: ModelFolder, engine: OnnxEngine) -> _Loaded:
        assert folder.manifest is not None
        if len(engine.inputs) != 1:
            raise FolderError(f"model.onnx has {len(engine.inputs)} inputs, an image classifier has one")
        task = ImageClassification(
            _read_json(folder.path / PREPROCESSOR, PreprocessorConfig),
            labels=folder.manifest.labels,
            graph_input=engine.inputs[0].name,
        )

        def run(items: list[Any]) -> list[Any]:
            return task.separate(engine.run(task.collate(items)), items)

        def item_of(example: GoldenExample) -> Pixels:
            pixels = task.preprocess(example.inputs["image"].encode(), field="image")
            if pixels.digest() != example.tensors["pixel_values"]:
                raise FolderError("the image becomes other pixels than in training")
            return pixels

        items = replay_golden(folder, item_of, run)
        costs = self._measure_costs(run, lambda length: items[0], ROW_COST_PROBES, 1)
        return _Loaded(task, run, lambda: _probe(run, items[0]), costs, skips_padding=False)

    def _prepare_translation(self, folder: ModelFolder) -> _LoadedTranslation:
        assert folder.manifest is not None
        max_tokens = folder.manifest.limits.max_tokens
        if max_tokens is None:
            raise FolderError("manifest.json: limits.max_tokens is missing")
        languages = _read_json(folder.path / "config.json", _TranslationConfig)
        generation = _read_json(folder.path / "generation_config.json", _GenerationConfig)
        task = Translation(
            (folder.path / TOKENIZER).read_text(),
            max_tokens=max_tokens,
            bos_id=generation.decoder_start_token_id,
            eos_id=generation.eos_token_id,
            source_language=languages.source_language,
            target_language=languages.target_language,
            target_tokenizer_json=(
                (folder.path / TARGET_TOKENIZER).read_text() if TARGET_TOKENIZER in folder.manifest.files else None
            ),
        )
        engine = TranslationEngine(folder.path / ENCODER, folder.path / GRAPH, self.threads)

        def open_batches() -> RunningBatches:
            return engine.open(self.config.max_batch_rows, max_tokens)

        replay_golden_translations(folder, task, open_batches, self.config.max_batch_rows)
        text = folder.golden[0].inputs["text"]

        def probe() -> None:
            decode(open_batches(), [task.preprocess(text, truncate=False, field="text")])

        measured = []
        for rows in STEP_COST_PROBES:
            if rows > self.config.max_batch_rows:
                break
            running = open_batches()
            running.join([task.preprocess(text, truncate=False, field="text") for _ in range(rows)])
            running.step()
            started_s = time.perf_counter()
            running.step()
            measured.append((rows, 1, time.perf_counter() - started_s))
        return _LoadedTranslation(task, open_batches, probe, CostTable(self.config.max_batch_rows, 2, measured))

    def _measure_costs(
        self,
        run: Callable[[list[Any]], list[Any]],
        item_of_length: Callable[[int], Any],
        probes: Sequence[tuple[int, int]],
        max_length: int,
    ) -> CostTable:
        """Time a few calls of different size, with items made of the golden examples."""
        measured = []
        ends_s = time.perf_counter() + COST_BUDGET_S
        for rows, length in probes:
            if length > max_length or rows > self.config.max_batch_rows:
                continue
            items = [item_of_length(length)] * rows
            started_s = self._engine_clock()
            run(items)
            measured.append((rows, length, self._engine_clock() - started_s))
            if time.perf_counter() > ends_s:
                break
        return CostTable(self.config.max_batch_rows, max_length, measured)

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model to answer a request; without a version, the highest one that is ready.

        Raises:
            NotFound: the store has no such model or version.
            Unavailable: it is there, but would not answer correctly now.
        """
        state = self.state(name, version)
        if state.served is None:
            raise Unavailable(f"model {state.name!r} version {state.version!r} is not ready: {state.problem}")
        return state.served

    def state(self, name: str, version: str = "") -> ModelState:
        """What became of a folder; without a version, of the highest one that is ready, else of the highest.

        Raises:
            NotFound: the store has no such model or version.
        """
        if version:
            if (name, version) not in self.states:
                known = ", ".join(self.versions(name)) or "none"
                raise NotFound(f"Request for unknown model: {name!r} version {version!r}; versions here: {known}")
            return self.states[name, version]
        newest_first = self._newest_first.get(name)
        if newest_first is None:
            raise NotFound(f"Request for unknown model: {name!r} is not in the store")
        for state in newest_first:
            if state.current_problem() is None:
                return state
        return newest_first[0]

    def versions(self, name: str) -> list[str]:
        """The versions of a model that are ready, lowest first."""
        ready = [s.version for s in self.states.values() if s.name == name and s.current_problem() is None]
        return sorted(ready, key=int)

    def problems(self) -> dict[str, str]:
        """Which models would not answer now, and why."""
        found = {f"{s.name}/{s.version}".rstrip("/"): s.current_problem() for s in self.states.values()}
        return {name: problem for name, problem in found.items() if problem is not None}

    def not_ready_because(self) -> str | None:
        """Why the server as a whole should get no requests now, or None.

        A folder that failed to load does not count: its model answers UNAVAILABLE, the others serve on. An engine that
        died does: only a restart brings it back.
        """
        if self.draining:
            return "the server is shutting down"
        for state in self.states.values():
            if state.problem == "loading":
                return "models are loading"
            if state.served is not None and (trouble := state.served.batcher.trouble()):
                return f"{state.name}/{state.version}: {trouble}"
        if not any(state.served for state in self.states.values()):
            return "no model could be loaded"
        return None

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones have been answered."""
        self.draining = True
        served = [state.served for state in self.states.values() if state.served is not None]
        await asyncio.gather(*(model.batcher.drain() for model in served))

    def close(self) -> None:
        """End all engine threads."""
        for state in self.states.values():
            if state.served is not None:
                state.served.batcher.close()


class _HubConfig(msgspec.Struct):
    """What is needed of a Hugging Face `config.json`; the rest is passed over."""

    pad_token_id: int = 0


class _TranslationConfig(msgspec.Struct):
    """What is needed of the `config.json` of a translation model."""

    source_language: str
    target_language: str


class _GenerationConfig(msgspec.Struct):
    """What is needed of a Hugging Face `generation_config.json`."""

    decoder_start_token_id: int
    eos_token_id: int


def _read_json(path: Path, kind: type[C]) -> C:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise FolderError(f"{path.name}: {error}") from error


def _probe(run: Callable[[list[Any]], list[Any]], item: Any) -> None:
    run([item])


def replay_golden(
    folder: ModelFolder, item_of: Callable[[GoldenExample], Any], run: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Answer the golden examples, one by one and in one batch, and compare.

    Warm-up, preprocessing parity and numeric parity in one.

    Args:
        folder: with its examples.
        item_of: preprocesses one, and raises FolderError where that gives another tensor than in training.
        run: the engine call, items to logits.

    Returns:
        the examples' items.

    Raises:
        FolderError: the tensors differ, or the logits lie further off than the manifest allows.
    """
    assert folder.manifest is not None
    tolerance = folder.manifest.tolerance
    items = []
    for number, example in enumerate(folder.golden):
        try:
            items.append(item_of(example))
        except KeyError as missing:
            raise FolderError(f"golden example {number}: {missing} is missing") from missing
        except (FolderError, InvalidRequest) as error:
            raise FolderError(f"golden example {number}: {error}") from error
    expected_BC = np.array([example.outputs["logits"] for example in folder.golden])
    for how, logits in (
        ("alone", [run([item])[0] for item in items]),
        ("in a batch", run(items)),
    ):
        actual_BC = np.array(logits)
        if actual_BC.shape != expected_BC.shape:
            raise FolderError(f"golden examples {how}: logits of shape {actual_BC.shape}, not {expected_BC.shape}")
        off_by_B = np.abs(actual_BC - expected_BC).max(axis=1)
        number = int(off_by_B.argmax())
        if not off_by_B[number] <= tolerance.max_abs_logit_difference:
            raise FolderError(
                f"golden example {number} {how}: logits differ by {off_by_B[number]:.3g}, the manifest allows"
                f" {tolerance.max_abs_logit_difference:g}"
            )
        changed_B = actual_BC.argmax(axis=1) != expected_BC.argmax(axis=1)
        if tolerance.labels_must_agree and changed_B.any():
            raise FolderError(f"golden example {int(changed_B.argmax())} {how}: another label")
    return items


def decode(running: RunningBatches, sentences: Sequence[Sentence]) -> None:
    """Decode sentences from beginning to end, without others."""
    running.join(sentences)
    decoding = list(sentences)
    while decoding:
        running.step()
        for sentence in [each for each in decoding if each.done]:
            running.leave(sentence)
            decoding.remove(sentence)


def replay_golden_translations(
    folder: ModelFolder, task: Translation, open_batches: Callable[[], RunningBatches], max_rows: int
) -> None:
    """Translate the golden examples by each search, one by one and together, and compare.

    Args:
        folder: with its examples.
        task: of the folder.
        open_batches: empty running batches.
        max_rows: of a running batch.

    Raises:
        FolderError: the ids differ, or a translation is not as likely as the golden one.
    """
    assert folder.manifest is not None
    allowed = folder.manifest.tolerance.max_abs_logit_difference
    for search, num_beams in GOLDEN_SEARCHES.items():
        for how, together in (("alone", 1), ("in a batch", max(1, max_rows // num_beams))):
            sentences = [_golden_sentence(task, folder, number, num_beams) for number in range(len(folder.golden))]
            running = open_batches()
            for first in range(0, len(sentences), together):
                decode(running, sentences[first : first + together])
            for number, (sentence, example) in enumerate(zip(sentences, folder.golden, strict=True)):
                # By the score and not by the text: rounding may let two that are as likely change places.
                off_by = abs(sentence.search.best().score - example.outputs.get(search, [np.nan])[0])
                if not off_by <= allowed:
                    raise FolderError(
                        f"golden example {number} {how}, {search}: the score differs by {off_by:.3g}, the manifest"
                        f" allows {allowed:g}"
                    )


def _golden_sentence(task: Translation, folder: ModelFolder, number: int, num_beams: int) -> Sentence:
    example, request = folder.golden[number], SearchRequest(num_beams=num_beams)
    try:
        sentence = task.preprocess(example.inputs["text"], truncate=False, field="text", request=request)
        expected = example.tensors["input_ids"]
    except KeyError as missing:
        raise FolderError(f"golden example {number}: {missing} is missing") from missing
    except InvalidRequest as error:
        raise FolderError(f"golden example {number}: {error}") from error
    if sentence.ids != expected:
        raise FolderError(f"golden example {number}: the tokenizer gives other ids than in training")
    return sentence
