"""Decides whether rows of several requests may share a call of a graph: by proof from the graph, then by trial.

Rows may share a call where the answer to each is the same whatever the other rows are. `prove_rows_independent` follows
the batch axis through the graph: each operator either keeps rows apart or ends the proof, and an unknown operator ends
it. `try_rows` is the second line of defence: it computes invented rows that are made to reveal a dependence.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from service.models.row_independence.axis_tracing import Tracing, batch_of, reason_of, shared_of
from service.models.row_independence.constant_cost import has_constant_cost
from service.models.row_independence.onnx_graph import Model, UnreadableGraph, read_model
from service.models.row_independence.sizes import BATCH
from service.models.row_independence.trial import TrialStopped, try_rows
from service.models.row_independence.values import NotProved, Numbering

__all__ = ["EqualSizes", "Finding", "TrialStopped", "prove_rows_independent", "try_rows"]

# Groups of dimensions that must be equal; each dimension is an input's name and an axis.
EqualSizes = tuple[tuple[tuple[str, int], ...], ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a proof.

    Attributes:
        independent: it is proved that the results of a row depend neither on the other rows of a call nor on their
            number.
        reason: why that is not proved, in a sentence that names operator, node and output; empty if `independent`.
        constant_cost: the work of a call and all its shapes follow from the shapes of the inputs. If not, a value in a
            request may decide how long its call takes.
        equal_sizes: groups of dimensions that have one name in the graph. The proof assumes that they are equal, so a
            request in which they differ must be computed alone.
    """

    independent: bool
    reason: str
    constant_cost: bool
    equal_sizes: EqualSizes = ()


def prove_rows_independent(
    graph: bytes | memoryview,
    batched_inputs: Collection[str] | None = None,
    *,
    overridable: Collection[str] = (),
) -> Finding:
    """Try to prove from a graph that its rows do not depend on each other.

    The rows of a call lie along the first dimension of every batched input and of every output. Rows of different
    requests share a call only where the other dimensions of all inputs are equal.

    Args:
        graph: the encoded model file. Weights are not read, so external data need not exist.
        batched_inputs: names of the inputs whose first dimension is the batch; None: all. Any other input must be the
            same for all rows of a call, so requests that differ in it must not share a call.
        overridable: names of initializers that a request of a shared call may set. Others count as constants, so a
            request that sets one must be computed alone.
    """
    try:
        model = read_model(graph)
    except UnreadableGraph as error:
        return Finding(independent=False, reason=str(error), constant_cost=False)
    constant_cost = has_constant_cost(model, overridable)
    try:
        equal_sizes = _prove(model, batched_inputs, frozenset(overridable))
    except NotProved as error:
        return Finding(independent=False, reason=reason_of(error), constant_cost=constant_cost)
    return Finding(independent=True, reason="", constant_cost=constant_cost, equal_sizes=equal_sizes)


def _prove(model: Model, batched_inputs: Collection[str] | None, overridable: frozenset[str]) -> EqualSizes:
    """Prove independence, and return the dimensions that were assumed to be equal.

    Raises:
        NotProved: there is no proof; says why.
    """
    graph, tracing = model.graph, Tracing(model)
    values, places = {}, defaultdict[str, list[tuple[str, int]]](list)
    for name, shape in graph.inputs.items():
        if name in graph.constants:
            if name in overridable:
                values[name] = shared_of(shape, tracing)
        elif batched_inputs is None or name in batched_inputs:
            if shape is None:
                raise NotProved(f"input {name!r} has no declared shape")
            if not shape or isinstance(shape[0], int):
                raise NotProved(f"the first dimension of input {name!r} has a fixed size")
            values[name] = batch_of(shape, tracing)
            for axis, size in enumerate(shape[1:], start=1):
                if isinstance(size, str):
                    places[size].append((name, axis))
        else:
            values[name] = shared_of(shape, tracing)
    if not any(value.axis is not None for value in values.values()):
        raise NotProved("no input has rows")
    outputs = tracing.outputs(values)
    for name, value in outputs.items():
        if value.axis != 0 or value.shape is None or value.shape[0] != BATCH:
            raise NotProved(f"output {name!r} does not have the rows along its first dimension")
        if value.numbering is not Numbering.NONE:
            raise NotProved(f"output {name!r} depends on the place of its row in the call")
    return tuple(tuple(named) for named in places.values() if len(named) > 1)
