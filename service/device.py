"""Where engines compute: the CPU, or one NVIDIA GPU by ONNX Runtime's CUDA execution provider.

ONNX Runtime falls back to the CPU without a word where a library or a driver is missing. Here, who asks for CUDA gets
CUDA or an error: a small graph is loaded at start, and every session is asked what it computes with.
"""

from typing import Any, Literal

import onnxruntime

Device = Literal["cpu", "cuda"]

# By preference: what the first one has no kernel for, such as the shapes of a graph, is computed by the second.
PROVIDERS: dict[Device, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    # Several models share the GPU: each takes the memory that it needs, not twice as much each time it needs more.
    "cuda": [("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}), "CPUExecutionProvider"],
}
CUDA = "CUDAExecutionProvider"


class DeviceMissing(Exception):
    """The device that was asked for cannot compute; the message says why."""


def choose_device(asked: Literal["cpu", "cuda", "auto"]) -> Device:
    """The device to compute with.

    Args:
        asked: "auto" takes CUDA where it works, else the CPU.

    Raises:
        DeviceMissing: CUDA was asked for and does not work.
    """
    if asked == "cpu":
        return "cpu"
    problem = cuda_problem()
    if problem is None:
        return "cuda"
    if asked == "cuda":
        raise DeviceMissing(f"device cuda: {problem}")
    return "cpu"


def cuda_problem() -> str | None:
    """Why CUDA does not work here, or None when it does."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this ONNX Runtime is built without CUDA; install onnxruntime-gpu instead of onnxruntime"
    # Libraries that came with pip, where the system has none.
    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said below
    try:
        session = onnxruntime.InferenceSession(identity_graph(), options, providers=PROVIDERS["cuda"])
    except Exception as error:  # ONNX Runtime raises many types, without a common base of their own
        return str(error).strip().splitlines()[0]
    if CUDA not in session.get_providers():
        return "ONNX Runtime cannot load CUDA's or cuDNN's libraries, or there is no NVIDIA GPU or driver"
    return None


def identity_graph() -> bytes:
    """The smallest ONNX model, y = x of one float: the serving install has no tools to build one."""

    def field(number: int, content: bytes | int) -> bytes:  # as protobuf encodes a field of onnx.proto
        if isinstance(content, int):
            return bytes([number << 3, content])
        return bytes([number << 3 | 2, len(content)]) + content

    def value(name: bytes) -> bytes:
        shape = field(1, field(1, 1))  # one dimension, of size 1
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))  # element type 1: float

    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"identity") + field(11, value(b"x")) + field(12, value(b"y"))
    return field(1, 9) + field(7, graph) + field(8, field(2, 17))  # IR version 9, operator set 17
