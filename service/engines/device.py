"""The device that engines compute on: the CPU, or one NVIDIA GPU through ONNX Runtime's CUDA execution provider.

ONNX Runtime silently falls back to the CPU when a library or a driver is missing. Here a request for CUDA gets CUDA or
an error: a small graph is loaded at start, and every session is asked which providers it uses.
"""

from typing import Any, Literal

import onnxruntime

from service.engines.onnx_builder import identity_graph

Device = Literal["cpu", "cuda"]
Place = Literal["host", "device"]  # the memory that a tensor lies in

# In order of preference: the second provider computes the operators that the first has no kernel for, such as those on
# a graph's shapes.
PROVIDERS: dict[Device, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    # Several models share the GPU: each arena grows by what is requested, instead of doubling.
    "cuda": [("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}), "CPUExecutionProvider"],
}
CUDA = "CUDAExecutionProvider"
# Added to the CUDA provider's options for sessions that capture CUDA graphs and replay them.
CUDA_GRAPH_OPTIONS = {"enable_cuda_graph": "1"}


class DeviceMissing(Exception):
    """The requested device does not work; the message says why."""


def providers(device: Device, *, cuda_graphs: bool = False) -> list[Any]:
    """Return the execution providers of a session.

    Args:
        device: where the session computes.
        cuda_graphs: capture CUDA graphs, if the device can.
    """
    if not cuda_graphs:
        return PROVIDERS[device]
    return [(each[0], each[1] | CUDA_GRAPH_OPTIONS) if each[0] == CUDA else each for each in PROVIDERS[device]]


def choose_device(asked: Literal["cpu", "cuda", "auto"]) -> Device:
    """Choose the device to compute on.

    Args:
        asked: "auto" takes CUDA if it works, else the CPU.

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
    """Return why CUDA does not work on this machine, or None if it works."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this ONNX Runtime is built without CUDA; install onnxruntime-gpu instead of onnxruntime"
    # Loads the CUDA libraries that pip installed, for systems without their own.
    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the return value reports the error
    try:
        session = onnxruntime.InferenceSession(identity_graph(), options, providers=PROVIDERS["cuda"])
    except Exception as error:  # ONNX Runtime raises many types without a common base class of its own
        return str(error).strip().splitlines()[0]
    if CUDA not in session.get_providers():
        return "ONNX Runtime cannot load CUDA's or cuDNN's libraries, or there is no NVIDIA GPU or driver"
    return None
