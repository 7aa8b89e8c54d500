"""The engine: arrays in, arrays out, computed by ONNX Runtime on the CPU or a GPU.

Safe to call from several threads at once: ONNX Runtime runs one session side by side, so that any number of instances
share one copy of the weights.

On a GPU, calls of our own tasks are rounded up to buckets: a call of 5 rows of 19 tokens takes the memory, and the
captured kernels, of every call of up to 8 rows of 32.

    feeds ── padded to their bucket ──> the bucket's memory on the device ── graph ──> outputs ── cut back ──>

Shapes: B rows of a call, T tokens.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_store.private_files import PrivateGraph
from service.engines.device import CUDA, Device, providers
from service.engines.gpu_lock import GPU_LOCK, shared_use
from service.engines.int8_products import session_entries
from service.engines.preemption import Terminated, run_preemptible, run_stoppable
from service.process.worker_threads import AssistantThread
from service.tensors import NUMPY_OF, Arrays, TensorSpec

T = TypeVar("T")

# Rows are rounded up to powers of two: few buckets, so that each is soon known, at most twice the rows. Tokens are
# rounded up to multiples of 16, the side of the tiles that a GPU multiplies: powers of two would double the attention,
# which grows with their square. A model of 64 rows and 128 tokens has 7 x 8 buckets, each of them a few hundred kB.
TOKEN_STEP = 16

# ONNX Runtime's names of element types, to those of the Open Inference Protocol.
DATATYPE_OF = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class EngineError(Exception):
    """The graph cannot be loaded, or a call failed."""


class Engine(Protocol):
    """A graph that computes; any number of threads may call it at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Its inputs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Its outputs."""

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs with a default value in the graph, which a call may bring."""

    def run(self, feeds: Arrays) -> Arrays:
        """One call: an array for each input, by name; an array for each output.

        Raises:
            EngineError: the graph cannot compute these inputs.
            Terminated: the calling thread's `EngineCall` was terminated.
        """


