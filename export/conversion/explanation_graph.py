"""`explain.onnx`: the graph that explains a model's answers, beside those that answer.

    stored network ──> with gradient ──> traced ──> ONNX ──> weights shared ──> compared

What it takes and gives is in `export.onnx_graphs.explanation_modules`, by the names of the tensors: `inputs` and
`outputs` of each class there. To feed it:

- a row is one step of one explanation: the input, the class (or the translation) to explain, and `alpha`. Rows of any
  kind share a batch, padded like those of the served graph, with 0 in ids and masks;
- alpha 1 alone gives the attention weights of the answer itself, and "gradient times input" as attribution;
- integrated gradients are the weighted mean of attributions at several alphas: `midpoints(n)`, all weighed alike, or
  `gauss_legendre(n)`, which leaves a smaller gap for as many steps (`completeness_gap_of_..._steps` in
  `golden.explain.json`). What all tokens get together should be the answer at alpha 1 less that at alpha 0: ask for
  these two rows as well, and say how far off it is;
- the attention weights of a batch are B x L x H x T x T numbers; keep batches small accordingly;
- it needs the graphs of its folder beside it, unchanged: its weights are read out of their files.

**Weights are not stored twice** (`export/onnx_graphs/external_weights.py`): they are the bytes of `model.onnx` and
`encoder.onnx`.

**The gradient is traced**: `make_fx` records what `torch.autograd.grad` computes as a graph of core operators, which is
exported like any network (docs/decisions/explanations.md has what else was tried).

Shapes: B rows, T tokens, S source tokens, H heads, L layers, C classes.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from export.networks.image import VisionTransformer
from export.networks.transformer import TextClassifier
from export.onnx_graphs.explanation_modules import (
    Explained,
    ExplainedTextClassifier,
    ExplainedTranslation,
    ExplainedVisionTransformer,
)
from export.onnx_graphs.external_weights import share_weights
from export.onnx_graphs.import_weights import NotUnderstood, StoredNetwork, stored_network
from export.onnx_graphs.passes import cpu_session, export_graph
from export.onnx_graphs.translation import OnnxTranslator
from model_store.folder import (
    CARD,
    ENCODER,
    EXPLAIN,
    EXPLAIN_GOLDEN,
    GOLDEN,
    GRAPH,
    MANIFEST,
    PREPROCESSOR,
    ExplainGolden,
    FolderError,
    FoundFolder,
    GoldenExample,
    GoldenRow,
    Manifest,
    ModelFolder,
    read,
    read_explain_golden,
    write_explain_golden,
    write_manifest,
)
from service.tasks.image_classification import ImageClassification, PreprocessorConfig

Arrays = dict[str, NDArray[Any]]

# How far the graph may lie from PyTorch, by output; attributions and log probabilities in relation to the largest.
TOLERANCE = {
    "logits": 1e-4,
    "log_probabilities": 1e-4,
    "attention": 1e-4,
    "cross_attention": 1e-4,
    "encoder_attention": 1e-4,
    "attribution": 1e-3,
}
MAX_ROW_SUM_ERROR = 1e-5  # of attention weights over the real tokens
NUM_STEPS = (32, 128)  # by which the gap of integrated gradients is measured
MAX_ROWS = 32  # of a call
NUM_GOLDEN = 3  # rows; all golden examples are compared when the graph is made
GOLDEN_ALPHAS = (1.0, 0.4)
RELATIVE = ("attribution", "log_probabilities")
CARD_HEADING = "\n## Explained\n\n"


class ExplainRefused(ValueError):
    """The graph that was made does not explain the model that is served; nothing was written."""


@dataclass(frozen=True)
class Row:
    """One row of a batch without padding, by the names of the graph's inputs; `example`: its number in golden.json."""

    example: int
    feeds: Arrays


