"""Writes `model.float16.onnx` and `encoder.float16.onnx`, a folder's graphs in half precision for GPUs.

    served graph ── stored weights made float32 again ──> halved ──> weights shared ──> compared ──> manifest, card

They are derived from the folder alone, for float32 and int8 versions of every task; no training run is needed. The
quantized values of int8 weights stay; the quantization of activations is removed, because GPUs have no kernel for it.
The graphs read their weights from the served graphs (`export/onnx_graphs/external_weights.py`), so that a version grows
by about ten kilobytes.

Half precision may cost half a point of accuracy or BLEU, as in every conversion to it. The loss is measured against the
folder's graphs, on labelled inputs or on sentences with references.

Shapes: B inputs, C classes.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import sacrebleu
from numpy.typing import NDArray
from onnx import numpy_helper
from rich.console import Console

from export.conversion.comparison.explanation import Arrays
from export.conversion.explanation_graph import CARD_HEADING as EXPLAINED_HEADING
from export.conversion.model_folder.opening import generation_of, open_folder, translation_of
from export.conversion.model_folder.task import FolderTask, Preprocessing, S
from export.conversion.model_source import Labelled
from export.data.translation import ParallelTexts
from export.onnx_graphs.external_weights import share_weights
from export.onnx_graphs.import_weights import dequantized
from export.onnx_graphs.passes import cpu_session, halve, use_own_attention
from export.onnx_graphs.translation import OnnxTranslator, halve_translation
from export.stopping import stopping_later
from export.training.quality import (
    MAX_ACCURACY_LOSS,
    MAX_BLEU_LOSS,
    MIN_FLOAT16_TOLERANCE,
    classification_quality,
    twice,
)
from export.training.translation import translate
from model_store.folder import (
    CARD,
    ENCODER,
    ENCODER_FLOAT16,
    GOLDEN,
    GRAPH,
    GRAPH_FLOAT16,
    MANIFEST,
    GoldenExample,
    HalfPrecision,
    Manifest,
    Tolerance,
    write_manifest,
)
from service.tasks.decoding.search import GOLDEN_SEARCHES, Hypothesis, SearchRequest

BATCH_SIZE = 32
OF_INT8 = re.compile(r"[Qq]uantize|Integer|^Q[A-Z]")  # operators
CARD_HEADING = "\n## On a GPU\n\n"


class HalfPrecisionRefused(ValueError):
    """Half precision costs too much of this model's quality."""


# --- graphs ----------------------------------------------------------------------------------------------------------


