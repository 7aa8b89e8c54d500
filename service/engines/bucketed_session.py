"""Calls of a session rounded up to buckets: a few shapes, each with device memory that is allocated once.

A call of 5 rows of 19 tokens uses the memory, and the captured CUDA graph, of every call of up to 8 rows of 32.

    feeds ── padded to their bucket ──> the bucket's memory on the device ── graph ──> outputs ── cut back ──>

Shapes: B rows of a call, T tokens.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.engines.device import Device
from service.engines.host import EngineHost
from service.engines.onnx_session import EngineError, run_session, tensor_specs
from service.process.worker_threads import AssistantThread
from service.tensors import NUMPY_OF, Arrays, TensorSpec

# Rows are rounded up to powers of two: few buckets, each soon allocated, with at most twice the rows. Tokens are
# rounded up to multiples of 16, the side of the tiles that a GPU multiplies: powers of two would double the attention,
# which grows with their square. A model of 64 rows and 128 tokens has 7 x 8 buckets, each of them a few hundred kB.
TOKEN_STEP = 16

Bucket = tuple[int, int | None]  # rows, tokens; None where rows all have one size


@dataclass(frozen=True)
class Buckets:
    """The shapes that the calls of a graph are rounded up to, and the padding that fills them.

    Only for graphs that compute each row independently and mask padding tokens. A padding row repeats the first row or,
    where rows have tokens, the first row's first token alone: a row without a real token would have NaN as its mean,
    and arbitrary values could exceed the range of real inputs.

    Attributes:
        max_tokens: tokens of the longest row that the graph takes; None: all rows have one size.
        fill: the padding token of each input; 0 for inputs that it does not name.
        kept_tokens: larger buckets, counted with their padding, free their memory after a call; None: all keep it.
    """

    max_tokens: int | None = None
    fill: Mapping[str, int] = field(default_factory=dict)
    kept_tokens: int | None = None

    def of(self, rows: int, tokens: int | None) -> Bucket:
        """Return the bucket of a call of so many rows and tokens."""
        rounded = 1 << (rows - 1).bit_length()
        if tokens is None or self.max_tokens is None:
            return rounded, None
        return rounded, max(tokens, min(-(-tokens // TOKEN_STEP) * TOKEN_STEP, self.max_tokens))

    def keeps(self, bucket: Bucket) -> bool:
        """Return whether the memory of a bucket stays allocated after a call."""
        rows, tokens = bucket
        return self.kept_tokens is None or rows * (tokens or 1) <= self.kept_tokens


class BucketedSession:
    """Calls of one session on memory that is allocated once for each bucket; any number of threads may call it.

    One call at a time uses a buffer. A call that finds all buffers of its bucket in use allocates another, which is
    kept as well.

    CUDA graphs need more care: "`Run()` may not be invoked on the same session from multiple threads" (ONNX Runtime's
    documentation of its CUDA provider), and a captured graph reads and writes the memory it was captured with. So one
    thread of this object makes all calls then, and each bucket has one buffer.
    """

    def __init__(
        self,
        session: Any,
        host: EngineHost,
        buckets: Buckets,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """Check that the session's tensors can be bucketed.

        Args:
            session: a session of ONNX Runtime.
            host: where it computes.
            buckets: the shapes that calls are rounded up to.
            cuda_graphs: the session captures CUDA graphs.

        Raises:
            EngineError: no buckets are known for the shapes of the graph's tensors.
        """
        inputs, outputs = tensor_specs(session.get_inputs()), tensor_specs(session.get_outputs())
        dimensions = 1 if buckets.max_tokens is None else 2
        for spec in inputs:
            if spec.shape[:dimensions] != (-1,) * dimensions or -1 in spec.shape[dimensions:]:
                raise EngineError(f"input {spec.name!r} has shape {list(spec.shape)}: no buckets are known for it")
        if cuda_graphs and (unknown := [spec.name for spec in outputs if not _has_known_size(spec)]):
            raise EngineError(f"output {unknown[0]!r} has a size that only a call tells: no CUDA graph can write it")
        self._session, self._inputs, self._outputs = session, inputs, outputs
        self._host, self._buckets = host, buckets
        # An output has as many tokens as the inputs where its dimension has the same name.
        tokens_name = session.get_inputs()[0].shape[1] if dimensions == 2 else None
        self._has_tokens = {
            node.name: [bool(tokens_name) and size == tokens_name for size in node.shape]
            for node in session.get_outputs()
        }
        self._allocating = Lock()
        self._free: defaultdict[Bucket, list[_Buffers]] = defaultdict(list)
        self.allocated: dict[Bucket, int] = {}  # buffers allocated so far
        # If this thread ended, the engine would be dead: no other thread may replay the graphs that it has captured.
        self._thread = AssistantThread("cuda-graphs") if cuda_graphs else None
        self._calling = Lock()
        self._graph_ids = itertools.count(1)  # ONNX Runtime uses 0 itself

    def run(self, feeds: Arrays) -> Arrays:
        """Compute one call, like `Engine.run`, and return arrays in the host's memory."""
        if self._thread is not None:
            with self._calling:
                return self._thread.call(partial(self._run, feeds))
        return self._run(feeds)

    def _run(self, feeds: Arrays) -> Arrays:
        if feeds.keys() != {spec.name for spec in self._inputs}:
            raise ValueError(f"the graph's inputs are {', '.join(spec.name for spec in self._inputs)}")
        rows, bucket = feeds[self._inputs[0].name].shape[0], self._bucket_of(feeds)
        captures = self._thread is not None and bucket not in self.allocated
        lock = self._host.gpu_lock.exclusive() if captures else self._host.shared_use()
        with lock, self.device_outputs(feeds) as outputs:
            return {
                # On the CPU `numpy` returns a view of the buffer, which the next call overwrites.
                spec.name: np.array(value.numpy()[: rows if spec.shape[:1] == (-1,) else None])
                for spec, value in zip(self._outputs, outputs, strict=True)
            }

    @contextmanager
    def device_outputs(self, feeds: Arrays) -> Iterator[list[Any]]:
        """Compute one call and yield its outputs in the device's memory, padded to the bucket.

        The caller holds the GPU lock. The outputs are valid until the end of the `with`: the next call may overwrite
        them.
        """
        bucket = self._bucket_of(feeds)
        # Taking from a list and adding to it are atomic, so the free buffers need no lock.
        try:
            buffers = self._free[bucket].pop()
        except IndexError:
            buffers = self._allocate(bucket)
        try:
            for spec in self._inputs:
                buffers.write(spec.name, feeds[spec.name])
            run_session(
                lambda options: self._session.run_with_iobinding(buffers.binding, buffers.run_options or options),
                self._host,
            )
            yield buffers.binding.get_outputs()
        finally:
            if self._buckets.keeps(bucket):
                self._free[bucket].append(buffers)

    def _bucket_of(self, feeds: Arrays) -> Bucket:
        first = feeds[self._inputs[0].name]
        return self._buckets.of(first.shape[0], None if self._buckets.max_tokens is None else first.shape[1])

    def _output_shape(self, spec: TensorSpec, bucket: Bucket) -> list[int]:
        """Return the shape of an output for the calls of a bucket; -1 for sizes known only after a call."""
        (rows, tokens), shape = bucket, list(spec.shape)
        if shape[:1] == [-1]:
            shape[0] = rows
        if tokens is None:
            return shape
        return [
            tokens if is_tokens else size for size, is_tokens in zip(shape, self._has_tokens[spec.name], strict=True)
        ]

    def _allocate(self, bucket: Bucket) -> "_Buffers":
        with self._allocating:
            self.allocated[bucket] = self.allocated.get(bucket, 0) + 1
        (rows, tokens), binding, device = bucket, self._session.io_binding(), self._host.device
        for spec in self._outputs:
            shape = self._output_shape(spec, bucket)
            if -1 not in shape and spec.datatype in NUMPY_OF:
                binding.bind_ortvalue_output(spec.name, _empty_on_device(shape, NUMPY_OF[spec.datatype], device))
            else:
                binding.bind_output(spec.name, device)  # ONNX Runtime allocates it there for each call
        inputs = {}
        for spec in self._inputs:
            shape = [rows, *spec.shape[1:]] if tokens is None else [rows, tokens, *spec.shape[2:]]
            dtype = NUMPY_OF[spec.datatype]
            inputs[spec.name] = (np.zeros(shape, dtype), _empty_on_device(shape, dtype, device))
        run_options = None
        if self._thread is not None:
            run_options = onnxruntime.RunOptions()
            run_options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)))
        return _Buffers(binding, inputs, self._buckets.fill, run_options, has_tokens=tokens is not None)


