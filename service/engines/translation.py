"""Translation with two graphs of `export/onnx_graphs/translation.py`: an encoder and one step of the decoder.

    join ── encoder ──> the source's keys and values ──┐       (on a GPU they stay on the device)
                                                       ├─> step ──> likeliest tokens ──> each sentence's search
    keys and values of the rows' earlier tokens ───────┘     └──> keys and values, written into the cache in place

A `RunningBatch` holds the sentences that one thread decodes at present. Sentences join and leave it between steps; the
rows in use are the first ones of each tensor, so that a step reads them in place, without a copy.

Keys and values lie in the host's memory (`HostKvCache`) or on the device (`DeviceKvCache`), where the encoder or a step
leaves them and the next step finds them. All other inputs and outputs of a call are a few kilobytes.

Shapes: N sentences, W beams, R = N x W rows, P places of the cache, S source tokens, H heads, K width of a head, C
likeliest tokens. The width 1 of `_R1` is the graph's.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.private_files import PrivateGraph
from service.engines.bucketed_session import BucketedSession, Buckets
from service.engines.decodable import Decodable
from service.engines.device import Place
from service.engines.host import EngineHost
from service.engines.kv_cache import DeviceGathers, DeviceKvCache, HostKvCache, KvCache
from service.engines.onnx_session import DATATYPE_OF, EngineError, engine_errors, open_session, run_binding, run_session
from service.tensors import NUMPY_OF

log = structlog.get_logger(__name__)

# The source's keys and values are padded to a multiple of this, so that they are seldom resized.
SOURCE_STEP_TOKENS = 8
# More candidates than this are passed on as arrays, because converting a whole vocabulary to lists takes longer than a
# decoder step. Searches need fewer.
MAX_LISTED_CANDIDATES = 64
NORMALIZERS = "log_normalizers"
FILL_ID = 0  # padding token, which the mask hides
# Largest encoder call that keeps its memory on the device: four times the tokens that join running sentences at once.
# All buckets together hold up to 25,000 tokens.
KEPT_TOKENS = 1024


class TranslationEngine:
    """Encoder and decoder step, loaded once; any number of running batches share the weights."""

    def __init__(
        self,
        encoder: Path | PrivateGraph,
        decoder: Path | PrivateGraph,
        threads: int,
        host: EngineHost,
        *,
        max_tokens: int,
        keeps_on_device: bool | None = None,
    ) -> None:
        """Load both graphs; each call then computes on `threads` threads, or on the device.

        Args:
            encoder: the graph of the encoder.
            decoder: the graph of a decoder step.
            threads: for each call on the CPU.
            host: where both graphs are computed.
            max_tokens: tokens of the longest source.
            keeps_on_device: keys and values stay in the device's memory. None: on a GPU the source's do, and the
                earlier tokens' do if the operator that writes them runs there.

        Raises:
            EngineError: ONNX Runtime refuses a graph, or the graph lacks tensors of a translation model.
        """
        self._encoder, self._decoder = (open_session(graph, threads, host) for graph in (encoder, decoder))
        inputs = {node.name: node for node in self._decoder.get_inputs()}
        self.cache_names = [name for name in inputs if name.startswith(("key_", "value_"))]
        self.cross_names = [f"cross_{name}" for name in self.cache_names]
        if not self.cache_names or [node.name for node in self._encoder.get_outputs()] != self.cross_names:
            raise EngineError(f"{encoder.name} and {decoder.name} are not the two graphs of a translation model")
        # Folders of older versions lack this output, and their tasks ask for no search that needs it.
        self.has_normalizers = NORMALIZERS in {node.name for node in self._decoder.get_outputs()}
        _, self.num_heads, _, self.head_width = inputs[self.cache_names[0]].shape
        types = {inputs[name].type for name in (*self.cache_names, *self.cross_names)}
        if types not in ({"tensor(float)"}, {"tensor(float16)"}):
            raise EngineError(f"{decoder.name}: keys and values are {', '.join(sorted(types))}, not of one known type")
        self.dtype = NUMPY_OF[DATATYPE_OF[types.pop()]]
        self.host = host
        # GroupQueryAttention, which writes the cache, has no float32 kernel on CUDA: ONNX Runtime computes it on the
        # CPU, and would copy a cache on the device to the host and back at each step.
        on_gpu = host.device == "cuda"
        self._cache_on_device = on_gpu and self.dtype == np.float16 if keeps_on_device is None else keeps_on_device
        self._cross_on_device = on_gpu if keeps_on_device is None else keeps_on_device
        # Inputs that the graph reads on another device are copied when they are bound, not when they change.
        self.reads_in_place = not on_gpu and not self._cross_on_device
        self._encoder_calls: BucketedSession | None = None
        self._gathers: DeviceGathers | None = None
        if self._cross_on_device:
            buckets = Buckets(max_tokens, {"input_ids": FILL_ID}, KEPT_TOKENS)
            self._encoder_calls = BucketedSession(self._encoder, host, buckets)
            self._gathers = DeviceGathers(len(self.cache_names), self.dtype, host)
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
        """Number of buffers that each bucket of the encoder has allocated; see `OnnxEngine.buffers`."""
        return dict(self._encoder_calls.allocated) if self._encoder_calls else {}

    def cache(self, rows: int, places: int) -> KvCache:
        """Allocate a cache for the keys and values of the rows' earlier tokens.

        It is zero-initialised: masked places enter the product with weight 0, and 0 * NaN is NaN.
        """
        return self._allocate(self.cache_names, (rows, places), on_device=self._cache_on_device, zeros=True)

    def cross(self, sentences: int, tokens: int) -> KvCache:
        """Allocate a cache for the keys and values of the sentences' sources, whose rows are always written whole."""
        return self._allocate(self.cross_names, (sentences, tokens), on_device=self._cross_on_device, zeros=False)

    def _allocate(self, names: list[str], size: tuple[int, int], *, on_device: bool, zeros: bool) -> KvCache:
        shape = (size[0], self.num_heads, size[1], self.head_width)
        if on_device:
            assert self._gathers is not None
            return DeviceKvCache(names, shape, self.dtype, self.host.device, self._gathers, zeros=zeros)
        return HostKvCache(names, shape, self.dtype)

    @contextmanager
    def encode(self, sources: Sequence[list[int]]) -> Iterator[Sequence[Any]]:
        """Encode sources and yield their keys and values, each [N, H, S, K], in the order of `cross_names`.

        They are arrays in the host's memory, or padded values in the device's memory. The latter are valid until the
        end of the `with`: the next call may overwrite them.

        Args:
            sources: tokens of each source.

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
                    outputs = run_session(partial(self._encoder.run, self.cross_names, feeds), self.host)
                else:
                    outputs = using.enter_context(calls.device_outputs(feeds))
            yield outputs

    def decoder_binding(self) -> Any:
        """Return a new, empty binding of the decoder step's tensors to memory."""
        return self._decoder.io_binding()

    def step(self, binding: Any) -> None:
        """Compute a decoder step on bound tensors.

        Raises:
            EngineError: the graph cannot compute them.
        """
        run_binding(self._decoder, binding, self.host)

    def open(self, max_rows: int, max_places: int) -> "RunningBatches":
        """Open running batches for one thread.

        Args:
            max_rows: rows of a batch, over all its sentences.
            max_places: tokens that a row can decode.
        """
        return RunningBatches(self, max_rows, max_places)