def write_float16_graphs(folder: Path) -> None:
    """Write the float16 graphs beside the served graphs, whose weights they read.

    Raises:
        HalfPrecisionRefused: a graph has int8 operators that conversion does not write.
    """
    graphs = [folder / name for name in (GRAPH, ENCODER) if (folder / name).is_file()]
    halves = [folder / name for name in (GRAPH_FLOAT16, ENCODER_FLOAT16)][: len(graphs)]
    for graph, half in zip(graphs, halves, strict=True):
        onnx.save(in_float32(onnx.load(graph)), half)
    if len(halves) == 1:
        halve(halves[0])
    else:
        decoder, encoder = halves
        halve_translation(encoder, decoder)
    for half in halves:
        share_weights(half, graphs)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undo int8 and float16 storage of a served graph's weights, in place: the graph as export first wrote it.

    Removes the nodes that `halve_exact_weights` and `quantize` of `export.onnx_graphs.passes` put around weights, and
    restores ONNX Runtime's own attention operator.

    Raises:
        HalfPrecisionRefused: an int8 operator is left.
    """
    use_own_attention(model)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    takers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    gone: list[Any] = []

    def add(name: str, array: NDArray[np.float32]) -> str:
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name)
        return name

    def array_of(name: str) -> NDArray[Any]:
        return numpy_helper.to_array(constants[name])

    def whole(quantized: str, scale: str, zero_point: str) -> str:
        name = f"{quantized.removesuffix('_quantized')}.whole"
        if name not in constants:
            add(name, dequantized(array_of(quantized), array_of(scale), array_of(zero_point)))
        return name

    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in constants and node.input[0].endswith(".half"):
            add(node.output[0], array_of(node.input[0]))
            gone.append(node)
        elif node.op_type == "DequantizeLinear" and (gather := makers[node.input[0]]).op_type == "Gather":
            gather.input[0] = whole(gather.input[0], *node.input[1:])
            gather.output[0] = node.output[0]
            gone.append(node)
        elif node.op_type == "MatMulInteger":
            # quantize(x) = scale(x), so that: MatMulInteger -> Cast -> Mul by scale(x) * scale(weight).
            quantizing, (cast,) = makers[node.input[0]], takers[node.output[0]]
            (scaled,) = takers[cast.output[0]]
            scales = makers[next(name for name in scaled.input if name != cast.output[0])]
            scale = next(name for name in scales.input if name in constants)
            node.input[:] = [quantizing.input[0], whole(node.input[1], scale, node.input[3])]
            node.op_type, node.output[0] = "MatMul", scaled.output[0]
            gone += [cast, scaled]
    kept = [node for node in graph.node if not any(node is each for each in gone)]
    kept = _used(kept, [output.name for output in graph.output])
    if left := {node.op_type for node in kept if OF_INT8.search(node.op_type)}:
        raise HalfPrecisionRefused(f"no float16 operator is known in place of {', '.join(sorted(left))}")
    named = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in named)
    return model


def _used(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """Return the nodes reachable from the outputs, in topological order."""
    wanted, used = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            used.append(node)
            wanted.update(node.input)
    return used[::-1]


# --- quality ---------------------------------------------------------------------------------------------------------


def add_float16_graphs(
    folder: Path, manifest: Manifest, task: FolderTask[S], measured_on: Mapping[str, S], console: Console
) -> Manifest:
    """Write the graphs in half precision into a folder that is complete but for card and manifest.

    Args:
        folder: the folder with its served graphs, golden examples and configuration.
        manifest: its manifest without the float16 graphs.
        task: the model's task.
        measured_on: labelled inputs, or sentences with references.
        console: shows progress.

    Returns:
        the manifest with the measures.

    Raises:
        HalfPrecisionRefused: half precision costs too much; the folder then stays unchanged.
    """
    golden = msgspec.json.decode((folder / GOLDEN).read_bytes(), type=list[GoldenExample])
    try:
        write_float16_graphs(folder)
        found = task.measure_float16(folder, manifest, golden, measured_on)
    except HalfPrecisionRefused:
        for name in (GRAPH_FLOAT16, ENCODER_FLOAT16):
            (folder / name).unlink(missing_ok=True)
        raise
    console.print(f"in half precision: {found.quality}", highlight=False)
    return msgspec.structs.replace(manifest, float16=found)


def _sessions(folder: Path) -> list[Any]:
    """Open the float16 graph, the same weights in float32, and the served graph."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        # float16 is compared with the dequantized graph, because float16 does not round activations to int8.
        whole = Path(temporary) / GRAPH
        onnx.save(in_float32(onnx.load(folder / GRAPH)), whole)
        with _refusing():
            return [cpu_session(path) for path in (folder / GRAPH_FLOAT16, whole, folder / GRAPH)]


