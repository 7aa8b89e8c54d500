"""Turns a trained classifier into a model folder, and refuses where the result is not the same model.

    PyTorch ──> torch.export ──> ONNX ──> (ONNX Runtime's transformer optimizer, int8) ──> compared ──> folder
           └──> TorchScript ────────────────────────────────────────────────────────> compared ──┤
                                 ONNX ──> the graph that explains (`explanation_graph`) ─────────┤
                                 ONNX ──> in half precision, for GPUs (`float16`) ───────────────┘

The folder appears in the store only when every comparison has passed. What is peculiar to texts or to images is in
`export/conversion/model_source.py`.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from export.conversion.explanation_graph import add_explain_graph, card_of_explanations
from export.conversion.float16 import HalfPrecisionRefused, Material, add_half_graphs, card_of_half_precision
from export.conversion.model_source import Labelled, Source
from export.conversion.sensitivity.batch_sensitivity import card_of_batch_sensitivity, with_batch_sensitivity
from export.networks.image import VisionTransformer
from export.networks.transformer import TextClassifier
from export.networks.translation import TranslationTransformer
from export.onnx_graphs.import_weights import NotUnderstood, StoredNetwork, stored_network
from export.onnx_graphs.passes import (
    cpu_session,
    export_graph,
    halve,
    halve_exact_weights,
    optimize_transformer,
    quantize,
    use_standard_attention,
)
from export.provenance import this_command
from export.training.quality import MAX_ACCURACY_LOSS, classification_quality, twice
from model_store.folder import (
    CARD,
    FORMAT,
    GRAPH,
    MANIFEST,
    TORCHSCRIPT,
    GoldenExample,
    Manifest,
    Tensor,
    Tolerance,
    next_version,
    write_golden,
    write_manifest,
)

Precision = Literal["float32", "float16", "int8"]

CONVERTING = ".converting-"  # what the name of an unfinished folder begins with; no server looks into it
MIN_COMPARED = 500
MAX_LOGIT_DIFFERENCE = 1e-4  # float32: ONNX and TorchScript against PyTorch


class ConversionRefused(ValueError):
    """The converted model is not the model that was trained; nothing was written."""


@dataclass(frozen=True)
class Comparison:
    """Converted outputs against PyTorch's on the same inputs."""

    num_examples: int
    max_abs_logit_difference: float
    labels_changed: int


def convert(
    source: Source,
    *,
    name: str,
    store: Path,
    compare_on: Sequence[Any],
    labelled: Labelled | None,
    precision: Precision,
    about: dict[str, Any],
    console: Console,
    also_measured_on: Mapping[str, Labelled] = MappingProxyType({}),
    split: str = "validation",
    explained: bool = True,
    halved: bool = True,
) -> Path:
    """Write the next version of model `name` into the store.

    Args:
        source: the model.
        name: of the model folder.
        store: the model store.
        compare_on: at least 500 texts, or image files, for the comparison with PyTorch.
        labelled: labelled ones to measure quality on; needed for all but float32.
        precision: of the graph's products.
        about: goes into the manifest's provenance and the model card: data, licence, ...
        console: for progress.
        also_measured_on: further labelled ones, by a name for the model card.
        split: which one of its data set `labelled` is.
        explained: with a graph that explains, where it is offered; `python -m export explain-graph` adds it later.
        halved: of float32 and int8 with a graph in half precision as well, for GPUs, where there are labelled inputs to
            judge it by; `python -m export half-graphs` adds it later.

    Returns:
        the new folder.

    Raises:
        ConversionRefused: the outputs differ from PyTorch's, or the precision costs too much accuracy.
        ExplainRefused: the graph that explains differs from PyTorch, or explains another model.
        ValueError: too few inputs to compare on, none with labels to measure a loss, or int8 does not suit the network.
    """
    if len(compare_on) < MIN_COMPARED:
        raise ValueError(f"{len(compare_on)} {source.kind} to compare on, at least {MIN_COMPARED} are needed")
    if precision != "float32" and labelled is None:
        raise ValueError(f"{precision} needs labelled {source.kind}, to measure what it costs in accuracy")
    if precision == "int8" and source.not_quantized_because:
        raise ValueError(f"int8 is not offered: {source.not_quantized_because}")
    with folder_in_the_making(store) as folder:
        console.print("exporting to ONNX")
        export_onnx(source, folder / GRAPH)
        if precision == "int8":
            console.print("quantizing to int8")
            quantize(folder / GRAPH, source.quantized_operators)
        elif precision == "float16":
            console.print("halving to float16")
            halve(folder / GRAPH)
        else:
            halve_exact_weights(folder / GRAPH)
        if precision != "float16":  # that one is for GPUs
            use_standard_attention(folder / GRAPH)
        console.print(f"comparing with PyTorch on {len(compare_on)} {source.kind}")
        reference_BC = source.logits(source.module, compare_on)
        onnx_comparison = compare(onnx_logits(source, folder / GRAPH, compare_on), reference_BC)
        console.print(f"ONNX: {onnx_comparison}")
        quality: dict[str, Any] = {"compared_with_pytorch": {"onnx": vars(onnx_comparison)}}
        if precision == "float32":
            require_equal(onnx_comparison, "ONNX")
            quality["compared_with_pytorch"]["torchscript"] = vars(
                write_torchscript(source, folder / TORCHSCRIPT, compare_on, reference_BC)
            )
        if labelled is not None:
            quality |= measure_quality(source, folder / GRAPH, labelled, precision, split)
        for name_of_more, more in also_measured_on.items():
            logits_BC = onnx_logits(source, folder / GRAPH, more.inputs)
            quality[name_of_more] = classification_quality(logits_BC, np.array(more.labels)).as_dict()
        manifest = describe(source, folder, name, precision, onnx_comparison, quality, about)
        if labelled is not None:
            manifest = with_batch_sensitivity(folder, manifest, labelled.inputs, console)
        if explained:
            explain(folder, manifest, source.module, console)
        if halved and labelled is not None:
            manifest = with_half_precision(folder, manifest, {split: labelled}, console)
        target = put_into_store(folder, manifest, store, model_card)
    console.print(f"written: {target}")
    return target