def midpoints(num_steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Alphas in the middle of equal parts of 0 to 1, and their weights, which sum to one."""
    alphas = (np.arange(num_steps, dtype=np.float32) + 0.5) / num_steps
    return alphas.astype(np.float32), np.full(num_steps, 1 / num_steps, dtype=np.float32)


def gauss_legendre(num_steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The alphas and weights that are exact for polynomials of a degree below twice their number."""
    places, weights = np.polynomial.legendre.leggauss(num_steps)
    return ((places + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)


# --- the graph -------------------------------------------------------------------------------------------------------


def explained(stored: StoredNetwork, bos_id: int | None = None) -> Explained:
    """A network in the form that explains; `bos_id` is what a translation model's decoder begins with."""
    if isinstance(stored.module, TextClassifier):
        return ExplainedTextClassifier(stored.module)
    if isinstance(stored.module, VisionTransformer):
        return ExplainedVisionTransformer(stored.module)
    assert bos_id is not None
    return ExplainedTranslation(stored.module, bos_id, stored.output_VD)


def export_explain_graph(network: Explained, folder: Path) -> None:
    """Write `explain.onnx` into a folder that has its served graphs; batch and lengths are dynamic."""
    path = folder / EXPLAIN
    example, axes = _example(network)
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
    """The same as a graph of core operators, the gradient that it computes among them; of any batch and lengths."""
    for weight in network.parameters():
        weight.requires_grad_(False)
    table = torch._decomp.core_aten_decompositions()
    with torch.no_grad():
        traced: nn.Module = make_fx(network, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    return traced


def _example(network: Explained) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Tensors to trace a network with, all sizes unlike each other, and which of them are dynamic."""
    B = 5  # unlike every other size: tracing takes equal ones for one, and channels are always three
    batch = torch.export.Dim("batch", min=1)
    ids = torch.ones(B, 16, dtype=torch.int64)
    target, alpha = torch.zeros(B, dtype=torch.int64), torch.full((B,), 0.5)
    if isinstance(network, ExplainedVisionTransformer):
        size = network.model.config.image_size
        return (torch.zeros(B, 3, size, size), target, alpha), ({0: batch},) * 3
    most = network.model.config.max_tokens
    tokens = {0: batch, 1: torch.export.Dim("tokens", min=1, max=most)}
    if isinstance(network, ExplainedTextClassifier):
        return (ids, ids.clone(), target, alpha), (tokens, tokens, {0: batch}, {0: batch})
    written = torch.ones(B, 11, dtype=torch.int64)
    target_tokens = {0: batch, 1: torch.export.Dim("target_tokens", min=1, max=most)}
    axes = (tokens, tokens, target_tokens, target_tokens, {0: batch})
    return (ids, ids.clone(), written, written.clone(), alpha), axes


# --- comparisons -----------------------------------------------------------------------------------------------------


def batch_of(rows: Sequence[Row]) -> Arrays:
    """Rows, padded to the longest."""
    feeds = {}
    for name in rows[0].feeds:
        parts = [row.feeds[name] for row in rows]
        if parts[0].ndim == 1:
            longest = max(map(len, parts))
            parts = [np.pad(part, (0, longest - len(part))) for part in parts]
        feeds[name] = np.stack(parts)
    return feeds


def at_alphas(row: Row, alphas: Sequence[float] | NDArray[np.float32]) -> list[Row]:
    """The same row at other places between the baseline and the input."""
    return [Row(row.example, row.feeds | {"alpha": np.float32(alpha)}) for alpha in alphas]


class ExplainGraph:
    """The exported graph in ONNX Runtime, to compare it with PyTorch."""

    def __init__(self, folder: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(folder / EXPLAIN), providers=["CPUExecutionProvider"])

    def __call__(self, rows: Sequence[Row]) -> Arrays:
        """The outputs of a batch, by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, batch_of(rows)), strict=True))


def in_pytorch(network: Explained, rows: Sequence[Row]) -> Arrays:
    """The same by PyTorch."""
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in batch_of(rows).items()}
    found = network(*(tensors[name] for name in network.inputs))
    return {name: tensor.detach().numpy() for name, tensor in zip(network.outputs, found, strict=True)}


def difference(name: str, found: NDArray[Any], expected: NDArray[Any]) -> float:
    """How far an output lies off; attributions and log probabilities in relation to the largest above 1."""
    off_by = float(np.abs(found - expected).max())
    return off_by / max(1.0, float(np.abs(expected).max())) if name in RELATIVE else off_by


