"""A bare graph as an engine: what ONNX Runtime does not tell of its inputs, and calls that bring optional inputs."""

from collections.abc import Callable
from dataclasses import replace
from threading import Lock

from service.engines.onnx import Engine
from service.models.row_independence.onnx_graph import Graph, Model
from service.tensors import Arrays, TensorSpec

# ONNX's `TensorProto.DataType` to names of the Open Inference Protocol.
_DATATYPE_OF = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
}
# The format from which on ONNX Runtime lets a call replace an initializer that is also an input.
_FIRST_OVERRIDABLE_IR = 4
# Appended to a serialized ModelProto it sets `ir_version` (field 1, a varint): the last value of a field counts.
_SET_IR_VERSION = bytes([0x08, _FIRST_OVERRIDABLE_IR])


def with_overridable_initializers(graph: bytes) -> bytes:
    """Turn a model of an older format into one whose initializers a call may replace where they are inputs, too."""
    return graph + _SET_IR_VERSION


class BareEngine:
    """An engine with the inputs that its graph declares.

    A model of an old format (IR below 4) lists its initializers among the inputs, and ONNX Runtime treats them as
    constants. A second session, in which they can be replaced, is opened by the first call that brings one.
    """

    def __init__(self, engine: Engine, model: Model, open_overridable: Callable[[], Engine]) -> None:
        """Set up.

        Args:
            engine: computes the graph.
            model: what the file says.
            open_overridable: opens the session for calls that bring optional inputs, where `engine` takes none.
        """
        self._engine = engine
        self._overriding: Engine | None = None
        self._opening = Lock()
        self.inputs = tuple(_declared(spec, model.graph) for spec in engine.inputs)
        self.outputs = engine.outputs
        self.optional_inputs = engine.optional_inputs
        self._open_overridable = None  # and what it refers to, such as the file's content
        if model.ir_version < _FIRST_OVERRIDABLE_IR and (optional_inputs := _initialized_inputs(model.graph)):
            self.optional_inputs, self._open_overridable = optional_inputs, open_overridable
        self._optional_names = {spec.name for spec in self.optional_inputs}

    def run(self, feeds: Arrays) -> Arrays:
        """Make one call: an array for each input, by name; an array for each output.

        Raises:
            EngineError: the graph cannot compute these inputs.
        """
        if self._open_overridable is not None and not self._optional_names.isdisjoint(feeds):
            with self._opening:
                if self._overriding is None:
                    self._overriding = self._open_overridable()
            return self._overriding.run(feeds)
        return self._engine.run(feeds)


def _declared(spec: TensorSpec, graph: Graph) -> TensorSpec:
    """Tell a tensor without a declared shape from a scalar; to ONNX Runtime both have no dimensions."""
    if spec.name in graph.inputs and graph.inputs[spec.name] is None:
        return replace(spec, shape=(-1,), any_rank=True)
    return spec


def _initialized_inputs(graph: Graph) -> tuple[TensorSpec, ...]:
    specs = []
    for name, shape in graph.inputs.items():
        datatype = _DATATYPE_OF.get(graph.input_types[name])
        if name in graph.constants and datatype is not None:
            sizes = (-1,) if shape is None else tuple(size if isinstance(size, int) else -1 for size in shape)
            specs.append(TensorSpec(name, datatype, sizes, any_rank=shape is None))
    return tuple(specs)
