"""The decoder: sentences to tokens, several at a time, by the two graphs of `export/onnx_graphs/translation.py`.

    join ── encoder ──> the source's keys and values ──┐       (on a GPU they never leave the device)
                                                       ├─> step ──> likeliest tokens ──> each sentence's search
    the rows' earlier tokens, in a cache of our own ───┘     └──> keys and values, written into the cache in place

A `RunningBatch` is what one thread decodes at present. Sentences join and leave it between steps; rows lie close
together at the front of each tensor, so that a step reads them where they are, without a copy.

Keys and values lie in the host's memory (`HostKvCache`) or on the device (`DeviceKvCache`), where the encoder or a step
leaves them and the next step finds them. What else a call takes and gives is a few kilobytes.

Shapes: N sentences, W beams, R = N x W rows, P places of the cache, S source tokens, H heads, K width of a head, C
likeliest tokens, L places or source tokens.
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from model_store.private_files import PrivateGraph
from service.engines.bucketed_session import BucketedSession, Buckets
from service.engines.device import Device, Place, providers
from service.engines.gpu_lock import shared_use
from service.engines.onnx_builder import FLOAT, FLOAT16, gather_graph
from service.engines.onnx_session import (
    DATATYPE_OF,
    EngineError,
    engine_errors,
    open_session,
    run_binding,
    run_session,
    session_options,
)
from service.tensors import NUMPY_OF

log = structlog.get_logger(__name__)

# The source's keys and values are padded to a multiple of this, so that they seldom have to be laid out anew.
SOURCE_STEP_TOKENS = 8
# More candidates than a search ever needs are handed on as arrays: lists of a whole vocabulary take longer to make than
# a step.
MAX_LISTED = 64
FILL_ID = 0  # in padding, which the mask hides
# Calls of the encoder that keep their memory on the device: of up to four times the tokens that join running sentences
# at once. All their buckets together have room for 25,000 tokens.
KEPT_TOKENS = 1024


class Sentence(Protocol):
    """What is decoded: the source, and a search that chooses among the likeliest tokens."""

    @property
    def ids(self) -> list[int]:
        """The source."""

    @property
    def rows(self) -> int:
        """Beams."""

    @property
    def num_candidates(self) -> int:
        """Likeliest next tokens of a row that the search must know."""

    @property
    def next_ids(self) -> list[int]:
        """The newest token of each row."""

    @property
    def done(self) -> bool:
        """Whether the search is over."""

    def advance(self, log_probabilities: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]) -> list[int]:
        """Choose; for each row of the next step, the row that it continues."""


class TranslationEngine:
    """Encoder and decoder step, loaded once; any number of running batches share the weights."""

    def __init__(
        self,
        encoder: Path | PrivateGraph,
        decoder: Path | PrivateGraph,
        threads: int,
        device: Device = "cpu",
        *,
        max_tokens: int,
        keeps_on_device: bool | None = None,
    ) -> None:
        """Load both graphs; each call then computes on `threads` threads, or on the device.

        Args:
            encoder: the graph of the encoder.
            decoder: the graph of a decoder step.
            threads: of a call on the CPU.
            device: where both are computed.
            max_tokens: of the longest source.
            keeps_on_device: keys and values stay in ONNX Runtime's memory of the device; None: on a GPU those of the
                source do, and those of the earlier tokens where the operator that writes them computes there.

        Raises:
            EngineError: ONNX Runtime refuses a graph, or its tensors are not those of a translation model.
        """
        self._encoder, self._decoder = (open_session(graph, threads, device) for graph in (encoder, decoder))
        inputs = {node.name: node for node in self._decoder.get_inputs()}
        self.cache_names = [name for name in inputs if name.startswith(("key_", "value_"))]
        self.cross_names = [f"cross_{name}" for name in self.cache_names]
        if not self.cache_names or [node.name for node in self._encoder.get_outputs()] != self.cross_names:
            raise EngineError(f"{encoder.name} and {decoder.name} are not the two graphs of a translation model")
        _, self.num_heads, _, self.head_width = inputs[self.cache_names[0]].shape
        types = {inputs[name].type for name in (*self.cache_names, *self.cross_names)}
        if types not in ({"tensor(float)"}, {"tensor(float16)"}):
            raise EngineError(f"{decoder.name}: keys and values are {', '.join(sorted(types))}, not of one known type")
        self.dtype = NUMPY_OF[DATATYPE_OF[types.pop()]]
        self.device: Device = device
        # GroupQueryAttention, which writes the cache, has no kernel for float32 on CUDA: ONNX Runtime computes it on
        # the CPU, and would fetch and return a cache on the device as a whole at each step.
        on_gpu = device == "cuda"
        self._cache_on_device = on_gpu and self.dtype == np.float16 if keeps_on_device is None else keeps_on_device
        self._cross_on_device = on_gpu if keeps_on_device is None else keeps_on_device
        # Inputs that are computed with elsewhere are copied there when they are bound, and not when they have changed.
        self.reads_in_place = not on_gpu and not self._cross_on_device
        self._encoder_calls: BucketedSession | None = None
        self._gathers: _Gathers | None = None
        if self._cross_on_device:
            buckets = Buckets(max_tokens, {"input_ids": FILL_ID}, KEPT_TOKENS)
            self._encoder_calls = BucketedSession(self._encoder, device, buckets)
            self._gathers = _Gathers(len(self.cache_names), self.dtype, device)
        if on_gpu:
            log.info(
                "translation keeps its cache", where=self.cache_place, precision=str(self.dtype), graph=str(decoder)
            )

    @property
    def cache_place(self) -> Place:
        """Where the keys and values of earlier tokens stay between two steps."""
        return "device" if self._cache_on_device else "host"

    @property
    def encoder_buffers(self) -> dict[tuple[int, int | None], int]:
        """As `OnnxEngine.buffers`, of the encoder."""
        return dict(self._encoder_calls.allocated) if self._encoder_calls else {}

    def cache(self, rows: int, places: int) -> "HostKvCache | DeviceKvCache":
        """Room for the keys and values of the rows' earlier tokens; zeros.

        What was never written must be a number: a masked place has the weight 0, and 0 times what is no number is no
        number.
        """
        return self._tensors(self.cache_names, (rows, places), on_device=self._cache_on_device, zeros=True)

    def cross(self, sentences: int, tokens: int) -> "HostKvCache | DeviceKvCache":
        """Room for the keys and values of the sentences' sources, whose rows are always written as a whole."""
        return self._tensors(self.cross_names, (sentences, tokens), on_device=self._cross_on_device, zeros=False)

    def _tensors(
        self, names: list[str], size: tuple[int, int], *, on_device: bool, zeros: bool
    ) -> "HostKvCache | DeviceKvCache":
        shape = (size[0], self.num_heads, size[1], self.head_width)
        if on_device:
            assert self._gathers is not None
            return DeviceKvCache(names, shape, self.dtype, self.device, self._gathers, zeros=zeros)
        return HostKvCache(names, shape, self.dtype)

    @contextmanager
    def encoded(self, sources: Sequence[list[int]]) -> Iterator[Sequence[Any]]:
        """Keys and values of the sources, each [N, H, S, K], in the order of `cross_names`.

        Arrays in the host's memory; or values in that of the device, with rows and tokens to spare, which the next call
        may write to after the end of the `with`.

        Raises:
            EngineError: the graph cannot compute these inputs.
        """
        longest = max(map(len, sources))
        ids_NS = np.full((len(sources), longest), FILL_ID, dtype=np.int64)
        mask_NS = np.zeros((len(sources), longest), dtype=np.int64)
        for row, source in enumerate(sources):
            ids_NS[row, : len(source)] = source
            mask_NS[row, : len(source)] = 1
        feeds, calls = {"input_ids": ids_NS, "attention_mask": mask_NS}, self._encoder_calls
        with ExitStack() as using:
            with engine_errors():
                if calls is None:
                    outputs = run_session(
                        lambda options: self._encoder.run(self.cross_names, feeds, options), self.device
                    )
                else:
                    outputs = using.enter_context(calls.device_outputs(feeds))
            yield outputs

    def decoder_binding(self) -> Any:
        """A new binding of the decoder step's tensors to memory."""
        return self._decoder.io_binding()

    def step(self, binding: Any) -> None:
        """Compute a decoder step on bound tensors.

        Raises:
            EngineError: the graph cannot compute them.
        """
        run_binding(self._decoder, binding, self.device)

    def open(self, max_rows: int, max_places: int) -> "RunningBatches":
        """Room for the sentences of one thread: `max_rows` rows of `max_places` tokens."""
        return RunningBatches(self, max_rows, max_places)


