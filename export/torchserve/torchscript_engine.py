"""A TorchScript graph as an engine of the service: arrays in, arrays out, on the CPU or one GPU."""

from pathlib import Path

import numpy as np
import torch

from model_store.folder import Manifest
from service.engines.onnx_session import EngineError
from service.tensors import Arrays, TensorSpec


class TorchScriptEngine:
    """One graph, loaded once; the device's memory holds its weights."""

    def __init__(self, graph: Path, manifest: Manifest, device: str, threads: int) -> None:
        """Load `graph`.

        Args:
            graph: TorchScript that takes the manifest's inputs in their order, and gives its only output.
            manifest: the manifest of the model's folder.
            device: "cpu", or "cuda:0" and so on.
            threads: threads of a call on the CPU; PyTorch has one setting for the process.

        Raises:
            EngineError: PyTorch refuses the graph, or it has other outputs.
        """
        if len(manifest.outputs) != 1:
            raise EngineError(f"{graph.name} has {len(manifest.outputs)} outputs; only graphs with one are supported")
        torch.set_num_threads(threads)
        try:
            self._module = torch.jit.load(graph, map_location=device).eval()
        except RuntimeError as error:
            raise EngineError(f"{graph.name}: {str(error).strip().splitlines()[0]}") from error
        self._device = device
        self.optional_inputs: tuple[TensorSpec, ...] = ()
        self.inputs = tuple(TensorSpec(each.name, each.datatype, tuple(each.shape)) for each in manifest.inputs)
        self.outputs = tuple(TensorSpec(each.name, each.datatype, tuple(each.shape)) for each in manifest.outputs)

    def run(self, feeds: Arrays) -> Arrays:
        """Compute a batch, as `service.engines.onnx.Engine.run` says."""
        inputs = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])).to(self._device) for spec in self.inputs]
        try:
            with torch.inference_mode():
                output = self._module(*inputs).cpu().numpy()
        except RuntimeError as error:
            raise EngineError(str(error).strip().splitlines()[-1]) from error
        return {self.outputs[0].name: output}
