"""ONNX Runtime sessions: open one, describe its tensors, run a call, and turn its errors into `EngineError`."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime

from model_store.private_files import PrivateGraph
from service.engines.device import CUDA, providers
from service.engines.host import EngineHost
from service.engines.int8_products import session_entries
from service.engines.preemption import Terminated
from service.tensors import TensorSpec

T = TypeVar("T")

# ONNX Runtime's names of element types, to the names of the Open Inference Protocol.
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


def open_session(
    graph: Path | PrivateGraph | bytes, threads: int, host: EngineHost, *, cuda_graphs: bool = False
) -> Any:
    """Open a session of ONNX Runtime.

    The session copies all weights into the form that it computes with, so a private copy of the graph may be dropped
    afterwards.

    Args:
        graph: the file, the private copy of one, or the content of one without external weights.
        threads: for each call on the CPU.
        host: where the session computes.
        cuda_graphs: capture CUDA graphs, if the device can.

    Raises:
        EngineError: ONNX Runtime refuses the graph, or would compute it on another device.
    """
    chosen, options = providers(host.device, cuda_graphs=cuda_graphs), session_options(threads)
    name = "the graph" if isinstance(graph, bytes) else graph.name
    source = graph.file.path if isinstance(graph, PrivateGraph) else graph
    try:
        with host.shared_use(), ExitStack() as mapped:
            if isinstance(graph, PrivateGraph) and graph.weights:
                contents = [mapped.enter_context(weights.mapped()) for weights in graph.weights.values()]
                lengths = [len(content) for content in contents]
                options.add_external_initializers_from_files_in_memory(list(graph.weights), contents, lengths)
            session = onnxruntime.InferenceSession(source, options, providers=chosen)
    except Exception as error:  # ONNX Runtime raises many types without a common base class of its own
        text = first_line(error)
        raise EngineError(
            f"{name}: {text if isinstance(source, bytes) else text.replace(str(source), name)}"
        ) from error
    if host.device == "cuda" and CUDA not in session.get_providers():
        raise EngineError(f"{name}: ONNX Runtime would compute it on the CPU, and CUDA was asked for")
    return session


def session_options(threads: int) -> Any:
    """Return the options of every session: `threads` threads for each call, and errors alone in the log."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take CPU time from the other instances and from the transport.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in session_entries().items():
        options.add_session_config_entry(name, value)
    options.log_severity_level = 3
    return options


def run_session(call: Callable[[Any], T], host: EngineHost) -> T:
    """Make a call of a session at the calling thread's priority.

    On the CPU a background call is stopped when a request arrives, after the operator that is being computed, and is
    made again later; it then overwrites what the stopped call has written. On a GPU it is not stopped, because the
    thread holds the GPU lock, which others may wait for. On both devices terminating the thread's `EngineCall` ends it.

    Args:
        call: gets ONNX Runtime's `RunOptions`, or None.
        host: where the session computes.

    Raises:
        Terminated: the thread's `EngineCall` was terminated.
    """
    if host.device == "cuda":
        return host.preemption.run_stoppable(call, new_run_options)
    return host.preemption.run_preemptible(call, new_run_options)


def run_binding(session: Any, binding: Any, host: EngineHost) -> None:
    """Run a session on bound tensors, like `run_session`.

    Raises:
        EngineError: the graph cannot compute them.
        Terminated: the thread's `EngineCall` was terminated.
    """
    with engine_errors():
        run_session(lambda options: session.run_with_iobinding(binding, options), host)


def new_run_options() -> Any:
    """Return the options of one call; they can stop it, and its errors are raised but not written to stderr as well."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


@contextmanager
def engine_errors() -> Iterator[None]:
    """Raise every exception but `Terminated` as an `EngineError` with the first line of its message."""
    try:
        yield
    except Terminated:
        raise
    except Exception as error:  # ONNX Runtime raises many types without a common base class of its own
        raise EngineError(first_line(error)) from error


def first_line(error: Exception) -> str:
    """Return the first line of ONNX Runtime's message, without its status prefix."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", lines[0])


def tensor_specs(nodes: list[Any]) -> tuple[TensorSpec, ...]:
    """Describe inputs or outputs of a session.

    Raises:
        EngineError: the protocol cannot carry the element type of one of them.
    """
    return tuple(map(_tensor_spec, nodes))


def _tensor_spec(node: Any) -> TensorSpec:
    if node.type not in DATATYPE_OF:
        raise EngineError(f"tensor {node.name!r} has type {node.type}, which the protocol cannot carry")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, DATATYPE_OF[node.type], shape)
