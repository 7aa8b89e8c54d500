"""Writes `explain.onnx`, the graph that explains a model's answers.

    stored network ──> with gradient ──> traced ──> ONNX ──> weights shared ──> compared

Its tensors are described in `export.onnx_graphs.explanation_modules`: `inputs` and `outputs` of each class. To feed it:

- a row is one step of one explanation: the input, the class (or the translation) to explain, and `alpha`. Rows of any
  kind can share a batch, padded with 0 in ids and masks like those of the served graph;
- alpha 1 alone gives the attention weights of the answer itself, and "gradient times input" as attribution;
- integrated gradients are the weighted mean of attributions at several alphas: `midpoints(n)`, with equal weights, or
  `gauss_legendre(n)`, which leaves a smaller gap for equally many steps (`completeness_gap_of_..._steps` in
  `golden.explain.json`). The attributions should add up to the answer at alpha 1 minus that at alpha 0: compute
  these two rows as well, and report the gap;
- the attention weights of a batch are B x L x H x T x T numbers; keep batches small accordingly;
- it needs the other graphs of its folder, unchanged: it reads its weights from their files.

**Weights are not stored twice** (`export/onnx_graphs/external_weights.py`): they are the bytes of `model.onnx` and
`encoder.onnx`.

**The gradient is traced**: `make_fx` records what `torch.autograd.grad` computes as a graph of core operators, which is
exported like any network (docs/decisions/explanations.md has what else was tried).

Shapes: B rows, T tokens, S source tokens, H heads, L layers, C classes.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from export.conversion.comparison.explanation import (
    GOLDEN_ALPHAS,
    TOLERANCE,
    ExplainGraph,
    Row,
    at_alphas,
    difference,
    in_pytorch,
    require,
    require_explained,
)
from export.conversion.model_folder.opening import open_folder
from export.conversion.model_folder.task import ExplainedTask, FolderTask, S
from export.onnx_graphs.explanation_modules import Explained
from export.onnx_graphs.external_weights import share_weights
from export.onnx_graphs.import_weights import NotUnderstood, StoredNetwork, stored_network
from export.onnx_graphs.passes import export_graph
from export.stopping import stopping_later
from model_store.folder import (
    CARD,
    ENCODER,
    EXPLAIN,
    EXPLAIN_GOLDEN,
    GOLDEN,
    GRAPH,
    MANIFEST,
    ExplainGolden,
    GoldenExample,
    GoldenRow,
    Manifest,
    read_explain_golden,
    write_explain_golden,
    write_manifest,
)

if TYPE_CHECKING:
    from torch._ops import OpOverload

NUM_GOLDEN = 3  # kept rows; conversion compares all golden examples
CARD_HEADING = "\n## Explained\n\n"


# --- the graph -------------------------------------------------------------------------------------------------------


def export_explain_graph(network: Explained, folder: Path) -> None:
    """Write `explain.onnx` into a folder that has its served graphs; batch and lengths are dynamic."""
    path = folder / EXPLAIN
    example, axes = network.example()
    export_graph(
        with_gradient(network.eval(), example),
        example,
        path,
        inputs=list(network.inputs),
        outputs=list(network.outputs),
        dynamic_shapes=axes,
    )
    share_weights(path, [folder / name for name in (GRAPH, ENCODER) if (folder / name).is_file()])


def with_gradient(network: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """Trace a network, its gradient included, to a graph of core operators for any batch size and length."""
    for weight in network.parameters():
        weight.requires_grad_(False)
    # torch types the table by a wider key than `make_fx` takes.
    table = cast("Mapping[OpOverload[..., Any], Callable[..., Any]]", torch._decomp.core_aten_decompositions())
    with torch.no_grad():
        traced: nn.Module = make_fx(network, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    return traced


# --- the folder ------------------------------------------------------------------------------------------------------


def golden_rows(folder: Path, manifest: Manifest, task: ExplainedTask[S], golden: Sequence[GoldenExample]) -> list[Row]:
    """Turn golden examples into rows at alpha 1, which explain the answer."""
    return [
        Row(number, task.golden_feeds(folder, manifest, example) | {"alpha": np.array(1.0, dtype=np.float32)})
        for number, example in enumerate(golden)
    ]


def golden_of(network: Explained, row: Row) -> GoldenRow:
    """Compute a golden row: the row's inputs and PyTorch's outputs."""
    outputs = {name: kept_of(name, array[0]) for name, array in in_pytorch(network, [row]).items()}
    target = int(row.feeds["target"]) if "target" in row.feeds else None
    return GoldenRow(
        row.example,
        target,
        round(float(row.feeds["alpha"]), 6),
        {name: [float(f"{number:.6g}") for number in array.ravel()] for name, array in outputs.items()},
    )


def kept_of(name: str, output: NDArray[Any]) -> NDArray[Any]:
    """Return the part of an output that golden rows keep: attention only of the first query."""
    return output[:, :, 0] if name.endswith("attention") else output


def replay_golden_rows(folder: Path, task: ExplainedTask[S]) -> dict[str, float]:
    """Replay a folder's golden rows one by one; return the largest difference of each output.

    Raises:
        ExplainRefused: a difference is larger than the file allows.
        FolderError: the folder is damaged, or has no golden rows.
    """
    opened, golden, graph = open_folder(folder), read_explain_golden(folder), ExplainGraph(folder)
    assert opened.manifest is not None
    rows = golden_rows(folder, opened.manifest, task, opened.golden)
    worst = dict.fromkeys(golden.tolerance, 0.0)
    for expected in golden.rows:
        (row,) = at_alphas(rows[expected.example], [expected.alpha])
        if expected.target is not None:
            row.feeds["target"] = np.array(expected.target)
        for name, array in graph([row]).items():
            found = kept_of(name, array[0]).ravel()
            worst[name] = max(worst[name], difference(name, found, np.array(expected.outputs[name])))
            require(f"{name} of golden example {expected.example}", worst[name], golden.tolerance[name])
    return worst


def add_explain_graph(folder: Path, manifest: Manifest, task: ExplainedTask[S], stored: StoredNetwork) -> ExplainGolden:
    """Write `explain.onnx` and `golden.explain.json` into a folder that is complete but for card and manifest.

    Args:
        folder: the folder with its served graphs, golden examples and configuration.
        manifest: the manifest as it will be written.
        task: the model's task.
        stored: the network of the folder.

    Raises:
        ExplainRefused: the graph differs too much from PyTorch, or PyTorch from the served graph.
    """
    golden = msgspec.json.decode((folder / GOLDEN).read_bytes(), type=list[GoldenExample])
    network = task.explained(stored, folder)
    export_explain_graph(network, folder)
    rows = golden_rows(folder, manifest, task, golden)
    measured = require_explained(
        folder, network, rows, task.served_difference, manifest.tolerance.max_abs_logit_difference
    )
    kept = [
        golden_of(network, *at_alphas(row, [GOLDEN_ALPHAS[number % len(GOLDEN_ALPHAS)]]))
        for number, row in enumerate(rows[:NUM_GOLDEN])
    ]
    written = ExplainGolden({name: TOLERANCE[name] for name in network.outputs}, measured, kept)
    write_explain_golden(folder, written)
    return written


def add_to_store(folder: Path, task_of: Callable[[str], FolderTask[Any]], console: Console) -> ExplainGolden:
    """Add the graph that explains to a version in the store, or replace it; its other graphs stay as they are.

    Args:
        folder: the version's folder.
        task_of: returns the task of this name.
        console: shows progress.

    Raises:
        FolderError: the folder is damaged.
        ExplainRefused: as in `add_explain_graph`; the folder then stays unchanged.
        ValueError: the folder is a bare graph, or its network cannot be read back.
    """
    manifest = open_folder(folder).manifest
    if manifest is None:
        raise NotUnderstood(f"{folder} is a bare ONNX graph: its network is unknown")
    task = task_of(manifest.task)
    if not isinstance(task, ExplainedTask):
        raise NotUnderstood(f"{folder}: models of the task {manifest.task} have no graph that explains")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".explaining-") as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "folder"))
        golden = add_explain_graph(copy, manifest, task, stored_network(copy))
        card = (copy / CARD).read_text().split(CARD_HEADING, maxsplit=1)[0]
        (copy / CARD).write_text(card + card_of_explanations(copy, manifest))
        write_manifest(copy, manifest)
        with stopping_later(""):  # the manifest has the checksums of the others
            for name in (EXPLAIN, EXPLAIN_GOLDEN, CARD, MANIFEST):
                (copy / name).replace(folder / name)
    size = (folder / EXPLAIN).stat().st_size + (folder / EXPLAIN_GOLDEN).stat().st_size
    console.print(f"{folder}: {size / 1e3:.0f} kB more; {golden.measured}", soft_wrap=True, highlight=False)
    return golden


def card_of_explanations(folder: Path, manifest: Manifest) -> str:
    """Write the card's section on the graph that explains; empty for a folder without one."""
    if not (folder / EXPLAIN_GOLDEN).is_file():
        return ""
    measured = read_explain_golden(folder).measured
    lines = [
        f"`{EXPLAIN}` gives attention weights and integrated gradients (Sundararajan et al. 2017). It has no weights of"
        " its own: it reads them from the other graphs of this folder.",
        "",
    ]
    if manifest.precision != "float32":
        lines += [
            f"It explains the network with the weights as {manifest.precision} rounds them, computed in float32; the"
            " served graph also rounds activations. Their answers to the golden examples differ by at most"
            f" {measured['served_answer_difference']:.2g}.",
            "",
        ]
    lines += [
        "Measured on the golden examples, compared with the served graph (first line) or PyTorch (the others):",
        "",
    ]
    lines += [f"- {name.replace('_', ' ')}: {value:.2g}" for name, value in measured.items()]
    return (
        CARD_HEADING
        + "\n".join(lines)
        + f"\n\n`{EXPLAIN_GOLDEN}` has these figures, and rows to check the graph with.\n"
    )
