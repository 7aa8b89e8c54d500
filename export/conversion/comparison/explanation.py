"""Compares the graph that explains with PyTorch, and its answers with those of the served graph.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from export.onnx_graphs.explanation_modules import Explained, ExplainedTranslation
from export.onnx_graphs.passes import cpu_session
from export.onnx_graphs.translation import OnnxTranslator
from model_store.folder import EXPLAIN, GRAPH

Arrays = dict[str, NDArray[Any]]
# Allowed difference to PyTorch by output; relative to the largest value for the outputs in RELATIVE.
TOLERANCE = {
    "logits": 1e-4,
    "log_probabilities": 1e-4,
    "attention": 1e-4,
    "cross_attention": 1e-4,
    "encoder_attention": 1e-4,
    "attribution": 1e-3,
}
MAX_ROW_SUM_ERROR = 1e-5  # of attention weights summed over the real tokens
NUM_STEPS = (32, 128)  # of integrated gradients, whose completeness gap is measured
GOLDEN_ALPHAS = (1.0, 0.4)
MAX_ROWS = 32  # in one call
RELATIVE = ("attribution", "log_probabilities")


class ExplainRefused(ValueError):
    """The graph that was made does not explain the model that is served; nothing was written."""


@dataclass(frozen=True)
class Row:
    """One unpadded row of a batch, by the names of the graph's inputs; `example` is its number in golden.json."""

    example: int
    feeds: Arrays