# --- graphs ----------------------------------------------------------------------------------------------------------


def export_onnx(source: Source, path: Path) -> None:
    """With the source's dynamic dimensions; transformers of text are then optimized as such."""
    export_graph(
        source.for_export(),
        source.example(),
        path,
        inputs=list(source.input_names),
        outputs=["logits"],
        dynamic_shapes=tuple(source.dynamic_axes() for _ in source.input_names),
    )
    if source.optimized_as is not None:
        optimize_transformer(path, source.optimized_as)


def write_torchscript(
    source: Source,
    path: Path,
    inputs: Sequence[Any],
    reference_BC: NDArray[np.float32],
) -> Comparison:
    """The compatibility format; compared like the ONNX graph.

    Raises:
        ConversionRefused: it answers differently.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of shapes it records; that they stay dynamic is compared below
        torch.jit.save(
            torch.jit.trace(source.module, source.example(), check_trace=False, strict=False),
            path,
        )
        comparison = compare(source.logits(torch.jit.load(path), inputs), reference_BC)
    require_equal(comparison, "TorchScript")
    return comparison


# --- comparisons -----------------------------------------------------------------------------------------------------


def onnx_logits(source: Source, path: Path, inputs: Sequence[Any], batch_size: int = 32) -> NDArray[np.float32]:
    """What the graph answers in batches of the given order, padded; [B, C]."""
    session = cpu_session(path)
    parts = []
    for first in range(0, len(inputs), batch_size):
        items = [source.item(given) for given in inputs[first : first + batch_size]]
        parts.append(session.run(["logits"], source.task.collate(items))[0])
    return np.concatenate(parts)


def compare(logits_BC: NDArray[np.float32], reference_BC: NDArray[np.float32]) -> Comparison:
    """Converted logits against PyTorch's."""
    return Comparison(
        num_examples=len(logits_BC),
        max_abs_logit_difference=float(np.abs(logits_BC - reference_BC).max()),
        labels_changed=int((logits_BC.argmax(axis=1) != reference_BC.argmax(axis=1)).sum()),
    )


def require_equal(comparison: Comparison, what: str) -> None:
    """The bar for float32.

    Raises:
        ConversionRefused: it is missed.
    """
    if not comparison.max_abs_logit_difference <= MAX_LOGIT_DIFFERENCE or comparison.labels_changed:
        raise ConversionRefused(
            f"{what} is not PyTorch's model: logits differ by up to {comparison.max_abs_logit_difference:.3g} (allowed:"
            f" {MAX_LOGIT_DIFFERENCE:g}), {comparison.labels_changed} of {comparison.num_examples} labels change"
        )