class RunningBatches:
    """The sentences that one thread decodes: a running batch for each number of beams and of candidates.

    A step has N x W rows and returns the same number of candidates for each of them.
    """

    def __init__(self, engine: TranslationEngine, max_rows: int, max_places: int) -> None:
        self._engine, self._max_rows, self._max_places = engine, max_rows, max_places
        self._by_shape: dict[tuple[int, int], RunningBatch] = {}

    def join(self, sentences: Sequence[Decodable]) -> None:
        """Encode sentences and add them to the running batches, from the next step on; none is added if this raises.

        Raises:
            EngineError: the encoder cannot compute them.
        """
        with self._engine.host.shared_use():
            self._join(sentences)

    def _join(self, sentences: Sequence[Decodable]) -> None:
        together: dict[tuple[int, int], list[int]] = {}
        for number, sentence in enumerate(sentences):
            together.setdefault((sentence.rows, sentence.num_candidates), []).append(number)
        joined: list[tuple[RunningBatch, Decodable]] = []
        try:
            with self._engine.encode([sentence.ids for sentence in sentences]) as cross:
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
            # Drop empty batches of other shapes: they would hold their memory for ever.
            self._by_shape = {known: running for known, running in self._by_shape.items() if running.sentences}
            self._by_shape[shape] = RunningBatch(self._engine, shape[0], self._max_rows, self._max_places)
        return self._by_shape[shape]

    def step(self) -> None:
        """Decode one more token of every sentence.

        Raises:
            EngineError: a graph cannot compute the step; no search of that batch has advanced.
        """
        with self._engine.host.shared_use():
            for batch in self._by_shape.values():
                if batch.sentences:
                    batch.step()

    def leave(self, sentence: Decodable) -> None:
        """Remove a sentence and free its rows."""
        with self._engine.host.shared_use():
            self._by_shape[sentence.rows, sentence.num_candidates].leave(sentence)


