"""The engine: arrays in, arrays out, computed by ONNX Runtime on the CPU or a GPU.

Safe to call from several threads at once: ONNX Runtime runs one session side by side, so that any number of instances
share one copy of the weights.
"""

import re
from pathlib import Path
from typing import Any, Protocol

import onnxruntime

from service.device import CUDA, PROVIDERS, Device
from service.tensors import Arrays, TensorSpec

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

    def run(self, feeds: Arrays) -> Arrays:
        """One call: an array for each input, by name; an array for each output.

        Raises:
            EngineError: the graph cannot compute these inputs.
        """


class OnnxEngine:
    """A graph computed by ONNX Runtime, loaded once."""

    def __init__(self, graph: Path, threads: int, device: Device = "cpu") -> None:
        """Load `graph`; each call then computes on `threads` threads, or on the device.

        Raises:
            EngineError: ONNX Runtime refuses the graph, or it has tensors that the protocol cannot carry.
        """
        self._session = open_session(graph, threads, device)
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Arrays) -> Arrays:
        """As `Engine.run`."""
        try:
            outputs = self._session.run(self._output_names, feeds)
        except Exception as error:
            raise EngineError(first_line(error)) from error
        return dict(zip(self._output_names, outputs, strict=True))


def open_session(graph: Path, threads: int, device: Device) -> Any:
    """A session of ONNX Runtime.

    Raises:
        EngineError: it refuses the graph, or would compute it elsewhere.
    """
    try:
        session = onnxruntime.InferenceSession(str(graph), session_options(threads), providers=PROVIDERS[device])
    except Exception as error:  # ONNX Runtime raises many types, without a common base of their own
        raise EngineError(f"{graph.name}: {first_line(error)}") from error
    if device == "cuda" and CUDA not in session.get_providers():
        raise EngineError(f"{graph.name}: ONNX Runtime would compute it on the CPU, and CUDA was asked for")
    return session


def session_options(threads: int) -> Any:
    """How ONNX Runtime computes here: on `threads` threads, and not a word but errors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the CPU from the other instances and from the front.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _spec(node: Any) -> TensorSpec:
    if node.type not in DATATYPE_OF:
        raise EngineError(f"tensor {node.name!r} has type {node.type}, which the protocol cannot carry")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, DATATYPE_OF[node.type], shape)


def first_line(error: Exception) -> str:
    """ONNX Runtime's message without its status prefix and without what follows the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", lines[0])