def measure_quality(
    source: Source,
    path: Path,
    labelled: Labelled,
    precision: Precision,
    split: str,
) -> dict[str, Any]:
    """Quality of the graph on labelled inputs; of lossy precisions beside PyTorch, and refused where it falls too far.

    Raises:
        ConversionRefused: the precision loses more than half a point of accuracy.
    """
    labels_B = np.array(labelled.labels)
    measured = classification_quality(onnx_logits(source, path, labelled.inputs), labels_B)
    quality: dict[str, Any] = {split: measured.as_dict()}
    if precision != "float32":
        before = classification_quality(source.logits(source.module, labelled.inputs), labels_B)
        loss = before.accuracy - measured.accuracy
        quality |= {
            "accuracy_before_quantization" if precision == "int8" else "accuracy_in_float32": before.accuracy,
            "accuracy_loss": loss,
        }
        if loss > MAX_ACCURACY_LOSS:
            raise ConversionRefused(
                f"{precision} loses {100 * loss:.2f} points of accuracy ({100 * before.accuracy:.2f} % to"
                f" {100 * measured.accuracy:.2f} %), allowed are {100 * MAX_ACCURACY_LOSS:.1f}"
            )
    return quality


# --- the folder ------------------------------------------------------------------------------------------------------


def publish(
    source: Source,
    folder: Path,
    name: str,
    store: Path,
    precision: Precision,
    comparison: Comparison,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Path:
    """Complete a folder that has its graph, but for one that explains, and put it into the store."""
    manifest = describe(source, folder, name, precision, comparison, quality, about)
    return put_into_store(folder, manifest, store, model_card)


def put_into_store(folder: Path, manifest: Manifest, store: Path, card: Callable[[Manifest, int], str]) -> Path:
    """Write card and manifest into a folder that is complete but for them, and move it to its place as a whole."""
    version = next_version(store, manifest.name)
    (folder / CARD).write_text(
        card(manifest, version)
        + card_of_batch_sensitivity(manifest)
        + card_of_half_precision(manifest)
        + card_of_explanations(folder, manifest)
    )
    write_manifest(folder, manifest)
    target = store / manifest.name / str(version)
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return target


def explain(folder: Path, manifest: Manifest, module: nn.Module, console: Console) -> None:
    """Add the graph that explains, where it is offered: to this repository's own Transformers.

    Raises:
        ExplainRefused: it does not explain the model that is served.
    """
    if not isinstance(module, TextClassifier | VisionTransformer | TranslationTransformer):
        return
    console.print("exporting the graph that explains, and comparing it with PyTorch")
    try:
        # What other precisions make of the weights only their graphs say.
        stored = StoredNetwork(module) if manifest.precision == "float32" else stored_network(folder)
    except NotUnderstood as error:
        console.print(f"without one that explains: {error}")
        return
    console.print(f"explanations: {add_explain_graph(folder, manifest, stored).measured}")


def with_half_precision(folder: Path, manifest: Manifest, measured_on: Material, console: Console) -> Manifest:
    """Add the graphs in half precision where they are worth as much; the manifest that says so."""
    if manifest.precision == "float16":
        return manifest
    console.print("halving for GPUs, and comparing with the graphs that CPUs get")
    try:
        return add_half_graphs(folder, manifest, measured_on, console)
    except HalfPrecisionRefused as error:
        console.print(f"without graphs in half precision: {error}")
        return manifest


@contextlib.contextmanager
def folder_in_the_making(store: Path) -> Iterator[Path]:
    """An empty folder beside the store's models, gone afterwards.

    It is locked while it is in use, so that the next conversion can tell it from what a killed process left behind.
    """
    store.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with _locked(store):  # nobody may take a folder for abandoned between its making and its locking
            _remove_abandoned(store)
            temporary = stack.enter_context(tempfile.TemporaryDirectory(dir=store, prefix=CONVERTING))
            stack.enter_context(_locked(Path(temporary)))
        folder = Path(temporary) / "folder"
        folder.mkdir()
        yield folder


@contextlib.contextmanager
def _locked(folder: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process that holds it.

    Raises:
        BlockingIOError: another process holds it, and `operation` does not wait.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(store: Path) -> None:
    """Remove what conversions left behind that were killed."""
    for folder in store.glob(f"{CONVERTING}*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder)


def describe(
    source: Source,
    folder: Path,
    name: str,
    precision: Precision,
    comparison: Comparison,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Manifest:
    """Write the source's files and golden examples beside the graph; the manifest, without checksums yet.

    Raises:
        ConversionRefused: a float32 graph answers a golden example differently.
    """
    for file_name, text in source.files().items():
        (folder / file_name).write_text(text)
    inputs = source.golden_inputs()
    golden_BC = source.logits(source.module, inputs)
    golden = [
        GoldenExample(*source.golden_example(given), {"logits": logits_C.tolist()})
        for given, logits_C in zip(inputs, golden_BC, strict=True)
    ]
    write_golden(folder, golden)
    golden_comparison = compare(onnx_logits(source, folder / GRAPH, inputs), golden_BC)
    if precision == "float32":
        require_equal(golden_comparison, "ONNX, asked the golden examples,")
        tolerance = Tolerance(MAX_LOGIT_DIFFERENCE)
    else:
        # Rounding depends on the company in the batch and on the processor's instructions; twice what was seen here. A
        # golden example whose logits lie within that of each other may change its label, and another one cannot; what
        # the precision may cost is bounded by the accuracy on labelled inputs.
        seen = max(
            comparison.max_abs_logit_difference,
            golden_comparison.max_abs_logit_difference,
        )
        tolerance = Tolerance(twice(seen), labels_must_agree=False)
    return Manifest(
        format=FORMAT,
        name=name,
        task=source.task_name,
        precision=precision,
        inputs=[Tensor(tensor, *source.input_form) for tensor in source.input_names],
        outputs=[Tensor("logits", "FP32", [-1, len(source.labels)])],
        labels=source.labels,
        limits=source.limits,
        skips_padding=source.skips_padding,
        tolerance=tolerance,
        files={},
        provenance=about | source.provenance | {"converted_by": this_command(), "torch": str(torch.__version__)},
        quality=quality,
    )


def card_of_provenance(manifest: Manifest) -> list[str]:
    """The card's lines on where the model comes from."""
    return [
        "## Where it comes from",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in manifest.provenance.items()),
        "",
    ]


def model_card(manifest: Manifest, version: int) -> str:
    """The folder's README.md; every figure comes from the manifest."""
    lines = [
        f"# {manifest.name}, version {version}",
        "",
        f"Task: {manifest.task}. Classes: {', '.join(manifest.labels)}. Precision: {manifest.precision}."
        f" {_what_it_takes(manifest)}",
        "",
        *card_of_provenance(manifest),
        "## Measured",
        "",
    ]
    if "validation" in manifest.quality and "best_epoch" in manifest.provenance:
        lines += ["The validation split also chose the epoch: what is measured on it is an optimistic figure.", ""]
    for split, measured in manifest.quality.items():
        if isinstance(measured, dict) and "confusion_matrix" in measured:
            lines += [
                f"On {f'the {split} split' if split in {'validation', 'test'} else split},"
                f" n = {measured['num_examples']}, with the graph of this folder:",
                "",
                f"- accuracy {100 * measured['accuracy']:.2f} % (standard error"
                f" {100 * measured['accuracy_standard_error']:.2f})",
                f"- F1, mean over the classes: {measured['f1_macro']:.4f}",
                f"- expected calibration error: {measured['expected_calibration_error']:.4f}",
                f"- confusion matrix (rows: true class): {measured['confusion_matrix']}",
                "",
            ]
    if not any(isinstance(measured, dict) and "confusion_matrix" in measured for measured in manifest.quality.values()):
        lines += ["Its accuracy was not measured: no labelled data of its own was at hand.", ""]
    lines += ["Against the model before its conversion:", ""]
    if "accuracy_loss" in manifest.quality:
        by = "quantization" if manifest.precision == "int8" else manifest.precision
        lines.append(f"- accuracy lost by {by}: {100 * manifest.quality['accuracy_loss']:.2f} points")
    for runtime, comparison in manifest.quality["compared_with_pytorch"].items():
        lines.append(
            f"- {runtime} against PyTorch on {comparison['num_examples']} inputs: logits differ by at most"
            f" {comparison['max_abs_logit_difference']:.2g}, {comparison['labels_changed']} labels change"
        )
    return "\n".join(lines) + f"\n\n`{MANIFEST}` has the same in full, and the checksum of every file.\n"


def _what_it_takes(manifest: Manifest) -> str:
    if manifest.limits.max_tokens is not None:
        return f"Longest input: {manifest.limits.max_tokens} tokens."
    height, width = manifest.inputs[0].shape[2:]
    return f"Takes JPEG, PNG and WebP files of any size, and computes on {height} x {width} pixels."
