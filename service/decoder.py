"""The decoder: sentences to tokens, several at a time, by the two graphs of `export/translation_graphs.py`.

    join ── encoder ──> the source's keys and values ──┐
                                                       ├─> step ──> likeliest tokens ──> each sentence's search
    the rows' earlier tokens, in a cache of our own ───┘     └──> keys and values, written into the cache in place

A `RunningBatch` is what one thread decodes at present. Sentences join and leave it between steps; rows lie close
together at the front of each tensor, so that a step reads them where they are, without a copy.

Keys and values lie in the host's memory (`HostTensors`) or on the device (`DeviceTensors`), where a step leaves them
and the next one finds them. What else a step takes and gives is a few kilobytes.

Shapes: N sentences, W beams, R = N x W rows, P places of the cache, S source tokens, H heads, K width of a head, C
likeliest tokens, L places or source tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from service.device import FLOAT, FLOAT16, Device, gather_graph, providers, turn
from service.engine import DATATYPE_OF, EngineError, first_line, open_session, session_options
from service.priority import compute
from service.tensors import NUMPY_OF

log = structlog.get_logger(__name__)

# The source's keys and values are padded to a multiple of this, so that they seldom have to be laid out anew.
SOURCE_STEP_TOKENS = 8
# More candidates than a search ever needs are handed on as arrays: lists of a whole vocabulary take longer to make than
# a step.
MOST_LISTED = 64
FILL_ID = 0  # in padding, which the mask hides


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
        self, encoder: Path, decoder: Path, threads: int, device: Device = "cpu", *, keeps_on_device: bool | None = None
    ) -> None:
        """Load both graphs; each call then computes on `threads` threads, or on the device.

        Args:
            encoder: the graph of the encoder.
            decoder: the graph of a decoder step.
            threads: of a call on the CPU.
            device: where both are computed.
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
        self._gather = _open_gather(len(self.cache_names), self.dtype, device) if self._cross_on_device else None
        if on_gpu:
            where = {True: "device", False: "host"}[self._cache_on_device]
            log.info("translation keeps its cache", where=where, precision=str(self.dtype), graph=str(decoder))

    def cache(self, rows: int, places: int) -> "HostTensors | DeviceTensors":
        """Room for the keys and values of the rows' earlier tokens."""
        return self._tensors(self.cache_names, rows, places, on_device=self._cache_on_device)

    def cross(self, sentences: int, tokens: int) -> "HostTensors | DeviceTensors":
        """Room for the keys and values of the sentences' sources."""
        return self._tensors(self.cross_names, sentences, tokens, on_device=self._cross_on_device)

    def _tensors(self, names: list[str], rows: int, length: int, *, on_device: bool) -> "HostTensors | DeviceTensors":
        shape = (rows, self.num_heads, length, self.head_width)
        if on_device:
            return DeviceTensors(names, shape, self.dtype, self.device, self._gather)
        return HostTensors(names, shape, self.dtype)

    def encode(self, sources: Sequence[list[int]]) -> tuple[list[NDArray[Any]], NDArray[np.int32]]:
        """Keys and values of the sources, each [N, H, S, K], in the order of `cross_names`; and the mask [N, S].

        Raises:
            EngineError: the graph cannot compute these inputs.
        """
        longest = max(map(len, sources))
        ids_NS = np.full((len(sources), longest), FILL_ID, dtype=np.int64)
        mask_NS = np.zeros((len(sources), longest), dtype=np.int64)
        for row, source in enumerate(sources):
            ids_NS[row, : len(source)] = source
            mask_NS[row, : len(source)] = 1
        try:
            feeds = {"input_ids": ids_NS, "attention_mask": mask_NS}
            outputs = compute(self._encoder.run, self.cross_names, feeds)
        except Exception as error:
            raise EngineError(first_line(error)) from error
        return outputs, mask_NS.astype(np.int32)

    def decoder_binding(self) -> Any:
        """A new binding of the decoder step's tensors to memory."""
        return self._decoder.io_binding()

    def step(self, binding: Any) -> None:
        """Compute a decoder step on bound tensors.

        Raises:
            EngineError: the graph cannot compute them.
        """
        _run(self._decoder, binding)

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
        with turn(self._engine.device):
            self._join(sentences)

    def _join(self, sentences: Sequence[Sentence]) -> None:
        cross, mask_NS = self._engine.encode([sentence.ids for sentence in sentences])
        for number, sentence in enumerate(sentences):
            shape = (sentence.rows, sentence.num_candidates)
            batch = self._by_shape.get(shape)
            if batch is None:
                # One for each shape that is running: what is empty would keep its memory for ever.
                self._by_shape = {known: running for known, running in self._by_shape.items() if running.sentences}
                batch = RunningBatch(self._engine, sentence.rows, self._max_rows, self._max_places)
                self._by_shape[shape] = batch
            batch.join(sentence, [part[number] for part in cross], int(mask_NS[number].sum()))

    def step(self) -> None:
        """One token more for every sentence.

        Raises:
            EngineError: a graph cannot compute the step; no search has then gone on in the batch concerned.
        """
        with turn(self._engine.device):
            for batch in self._by_shape.values():
                if batch.sentences:
                    batch.step()

    def leave(self, sentence: Sentence) -> None:
        """Free the rows of a sentence."""
        with turn(self._engine.device):
            self._by_shape[sentence.rows, sentence.num_candidates].leave(sentence)