def midpoints(num_steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the midpoints of `num_steps` equal parts of 0 to 1, and their weights, which sum to one."""
    alphas = (np.arange(num_steps, dtype=np.float32) + 0.5) / num_steps
    return alphas.astype(np.float32), np.full(num_steps, 1 / num_steps, dtype=np.float32)


def gauss_legendre(num_steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return Gauss-Legendre nodes on 0 to 1 and weights: exact for polynomials of a degree below 2 * num_steps."""
    places, weights = np.polynomial.legendre.leggauss(num_steps)
    return ((places + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)


def batch_of(rows: Sequence[Row]) -> Arrays:
    """Collate rows to a batch, padded to the longest."""
    feeds = {}
    for name in rows[0].feeds:
        parts = [row.feeds[name] for row in rows]
        if parts[0].ndim == 1:
            longest = max(map(len, parts))
            parts = [np.pad(part, (0, longest - len(part))) for part in parts]
        feeds[name] = np.stack(parts)
    return feeds


def at_alphas(row: Row, alphas: Sequence[float] | NDArray[np.float32]) -> list[Row]:
    """Copy a row to other places between the baseline (alpha 0) and the input (alpha 1)."""
    return [Row(row.example, row.feeds | {"alpha": np.array(alpha, dtype=np.float32)}) for alpha in alphas]


class ExplainGraph:
    """The exported graph in ONNX Runtime, to be compared with PyTorch."""

    def __init__(self, folder: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(folder / EXPLAIN), providers=["CPUExecutionProvider"])

    def __call__(self, rows: Sequence[Row]) -> Arrays:
        """The outputs of a batch, by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, batch_of(rows)), strict=True))


def in_pytorch(network: Explained, rows: Sequence[Row]) -> Arrays:
    """Compute the outputs of a batch with PyTorch, by name."""
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in batch_of(rows).items()}
    found = network(*(tensors[name] for name in network.inputs))
    return {name: tensor.detach().numpy() for name, tensor in zip(network.outputs, found, strict=True)}


def difference(name: str, found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference of an output; relative to the largest value above 1 in `RELATIVE` ones."""
    off_by = float(np.abs(found - expected).max())
    return off_by / max(1.0, float(np.abs(expected).max())) if name in RELATIVE else off_by


def require_explained(
    folder: Path,
    network: Explained,
    rows: Sequence[Row],
    served_difference: Callable[[Path, Explained, ExplainGraph, Sequence[Row]], float],
    served_tolerance: float,
) -> dict[str, float]:
    """Compare the graph with PyTorch, and its answers with those of the served graph.

    Args:
        folder: the model folder with all graphs.
        network: the PyTorch module that explains.
        rows: the inputs to compare on, of different length, at alpha 1.
        served_difference: measures how far the graph's answers lie from those of the served graphs.
        served_tolerance: the allowed difference to served answers; int8 also rounds activations.

    Returns:
        the measures, by their names in `golden.explain.json`. The completeness gap of integrated gradients is reported
        but never a reason to refuse: it belongs to the network, and the gradients are compared with PyTorch's.

    Raises:
        ExplainRefused: a difference is above its limit.
    """
    graph = ExplainGraph(folder)
    measured = {"served_answer_difference": served_difference(folder, network, graph, rows)}
    require("answers against the served graph", measured["served_answer_difference"], served_tolerance)
    moved = [each for row in rows for each in at_alphas(row, GOLDEN_ALPHAS)]
    found, expected = graph(moved), in_pytorch(network, moved)
    for name in network.outputs:
        measured[f"{name}_difference"] = difference(name, found[name], expected[name])
        require(f"{name} against PyTorch", measured[f"{name}_difference"], TOLERANCE[name])
        if name.endswith("attention"):
            key = f"{name}_row_sum_error"
            measured[key] = float(np.abs(found[name].sum(axis=-1) - 1).max())
            require(f"the sums of the rows of {name}", measured[key], MAX_ROW_SUM_ERROR)
    for num_steps in NUM_STEPS:
        key = f"completeness_gap_of_{num_steps}_steps"
        measured[key] = max(completeness_gap(graph, row, num_steps) for row in rows)
    return measured


def require(what: str, value: float, allowed: float) -> None:
    """Refuse a value above its limit.

    Raises:
        ExplainRefused: it is above the limit.
    """
    if not value <= allowed:
        raise ExplainRefused(f"{what}: off by up to {value:.3g} (allowed: {allowed:g})")


def answer_of(outputs: Arrays, row: Row) -> NDArray[np.float32]:
    """Return the explained score of each row of a batch (one input at several alphas); float32 [B]."""
    if "logits" in outputs:
        return outputs["logits"][:, int(row.feeds["target"])]
    scores_B: NDArray[np.float32] = outputs["log_probabilities"].sum(axis=1)
    return scores_B


def completeness_gap(graph: Callable[[Sequence[Row]], Arrays], row: Row, num_steps: int) -> float:
    """Return the part of the answer's difference to the baseline that the attributions miss, as a fraction of it.

    Where the difference is below 1, the missed part is returned as it is.
    """
    alphas, weights = gauss_legendre(num_steps)
    shared_out = 0.0
    for first in range(0, num_steps, MAX_ROWS):
        part = slice(first, first + MAX_ROWS)
        shared_out += float(graph(at_alphas(row, alphas[part]))["attribution"].sum(axis=1) @ weights[part])
    baseline, answer = answer_of(graph(at_alphas(row, [0.0, 1.0])), row)
    return float(abs(shared_out - (answer - baseline)) / max(1.0, abs(answer - baseline)))


def classifier_difference(folder: Path, graph: ExplainGraph, rows: Sequence[Row]) -> float:
    """Return the largest difference between a classifier's logits at alpha 1 and those of its served graph."""
    session = cpu_session(folder / GRAPH)
    feeds = batch_of(rows)
    served = session.run(["logits"], {each.name: feeds[each.name] for each in session.get_inputs()})[0]
    return float(np.abs(graph(rows)["logits"] - served).max())


def translation_difference(
    folder: Path, network: ExplainedTranslation, graph: ExplainGraph, rows: Sequence[Row]
) -> float:
    """Return the largest difference between token log probabilities at alpha 1 and those of the served graphs."""
    found_BT, translator, worst = graph(rows)["log_probabilities"], OnnxTranslator(folder), 0.0
    for row, found_T in zip(rows, found_BT, strict=True):
        served_T = served_log_probabilities(translator, row, network.bos_id, network.model.config.vocab_size)
        worst = max(worst, float(np.abs(found_T[: len(served_T)] - served_T).max()))
    return worst


def served_log_probabilities(translator: OnnxTranslator, row: Row, bos_id: int, vocab_size: int) -> NDArray[np.float32]:
    """Compute each token's log probability with the served graphs, token by token; float32 [T]."""
    state, found, last = translator.begin([row.feeds["source_ids"].tolist()]), [], bos_id
    for written in row.feeds["target_ids"].tolist():
        top_RN, ids_RN, state = translator.next_tokens([last], state, vocab_size)
        found.append(top_RN[0, ids_RN[0] == written][0])
        last = written
    return np.array(found, dtype=np.float32)