class RunningBatches:
    """The sentences of one thread: a running batch for each number of beams, for the rows of a step are N x W.

    And one for each number of candidates, for a step gives the same number for all its rows.
    """

    def __init__(self, engine: TranslationEngine, max_rows: int, max_places: int) -> None:
        self._engine, self._max_rows, self._max_places = engine, max_rows, max_places
        self._by_shape: dict[tuple[int, int], RunningBatch] = {}

    def join(self, sentences: Sequence[Sentence]) -> None:
        """Encode sentences and let them take part from the next step on; all of them, or none if this raises.

        Raises:
            EngineError: the encoder cannot compute them.
        """
        with shared_use(self._engine.device):
            self._join(sentences)

    def _join(self, sentences: Sequence[Sentence]) -> None:
        together: dict[tuple[int, int], list[int]] = {}
        for number, sentence in enumerate(sentences):
            together.setdefault((sentence.rows, sentence.num_candidates), []).append(number)
        joined: list[tuple[RunningBatch, Sentence]] = []
        try:
            with self._engine.encoded([sentence.ids for sentence in sentences]) as cross:
                for shape, numbers in together.items():
                    batch, some = self._batch(shape), [sentences[number] for number in numbers]
                    batch.join(some, cross, numbers)
                    joined += [(batch, sentence) for sentence in some]
        except Exception:
            for batch, sentence in joined:
                batch.leave(sentence)
            raise

    def _batch(self, shape: tuple[int, int]) -> "RunningBatch":
        if shape not in self._by_shape:
            # One for each shape that is running: what is empty would keep its memory for ever.
            self._by_shape = {known: running for known, running in self._by_shape.items() if running.sentences}
            self._by_shape[shape] = RunningBatch(self._engine, shape[0], self._max_rows, self._max_places)
        return self._by_shape[shape]

    def step(self) -> None:
        """One token more for every sentence.

        Raises:
            EngineError: a graph cannot compute the step; no search has then gone on in the batch concerned.
        """
        with shared_use(self._engine.device):
            for batch in self._by_shape.values():
                if batch.sentences:
                    batch.step()

    def leave(self, sentence: Sentence) -> None:
        """Free the rows of a sentence."""
        with shared_use(self._engine.device):
            self._by_shape[sentence.rows, sentence.num_candidates].leave(sentence)