class HostTensors:
    """Keys and values in the host's memory: for each name a tensor [R, H, L, K], whose first rows are in use."""

    active = 0  # which of its memories the next step reads: there is one

    def __init__(self, names: Sequence[str], shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> None:
        self._names = names
        # Zeros take no memory until they are written to: a row costs what its tokens need.
        self._arrays = [np.zeros(shape, dtype) for _ in names]
        self.length = shape[2]

    def put(self, row: int, parts_HLK: Sequence[NDArray[Any]], length: int) -> None:
        """Write the first `length` places of a row, the one behind those in use."""
        for array_RHLK, part_HLK in zip(self._arrays, parts_HLK, strict=True):
            array_RHLK[row, :, :length] = part_HLK[:, :length]

    def move(self, targets: "Rows", sources: "Rows", length: int) -> None:
        """Make the first `length` places of the target rows what those of the source rows are."""
        for array_RHLK in self._arrays:
            # A list of rows is copied as a whole before anything is written, so that rows may change places.
            array_RHLK[targets, :, :length] = array_RHLK[sources, :, :length]

    def lengthen(self, length: int, rows: int) -> None:
        """Lay out anew for rows of another length; what the first `rows` rows hold is kept, as far as it goes."""
        before, kept = self._arrays, min(length, self.length)
        R, H, _, K = before[0].shape
        self._arrays = [np.zeros((R, H, length, K), before[0].dtype) for _ in before]
        for after_RHLK, before_RHLK in zip(self._arrays, before, strict=True):
            after_RHLK[:rows, :, :kept] = before_RHLK[:rows, :, :kept]
        self.length = length

    def settle(self, rows: int) -> None:
        """Be as the calls before have said: here each has done what it says."""

    def bind(self, binding: Any, rows: int, *, new: bool) -> None:
        """Bind the first rows as inputs; with `new`, the same memory as the outputs that are named so."""
        for name, array_RHLK in zip(self._names, self._arrays, strict=True):
            bound = "cpu", 0, array_RHLK.dtype.type, array_RHLK[:rows].shape, array_RHLK.ctypes.data
            binding.bind_input(name, *bound)
            if new:
                binding.bind_output(f"new_{name}", *bound)


class DeviceTensors:
    """As `HostTensors`, in the device's memory, by the same methods.

    Rows that move are noted, and picked all at once before the next step, by a Gather on the device from one memory
    into a second one, which the next step then reads. Of rows that are put, only their own content goes to the device.
    """

    def __init__(
        self, names: Sequence[str], shape: tuple[int, int, int, int], dtype: np.dtype[Any], device: Device, gather: Any
    ) -> None:
        self._names, self._shape, self._dtype, self._device, self._gather = names, shape, dtype, device, gather
        # Zeros, and the second only when rows move. What was never written must be a number all the same: a masked
        # place has the weight 0, and 0 times what is no number is no number.
        self._memories: list[list[Any]] = [self._allocate()]
        self.active = 0
        self._order_R = np.arange(shape[0], dtype=np.int64)  # for each row, the row of the memory that it is
        self._put: list[Sequence[NDArray[Any]]] = []  # rows that are not on the device yet, from `_first_put` on
        self._first_put = 0

    def _allocate(self) -> list[Any]:
        zeros = (np.zeros(self._shape, self._dtype) for _ in self._names)
        return [onnxruntime.OrtValue.ortvalue_from_numpy(each, self._device) for each in zeros]

    @property
    def length(self) -> int:
        """L."""
        return self._shape[2]

    def put(self, row: int, parts_HLK: Sequence[NDArray[Any]], length: int) -> None:
        """As `HostTensors.put`."""
        if not self._put:
            self._first_put = row
        # A row that has been put, and has gone before any step, is put again.
        del self._put[max(0, row - self._first_put) :]
        self._first_put = min(self._first_put, row)
        whole = [np.zeros(self._shape[1:], self._dtype) for _ in parts_HLK]
        for whole_HLK, part_HLK in zip(whole, parts_HLK, strict=True):
            whole_HLK[:, :length] = part_HLK[:, :length]
        self._put.append(whole)

    def move(self, targets: "Rows", sources: "Rows", length: int) -> None:
        """As `HostTensors.move`; of whole rows."""
        self._write_put()
        self._order_R[targets] = self._order_R[sources].copy()

    def lengthen(self, length: int, rows: int) -> None:
        """As `HostTensors.lengthen`; by way of the host, for sources seldom outgrow all before them."""
        self.settle(rows)
        (R, H, present, K), before = self._shape, self._memories[self.active]
        self._shape, kept = (R, H, length, K), min(length, present)
        after = [np.zeros(self._shape, self._dtype) for _ in before]
        if rows and kept:
            for after_RHLK, value in zip(after, before, strict=True):
                after_RHLK[:rows, :, :kept] = value.numpy()[:rows, :, :kept]
        self._memories = [[onnxruntime.OrtValue.ortvalue_from_numpy(each, self._device) for each in after]]
        self.active = 0

    def settle(self, rows: int) -> None:
        """Be as the calls before have said, so that the first `rows` rows can be bound."""
        self._write_put()
        self._pick(rows)

    def bind(self, binding: Any, rows: int, *, new: bool) -> None:
        """As `HostTensors.bind`."""
        for name, value in zip(self._names, self._memories[self.active], strict=True):
            bound = self._device, 0, self._dtype.type, (rows, *self._shape[1:]), value.data_ptr()
            binding.bind_input(name, *bound)
            if new:
                binding.bind_output(f"new_{name}", *bound)

    def _write_put(self) -> None:
        if not self._put:
            return
        written, self._put = self._put, []
        self._pick(self._first_put)  # they go behind the others as they now are
        binding, count = self._gather.io_binding(), len(written)
        binding.bind_cpu_input("rows", np.arange(count, dtype=np.int64))
        offset = self._first_put * int(np.prod(self._shape[1:])) * self._dtype.itemsize
        for number, value in enumerate(self._memories[self.active]):
            binding.bind_cpu_input(f"x_{number}", np.stack([row[number] for row in written]))
            shape, address = (count, *self._shape[1:]), value.data_ptr() + offset
            binding.bind_output(f"y_{number}", self._device, 0, self._dtype.type, shape, address)
        _run(self._gather, binding)

    def _pick(self, rows: int) -> None:
        """Move what has been noted, of the rows in use."""
        order_R = self._order_R[:rows].copy()
        self._order_R[:] = np.arange(len(self._order_R))
        if (order_R == self._order_R[:rows]).all():
            return
        if len(self._memories) == 1:
            self._memories.append(self._allocate())
        before, self.active = self._memories[self.active], 1 - self.active
        binding = self._gather.io_binding()
        binding.bind_cpu_input("rows", order_R)
        for number, (source, target) in enumerate(zip(before, self._memories[self.active], strict=True)):
            element_type, (_, *rest) = self._dtype.type, self._shape
            binding.bind_input(f"x_{number}", self._device, 0, element_type, self._shape, source.data_ptr())
            binding.bind_output(f"y_{number}", self._device, 0, element_type, (rows, *rest), target.data_ptr())
        _run(self._gather, binding)


Rows = slice | list[int]


def _run(session: Any, binding: Any) -> None:
    try:
        compute(session.run_with_iobinding, binding)
    except Exception as error:
        raise EngineError(first_line(error)) from error


def _open_gather(count: int, dtype: np.dtype[Any], device: Device) -> Any:
    element_type = {"float32": FLOAT, "float16": FLOAT16}[dtype.name]
    with turn(device):
        return onnxruntime.InferenceSession(
            gather_graph(count, element_type, rank=4), session_options(1), providers=providers(device)
        )


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

    def join(self, sentence: Sentence, cross_HSK: Sequence[NDArray[Any]], length: int) -> None:
        """Put a sentence behind the others."""
        place, W = len(self.sentences), self._num_beams
        self._lengths.append(length)
        self._make_room(max(self._lengths))
        self._cross.put(place, cross_HSK, length)
        self._mask_NS[place] = 0
        self._mask_NS[place, :length] = 1
        self._past_R[place * W : (place + 1) * W] = 0
        self.sentences.append(sentence)

    def _make_room(self, longest: int) -> None:
        """Lay out the source's keys and values anew where the longest source asks for it, or for much less."""
        tokens = -(-longest // SOURCE_STEP_TOKENS) * SOURCE_STEP_TOKENS
        present = self._mask_NS.shape[1]
        if present // 2 < tokens <= present:
            return
        kept, before_NS = min(tokens, present), self._mask_NS
        self._bindings.clear()
        self._cross.lengthen(tokens, len(self.sentences))
        self._mask_NS = np.zeros((self._max_sentences, tokens), dtype=np.int32)
        self._mask_NS[:, :kept] = before_NS[:, :kept]

    def step(self) -> None:
        """One token more for every sentence: as `RunningBatches.step`."""
        N, W = len(self.sentences), self._num_beams
        R = N * W
        for place, sentence in enumerate(self.sentences):
            self._ids_NW[place] = sentence.next_ids
        self._longest[()] = self._past_R[:R].max() + 1
        self._cache.settle(R)
        self._cross.settle(N)
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
        if top.shape[1] <= MOST_LISTED:
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
            self._cache.move(moved, sources, int(self._past_R[moved].max()))

    def leave(self, sentence: Sentence) -> None:
        """Take a sentence out; the last one takes its place."""
        place, last, W = self.sentences.index(sentence), len(self.sentences) - 1, self._num_beams
        if place != last:
            ours, its = slice(place * W, (place + 1) * W), slice(last * W, (last + 1) * W)
            self._cache.move(ours, its, int(self._past_R[last * W]))
            self._cross.move(slice(place, place + 1), slice(last, last + 1), self._cross.length)
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
