"""From a folder of the store to something that answers, proved on the way.

    folder ── read, checksums ──> engine ── golden examples replayed ──> costs measured

A GPU gets the graphs in half precision of a folder that has some, and only where these fail the ones that a CPU gets.
Warm-up, preprocessing parity and numeric parity in one: what passes answers as the original PyTorch model did.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from model_store.folder import (
    EXPLAIN,
    EXPLAIN_GOLDEN,
    PREPROCESSOR,
    TARGET_TOKENIZER,
    TOKENIZER,
    FolderError,
    FoundFolder,
    GoldenExample,
    Manifest,
    ModelFolder,
    read,
)
from model_store.policy import BatchingDeclaration, read_batching_declaration
from model_store.private_files import PrivateFile, PrivateGraph
from service.engines.device import Device, Place
from service.engines.onnx import Buckets, Engine, EngineError, OnnxEngine
from service.engines.preemption import EngineCall, Terminated, terminable
from service.engines.translation import TranslationEngine
from service.models.bare_engine import BareEngine, with_overridable_initializers
from service.models.batching import Batching, BatchingRule
from service.models.explanation_graph import ExplainGraph
from service.models.golden import Golden, GoldenLogits, GoldenTranslations
from service.models.row_independence import TrialStopped
from service.models.row_independence.onnx_graph import Model, UnreadableGraph, read_model
from service.scheduling.cost_table import CostTable
from service.scheduling.decoder_thread import RunningBatches
from service.tasks.image_classification import ImageClassification, Pixels, PreprocessorConfig
from service.tasks.tensor_rows import RawTensors
from service.tasks.text_classification import TextClassification, Tokens
from service.tasks.translation import (
    GOLDEN_SEARCHES,
    MAX_BEAMS,
    MAX_LENGTH_PENALTY,
    EarlyStopping,
    LanguageCodes,
    SearchDefaults,
    Sentence,
    Translation,
)
from service.tensors import Arrays

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
# Lengths of the rows of a call with padding, whose cost is compared with that of as many rows of their mean length.
PADDED_PROBE = (6, 10, 13, 15, 17, 19, 22, 26)
PADDED_PROBE_CALLS = 3
# Of the cost table of a bare model: a MiB. The costs of longer rows follow from the last two lengths.
LONGEST_ROW = 1024

# Of an int8 graph, CUDA has no kernel that scales activations as they come (DynamicQuantizeLinear).
CAPTURED_PRECISIONS = ("float32", "float16")

# Longest input of a text model. Costs and buffers are kept for each length, so a length has to be one that can be met.
MAX_TOKENS = 131_072

# Steps of a translation model that are timed at load: rows.
STEP_COST_PROBES = (1, 4, 16, 32, 64)

Task = TextClassification | ImageClassification | Translation | RawTensors
C = TypeVar("C")


@dataclass(frozen=True)
class LoadedTranslation:
    """A translation model, ready to be batched."""

    task: Translation
    open_batches: Callable[[], RunningBatches]
    probe: Callable[[], None]
    costs: CostTable
    golden: Golden
    precision: str
    cache_place: Place
    card: str | None = None  # the model card
    graph: ExplainGraph | None = None  # that explains, where the folder has one
    remark: str | None = None  # what the model's owner should know
    batching: Batching = field(kw_only=True)


@dataclass(frozen=True)
class Loaded:
    """Any other model, ready to be batched."""

    task: TextClassification | ImageClassification | RawTensors
    run: Callable[[list[Any]], list[Any]]
    probe: Callable[[], None]
    costs: CostTable
    skipped_padding_cost: float | None  # as `Batcher` takes it
    max_rows: int  # of a call that several items share
    golden: Golden | None = None  # of a bare model
    precision: str | None = None  # the same
    card: str | None = None  # the model card
    graph: ExplainGraph | None = None  # that explains, where the folder has one
    remark: str | None = None  # what the model's owner should know
    batching: Batching = field(kw_only=True)


def open_onnx(folder: ModelFolder, threads: int, device: Device = "cpu") -> Engine:
    """The graph of a model with one, in ONNX Runtime; on a GPU in buckets where it is of a task of ours.

    Raises:
        EngineError: ONNX Runtime refuses it.
        FolderError: a file that says how its inputs are padded is damaged.
    """
    graph = folder.graph
    buckets = None if device == "cpu" else buckets_of(folder)
    if buckets is None:
        return OnnxEngine(graph, threads, device)
    problem, model = capture_problem(folder), {"model": folder.name, "version": str(folder.version)}
    if problem is None:
        try:
            engine = OnnxEngine(graph, threads, device, buckets, cuda_graphs=True)
        except EngineError as error:
            problem = f"refused: {error}"
        else:
            log.info("model is computed in buckets, with CUDA graphs", **model)
            return engine
    log.info("model is computed in buckets, without CUDA graphs", **model, why=problem)
    return OnnxEngine(graph, threads, device, buckets)


def open_translation(folder: ModelFolder, threads: int, device: Device = "cpu") -> TranslationEngine:
    """The two graphs of a translation model, in ONNX Runtime.

    Raises:
        EngineError: ONNX Runtime refuses one of them.
    """
    assert folder.manifest is not None
    max_tokens = folder.manifest.limits.max_tokens
    assert max_tokens is not None
    return TranslationEngine(folder.encoder, folder.graph, threads, device, max_tokens=max_tokens)


def buckets_of(folder: ModelFolder) -> Buckets | None:
    """What calls of a model are rounded up to on a GPU, or None.

    Rows of a bare graph are never padded: it is not known what a row without meaning does to the others.

    Raises:
        FolderError: `config.json` is damaged.
    """
    if folder.manifest is None:
        return None
    if folder.manifest.task == "image-classification":
        return Buckets()
    if folder.manifest.task == "text-classification" and folder.manifest.limits.max_tokens is not None:
        pad_id = _read_json(folder, "config.json", _HubConfig).pad_token_id
        return Buckets(folder.manifest.limits.max_tokens, {"input_ids": pad_id})
    return None


def capture_problem(folder: ModelFolder) -> str | None:
    """Why a model's calls cannot be captured as CUDA graphs, or None when they can.

    All that is computed must have a shape that follows from the bucket, and must be computed on the GPU.
    """
    if folder.manifest is None:
        return "it is bare: its shapes are not known"
    if folder.manifest.task != "image-classification":
        return "what is computed depends on how many tokens are real"
    if folder.manifest.precision not in CAPTURED_PRECISIONS:
        return f"in {folder.manifest.precision} a part is computed on the CPU"
    return None


class Loader:
    """Loads folders for engines of one layout."""

    def __init__(
        self,
        max_rows: int,
        threads: int,
        engine_clock: Callable[[], float],
        device: Device = "cpu",
        open_engine: Callable[[ModelFolder, int, Device], Engine] = open_onnx,
        open_translation_engine: Callable[[ModelFolder, int, Device], TranslationEngine] = open_translation,
        state: Path | None = None,
    ) -> None:
        """Set up.

        Args:
            max_rows: of an engine call, and of a running batch.
            threads: of an engine call.
            engine_clock: measures what a call costs.
            device: where engines compute.
            open_engine: what computes the graph of a model with one; gets folder, threads and device.
            open_translation_engine: the same of a translation model.
            state: the folder of what is remembered and declared outside of the store.
        """
        self._max_rows, self._threads, self._engine_clock = max_rows, threads, engine_clock
        self._device, self._open_engine = device, open_engine
        self._open_translation_engine = open_translation_engine
        self._state, self._batching_rule = state, BatchingRule(state)

    def load(self, found: FoundFolder) -> Loaded | LoadedTranslation:
        """Read, check and prove one folder; all of it that takes time.

        Raises:
            FolderError: the folder must not be served; says why.
            EngineError: ONNX Runtime refuses a graph.
        """
        folder = read(found)
        loaded, graph = self._load_for_device(folder), None
        if folder.manifest is not None and {EXPLAIN, EXPLAIN_GOLDEN} <= folder.manifest.files.keys():
            assert not isinstance(loaded.task, RawTensors)
            assert loaded.golden is not None
            graph = ExplainGraph(folder, loaded.task, loaded.golden)
        if folder.remark is not None:
            log.warning("model folder is unusual", model=folder.name, version=str(folder.version), why=folder.remark)
        return replace(loaded, card=folder.card, graph=graph, remark=folder.remark)

    def _load_for_device(self, folder: ModelFolder) -> Loaded | LoadedTranslation:
        if self._device == "cuda" and (halved := folder.in_half_precision()) is not None:
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
        if folder.manifest is not None and folder.manifest.task == "translation":
            return self._load_translation(folder)
        engine = self._open_engine(folder, self._threads, self._device)
        if folder.manifest is None:
            return self._load_bare(folder, engine)
        if folder.manifest.task == "text-classification":
            return self._load_text_classifier(folder, engine)
        if folder.manifest.task == "image-classification":
            return self._load_image_classifier(folder, engine)
        raise FolderError(f"manifest.json: task {folder.manifest.task!r} is not known to this server")

    def _load_bare(self, folder: ModelFolder, opened: Engine) -> Loaded:
        graph = folder.graph

        def open_overridable() -> Engine:
            # With its weights as private copies too: those of a graph from bytes would be read from the working folder.
            changed = PrivateFile.of_bytes(with_overridable_initializers(graph.read_bytes()))
            return OnnxEngine(PrivateGraph(graph.name, changed, graph.weights), self._threads, self._device)

        engine = BareEngine(opened, model_of(graph), open_overridable)
        batching = self._batching_rule.of_bare_graph(
            graph, engine.inputs, engine.outputs, partial(run_within, engine), self._declaration(folder)
        )
        if not batching.joined:
            why = batching.describe()
            log.info("model is served without batching", model=folder.name, version=str(folder.version), why=why)
        max_rows = min(self._max_rows, batching.max_rows or self._max_rows)
        task = RawTensors(
            engine.inputs,
            engine.outputs,
            max_rows=max_rows,
            joined=batching.joined,
            optional_inputs=engine.optional_inputs,
            equal_sizes=batching.equal_sizes,
        )
        return Loaded(
            task,
            run=lambda items: task.split_batch(engine.run(task.collate(items)), items),
            # Without golden examples nothing is known that a sound engine must be able to compute.
            probe=lambda: None,
            costs=CostTable(self._max_rows, LONGEST_ROW),
            skipped_padding_cost=0.0,  # there is none
            max_rows=max_rows,
            batching=batching,
        )

    def _declaration(self, folder: ModelFolder) -> BatchingDeclaration | None:
        state = None if self._state is None else self._state / folder.name
        return read_batching_declaration(folder.path.parent, state)

    def _batching_of(self, folder: ModelFolder, graph: PrivateGraph) -> Batching:
        """Decide whether rows of several requests share a call of a folder with a manifest."""
        assert folder.manifest is not None
        return self._batching_rule.of_folder(graph, folder.manifest, self._declaration(folder))

    def _max_rows_of(self, batching: Batching) -> int:
        """Largest number of rows of a call that several items share; 1 where none may."""
        return min(self._max_rows, batching.max_rows or self._max_rows) if batching.joined else 1

    def _load_text_classifier(self, folder: ModelFolder, engine: Engine) -> Loaded:
        assert folder.manifest is not None
        hub_config = _read_json(folder, "config.json", _HubConfig)
        max_tokens = max_tokens_of(folder.manifest)
        task = TextClassification(
            folder.read_text(TOKENIZER),
            labels=folder.manifest.labels,
            max_tokens=max_tokens,
            pad_id=hub_config.pad_token_id,
            graph_inputs=[spec.name for spec in engine.inputs],
        )

        def run(items: list[Any]) -> list[Any]:
            return task.split_batch(engine.run(task.collate(items)), items)

        def item_of(example: GoldenExample) -> Tokens:
            truncate = example.inputs.get("truncate") == "true"
            tokens = task.preprocess(example.inputs["text"], truncate=truncate, field="text")
            if tokens.ids != example.tensors["input_ids"]:
                raise FolderError("the tokenizer gives other ids than in training")
            return tokens

        golden, batching = GoldenLogits(folder, item_of), self._batching_of(folder, folder.graph)
        items = replay_golden(golden, run, together=batching.joined)
        ids = [number for item in items for number in item.ids]

        def item_of_length(length: int) -> Tokens:
            return Tokens((ids * (length // len(ids) + 1))[:length], truncated=False)

        costs = self._measure_costs(run, item_of_length, COST_PROBES, max_tokens)
        padding_cost = None
        if folder.manifest.skips_padding:
            padding_cost = measure_padding_cost(run, item_of_length, max_tokens, self._engine_clock)
        return Loaded(
            task,
            run,
            probe=lambda: _probe(run, items[0]),
            costs=costs,
            skipped_padding_cost=padding_cost,
            max_rows=self._max_rows_of(batching),
            golden=golden,
            precision=folder.manifest.precision,
            batching=batching,
        )

    def _load_image_classifier(self, folder: ModelFolder, engine: Engine) -> Loaded:
        assert folder.manifest is not None
        if len(engine.inputs) != 1:
            raise FolderError(f"{folder.graph_name} has {len(engine.inputs)} inputs, an image classifier has one")
        task = ImageClassification(
            _read_json(folder, PREPROCESSOR, PreprocessorConfig),
            labels=folder.manifest.labels,
            graph_input=engine.inputs[0].name,
        )

        def run(items: list[Any]) -> list[Any]:
            return task.split_batch(engine.run(task.collate(items)), items)

        def item_of(example: GoldenExample) -> Pixels:
            pixels = task.preprocess(example.inputs["image"].encode(), field="image")
            if pixels.digest() != example.tensors["pixel_values"]:
                raise FolderError("the image becomes other pixels than in training")
            return pixels

        golden, batching = GoldenLogits(folder, item_of), self._batching_of(folder, folder.graph)
        items = replay_golden(golden, run, together=batching.joined)
        if self._device == "cuda":
            # The first call of a bucket allocates, chooses kernels and captures: here, not while a client waits.
            for exponent in range((self._max_rows - 1).bit_length() + 1):
                run([items[0]] * min(2**exponent, self._max_rows))
        costs = self._measure_costs(run, lambda length: items[0], ROW_COST_PROBES, 1)
        return Loaded(
            task,
            run,
            probe=lambda: _probe(run, items[0]),
            costs=costs,
            skipped_padding_cost=None,
            max_rows=self._max_rows_of(batching),
            golden=golden,
            precision=folder.manifest.precision,
            batching=batching,
        )

    def _load_translation(self, folder: ModelFolder) -> LoadedTranslation:
        assert folder.manifest is not None
        if (declaration := self._declaration(folder)) is not None:
            raise FolderError(f"{declaration.source}: batching cannot be declared for a translation model")
        max_tokens = max_tokens_of(folder.manifest)
        languages = _read_json(folder, "config.json", _TranslationConfig)
        generation = _read_json(folder, "generation_config.json", _GenerationConfig)
        task = Translation(
            folder.read_text(TOKENIZER),
            max_tokens=max_tokens,
            bos_id=generation.decoder_start_token_id,
            eos_id=generation.eos_token_id,
            source_language=languages.source_language,
            target_language=languages.target_language,
            target_tokenizer_json=(
                folder.read_text(TARGET_TOKENIZER) if TARGET_TOKENIZER in folder.manifest.files else None
            ),
            defaults=generation.defaults(max_tokens),
            language_codes=languages.codes(),
        )
        engine = self._open_translation_engine(folder, self._threads, self._device)

        def open_batches() -> RunningBatches:
            return engine.open(self._max_rows, max_tokens)

        golden = GoldenTranslations(folder, task)
        replay_golden_translations(golden, open_batches, self._max_rows)
        text = folder.golden[0].inputs["text"]

        def probe() -> None:
            decode(open_batches(), [task.preprocess(text, truncate=False, field="text")])

        # A row each: the model's own search may have beams.
        measured, greedy = [], GOLDEN_SEARCHES["greedy"]
        for rows in STEP_COST_PROBES:
            if rows > self._max_rows:
                break
            running = open_batches()
            running.join([task.preprocess(text, truncate=False, field="text", request=greedy) for _ in range(rows)])
            running.step()
            started_s = time.perf_counter()
            running.step()
            measured.append((rows, 1, time.perf_counter() - started_s))
        costs = CostTable(self._max_rows, 2, measured)
        return LoadedTranslation(
            task,
            open_batches,
            probe,
            costs,
            golden,
            folder.manifest.precision,
            engine.cache_place,
            batching=self._batching_of(folder, folder.encoder),
        )

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
            if length > max_length or rows > self._max_rows:
                continue
            items = [item_of_length(length)] * rows
            if self._device == "cuda":
                run(items)  # the first call of a bucket costs what no later one does
            started_s = self._engine_clock()
            run(items)
            measured.append((rows, length, self._engine_clock() - started_s))
            if time.perf_counter() > ends_s:
                break
        return CostTable(self._max_rows, max_length, measured)


def max_tokens_of(manifest: Manifest) -> int:
    """Read the longest input that a text model takes, in tokens.

    Raises:
        FolderError: it is missing, or no length that this server computes with.
    """
    max_tokens = manifest.limits.max_tokens
    if max_tokens is None:
        raise FolderError("manifest.json: limits.max_tokens is missing")
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise FolderError(f"manifest.json: limits.max_tokens is {max_tokens}; this server takes 1 to {MAX_TOKENS}")
    return max_tokens


class _HubConfig(msgspec.Struct):
    """What is needed of a Hugging Face `config.json`; the rest is passed over."""

    pad_token_id: int = 0


class _TranslationConfig(msgspec.Struct):
    """What is needed of the `config.json` of a translation model."""

    source_language: str
    target_language: str
    language_codes: dict[str, int] | None = None  # tokens that a text may begin with
    unknown_language_id: int = 0

    def codes(self) -> LanguageCodes | None:
        """The tokens that choose a language, of a model that has some."""
        if self.language_codes is None:
            return None
        return LanguageCodes(self.language_codes, self.unknown_language_id)


class _GenerationConfig(msgspec.Struct):
    """What is needed of a Hugging Face `generation_config.json`."""

    decoder_start_token_id: int
    eos_token_id: int
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = True
    max_new_tokens: int | None = None

    def defaults(self, max_tokens: int) -> SearchDefaults:
        """How the model searches where a client does not say otherwise.

        Raises:
            FolderError: a number lies outside its limits.
        """
        for name, value, least, most in (
            ("num_beams", self.num_beams, 1, MAX_BEAMS),
            ("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
            ("max_new_tokens", 1 if self.max_new_tokens is None else self.max_new_tokens, 1, max_tokens),
        ):
            if not least <= value <= most:
                raise FolderError(f"generation_config.json: {name} is {value}, not between {least:g} and {most:g}")
        return SearchDefaults(
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            max_new_tokens=self.max_new_tokens,
        )


def _read_json(folder: ModelFolder, name: str, kind: type[C]) -> C:
    try:
        return msgspec.json.decode(folder.file(name).read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise FolderError(f"{name}: {error}") from error


def measure_padding_cost(
    run: Callable[[list[Any]], list[Any]],
    item_of_length: Callable[[int], Any],
    max_length: int,
    clock: Callable[[], float],
) -> float:
    """What a token of padding costs where the engine skips it, as a share of a real one: attention still sees it.

    Depends on precision and machine: 0.25 in float32 and 0.55 in int8 on one, less than half of that on another
    (docs/decisions.md). Between 0 and 1; the best of a few calls each, for what disturbs a call makes it longer.
    """
    if max(PADDED_PROBE) > max_length:
        return 0.0  # so short that it hardly matters
    rows, tokens = len(PADDED_PROBE), sum(PADDED_PROBE)
    padding = rows * max(PADDED_PROBE) - tokens
    even, padded = [item_of_length(tokens // rows)] * rows, [item_of_length(length) for length in PADDED_PROBE]
    best_s = [math.inf, math.inf]
    for _ in range(PADDED_PROBE_CALLS):
        for number, items in enumerate((even, padded)):
            started_s = clock()
            run(items)
            best_s[number] = min(best_s[number], clock() - started_s)
    even_s, padded_s = best_s
    if even_s <= 0.0:
        return 0.0  # too short for this clock
    return min(1.0, max(0.0, (padded_s / even_s - 1) * tokens / padding))


def model_of(graph: PrivateGraph) -> Model:
    """Read what a graph's file says, without its weights.

    Raises:
        FolderError: it is no ONNX model.
    """
    with graph.file.mapped() as content:
        try:
            return read_model(memoryview(content))
        except UnreadableGraph as error:
            problem = f"{graph.name}: {error}"
    raise FolderError(problem)


def run_within(engine: Engine, feeds: Arrays, limit_s: float) -> Arrays:
    """Make an engine call that is terminated after `limit_s` seconds.

    Raises:
        EngineError: the graph cannot compute these inputs.
        TrialStopped: the time is up.
    """
    call = EngineCall()
    timer = threading.Timer(limit_s, call.terminate)
    timer.start()
    try:
        with terminable(call):
            return engine.run(feeds)
    except Terminated:
        raise TrialStopped from None
    finally:
        timer.cancel()


def _probe(run: Callable[[list[Any]], list[Any]], item: Any) -> None:
    run([item])


def replay_golden(golden: GoldenLogits, run: Callable[[list[Any]], list[Any]], *, together: bool) -> list[Any]:
    """Answer the golden examples, one by one and in one batch, and compare.

    Warm-up, preprocessing parity and numeric parity in one.

    Args:
        golden: the examples.
        run: the engine call, items to logits.
        together: compare the answers in a batch as well.

    Returns:
        the examples' items.

    Raises:
        FolderError: the tensors differ, or the logits lie further off than the manifest allows.
    """
    items = [golden.item(number) for number in range(golden.num_examples)]
    answers = {"alone": [run([item])[0] for item in items]}
    if together:
        answers["in a batch"] = run(items)
    for how, logits in answers.items():
        for number, logits_C in enumerate(logits):
            golden.difference(number, logits_C, how)
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
    golden: GoldenTranslations, open_batches: Callable[[], RunningBatches], max_rows: int
) -> None:
    """Translate the golden examples by each search, greedily one by one and each way together, and compare.

    Args:
        golden: the examples.
        open_batches: empty running batches.
        max_rows: of a running batch.

    Raises:
        FolderError: the ids differ, or a translation is not as likely as the golden one.
    """
    for search, request in GOLDEN_SEARCHES.items():
        num_beams = request.num_beams or 1
        ways = {"alone": 1, "in a batch": max(1, max_rows // num_beams)}
        if num_beams > 1:
            del ways["alone"]  # beams are company already, and a start takes its time
        for how, together in ways.items():
            sentences = [golden.item(number, search) for number in range(golden.num_examples)]
            running = open_batches()
            for first in range(0, len(sentences), together):
                decode(running, sentences[first : first + together])
            for number, sentence in enumerate(sentences):
                golden.difference(number, sentence, how, search)