def float16_outputs(
    folder: Path, output: str, items: Sequence[Any], collate: Callable[[Sequence[Any]], Arrays]
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Compute the rows of an output with the float16 graph, and with the same weights in float32.

    Raises:
        HalfPrecisionRefused: ONNX Runtime cannot open a graph.
    """
    half, whole, _ = _sessions(folder)
    batches = [collate(items[first : first + BATCH_SIZE]) for first in range(0, len(items), BATCH_SIZE)]
    of_half, of_whole = ([row for batch in batches for row in each.run([output], batch)[0]] for each in (half, whole))
    return of_half, of_whole


def measure_classifier(
    folder: Path,
    manifest: Manifest,
    golden: Sequence[GoldenExample],
    measured_on: Mapping[str, Labelled],
    preprocessing: Preprocessing,
) -> HalfPrecision:
    """Compare a classifier's float16 graph with the served graph, and with PyTorch's golden logits.

    Raises:
        HalfPrecisionRefused: float16 loses too much accuracy.
    """
    sessions = _sessions(folder)

    def logits(session: Any, inputs: Sequence[Any]) -> NDArray[np.float32]:
        items = [preprocessing.item(given) for given in inputs]
        batches = [items[first : first + BATCH_SIZE] for first in range(0, len(items), BATCH_SIZE)]
        return np.concatenate([session.run(["logits"], preprocessing.collate(batch))[0] for batch in batches])

    quality: dict[str, Any] = {}
    inputs = [preprocessing.golden_input(example) for example in golden]
    expected_BC = np.array([example.outputs["logits"] for example in golden])
    worst = float(np.abs(logits(sessions[0], inputs) - expected_BC).max())
    for split, labelled in measured_on.items():
        half_BC, whole_BC, served_BC = (logits(session, labelled.inputs) for session in sessions)
        difference, labels_B = float(np.abs(half_BC - whole_BC).max()), np.array(labelled.labels)
        worst = max(worst, difference)
        if not np.isfinite(worst):
            raise HalfPrecisionRefused("its values overflow half precision")
        measured, before = (classification_quality(each, labels_B).accuracy for each in (half_BC, served_BC))
        require_little_loss(100 * (before - measured), 100 * MAX_ACCURACY_LOSS, f"points of accuracy ({split})")
        quality[split] = {
            "num_examples": len(labels_B),
            "accuracy": measured,
            f"accuracy_in_{manifest.precision}": before,
            "labels_changed": int((half_BC.argmax(axis=1) != served_BC.argmax(axis=1)).sum()),
            "max_abs_logit_difference_to_float32": difference,
        }
    allowed = max(twice(worst), MIN_FLOAT16_TOLERANCE)
    return HalfPrecision(Tolerance(allowed, labels_must_agree=False), quality)


def measure_translations(
    folder: Path, manifest: Manifest, golden: Sequence[GoldenExample], measured_on: Mapping[str, ParallelTexts]
) -> HalfPrecision:
    """Compare float16 translations with those of the served graphs, and their scores with PyTorch's golden ones.

    Raises:
        HalfPrecisionRefused: float16 loses too much BLEU.
    """
    generation = generation_of(folder)
    task = translation_of(folder, manifest)
    with _refusing():
        half, served = OnnxTranslator(folder, ENCODER_FLOAT16, GRAPH_FLOAT16), OnnxTranslator(folder)

    def translated(translator: OnnxTranslator, texts: Sequence[str], request: SearchRequest) -> list[Hypothesis]:
        sentences = [task.preprocess(text, truncate=True, field="text", request=request) for text in texts]
        ids, options = [each.ids for each in sentences], [each.options for each in sentences]
        return translate(
            translator,
            ids,
            options,
            2 * BATCH_SIZE,
            bos_id=generation["decoder_start_token_id"],
            eos_id=generation["eos_token_id"],
        )

    def bleu(found: Sequence[Hypothesis], references: Sequence[str]) -> float:
        return float(sacrebleu.corpus_bleu([task.text_of(each.ids) for each in found], [references]).score)

    worst, quality = 0.0, dict[str, Any]()
    for search, request in GOLDEN_SEARCHES.items():
        for example in golden:
            (found,) = translated(half, [example.inputs["text"]], request)
            worst = max(worst, abs(found.score - example.outputs[search][0]))
        if not np.isfinite(worst):
            raise HalfPrecisionRefused("its values overflow half precision")
        for split, texts in measured_on.items():
            ours, theirs = (translated(each, texts.source, request) for each in (half, served))
            measured, before = (bleu(each, texts.target) for each in (ours, theirs))
            require_little_loss(before - measured, MAX_BLEU_LOSS, f"BLEU ({split}, {search})")
            pairs = list(zip(ours, theirs, strict=True))
            same = [abs(mine.score - its.score) for mine, its in pairs if mine.ids == its.ids]
            quality.setdefault(split, {})[search] = {
                "num_examples": len(pairs),
                "bleu": measured,
                f"bleu_in_{manifest.precision}": before,
                "translations_changed": len(pairs) - len(same),
                "max_abs_score_difference": max(same, default=0.0),
            }
    return HalfPrecision(Tolerance(max(twice(worst), MIN_FLOAT16_TOLERANCE)), quality)


def require_little_loss(loss: float, allowed: float, what: str) -> None:
    """Refuse a loss of quality above its limit.

    Raises:
        HalfPrecisionRefused: the loss is above the limit.
    """
    if not loss <= allowed:
        raise HalfPrecisionRefused(f"half precision loses {loss:.2f} {what}, allowed are {allowed:g}")


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Refuse a graph with operators that ONNX Runtime computes in float32 only."""
    try:
        yield
    except Exception as error:  # ONNX Runtime raises many types without a common base class
        raise HalfPrecisionRefused(f"ONNX Runtime refuses it: {str(error).strip().splitlines()[0]}") from error


# --- the folder ------------------------------------------------------------------------------------------------------


def add_to_store(
    folder: Path,
    task_of: Callable[[str], FolderTask[S]],
    measured_on: Callable[[Manifest], Mapping[str, S]],
    console: Console,
) -> Manifest:
    """Add float16 graphs to a version in the store, or replace them; its other graphs stay as they are.

    Args:
        folder: the version's folder.
        task_of: returns the task of this name.
        measured_on: finds the labelled inputs or sentences to judge a model by.
        console: shows progress.

    Raises:
        FolderError: the folder is damaged.
        HalfPrecisionRefused: half precision costs too much; the folder then stays unchanged.
        ValueError: the folder is a bare graph or already in half precision, or no data to judge it by is known.
    """
    manifest = open_folder(folder).manifest
    if manifest is None:
        raise ValueError(f"{folder} is a bare ONNX graph: its quality cannot be measured")
    if manifest.precision == "float16":
        raise ValueError(f"{folder} is already in half precision")
    material, task = measured_on(manifest), task_of(manifest.task)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".halving-") as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "folder"))
        manifest = add_float16_graphs(copy, manifest, task, material, console)
        before, *explained = (copy / CARD).read_text().split(EXPLAINED_HEADING, maxsplit=1)
        card = before.split(CARD_HEADING, maxsplit=1)[0] + card_of_half_precision(manifest, task)
        (copy / CARD).write_text(EXPLAINED_HEADING.join([card, *explained]))
        write_manifest(copy, manifest)
        with stopping_later(""):  # the manifest has the checksums of the others
            for name in (GRAPH_FLOAT16, ENCODER_FLOAT16, CARD, MANIFEST):
                if (copy / name).is_file():
                    (copy / name).replace(folder / name)
    size = sum((folder / name).stat().st_size for name in (GRAPH_FLOAT16, ENCODER_FLOAT16) if (folder / name).is_file())
    console.print(f"{folder}: {size / 1e3:.0f} kB more", soft_wrap=True, highlight=False)
    return manifest


def card_of_half_precision(manifest: Manifest, task: FolderTask[S]) -> str:
    """Write the card's section on the float16 graphs; empty for a folder without them."""
    if manifest.float16 is None:
        return ""
    files = " and ".join(f"`{name}`" for name in task.float16_graphs)
    of_int8 = ", with the dequantized int8 weights" if manifest.precision == "int8" else ""
    lines = [
        f"A GPU computes {files}: the same network in half precision{of_int8}. It reads its weights from the other"
        f" graphs of this folder. Measured on a CPU, and compared with the {manifest.precision} graphs:",
        "",
    ]
    for split, measured in manifest.float16.quality.items():
        lines += task.float16_lines(split, measured, manifest.precision)
    return CARD_HEADING + "\n".join(lines) + "\n"