def require_explained(
    folder: Path, network: Explained, rows: Sequence[Row], served_tolerance: float
) -> dict[str, float]:
    """Compare the graph with PyTorch, and what it answers with the graph that is served.

    Args:
        folder: with all graphs.
        network: PyTorch's.
        rows: to compare on, of different length, at alpha 1.
        served_tolerance: how far the served answers may lie off: int8 rounds activations as well.

    Returns:
        what was measured, by what it is called in `golden.explain.json`. The gap of integrated gradients is stated and
        no reason to refuse: it is the network's, and the gradients' own test is PyTorch.

    Raises:
        ExplainRefused: something lies further off than it may.
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
    """The bar.

    Raises:
        ExplainRefused: it is missed.
    """
    if not value <= allowed:
        raise ExplainRefused(f"{what}: off by up to {value:.3g} (allowed: {allowed:g})")


def answer_of(outputs: Arrays, row: Row) -> NDArray[np.float32]:
    """What is explained, of each row of a batch of one input at different alphas, [B]."""
    if "logits" in outputs:
        return outputs["logits"][:, int(row.feeds["target"])]
    return outputs["log_probabilities"].sum(axis=1)


def completeness_gap(graph: Callable[[Sequence[Row]], Arrays], row: Row, num_steps: int) -> float:
    """How much of the difference to the baseline the attributions of all tokens leave over, as a share of it.

    Of 1, where the difference is less.
    """
    alphas, weights = gauss_legendre(num_steps)
    shared_out = 0.0
    for first in range(0, num_steps, MAX_ROWS):
        part = slice(first, first + MAX_ROWS)
        shared_out += float(graph(at_alphas(row, alphas[part]))["attribution"].sum(axis=1) @ weights[part])
    baseline, answer = answer_of(graph(at_alphas(row, [0.0, 1.0])), row)
    return float(abs(shared_out - (answer - baseline)) / max(1.0, abs(answer - baseline)))


def served_difference(folder: Path, network: Explained, graph: ExplainGraph, rows: Sequence[Row]) -> float:
    """How far the answers at alpha 1 lie from those of the served graph."""
    if isinstance(network, ExplainedTranslation):
        found_BT, translator, worst = graph(rows)["log_probabilities"], OnnxTranslator(folder), 0.0
        for row, found_T in zip(rows, found_BT, strict=True):
            served_T = served_log_probabilities(translator, row, network.bos_id, network.model.config.vocab_size)
            worst = max(worst, float(np.abs(found_T[: len(served_T)] - served_T).max()))
        return worst
    session = cpu_session(folder / GRAPH)
    feeds = batch_of(rows)
    served = session.run(["logits"], {each.name: feeds[each.name] for each in session.get_inputs()})[0]
    return float(np.abs(graph(rows)["logits"] - served).max())


def served_log_probabilities(translator: OnnxTranslator, row: Row, bos_id: int, vocab_size: int) -> NDArray[np.float32]:
    """Of each token of a translation, by the graphs that are served, token by token; [T]."""
    state, found, last = translator.begin([row.feeds["source_ids"].tolist()]), [], bos_id
    for written in row.feeds["target_ids"].tolist():
        top_RN, ids_RN, state = translator.next_tokens([last], state, vocab_size)
        found.append(top_RN[0, ids_RN[0] == written][0])
        last = written
    return np.array(found, dtype=np.float32)


# --- the folder ------------------------------------------------------------------------------------------------------


def golden_rows(folder: Path, manifest: Manifest, golden: Sequence[GoldenExample]) -> list[Row]:
    """Golden examples as rows, at alpha 1: the class explained is the one that is answered."""
    rows = []
    for number, example in enumerate(golden):
        feeds: Arrays
        if manifest.task == "translation":
            source, written = example.tensors["input_ids"], example.tensors["greedy"]
            assert not isinstance(source, str) and not isinstance(written, str)
            target_ids = np.array([*written, generation_of(folder)["eos_token_id"]])[: manifest.limits.max_tokens]
            feeds = {
                "source_ids": np.array(source),
                "source_mask": np.ones(len(source), dtype=np.int64),
                "target_ids": target_ids,
                "target_mask": np.ones_like(target_ids),
            }
        else:
            feeds = {"target": np.int64(np.argmax(example.outputs["logits"]))}
            if manifest.task == "image-classification":
                pixels = image_task(folder, manifest).preprocess(example.inputs["image"].encode(), field="image")
                feeds["pixel_values"] = pixels.pixels_CHW
            else:
                feeds["input_ids"] = np.array(example.tensors["input_ids"])
                feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
        rows.append(Row(number, feeds | {"alpha": np.float32(1.0)}))
    return rows


def image_task(folder: Path, manifest: Manifest) -> ImageClassification:
    """The pure part of a folder's image classifier."""
    config = msgspec.json.decode((folder / PREPROCESSOR).read_bytes(), type=PreprocessorConfig)
    return ImageClassification(config, labels=manifest.labels, graph_input=manifest.inputs[0].name)


def golden_of(network: Explained, row: Row) -> GoldenRow:
    """A row, and what PyTorch makes of it."""
    outputs = {name: kept_of(name, array[0]) for name, array in in_pytorch(network, [row]).items()}
    target = int(row.feeds["target"]) if "target" in row.feeds else None
    return GoldenRow(
        row.example,
        target,
        round(float(row.feeds["alpha"]), 6),
        {name: [float(f"{number:.6g}") for number in array.ravel()] for name, array in outputs.items()},
    )


def kept_of(name: str, output: NDArray[Any]) -> NDArray[Any]:
    """The part of a row's output that golden rows have."""
    return output[:, :, 0] if name.endswith("attention") else output