def _fresh_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros in memory of their own, which take neither memory nor time until they are written to.

    A row so costs what its tokens need. `np.zeros` keeps that promise for memory that is new to the process alone: what
    it has had before is filled with zeros at once, which for the cache of a running batch took 10 to 140 ms.
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize))  # one of no bytes there is not
    return np.frombuffer(memory, dtype, count).reshape(shape)


class HostKvCache:
    """Keys and values in the host's memory: for each name a tensor [R, H, L, K], whose first rows are in use."""

    active = 0  # which of its memories the next step reads: there is one

    def __init__(self, names: Sequence[str], shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> None:
        self._names = names
        self._arrays = [_fresh_zeros(shape, dtype) for _ in names]
        self.length = shape[2]

    def write_rows(self, row: int, parts_NHSK: Sequence[Any], numbers: Sequence[int]) -> None:
        """Write rows, from `row` on, which is the one behind those in use: some of an encoder's, by their numbers.

        What lies behind a row's own tokens is hidden by the mask.
        """
        for array_RHLK, part_NHSK in zip(self._arrays, parts_NHSK, strict=True):
            length = min(self.length, part_NHSK.shape[2])
            array_RHLK[row : row + len(numbers), :, :length] = part_NHSK[numbers, :, :length]

    def copy_rows(self, targets: "Rows", sources: "Rows", length: int) -> None:
        """Make the first `length` places of the target rows what those of the source rows are."""
        for array_RHLK in self._arrays:
            # A list of rows is copied as a whole before anything is written, so that rows may change places.
            array_RHLK[targets, :, :length] = array_RHLK[sources, :, :length]

    def resize(self, length: int, rows: int) -> None:
        """Lay out anew for rows of another length; what the first `rows` rows hold is kept, as far as it goes."""
        before, kept = self._arrays, min(length, self.length)
        R, H, _, K = before[0].shape
        self._arrays = [_fresh_zeros((R, H, length, K), before[0].dtype) for _ in before]
        for after_RHLK, before_RHLK in zip(self._arrays, before, strict=True):
            after_RHLK[:rows, :, :kept] = before_RHLK[:rows, :, :kept]
        self.length = length

    def flush(self, rows: int) -> None:
        """Be as the calls before have said: here each has done what it says."""

    def bind(self, binding: Any, rows: int, *, new: bool) -> None:
        """Bind the first rows as inputs; with `new`, the same memory as the outputs that are named so."""
        for name, array_RHLK in zip(self._names, self._arrays, strict=True):
            bound = "cpu", 0, array_RHLK.dtype.type, array_RHLK[:rows].shape, array_RHLK.ctypes.data
            binding.bind_input(name, *bound)
            if new:
                binding.bind_output(f"new_{name}", *bound)


class _Gathers:
    """The graphs that write rows of keys and values where others have left them, on the device."""

    def __init__(self, count: int, dtype: np.dtype[Any], device: Device) -> None:
        self._dtype, self._device = dtype, device
        element_type = {"float32": FLOAT, "float16": FLOAT16}[dtype.name]

        def opened(second_axis: int | None) -> Any:
            graph = gather_graph(count, element_type, 4, second_axis)
            return onnxruntime.InferenceSession(graph, session_options(1), providers=providers(device))

        with shared_use(device):
            self._rows, self._places = opened(None), opened(2)

    def copy(
        self,
        sources: Sequence[Any],
        rows: NDArray[np.int64],
        targets: Sequence[Any],
        shape: tuple[int, ...],
        first: int = 0,
    ) -> None:
        """Write rows of the sources, [., H, S, K], from row `first` of the targets on, whose rows are [H, L, K].

        A target with more places than its source repeats the last one there: padding, which only has to be a number.

        Raises:
            EngineError: the device cannot compute it.
        """
        (H, L, K), S = shape, sources[0].shape()[2]
        session = self._rows if S == L else self._places
        binding = session.io_binding()
        binding.bind_cpu_input("rows", rows)
        if S != L:
            binding.bind_cpu_input("places", np.minimum(np.arange(L, dtype=np.int64), S - 1))
        offset = first * H * L * K * self._dtype.itemsize
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            binding.bind_ortvalue_input(f"x_{number}", source)
            place = self._device, 0, self._dtype.type, (len(rows), *shape), target.data_ptr() + offset
            binding.bind_output(f"y_{number}", *place)
        run_binding(session, binding, self._device)


class DeviceKvCache:
    """As `HostKvCache`, in the device's memory, by the same methods; nothing of it goes through the host's.

    Rows that move are noted, and picked all at once before the next step, by a Gather on the device from one memory
    into a second one, which the next step then reads. Rows that are put are picked in the same way, out of the memory
    that the encoder has left them in.
    """

    def __init__(
        self,
        names: Sequence[str],
        shape: tuple[int, int, int, int],
        dtype: np.dtype[Any],
        device: Device,
        gathers: _Gathers,
        *,
        zeros: bool,
    ) -> None:
        self._names, self._shape, self._dtype, self._device = names, shape, dtype, device
        self._gathers, self._zeros = gathers, zeros
        self._memories: list[list[Any]] = [self._allocate()]  # the second only when rows move
        self.active = 0
        self._order_R = np.arange(shape[0], dtype=np.int64)  # for each row, the row of the memory that it is

    def _allocate(self) -> list[Any]:
        if self._zeros:
            zeros = (np.zeros(self._shape, self._dtype) for _ in self._names)
            return [onnxruntime.OrtValue.ortvalue_from_numpy(each, self._device) for each in zeros]
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return [make(list(self._shape), self._dtype.type, self._device) for _ in self._names]

    @property
    def length(self) -> int:
        """L."""
        return self._shape[2]

    def write_rows(self, row: int, parts_NHSK: Sequence[Any], numbers: Sequence[int]) -> None:
        """As `HostKvCache.write_rows`, at once."""
        self._pick(row)  # they go behind the others as they now are
        picked = np.array(numbers, dtype=np.int64)
        self._gathers.copy(parts_NHSK, picked, self._memories[self.active], self._shape[1:], row)

    def copy_rows(self, targets: "Rows", sources: "Rows", length: int) -> None:
        """As `HostKvCache.copy_rows`; of whole rows."""
        self._order_R[targets] = self._order_R[sources].copy()

    def resize(self, length: int, rows: int) -> None:
        """As `HostKvCache.resize`."""
        (R, H, _, K), before, order_R = self._shape, self._memories[self.active], self._order_R[:rows].copy()
        self._shape = (R, H, length, K)
        self._memories, self.active = [self._allocate()], 0
        self._order_R[:] = np.arange(R)
        if rows:
            self._gathers.copy(before, order_R, self._memories[0], self._shape[1:])

    def flush(self, rows: int) -> None:
        """Be as the calls before have said, so that the first `rows` rows can be bound."""
        self._pick(rows)

    def bind(self, binding: Any, rows: int, *, new: bool) -> None:
        """As `HostKvCache.bind`."""
        for name, value in zip(self._names, self._memories[self.active], strict=True):
            bound = self._device, 0, self._dtype.type, (rows, *self._shape[1:]), value.data_ptr()
            binding.bind_input(name, *bound)
            if new:
                binding.bind_output(f"new_{name}", *bound)

    def _pick(self, rows: int) -> None:
        """Move what has been noted, of the rows in use."""
        order_R = self._order_R[:rows].copy()
        self._order_R[:] = np.arange(len(self._order_R))
        if (order_R == self._order_R[:rows]).all():
            return
        if len(self._memories) == 1:
            self._memories.append(self._allocate())
        before, self.active = self._memories[self.active], 1 - self.active
        self._gathers.copy(before, order_R, self._memories[self.active], self._shape[1:])


Rows = slice | list[int]


class RunningBatch:
    """Sentences with the same number of beams, and their cache."""

    def __init__(self, engine: TranslationEngine, num_beams: int, max_rows: int, max_places: int) -> None:
        self._engine, self._num_beams = engine, num_beams
        self._max_sentences = max(1, max_rows // num_beams)
        self.sentences: list[Sentence] = []
        rows = self._max_sentences * num_beams
        self._cache = engine.cache(rows, max_places)
        self._cross = engine.cross(self._max_sentences, 0)
        self._mask_NS = np.zeros((self._max_sentences, 0), dtype=np.int32)
        self._lengths: list[int] = []  # source tokens of each sentence
        self._ids_NW = np.zeros((self._max_sentences, num_beams), dtype=np.int64)
        self._past_R = np.zeros(rows, dtype=np.int32)
        self._longest = np.zeros((), dtype=np.int32)
        self._num_candidates = np.zeros(1, dtype=np.int64)
        self._top_RC = np.zeros((rows, 0), dtype=np.float32)
        self._top_ids_RC = np.zeros((rows, 0), dtype=np.int64)
        # Of the tensors as they lie now, by the number of sentences and the memories that are active.
        self._bindings: dict[tuple[int, int, int], Any] = {}

    def join(self, sentences: Sequence[Sentence], cross_NHSK: Sequence[Any], numbers: Sequence[int]) -> None:
        """Put sentences behind the others; `numbers` are theirs among those that the encoder has read."""
        place, W, lengths = len(self.sentences), self._num_beams, [len(sentence.ids) for sentence in sentences]
        assert place + len(lengths) <= self._max_sentences
        self._make_room(max(self._lengths + lengths))
        self._cross.write_rows(place, cross_NHSK, numbers)
        tokens = np.arange(self._mask_NS.shape[1])
        self._mask_NS[place : place + len(lengths)] = tokens < np.array(lengths)[:, None]
        self._past_R[place * W : (place + len(lengths)) * W] = 0
        self._lengths += lengths
        self.sentences += sentences

    def _make_room(self, longest: int) -> None:
        """Lay out the source's keys and values anew where the longest source asks for it, or for much less."""
        tokens = -(-longest // SOURCE_STEP_TOKENS) * SOURCE_STEP_TOKENS
        present = self._mask_NS.shape[1]
        if present // 2 < tokens <= present:
            return
        kept, before_NS = min(tokens, present), self._mask_NS
        self._bindings.clear()
        self._cross.resize(tokens, len(self.sentences))
        self._mask_NS = np.zeros((self._max_sentences, tokens), dtype=np.int32)
        self._mask_NS[:, :kept] = before_NS[:, :kept]

    def step(self) -> None:
        """One token more for every sentence: as `RunningBatches.step`."""
        N, W = len(self.sentences), self._num_beams
        R = N * W
        for place, sentence in enumerate(self.sentences):
            self._ids_NW[place] = sentence.next_ids
        self._longest[()] = self._past_R[:R].max() + 1
        self._cache.flush(R)
        self._cross.flush(N)
        key = N, self._cache.active, self._cross.active
        if key not in self._bindings:
            self._bindings[key] = self._bind(self.sentences[0].num_candidates)
        binding = self._bindings[key]
        if not self._engine.reads_in_place:
            for name, array in self._inputs():
                binding.bind_cpu_input(name, array)
        self._engine.step(binding)
        self._past_R[:R] += 1
        top: Any = self._top_RC[:R]
        top_ids: Any = self._top_ids_RC[:R]
        if top.shape[1] <= MAX_LISTED:
            top, top_ids = top.tolist(), top_ids.tolist()
        moved, sources = [], []
        for place, sentence in enumerate(self.sentences):
            first = place * W
            parents = sentence.advance(top[first : first + W], top_ids[first : first + W])
            if W > 1 and not sentence.done:
                for row, parent in enumerate(parents):
                    if row != parent:
                        moved.append(first + row)
                        sources.append(first + parent)
        if moved:
            self._cache.copy_rows(moved, sources, int(self._past_R[moved].max()))

    def leave(self, sentence: Sentence) -> None:
        """Take a sentence out; the last one takes its place."""
        place, last, W = self.sentences.index(sentence), len(self.sentences) - 1, self._num_beams
        if place != last:
            ours, its = slice(place * W, (place + 1) * W), slice(last * W, (last + 1) * W)
            self._cache.copy_rows(ours, its, int(self._past_R[last * W]))
            self._cross.copy_rows(slice(place, place + 1), slice(last, last + 1), self._cross.length)
            self._mask_NS[place] = self._mask_NS[last]
            self._past_R[ours] = self._past_R[its]
            self._lengths[place] = self._lengths[last]
            self.sentences[place] = self.sentences[last]
        self.sentences.pop()
        self._lengths.pop()

    def _inputs(self) -> list[tuple[str, NDArray[Any]]]:
        """What a step takes beside keys and values."""
        N = len(self.sentences)
        return [
            ("ids", self._ids_NW[:N]),
            ("past", self._past_R[: N * self._num_beams]),
            ("longest", self._longest),
            ("source_mask", self._mask_NS[:N]),
            ("num_candidates", self._num_candidates),
        ]

    def _bind(self, num_candidates: int) -> Any:
        """Bind the first rows to the tensors of the graph: input and output of a cache are the same memory."""
        N, W = len(self.sentences), self._num_beams
        R = N * W
        self._num_candidates[0] = num_candidates
        if self._top_RC.shape[1] != num_candidates:
            self._top_RC = np.zeros((len(self._past_R), num_candidates), dtype=np.float32)
            self._top_ids_RC = np.zeros((len(self._past_R), num_candidates), dtype=np.int64)
        binding = self._engine.decoder_binding()
        for name, array in self._inputs():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in (("log_probabilities", self._top_RC[:R]), ("top_ids", self._top_ids_RC[:R])):
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._cache.bind(binding, R, new=True)
        self._cross.bind(binding, N, new=False)
        return binding
