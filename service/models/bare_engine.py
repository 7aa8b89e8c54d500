"""The engine of a bare graph, with optional inputs and input properties that ONNX Runtime does not report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock, Timer

from model_store.folder import LABELS, FolderError
from model_store.private_files import PrivateGraph
from service.engines.onnx import Engine
from service.engines.preemption import EngineCall, Preemption, Terminated
from service.models.row_independence import TrialStopped
from service.models.row_independence.onnx_graph import Graph, Model, UnreadableGraph, read_model
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
# Operators whose first input has these axes, if it has four.
_WINDOW_OPERATORS = {"Conv", "QLinearConv", "ConvInteger", "MaxPool", "AveragePool", "LpPool"}
_WINDOW_OPERATORS |= {"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"}
_ELEMENTWISE_OPERATORS = {"Add", "Sub", "Mul", "Div", "Cast", "Clip", "Neg", "Identity", "QuantizeLinear"}
_IMAGE_RANK = 4
# First IR version whose initializers a call may replace in ONNX Runtime, where they are inputs too.
_FIRST_OVERRIDABLE_IR = 4
# Appended to a serialized ModelProto, this sets `ir_version` (field 1, a varint): the last value of a field wins.
_SET_IR_VERSION = bytes([0x08, _FIRST_OVERRIDABLE_IR])


def with_overridable_initializers(graph: bytes) -> bytes:
    """Raise a model's IR version so that calls may replace those initializers that are also inputs."""
    return graph + _SET_IR_VERSION


def read_graph(graph: PrivateGraph) -> Model:
    """Decode a graph's file without its weights.

    Raises:
        FolderError: the file is no ONNX model.
    """
    with graph.file.mapped() as content:
        try:
            return read_model(memoryview(content))
        except UnreadableGraph as error:
            problem = f"{graph.name}: {error}"
    raise FolderError(problem)


class BareEngine:
    """An engine with all inputs that its graph declares.

    A model of an old format (IR below 4) lists its initializers among the inputs, and ONNX Runtime treats them as
    constants. The first call that sets one opens a second session, in which they can be replaced.
    """

    def __init__(
        self, engine: Engine, model: Model, open_overridable: Callable[[], Engine], labels: Sequence[str] = ()
    ) -> None:
        """Set up.

        Args:
            engine: computes the graph.
            model: the decoded graph.
            open_overridable: opens the session for calls with optional inputs, where `engine` takes none.
            labels: names of the classes along the last axis of an output; empty where they are not known.

        Raises:
            FolderError: no output has as many classes as there are names.
        """
        self._engine = engine
        self._overriding: Engine | None = None
        self._opening = Lock()
        images = image_tensors(model.graph)
        self.inputs = tuple(
            replace(_declared(spec, model.graph), is_nchw=spec.name in images) for spec in engine.inputs
        )
        self.outputs = tuple(_labelled(spec, tuple(labels)) for spec in engine.outputs)
        if labels and not any(spec.labels for spec in self.outputs):
            raise FolderError(f"{LABELS} has {len(labels)} names, and no output has as many classes in its last axis")
        self.optional_inputs = engine.optional_inputs
        self._open_overridable = None  # drops what the function refers to, such as the file's content
        if model.ir_version < _FIRST_OVERRIDABLE_IR and (optional_inputs := _initialized_inputs(model.graph)):
            self.optional_inputs, self._open_overridable = optional_inputs, open_overridable
        self._optional_names = {spec.name for spec in self.optional_inputs}

    def run(self, feeds: Arrays) -> Arrays:
        """Make one call, from an array for each input to an array for each output, by name.

        Raises:
            EngineError: the graph cannot compute these inputs.
        """
        if self._open_overridable is not None and not self._optional_names.isdisjoint(feeds):
            with self._opening:
                if self._overriding is None:
                    self._overriding = self._open_overridable()
            return self._overriding.run(feeds)
        return self._engine.run(feeds)


def run_within(engine: BareEngine, preemption: Preemption, feeds: Arrays, limit_s: float) -> Arrays:
    """Make an engine call that is terminated after `limit_s` seconds.

    Raises:
        EngineError: the graph cannot compute these inputs.
        TrialStopped: the time is up.
    """
    call = EngineCall()
    timer = Timer(limit_s, call.terminate)
    timer.start()
    try:
        with preemption.terminable(call):
            return engine.run(feeds)
    except Terminated:
        raise TrialStopped from None
    finally:
        timer.cancel()


def image_tensors(graph: Graph) -> set[str]:
    """Return the inputs whose axes are rows, channels, height and width.

    ONNX defines these axes for the data of convolutions and poolings. Operators on single elements before them do not
    change the axes.
    """
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.domain:
            continue
        if node.op_type in _WINDOW_OPERATORS:
            found.add(node.inputs[0])
        elif node.op_type in _ELEMENTWISE_OPERATORS and not found.isdisjoint(node.outputs):
            found.update(node.inputs)
    return found & {name for name, shape in graph.inputs.items() if shape is not None and len(shape) == _IMAGE_RANK}


def _declared(spec: TensorSpec, graph: Graph) -> TensorSpec:
    """Mark a tensor without a declared shape, which ONNX Runtime reports like a scalar."""
    if spec.name in graph.inputs and graph.inputs[spec.name] is None:
        return replace(spec, shape=(-1,), any_rank=True)
    return spec


def _labelled(spec: TensorSpec, labels: tuple[str, ...]) -> TensorSpec:
    return replace(spec, labels=labels) if spec.shape[-1:] == (len(labels),) else spec


def _initialized_inputs(graph: Graph) -> tuple[TensorSpec, ...]:
    specs = []
    for name, shape in graph.inputs.items():
        datatype = _DATATYPE_OF.get(graph.input_types[name])
        if name in graph.constants and datatype is not None:
            sizes = (-1,) if shape is None else tuple(size if isinstance(size, int) else -1 for size in shape)
            specs.append(TensorSpec(name, datatype, sizes, any_rank=shape is None))
    return tuple(specs)