def replay_golden_rows(folder: Path) -> dict[str, float]:
    """Ask the graph of a folder its golden rows, one by one; how far each output lies off at most.

    Raises:
        ExplainRefused: further than the file allows.
        FolderError: the folder is damaged, or has no golden rows.
    """
    opened, golden, graph = open_folder(folder), read_explain_golden(folder), ExplainGraph(folder)
    assert opened.manifest is not None
    rows = golden_rows(folder, opened.manifest, opened.golden)
    worst = dict.fromkeys(golden.tolerance, 0.0)
    for expected in golden.rows:
        (row,) = at_alphas(rows[expected.example], [expected.alpha])
        if expected.target is not None:
            row.feeds["target"] = np.int64(expected.target)
        for name, array in graph([row]).items():
            found = kept_of(name, array[0]).ravel()
            worst[name] = max(worst[name], difference(name, found, np.array(expected.outputs[name])))
            require(f"{name} of golden example {expected.example}", worst[name], golden.tolerance[name])
    return worst


def add_explain_graph(folder: Path, manifest: Manifest, stored: StoredNetwork) -> ExplainGolden:
    """Write `explain.onnx` and `golden.explain.json` into a folder that is complete but for card and manifest.

    Args:
        folder: with its served graphs, golden examples and configuration.
        manifest: as it will be written.
        stored: its network.

    Raises:
        ExplainRefused: the graph lies further off PyTorch, or PyTorch off the served graph, than it may.
    """
    golden = msgspec.json.decode((folder / GOLDEN).read_bytes(), type=list[GoldenExample])
    bos_id = generation_of(folder)["decoder_start_token_id"] if manifest.task == "translation" else None
    network = explained(stored, bos_id)
    export_explain_graph(network, folder)
    rows = golden_rows(folder, manifest, golden)
    measured = require_explained(folder, network, rows, manifest.tolerance.max_abs_logit_difference)
    kept = [
        golden_of(network, *at_alphas(row, [GOLDEN_ALPHAS[number % len(GOLDEN_ALPHAS)]]))
        for number, row in enumerate(rows[:NUM_GOLDEN])
    ]
    written = ExplainGolden({name: TOLERANCE[name] for name in network.outputs}, measured, kept)
    write_explain_golden(folder, written)
    return written


def add_to_store(folder: Path, console: Console) -> ExplainGolden:
    """Give a version that is in the store its explaining graph, or a new one; its other graphs stay as they are.

    Raises:
        FolderError: the folder is damaged.
        ExplainRefused: as of `add_explain_graph`; the folder is then as it was.
        ValueError: it is a bare graph, or not a network that can be read back.
    """
    manifest = open_folder(folder).manifest
    if manifest is None:
        raise NotUnderstood(f"{folder} is a bare ONNX graph: nothing says what its network is")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".explaining-") as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "folder"))
        golden = add_explain_graph(copy, manifest, stored_network(copy))
        card = (copy / CARD).read_text().split(CARD_HEADING, maxsplit=1)[0]
        (copy / CARD).write_text(card + card_of_explanations(copy, manifest))
        write_manifest(copy, manifest)
        for name in (EXPLAIN, EXPLAIN_GOLDEN, CARD, MANIFEST):
            (copy / name).replace(folder / name)
    size = (folder / EXPLAIN).stat().st_size + (folder / EXPLAIN_GOLDEN).stat().st_size
    console.print(f"{folder}: {size / 1e3:.0f} kB more; {golden.measured}", soft_wrap=True, highlight=False)
    return golden


def card_of_explanations(folder: Path, manifest: Manifest) -> str:
    """The card's section on the explaining graph; nothing for a folder without one."""
    if not (folder / EXPLAIN_GOLDEN).is_file():
        return ""
    measured = read_explain_golden(folder).measured
    lines = [
        f"`{EXPLAIN}` gives attention weights and integrated gradients (Sundararajan et al. 2017). It has no weights of"
        " its own: it reads them out of the graphs of this folder.",
        "",
    ]
    if manifest.precision != "float32":
        lines += [
            f"What it explains is the network with the weights that {manifest.precision} made, computed in float32: the"
            f" served graph rounds what it computes as well. The two answer the golden examples within"
            f" {measured['served_answer_difference']:.2g} of each other.",
            "",
        ]
    lines += [
        "Measured on the golden examples, against PyTorch but for the first, which is against the served graph:",
        "",
    ]
    lines += [f"- {name.replace('_', ' ')}: {value:.2g}" for name, value in measured.items()]
    return CARD_HEADING + "\n".join(lines) + f"\n\n`{EXPLAIN_GOLDEN}` has the same, and rows to check it by.\n"


def open_folder(path: Path) -> ModelFolder:
    """A version's folder, read and checked.

    Raises:
        FolderError: it is damaged, or not a folder of the store.
    """
    if not path.is_dir() or not path.resolve().name.isdigit():
        raise FolderError(f"{path} is not a version's folder: <store>/<name>/<version>")
    return read(FoundFolder(path.resolve().parent.name, path.resolve().name, path))


def generation_of(folder: Path) -> dict[str, Any]:
    """`generation_config.json`."""
    found: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    return found