class RunningBatch:
    """Sentences with the same number of beams, and their cache."""

    def __init__(self, engine: TranslationEngine, num_beams: int, max_rows: int, max_places: int) -> None:
        self._engine, self._num_beams = engine, num_beams
        self._max_sentences = max(1, max_rows // num_beams)
        self.sentences: list[Decodable] = []
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
        self._normalizers_R1 = np.zeros((rows, 1), dtype=np.float32)
        # Bindings to the present tensors, by the number of sentences and the active memories of both caches.
        self._bindings: dict[tuple[int, int, int], Any] = {}

    def join(self, sentences: Sequence[Decodable], cross_NHSK: Sequence[Any], numbers: Sequence[int]) -> None:
        """Add sentences behind the present ones; `numbers` are their rows in `cross_NHSK`, the encoder's outputs."""
        place, W, lengths = len(self.sentences), self._num_beams, [len(sentence.ids) for sentence in sentences]
        assert place + len(lengths) <= self._max_sentences
        self._resize_cross(max(self._lengths + lengths))
        self._cross.write_rows(place, cross_NHSK, numbers)
        tokens = np.arange(self._mask_NS.shape[1])
        self._mask_NS[place : place + len(lengths)] = tokens < np.array(lengths)[:, None]
        self._past_R[place * W : (place + len(lengths)) * W] = 0
        self._lengths += lengths
        self.sentences += sentences

    def _resize_cross(self, longest: int) -> None:
        """Resize the source's keys and values if the longest source needs more places, or at most half of them."""
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
        """Decode one more token of every sentence; see `RunningBatches.step`."""
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
        if top.shape[1] <= MAX_LISTED_CANDIDATES:
            top, top_ids = top.tolist(), top_ids.tolist()
        moved, sources = [], []
        for place, sentence in enumerate(self.sentences):
            first = place * W
            if sentence.reads_normalizers:
                sentence.set_log_normalizers(self._normalizers_R1[first : first + W, 0].tolist())
            parents = sentence.advance(top[first : first + W], top_ids[first : first + W])
            if W > 1 and not sentence.done:
                for row, parent in enumerate(parents):
                    if row != parent:
                        moved.append(first + row)
                        sources.append(first + parent)
        if moved:
            self._cache.copy_rows(moved, sources, int(self._past_R[moved].max()))

    def leave(self, sentence: Decodable) -> None:
        """Remove a sentence; the last one takes its place."""
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
        """Return the inputs of a step other than keys and values."""
        N = len(self.sentences)
        return [
            ("ids", self._ids_NW[:N]),
            ("past", self._past_R[: N * self._num_beams]),
            ("longest", self._longest),
            ("source_mask", self._mask_NS[:N]),
            ("num_candidates", self._num_candidates),
        ]

    def _bind(self, num_candidates: int) -> Any:
        """Bind the rows in use to the graph's tensors; a cache's input and output are the same memory."""
        N, W = len(self.sentences), self._num_beams
        R = N * W
        self._num_candidates[0] = num_candidates
        if self._top_RC.shape[1] != num_candidates:
            self._top_RC = np.zeros((len(self._past_R), num_candidates), dtype=np.float32)
            self._top_ids_RC = np.zeros((len(self._past_R), num_candidates), dtype=np.int64)
        binding = self._engine.decoder_binding()
        for name, array in self._inputs():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        outputs: list[tuple[str, NDArray[Any]]] = [
            ("log_probabilities", self._top_RC[:R]),
            ("top_ids", self._top_ids_RC[:R]),
        ]
        if self._engine.has_normalizers:
            outputs.append((NORMALIZERS, self._normalizers_R1[:R]))
        for name, array in outputs:
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._cache.bind(binding, R, new=True)
        self._cross.bind(binding, N, new=False)
        return binding