@dataclass(frozen=True)
class Buckets:
    """Which shapes the calls of a graph are rounded up to, and what fills them up.

    Only of graphs that compute each row by itself, and that hide what a mask says is padding. A padding row is the
    first row once more or, where rows have tokens, the first row's first token alone: padding is never a row without a
    single real token, whose mean is no number, nor one whose numbers exceed those of all texts.
    """

    max_tokens: int | None = None  # the longest row that the graph takes; None: its rows all have one size
    fill: Mapping[str, int] = field(default_factory=dict)  # what follows the tokens of a row, by input; 0 in the others
    kept_tokens: int | None = None  # a larger bucket, padding included, does not keep its memory; None: all do

    def of(self, rows: int, tokens: int | None) -> "Bucket":
        """The bucket of a call."""
        rounded = 1 << (rows - 1).bit_length()
        if tokens is None or self.max_tokens is None:
            return rounded, None
        return rounded, max(tokens, min(-(-tokens // TOKEN_STEP) * TOKEN_STEP, self.max_tokens))

    def keeps(self, bucket: "Bucket") -> bool:
        """Whether the memory of a bucket stays allocated."""
        rows, tokens = bucket
        return self.kept_tokens is None or rows * (tokens or 1) <= self.kept_tokens


Bucket = tuple[int, int | None]  # rows, tokens; None where rows all have one size


class OnnxEngine:
    """A graph computed by ONNX Runtime, loaded once."""

    def __init__(
        self,
        graph: Path | PrivateGraph | bytes,
        threads: int,
        device: Device = "cpu",
        buckets: Buckets | None = None,
        *,
        cuda_graphs: bool = False,
        binds: bool | None = None,
    ) -> None:
        """Load `graph`; each call then computes on `threads` threads, or on the device.

        Args:
            graph: the file, the private copy of one, or the content of one that reads no weights from other files.
            threads: of a call on the CPU.
            device: where it is computed.
            buckets: what calls are rounded up to; None leaves each as it is.
            cuda_graphs: the calls of each bucket are captured as a CUDA graph, and replayed.
            binds: calls without buckets have their inputs and outputs in the device's memory; None: on a GPU.

        Raises:
            EngineError: ONNX Runtime refuses the graph, or it has tensors that the protocol cannot carry, or none that
                buckets are known for.
        """
        self._session = open_session(graph, threads, device, cuda_graphs=cuda_graphs)
        self.inputs, self.outputs = _specs(self._session)
        self.optional_inputs = tuple(map(_spec, self._session.get_overridable_initializers()))
        self._output_names = [spec.name for spec in self.outputs]
        self._device, self._bound = device, None
        if buckets is not None:
            self._bound = BucketedSession(self._session, device, buckets, cuda_graphs=cuda_graphs)
        # Texts lie in the host's memory, whatever the device.
        bindable = all(spec.datatype in NUMPY_OF for spec in (*self.inputs, *self.outputs))
        self.binds = bindable and (device == "cuda" if binds is None else binds)

    @property
    def buffers(self) -> dict[Bucket, int]:
        """How many times the memory of each bucket has been allocated: once for each call that ran beside others."""
        return dict(self._bound.allocated) if self._bound else {}

    def run(self, feeds: Arrays) -> Arrays:
        """As `Engine.run`."""
        try:
            if self._bound:
                return self._bound.run(feeds)
            call = partial(self._session.run, self._output_names, feeds)
            if self._device == "cpu" and not self.binds:
                outputs = run_session(call, "cpu")
            else:
                with shared_use(self._device):
                    outputs = self._run_bound(feeds) if self.binds else run_session(call, self._device)
        except Terminated:
            raise
        except Exception as error:
            raise EngineError(first_line(error)) from error
        return dict(zip(self._output_names, outputs, strict=True))

    def _run_bound(self, feeds: Arrays) -> list[NDArray[Any]]:
        """A call of any shape: its inputs go to the device, and its outputs, whose sizes it tells, come back once."""
        if unknown := feeds.keys() - {spec.name for spec in (*self.inputs, *self.optional_inputs)}:
            raise ValueError(f"the graph has no input {', '.join(sorted(unknown))}")
        binding = self._session.io_binding()
        for name, array in feeds.items():
            on_device = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)
            binding.bind_ortvalue_input(name, on_device)
        for name in self._output_names:
            binding.bind_output(name, self._device)
        run_session(lambda options: self._session.run_with_iobinding(binding, options), self._device)
        # Of the CPU's own memory `numpy` gives the memory itself, which ends with the binding.
        return [np.array(value.numpy()) for value in binding.get_outputs()]


class BucketedSession:
    """Calls of one session on memory that is allocated once for each bucket; from any number of threads.

    A bucket's memory is in use by one call at a time: a second one beside it allocates its own, which is kept as well.

    CUDA graphs are another matter: "`Run()` may not be invoked on the same session from multiple threads" (ONNX
    Runtime's documentation of its CUDA provider), and what was captured reads and writes the very memory that it was
    captured with. So one thread of our own makes all calls then, and each bucket has memory once.
    """

    def __init__(
        self,
        session: Any,
        device: Device,
        buckets: Buckets,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """Set up.

        Args:
            session: of ONNX Runtime.
            device: where it computes.
            buckets: what calls are rounded up to.
            cuda_graphs: they are captured as CUDA graphs.

        Raises:
            EngineError: the graph has tensors that no buckets are known for.
        """
        inputs, outputs = _specs(session)
        dimensions = 1 if buckets.max_tokens is None else 2
        for spec in inputs:
            if spec.shape[:dimensions] != (-1,) * dimensions or -1 in spec.shape[dimensions:]:
                raise EngineError(f"input {spec.name!r} has shape {list(spec.shape)}: no buckets are known for it")
        if cuda_graphs and (unknown := [spec.name for spec in outputs if not _has_known_size(spec)]):
            raise EngineError(f"output {unknown[0]!r} has a size that only a call tells: no CUDA graph can write it")
        self._session, self._inputs, self._outputs = session, inputs, outputs
        self._device, self._buckets = device, buckets
        # An output may have as many tokens as the inputs: a dimension of the same name.
        tokens_name = session.get_inputs()[0].shape[1] if dimensions == 2 else None
        self._has_tokens = {
            node.name: [bool(tokens_name) and size == tokens_name for size in node.shape]
            for node in session.get_outputs()
        }
        self._allocating = Lock()
        self._free: defaultdict[Bucket, list[_Buffers]] = defaultdict(list)
        self.allocated: dict[Bucket, int] = {}
        # Were it to end, the engine would be dead: no other thread may replay what it has captured.
        self._thread = AssistantThread("cuda-graphs") if cuda_graphs else None
        self._calling = Lock()
        self._graph_ids = itertools.count(1)  # 0 is ONNX Runtime's own

    def run(self, feeds: Arrays) -> Arrays:
        """As `Engine.run`."""
        if self._thread is not None:
            with self._calling:
                return self._thread.call(partial(self._run, feeds))
        return self._run(feeds)

    def _run(self, feeds: Arrays) -> Arrays:
        if feeds.keys() != {spec.name for spec in self._inputs}:
            raise ValueError(f"the graph's inputs are {', '.join(spec.name for spec in self._inputs)}")
        first = feeds[self._inputs[0].name]
        rows, tokens = first.shape[0], None if self._buckets.max_tokens is None else first.shape[1]
        first_call = self._buckets.of(rows, tokens) not in self.allocated
        with (
            GPU_LOCK.exclusive() if self._thread and first_call else shared_use(self._device),
            self.run_session(feeds) as outputs,
        ):
            return {
                # Of the CPU's own memory `numpy` gives the memory itself, which the next call writes to.
                spec.name: np.array(value.numpy()[: rows if spec.shape[:1] == (-1,) else None])
                for spec, value in zip(self._outputs, outputs, strict=True)
            }

    @contextmanager
    def run_session(self, feeds: Arrays) -> Iterator[list[Any]]:
        """A call within a turn of the caller's; its outputs as they lie on the device, rounded up like the call.

        They are the caller's until the end of the `with`: then the next call may write to them.
        """
        first = feeds[self._inputs[0].name]
        bucket = self._buckets.of(first.shape[0], None if self._buckets.max_tokens is None else first.shape[1])
        # Taking from a list and adding to it are one step each to other threads.
        try:
            buffers = self._free[bucket].pop()
        except IndexError:
            buffers = self._allocate(bucket)
        try:
            for spec in self._inputs:
                buffers.put(spec.name, feeds[spec.name])
            run_session(
                lambda options: self._session.run_with_iobinding(buffers.binding, buffers.run_options or options),
                self._device,
            )
            yield buffers.binding.get_outputs()
        finally:
            if self._buckets.keeps(bucket):
                self._free[bucket].append(buffers)

    def _output_shape(self, spec: TensorSpec, bucket: Bucket) -> list[int]:
        """Of the calls of a bucket; -1 where only a call tells."""
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
        (rows, tokens), binding = bucket, self._session.io_binding()
        for spec in self._outputs:
            shape = self._output_shape(spec, bucket)
            if -1 not in shape and spec.datatype in NUMPY_OF:
                binding.bind_ortvalue_output(spec.name, _on_device(shape, NUMPY_OF[spec.datatype], self._device))
            else:
                binding.bind_output(spec.name, self._device)  # ONNX Runtime allocates it there, at each call
        inputs = {}
        for spec in self._inputs:
            shape = [rows, *spec.shape[1:]] if tokens is None else [rows, tokens, *spec.shape[2:]]
            dtype = NUMPY_OF[spec.datatype]
            inputs[spec.name] = (np.zeros(shape, dtype), _on_device(shape, dtype, self._device))
        run_options = None
        if self._thread is not None:
            run_options = onnxruntime.RunOptions()
            run_options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)))
        return _Buffers(binding, inputs, self._buckets.fill, run_options, has_tokens=tokens is not None)


