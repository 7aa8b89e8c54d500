"""Graphs of every ONNX operator: what is proved holds in ONNX Runtime."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from service.models.row_independence import prove_rows_independent
from service.tensors import Arrays
from tests.service.models.row_independence.backend_graphs import Case, along, cases, rows_of, with_any_rows

# The package's cases have casts that overflow, and so have enlarged rows.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Graphs whose rows rightly shared a call when trials alone decided.
JOINED_BY_TRIAL = frozenset((Path(__file__).parent / "joined_by_trial.txt").read_text().split())


def compared(model: onnx.ModelProto, rows: Arrays) -> str | None:
    """Compare rows in a batch with each alone: "" if they are equal, None if ONNX Runtime refuses graph or rows."""
    options, quiet = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = quiet.log_severity_level = 4
    options.intra_op_num_threads = 1
    count = len(next(iter(rows.values())))
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        alone = [
            session.run(None, {name: array[row : row + 1] for name, array in rows.items()}, quiet)
            for row in range(count)
        ]
    except Exception:  # ONNX Runtime has errors of its own
        return None
    together = session.run(None, rows, quiet)
    for number, whole in enumerate(together):
        if len(whole) != count or not all(
            same(results[number], whole[row : row + 1]) for row, results in enumerate(alone)
        ):
            return f"output {number} differs"
    return ""


def same(alone: NDArray[Any], together: NDArray[Any]) -> bool:
    """Whether a row has the same result alone and in a batch, except for rounding."""
    if alone.shape != together.shape:
        return False
    if alone.dtype.kind != "f":
        return np.array_equal(alone, together)
    largest = np.abs(alone[np.isfinite(alone)]).max(initial=0.0)
    relative = 1e-2 if alone.dtype.itemsize == 2 else 1e-4
    return np.allclose(alone, together, rtol=0, atol=relative * float(largest), equal_nan=True)


def test_what_is_proved_of_operators_holds() -> None:
    """Proved rows along the first dimension do not affect each other, and graphs joined by trial still are."""
    proved, compared_in_company, wrong = set(), 0, []
    for case in cases():
        model = with_any_rows(case.model)
        if model is None or not prove_rows_independent(model.SerializeToString()).independent:
            continue
        proved.add(case.name)
        rows = rows_of(case, model)
        problem = None if rows is None else compared(model, rows)
        compared_in_company += problem is not None
        if problem:
            wrong.append((case.name, problem))
    assert wrong == []
    assert compared_in_company > 500
    assert len(JOINED_BY_TRIAL & proved) >= 770


def placements(case: Case) -> Iterator[tuple[frozenset[str], int, int]]:
    """Yield the sets of inputs that may have rows, with an axis of the inputs and one of the outputs."""
    arrays = {each.name: np.asarray(array) for each, array in zip(case.model.graph.input, case.inputs, strict=True)}
    for axis in range(max((array.ndim for array in arrays.values()), default=0)):
        sizes = {name: array.shape[axis] for name, array in arrays.items() if array.ndim > axis}
        groups = {frozenset([name]) for name in sizes}
        groups |= {frozenset(other for other in sizes if sizes[other] == size) for size in sizes.values()}
        for result_axis in range(max((np.asarray(array).ndim for array in case.outputs), default=0)):
            yield from ((group, axis, result_axis) for group in sorted(groups, key=sorted))


def is_plain(case: Case) -> bool:
    """Whether all inputs and outputs are tensors that a request may carry."""
    values = [*case.model.graph.input, *case.model.graph.output]
    arrays = [*case.inputs, *case.outputs]
    return (
        bool(case.inputs)
        and all(each.type.HasField("tensor_type") for each in values)
        and len(values) == len(arrays)
        and all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in arrays)
    )


@pytest.mark.slow
def test_what_is_proved_of_operators_holds_along_any_axis() -> None:
    """Proved rows along any axis of any inputs do not affect each other."""
    compared_in_company, wrong = 0, []
    for case in filter(is_plain, cases()):
        for batched, axis, result_axis in placements(case):
            made = along(case, batched, axis, result_axis)
            if made is None or not prove_rows_independent(made[0].SerializeToString()).independent:
                continue
            problem = compared(*made) if all(map(len, made[1].values())) else None
            compared_in_company += problem is not None
            if problem:
                wrong.append((case.name, sorted(batched), axis, result_axis, problem))
    assert wrong == []
    assert compared_in_company > 1500
