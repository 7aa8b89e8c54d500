"""State that all engines of one process share: device, GPU lock, preemption."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from service.engines.device import Device
from service.engines.gpu_lock import SharedExclusiveLock
from service.engines.preemption import Preemption


@dataclass(frozen=True)
class EngineHost:
    """The device that engines compute on, its lock, and the preemption of their calls.

    Create one for each process, and pass it to every engine.

    Attributes:
        device: where engines compute.
        gpu_lock: keeps CUDA graph capture apart from all other use of the GPU. While ONNX Runtime captures a graph
            (cudaStreamCaptureModeGlobal), GPU allocations, copies and waits of any other thread of the process fail,
            whichever model they belong to.
        preemption: stops background calls for requests.
    """

    device: Device = "cpu"
    gpu_lock: SharedExclusiveLock = field(default_factory=SharedExclusiveLock)
    preemption: Preemption = field(default_factory=Preemption)

    def on_cpu(self) -> "EngineHost":
        """Return the host of engines that compute on the CPU whatever the device, with the same preemption."""
        return replace(self, device="cpu")

    def shared_use(self) -> AbstractContextManager[None]:
        """Hold the GPU lock shared while a thread uses the device; the CPU needs no lock."""
        return nullcontext() if self.device == "cpu" else self.gpu_lock.shared()