@dataclass(frozen=True)
class _Buffers:
    """The memory of one bucket, on the device and, for what is padded, here."""

    binding: Any
    inputs: dict[str, tuple[NDArray[Any], Any]]
    fill: Mapping[str, int]
    run_options: Any
    has_tokens: bool

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Put an input, [B, T, ...] or [B, ...], on the device, padded to the bucket."""
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
        # Anew each time: an input that the graph wants elsewhere is copied there at this call, not when it runs.
        self.binding.bind_ortvalue_input(name, on_device)


def _has_known_size(spec: TensorSpec) -> bool:
    """Of an output: when the rows are known."""
    return -1 not in spec.shape[1:] and spec.datatype in NUMPY_OF


def _on_device(shape: list[int], dtype: np.dtype[Any], device: Device) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, device)


def open_session(graph: Path | PrivateGraph | bytes, threads: int, device: Device, *, cuda_graphs: bool = False) -> Any:
    """A session of ONNX Runtime; with `cuda_graphs`, one that captures CUDA graphs.

    Private copies are needed no longer when the session is there: it has its own copy of all weights, in the form that
    it computes with.

    Raises:
        EngineError: it refuses the graph, or would compute it elsewhere.
    """
    chosen, options = providers(device, cuda_graphs=cuda_graphs), session_options(threads)
    name = "the graph" if isinstance(graph, bytes) else graph.name
    source = graph.file.path if isinstance(graph, PrivateGraph) else graph
    try:
        with shared_use(device), ExitStack() as mapped:
            if isinstance(graph, PrivateGraph) and graph.weights:
                contents = [mapped.enter_context(weights.mapped()) for weights in graph.weights.values()]
                lengths = [len(content) for content in contents]
                options.add_external_initializers_from_files_in_memory(list(graph.weights), contents, lengths)
            session = onnxruntime.InferenceSession(source, options, providers=chosen)
    except Exception as error:  # ONNX Runtime raises many types, without a common base of their own
        text = first_line(error)
        raise EngineError(
            f"{name}: {text if isinstance(source, bytes) else text.replace(str(source), name)}"
        ) from error
    if device == "cuda" and CUDA not in session.get_providers():
        raise EngineError(f"{name}: ONNX Runtime would compute it on the CPU, and CUDA was asked for")
    return session


def run_session(call: Callable[[Any], T], device: Device) -> T:
    """Make a call of a session at the calling thread's priority; it takes ONNX Runtime's `RunOptions`, or None.

    On the CPU a call of low priority is stopped for a request, after the operator that is being computed, and made
    again; whatever it has written then, it writes once more. On a GPU its turn is one that others may wait for. On both
    a call of an engine thread ends when its `EngineCall` is terminated.

    Raises:
        Terminated: it was.
    """
    return run_stoppable(call, new_run_options) if device == "cuda" else run_preemptible(call, new_run_options)


def new_run_options() -> Any:
    """Options of one call, by which it can be terminated; errors are raised, and not written to stderr as well."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def session_options(threads: int) -> Any:
    """How ONNX Runtime computes here: on `threads` threads, and not a word but errors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the CPU from the other instances and from the front.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in session_entries().items():
        options.add_session_config_entry(name, value)
    options.log_severity_level = 3
    return options


def _specs(session: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a session's graph.

    Raises:
        EngineError: one of them has a type that the protocol cannot carry.
    """
    return tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))


def _spec(node: Any) -> TensorSpec:
    if node.type not in DATATYPE_OF:
        raise EngineError(f"tensor {node.name!r} has type {node.type}, which the protocol cannot carry")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, DATATYPE_OF[node.type], shape)


def first_line(error: Exception) -> str:
    """ONNX Runtime's message without its status prefix and without what follows the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", lines[0])
