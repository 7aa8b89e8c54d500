"""The decoder: sentences to tokens, several at a time, by the two graphs of `export/translation_graphs.py`.

    join ── encoder ──> the source's keys and values ──┐
                                                       ├─> step ──> likeliest tokens ──> each sentence's search
    the rows' earlier tokens, in a cache of our own ───┘     └──> keys and values, written into the cache in place

A `RunningBatch` is what one thread decodes at present. Sentences join and leave it between steps; rows lie close
together at the front of each array, so that a step reads them where they are, without a copy.

Shapes: N sentences, W beams, R = N x W rows, P places of the cache, S source tokens, H heads, K width of a head, C
likeliest tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.device import Device
from service.engine import EngineError, first_line, open_session

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

    def __init__(self, encoder: Path, decoder: Path, threads: int, device: Device = "cpu") -> None:
        """Load both graphs; each call then computes on `threads` threads, or on the device.

        Raises:
            EngineError: ONNX Runtime refuses a graph, or its tensors are not those of a translation model.
        """
        self._encoder, self._decoder = (open_session(graph, threads, device) for graph in (encoder, decoder))
        shapes = {node.name: node.shape for node in self._decoder.get_inputs()}
        self.cache_names = [name for name in shapes if name.startswith(("key_", "value_"))]
        self.cross_names = [f"cross_{name}" for name in self.cache_names]
        if not self.cache_names or [node.name for node in self._encoder.get_outputs()] != self.cross_names:
            raise EngineError(f"{encoder.name} and {decoder.name} are not the two graphs of a translation model")
        self.num_heads, self.head_width = shapes[self.cache_names[0]][1], shapes[self.cache_names[0]][3]

    def encode(self, sources: Sequence[list[int]]) -> tuple[list[NDArray[np.float32]], NDArray[np.int32]]:
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
            outputs = self._encoder.run(self.cross_names, {"input_ids": ids_NS, "attention_mask": mask_NS})
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
        try:
            self._decoder.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(first_line(error)) from error

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
        for batch in self._by_shape.values():
            if batch.sentences:
                batch.step()

    def leave(self, sentence: Sentence) -> None:
        """Free the rows of a sentence."""
        self._by_shape[sentence.rows, sentence.num_candidates].leave(sentence)


class RunningBatch:
    """Sentences with the same number of beams, and their cache."""

    def __init__(self, engine: TranslationEngine, num_beams: int, max_rows: int, max_places: int) -> None:
        self._engine, self._num_beams = engine, num_beams
        self._max_sentences = max(1, max_rows // num_beams)
        self.sentences: list[Sentence] = []
        rows, H, K = self._max_sentences * num_beams, engine.num_heads, engine.head_width
        self._width_HK = (H, K)
        # Zeros take no memory until they are written to: a row's cache costs what its tokens need.
        self._caches = [np.zeros((rows, H, max_places, K), dtype=np.float32) for _ in engine.cache_names]
        self._cross: list[NDArray[np.float32]] = []
        self._mask_NS = np.zeros((self._max_sentences, 0), dtype=np.int32)
        self._lengths: list[int] = []  # source tokens of each sentence
        self._ids_NW = np.zeros((self._max_sentences, num_beams), dtype=np.int64)
        self._past_R = np.zeros(rows, dtype=np.int32)
        self._longest = np.zeros((), dtype=np.int32)
        self._num_candidates = np.zeros(1, dtype=np.int64)
        self._top_RC = np.zeros((rows, 0), dtype=np.float32)
        self._top_ids_RC = np.zeros((rows, 0), dtype=np.int64)
        self._bindings: dict[int, Any] = {}  # of the arrays as they lie now, by the number of sentences

    def join(self, sentence: Sentence, cross_HSK: Sequence[NDArray[np.float32]], length: int) -> None:
        """Put a sentence behind the others."""
        place, W = len(self.sentences), self._num_beams
        self._lengths.append(length)
        self._make_room(max(self._lengths))
        for ours_NHSK, its_HSK in zip(self._cross, cross_HSK, strict=True):
            ours_NHSK[place, :, :length] = its_HSK[:, :length]
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
        (H, K), kept = self._width_HK, min(tokens, present)
        before, before_NS = self._cross, self._mask_NS
        self._bindings.clear()
        self._cross = [np.zeros((self._max_sentences, H, tokens, K), np.float32) for _ in self._caches]
        self._mask_NS = np.zeros((self._max_sentences, tokens), dtype=np.int32)
        self._mask_NS[:, :kept] = before_NS[:, :kept]
        N = len(self.sentences)
        for after_NHSK, before_NHSK in zip(self._cross, before, strict=False):
            after_NHSK[:N, :, :kept] = before_NHSK[:N, :, :kept]

    def step(self) -> None:
        """One token more for every sentence: as `RunningBatches.step`."""
        N, W = len(self.sentences), self._num_beams
        R = N * W
        for place, sentence in enumerate(self.sentences):
            self._ids_NW[place] = sentence.next_ids
        self._longest[()] = self._past_R[:R].max() + 1
        if N not in self._bindings:
            self._bindings[N] = self._bind(self.sentences[0].num_candidates)
        self._engine.step(self._bindings[N])
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
            used = int(self._past_R[moved].max())
            for cache_RHPK in self._caches:
                # The right side is copied as a whole before anything is written, so that rows may change places.
                cache_RHPK[moved, :, :used] = cache_RHPK[sources, :, :used]

    def leave(self, sentence: Sentence) -> None:
        """Take a sentence out; the last one takes its place."""
        place, last, W = self.sentences.index(sentence), len(self.sentences) - 1, self._num_beams
        if place != last:
            ours, its = slice(place * W, (place + 1) * W), slice(last * W, (last + 1) * W)
            used = int(self._past_R[last * W])
            for cache_RHPK in self._caches:
                cache_RHPK[ours, :, :used] = cache_RHPK[its, :, :used]
            for cross_NHSK in self._cross:
                cross_NHSK[place] = cross_NHSK[last]
            self._mask_NS[place] = self._mask_NS[last]
            self._past_R[ours] = self._past_R[its]
            self._lengths[place] = self._lengths[last]
            self.sentences[place] = self.sentences[last]
        self.sentences.pop()
        self._lengths.pop()

    def _bind(self, num_candidates: int) -> Any:
        """Bind the arrays' first rows to the tensors of the graph: input and output of a cache are the same memory."""
        N, W = len(self.sentences), self._num_beams
        R = N * W
        self._num_candidates[0] = num_candidates
        if self._top_RC.shape[1] != num_candidates:
            self._top_RC = np.zeros((len(self._past_R), num_candidates), dtype=np.float32)
            self._top_ids_RC = np.zeros((len(self._past_R), num_candidates), dtype=np.int64)
        binding = self._engine.decoder_binding()
        names = self._engine.cache_names
        inputs: list[tuple[str, NDArray[Any]]] = [
            ("ids", self._ids_NW[:N]),
            ("past", self._past_R[:R]),
            ("longest", self._longest),
            ("source_mask", self._mask_NS[:N]),
            ("num_candidates", self._num_candidates),
            *zip(names, (cache_RHPK[:R] for cache_RHPK in self._caches), strict=True),
            *zip(self._engine.cross_names, (cross_NHSK[:N] for cross_NHSK in self._cross), strict=True),
        ]
        for name, array in inputs:
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        outputs: list[tuple[str, NDArray[Any]]] = [
            ("log_probabilities", self._top_RC[:R]),
            ("top_ids", self._top_ids_RC[:R]),
            *zip((f"new_{name}" for name in names), (cache_RHPK[:R] for cache_RHPK in self._caches), strict=True),
        ]
        for name, array in outputs:
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding
