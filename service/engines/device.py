"""Where engines compute: the CPU, or one NVIDIA GPU by ONNX Runtime's CUDA execution provider.

ONNX Runtime falls back to the CPU without a word where a library or a driver is missing. Here, who asks for CUDA gets
CUDA or an error: a small graph is loaded at start, and every session is asked what it computes with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Condition
from typing import Any, Literal

import onnxruntime

Device = Literal["cpu", "cuda"]
Place = Literal["host", "device"]  # whose memory something lies in

# By preference: what the first one has no kernel for, such as the shapes of a graph, is computed by the second.
PROVIDERS: dict[Device, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    # Several models share the GPU: each takes the memory that it needs, not twice as much each time it needs more.
    "cuda": [("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}), "CPUExecutionProvider"],
}
CUDA = "CUDAExecutionProvider"
# What is added where calls are captured as CUDA graphs, and replayed.
CAPTURE = {"enable_cuda_graph": "1"}

# Numbers of element types in onnx.proto.
FLOAT, INT64, FLOAT16 = 1, 7, 10


class Turns:
    """Keeps what must be alone apart from all else, which goes on side by side; for any number of threads."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._beside, self._alone, self._waiting = 0, False, 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Beside others of this kind; never within another turn of the same thread, which could wait for itself."""
        with self._changed:
            # Those who want to be alone go first, for among many others their moment would never come.
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._beside += 1
        try:
            yield
        finally:
            with self._changed:
                self._beside -= 1
                if not self._beside:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Without any other turn."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._alone and not self._beside)
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


# While ONNX Runtime captures a CUDA graph (cudaStreamCaptureModeGlobal), no other thread of the process may allocate on
# the GPU, copy to it or wait for it: both would fail. That is a rule of the process, whatever the models.
GPU_TURNS = Turns()


def turn(device: Device) -> AbstractContextManager[None]:
    """What a thread uses the device within; on the CPU there is nothing to wait for."""
    return nullcontext() if device == "cpu" else GPU_TURNS.beside()


class DeviceMissing(Exception):
    """The device that was asked for cannot compute; the message says why."""


def providers(device: Device, *, cuda_graphs: bool = False) -> list[Any]:
    """What ONNX Runtime gets to compute with; where it can capture CUDA graphs, and `cuda_graphs` is true, it does."""
    if not cuda_graphs:
        return PROVIDERS[device]
    return [(each[0], each[1] | CAPTURE) if each[0] == CUDA else each for each in PROVIDERS[device]]


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
    return _model([("Identity", ["x"], ["y"], {})], {"x": (FLOAT, (1,))}, {"y": (FLOAT, (1,))})


def gather_graph(count: int, element_type: int, rank: int, second_axis: int | None = None) -> bytes:
    """An ONNX model that picks rows of several tensors: y_i = x_i[rows], for i from 0 to `count` - 1.

    Args:
        count: tensors.
        element_type: of all of them, by its number in onnx.proto.
        rank: dimensions of each, of any size.
        second_axis: one to pick places of as well, by the input `places`: for 2, y_i = x_i[rows][:, :, places].
    """
    tensor, numbers = (element_type, (None,) * rank), range(count)
    order, picked = (INT64, (None,)), "y" if second_axis is None else "picked"
    nodes: list[_Node] = [("Gather", [f"x_{number}", "rows"], [f"{picked}_{number}"], {}) for number in numbers]
    inputs = {f"x_{number}": tensor for number in numbers} | {"rows": order}
    if second_axis is not None:
        inputs["places"] = order
        nodes += [
            ("Gather", [f"picked_{number}", "places"], [f"y_{number}"], {"axis": second_axis}) for number in numbers
        ]
    return _model(nodes, inputs, {f"y_{number}": tensor for number in numbers})


_Node = tuple[str, list[str], list[str], dict[str, int]]  # operator, inputs, outputs, attributes


def _model(
    nodes: Sequence[_Node],
    inputs: Mapping[str, tuple[int, tuple[int | None, ...]]],
    outputs: Mapping[str, tuple[int, tuple[int | None, ...]]],
) -> bytes:
    """An ONNX model as protobuf encodes onnx.proto: operators with their inputs and outputs, tensors by name.

    A tensor is its element type and its sizes, None for any. Attributes are whole numbers.
    """

    def varint(number: int) -> bytes:
        low, rest = number & 0x7F, number >> 7
        return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])

    def field(number: int, content: bytes | str | int) -> bytes:
        if isinstance(content, int):
            return varint(number << 3) + varint(content)
        content = content.encode() if isinstance(content, str) else content
        return varint(number << 3 | 2) + varint(len(content)) + content

    def value(name: str, element_type: int, sizes: tuple[int | None, ...]) -> bytes:
        shape = b"".join(field(1, b"" if size is None else field(1, size)) for size in sizes)
        return field(1, name) + field(2, field(1, field(1, element_type) + field(2, shape)))

    def node(operator: str, taken: list[str], given: list[str], attributes: dict[str, int]) -> bytes:
        # An attribute's type 2 is INT.
        named = (field(1, name) + field(3, number) + field(20, 2) for name, number in attributes.items())
        parts = [*(field(1, x) for x in taken), *(field(2, y) for y in given), field(4, operator)]
        return b"".join([*parts, *(field(5, each) for each in named)])

    graph = b"".join(field(1, node(*each)) for each in nodes)
    graph += field(2, "graph")
    graph += b"".join(field(11, value(name, *tensor)) for name, tensor in inputs.items())
    graph += b"".join(field(12, value(name, *tensor)) for name, tensor in outputs.items())
    return field(1, 9) + field(7, graph) + field(8, field(2, 17))  # IR version 9, operator set 17