@dataclass(frozen=True)
class _Buffers:
    """The memory of one bucket: inputs and outputs on the device, and host arrays to pad the inputs in."""

    binding: Any
    inputs: dict[str, tuple[NDArray[Any], Any]]
    fill: Mapping[str, int]
    run_options: Any
    has_tokens: bool

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Pad an input, [B, T, ...] or [B, ...], to the bucket and copy it to the device."""
        padded, on_device = self.inputs[name]
        if array.shape == padded.shape and array.dtype == padded.dtype:
            padded = array
        else:
            rows = len(array)
            if self.has_tokens:
                padded[:rows, : array.shape[1]] = array
                padded[:rows, array.shape[1] :] = self.fill.get(name, 0)
                padded[rows:] = self.fill.get(name, 0)
                padded[rows:, 0] = array[0, 0]
            else:
                padded[:rows] = array
                padded[rows:] = array[0]
        on_device.update_inplace(padded)
        # Bound for each call: an input that the graph reads on another device is copied there when it is bound.
        self.binding.bind_ortvalue_input(name, on_device)


def _has_known_size(spec: TensorSpec) -> bool:
    """Return whether the size of an output follows from the number of rows."""
    return -1 not in spec.shape[1:] and spec.datatype in NUMPY_OF


def _empty_on_device(shape: list[int], dtype: np.dtype[Any], device: Device) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, device)
