"""The engine: arrays in, arrays out, computed by ONNX Runtime on the CPU or a GPU.

Several threads may call an engine at once: ONNX Runtime runs concurrent calls of one session, so that any number of
instances share one copy of the weights.
"""

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_store.private_files import PrivateGraph
from service.engines.bucketed_session import Bucket, BucketedSession, Buckets
from service.engines.host import EngineHost
from service.engines.onnx_session import engine_errors, open_session, run_session, tensor_specs
from service.tensors import NUMPY_OF, Arrays, TensorSpec


class Engine(Protocol):
    """A graph that computes calls; any number of threads may call it at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that every call needs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of every call."""

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs with a default value in the graph, which a call may override."""

    def run(self, feeds: Arrays) -> Arrays:
        """Compute one call.

        Args:
            feeds: an array for each input, by name.

        Returns:
            An array for each output, by name.

        Raises:
            EngineError: the graph cannot compute these inputs.
            Terminated: the calling thread's `EngineCall` was terminated.
        """


class OnnxEngine:
    """A graph computed by ONNX Runtime, loaded once."""

    def __init__(
        self,
        graph: Path | PrivateGraph | bytes,
        threads: int,
        host: EngineHost,
        buckets: Buckets | None = None,
        *,
        cuda_graphs: bool = False,
        binds: bool | None = None,
    ) -> None:
        """Load `graph`; each call then computes on `threads` threads, or on the device.

        Args:
            graph: the file, the private copy of one, or the content of one without external weights.
            threads: for each call on the CPU.
            host: where the graph is computed.
            buckets: the shapes that calls are rounded up to; None computes each call in its own shape.
            cuda_graphs: capture the calls of each bucket as a CUDA graph, and replay it.
            binds: calls without buckets keep inputs and outputs in the device's memory; None: only on a GPU.

        Raises:
            EngineError: ONNX Runtime refuses the graph, the protocol cannot carry its tensors, or no buckets are known
                for them.
        """
        self._session = open_session(graph, threads, host, cuda_graphs=cuda_graphs)
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())
        self.optional_inputs = tensor_specs(self._session.get_overridable_initializers())
        self._output_names = [spec.name for spec in self.outputs]
        self._host, self._bucketed = host, None
        if buckets is not None:
            self._bucketed = BucketedSession(self._session, host, buckets, cuda_graphs=cuda_graphs)
        # Strings lie in the host's memory, whatever the device.
        bindable = all(spec.datatype in NUMPY_OF for spec in (*self.inputs, *self.outputs))
        self.binds = bindable and (host.device == "cuda" if binds is None else binds)

    @property
    def buffers(self) -> dict[Bucket, int]:
        """Number of buffers that each bucket has allocated: one for each of its calls that ran at the same time."""
        return dict(self._bucketed.allocated) if self._bucketed else {}

    def run(self, feeds: Arrays) -> Arrays:
        """Compute one call; see `Engine.run`."""
        with engine_errors():
            if self._bucketed:
                return self._bucketed.run(feeds)
            with self._host.shared_use():
                if self.binds:
                    outputs = self._run_bound(feeds)
                else:
                    outputs = run_session(partial(self._session.run, self._output_names, feeds), self._host)
        return dict(zip(self._output_names, outputs, strict=True))

    def _run_bound(self, feeds: Arrays) -> list[NDArray[Any]]:
        """Compute a call of any shape in the device's memory and copy its outputs, allocated by the call, back once."""
        if unknown := feeds.keys() - {spec.name for spec in (*self.inputs, *self.optional_inputs)}:
            raise ValueError(f"the graph has no input {', '.join(sorted(unknown))}")
        binding = self._session.io_binding()
        for name, array in feeds.items():
            on_device = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._host.device)
            binding.bind_ortvalue_input(name, on_device)
        for name in self._output_names:
            binding.bind_output(name, self._host.device)
        run_session(lambda options: self._session.run_with_iobinding(binding, options), self._host)
        # On the CPU `numpy` returns a view of memory that is freed with the binding.
        return [np.array(value.numpy()) for value in binding.get_outputs()]
