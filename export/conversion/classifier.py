"""Converts a trained encoder to a model folder, and refuses a result that is not the same model.

    PyTorch ──> torch.export ──> ONNX ──> (ONNX Runtime's transformer optimizer, int8) ──> compared ──> folder
           └──> TorchScript ────────────────────────────────────────────────────────> compared ──┤
                                 ONNX ──> the graph that explains (`explanation_graph`) ─────────┤
                                 ONNX ──> in half precision, for GPUs (`float16`) ───────────────┘

The folder appears in the store only when every comparison has passed. `export/conversion/model_source.py`
has the parts that differ between texts and images.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from export.conversion.comparison.classifier import (
    MAX_LOGIT_DIFFERENCE,
    Comparison,
    onnx_outputs,
    require_equal,
)
from export.conversion.comparison.requirements import MIN_COMPARED, Precision
from export.conversion.model_folder.publishing import card_of_provenance, explain, put_into_store, with_half_precision
from export.conversion.model_folder.staging import folder_in_the_making
from export.conversion.model_folder.task import OneGraphTask, S, Split
from export.conversion.model_source import Source
from export.conversion.sensitivity.batch_sensitivity import with_batch_sensitivity
from export.conversion.text_source import Given, TextSource
from export.onnx_graphs.passes import (
    export_graph,
    halve,
    halve_exact_weights,
    optimize_transformer,
    quantize,
    use_standard_attention,
)
from export.provenance import this_command
from export.training.quality import twice
from model_store.folder import (
    FORMAT,
    GRAPH,
    MANIFEST,
    NOT_COMPARED,
    TORCHSCRIPT,
    GoldenExample,
    Manifest,
    Tensor,
    Tolerance,
    write_golden,
)

WITHOUT_WEIGHTS = "the checkpoint has no PyTorch weights; golden examples are the graph's own answers"


def convert(
    source: Source,
    task: OneGraphTask[S],
    *,
    name: str,
    store: Path,
    compare_on: Sequence[Any],
    labelled: S | None,
    precision: Precision,
    about: dict[str, Any],
    console: Console,
    also_measured_on: Mapping[str, S] = MappingProxyType({}),
    split: str = "validation",
    explained: bool = True,
    halved: bool = True,
) -> Path:
    """Write the next version of model `name` into the store.

    Args:
        source: the model to convert.
        task: its task.
        name: the name of the model folder.
        store: the model store.
        compare_on: at least 500 texts, or image files, for the comparison with PyTorch.
        labelled: labelled inputs to measure quality on; required unless the precision is float32.
        precision: the precision of the graph's products.
        about: data, licence and the like, for the manifest's provenance and the model card.
        console: shows progress.
        also_measured_on: further labelled inputs to measure, by their names for the model card.
        split: the split of the data set that `labelled` is.
        explained: add the graph that explains where it is offered; `python -m export explain-graph` adds it later.
        halved: add a float16 graph for GPUs if there are labelled inputs; `python -m export half-graphs` adds it later.

    Returns:
        the new folder.

    Raises:
        ConversionRefused: the outputs differ from PyTorch's, or the precision costs too much accuracy.
        ExplainRefused: the graph that explains differs from PyTorch, or explains another model.
        ValueError: too few inputs to compare on, none with labels to measure a loss, or int8 does not suit the network.
    """
    require_convertible(source, len(compare_on), labelled, precision)
    precision, judged_as = served_precision(source, precision)
    with folder_in_the_making(store) as folder:
        write_graph(source, folder / GRAPH, precision, console)
        comparison, quality = prove_equal(source, task, folder, compare_on, precision, console)
        if labelled is not None:
            quality |= measure_quality(source, task, folder / GRAPH, labelled, judged_as, split)
        for name_of_more, more in also_measured_on.items():
            quality[name_of_more] = quality_of(source, task, folder / GRAPH, more)
        manifest = describe(source, task, folder, name, precision, comparison, quality, about)
        if labelled is not None:
            manifest = with_batch_sensitivity(folder, manifest, task, labelled.inputs, console)
        if explained:
            explain(folder, manifest, task, source.module, console)
        if halved and labelled is not None:
            manifest = with_half_precision(folder, manifest, task, {split: labelled}, console)
        target = put_into_store(folder, manifest, task, store, partial(model_card, task=task))
    console.print(f"written: {target}")
    return target


def require_convertible(source: Source, num_compared: int, labelled: Split | None, precision: Precision) -> None:
    """Check the arguments of a conversion before anything is computed.

    Raises:
        ValueError: too few inputs to compare on, none with labels to measure a loss, or int8 does not suit the network.
    """
    if num_compared < MIN_COMPARED:
        raise ValueError(f"{num_compared} {source.kind} to compare on, at least {MIN_COMPARED} are needed")
    if precision != "float32" and labelled is None:
        raise ValueError(f"{precision} needs labelled {source.kind}, to measure what it costs in accuracy")
    if precision == "int8" and source.not_quantized_because:
        raise ValueError(f"int8 is not offered: {source.not_quantized_because}")


def given_graph_of(source: Source) -> Given | None:
    """Return the graph that is served as it was exported elsewhere; None where one is exported here."""
    return source.given if isinstance(source, TextSource) else None


def lacks_weights(source: Source) -> bool:
    """Return whether a given graph is all that is known of a model."""
    return isinstance(source, TextSource) and source.lacks_weights


def served_precision(source: Source, asked: Precision) -> tuple[Precision, Precision]:
    """Return the precision of the served graph, and the one whose loss is measured against PyTorch.

    Args:
        source: the model; its graph may be given, and quantized already.
        asked: the precision that was asked for; float32 leaves a given graph as it is.

    Raises:
        ValueError: the given graph has another precision, from which none can be made.
    """
    given = given_graph_of(source)
    if given is None or given.precision in {"float32", asked}:
        return asked, asked
    if asked != "float32":
        raise ValueError(f"the given graph is in {given.precision} already: {asked} cannot be made of it")
    return given.precision, asked if lacks_weights(source) else given.precision


def prove_equal(
    source: Source,
    task: OneGraphTask[S],
    folder: Path,
    compare_on: Sequence[Any],
    precision: Precision,
    console: Console,
) -> tuple[Comparison, dict[str, Any]]:
    """Compare the graph with PyTorch; in float32 also write TorchScript, and refuse where either one differs.

    Returns:
        the comparison of the ONNX graph, and all comparisons as the manifest's `quality` has them.

    Raises:
        ConversionRefused: the outputs in float32 differ from PyTorch's.
    """
    if lacks_weights(source):
        return prove_independent(source, task, folder, compare_on, precision, console)
    console.print(f"comparing with PyTorch on {len(compare_on)} {source.kind}")
    expected = source.outputs(source.module, compare_on)
    comparison = task.compare(onnx_outputs(source, folder / GRAPH, compare_on), expected)
    console.print(f"ONNX: {comparison}")
    compared = {"onnx": comparison.as_dict()}
    if precision == "float32":
        require_equal(comparison, "ONNX", source.output_unit)
        traced = write_torchscript(source, folder / TORCHSCRIPT, compare_on)
        of_torchscript = task.compare(traced, expected)
        require_equal(of_torchscript, "TorchScript", source.output_unit)
        compared["torchscript"] = of_torchscript.as_dict()
    return comparison, {"compared_with_pytorch": compared}


def prove_independent(
    source: Source,
    task: OneGraphTask[S],
    folder: Path,
    compare_on: Sequence[Any],
    precision: Precision,
    console: Console,
) -> tuple[Comparison, dict[str, Any]]:
    """Compare a given graph without PyTorch weights with itself: inputs in padded batches, and alone.

    Returns:
        the comparison, and the manifest's `quality`, which says that PyTorch was not asked.

    Raises:
        ConversionRefused: in float32, padding or other inputs change an answer.
    """
    console.print(f"no PyTorch weights: not compared; {len(compare_on)} {source.kind} in batches and alone")
    expected = source.outputs(source.module, compare_on)
    comparison = task.compare(onnx_outputs(source, folder / GRAPH, compare_on), expected)
    if precision == "float32":
        require_equal(comparison, "the given graph, in padded batches,", source.output_unit)
    console.print(f"in batches: {comparison}")
    return comparison, {"compared_with_pytorch": {}, NOT_COMPARED: WITHOUT_WEIGHTS}


def measure_quality(
    source: Source, task: OneGraphTask[S], path: Path, labelled: S, precision: Precision, split: str
) -> dict[str, Any]:
    """Measure the graph on labelled inputs, and in lossy precisions what the precision costs.

    Raises:
        ConversionRefused: the precision costs too much.
    """
    measured = quality_of(source, task, path, labelled)
    if precision == "float32":
        return {split: measured}
    expected = source.outputs(source.module, labelled.inputs)
    before = task.quality(expected, labelled, lambda: expected)
    return {split: measured} | task.check_loss(measured, before, precision)


def quality_of(source: Source, task: OneGraphTask[S], path: Path, split: S) -> dict[str, Any]:
    """Measure the graph on a split."""
    found = onnx_outputs(source, path, split.inputs)
    return task.quality(found, split, lambda: source.outputs(source.module, split.inputs))


# --- graphs ----------------------------------------------------------------------------------------------------------


def write_graph(source: Source, path: Path, precision: Precision, console: Console) -> None:
    """Export the ONNX graph, or write the given one, and bring its weights to the precision."""
    given = given_graph_of(source)
    if given is None:
        console.print("exporting to ONNX")
        export_onnx(source, path)
    else:
        given.write(path)
    if given is None or given.precision != precision:
        bring_to_precision(path, precision, source.quantized_operators, console)


def bring_to_precision(path: Path, precision: Precision, quantized: Sequence[str] | None, console: Console) -> None:
    """Quantize or halve an exported graph, in place, and replace its attention by the operator that is served.

    Args:
        path: the file of the graph.
        precision: the precision of its products.
        quantized: the operators that int8 quantizes; None for all that can be.
        console: shows progress.
    """
    if precision == "int8":
        console.print("quantizing to int8")
        quantize(path, quantized)
    elif precision == "float16":
        console.print("halving to float16")
        halve(path)
    else:
        halve_exact_weights(path)
    if precision != "float16":  # only GPUs get that graph
        use_standard_attention(path)


def export_onnx(source: Source, path: Path) -> None:
    """Export with the source's dynamic dimensions; transformers of text are then optimized as such."""
    export_graph(
        source.for_export(),
        source.example(),
        path,
        inputs=list(source.input_names),
        outputs=[source.output_name],
        dynamic_shapes=tuple(source.dynamic_axes() for _ in source.input_names),
    )
    if source.optimized_as is not None:
        optimize_transformer(path, source.optimized_as)


def write_torchscript(source: Source, path: Path, inputs: Sequence[Any]) -> list[NDArray[np.float32]]:
    """Write the model as TorchScript, and return its results."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of recorded shapes; the comparison below proves them dynamic
        torch.jit.save(
            torch.jit.trace(source.module, source.example(), check_trace=False, strict=False),
            path,
        )
        return source.outputs(torch.jit.load(path), inputs)


# --- the folder ------------------------------------------------------------------------------------------------------


def publish(
    source: Source,
    task: OneGraphTask[S],
    folder: Path,
    name: str,
    store: Path,
    precision: Precision,
    comparison: Comparison,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Path:
    """Complete a folder that has its served graph, and put it into the store without a graph that explains."""
    manifest = describe(source, task, folder, name, precision, comparison, quality, about)
    return put_into_store(folder, manifest, task, store, partial(model_card, task=task))


def describe(
    source: Source,
    task: OneGraphTask[S],
    folder: Path,
    name: str,
    precision: Precision,
    comparison: Comparison,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Manifest:
    """Write the source's files and golden examples beside the graph; return the manifest, still without checksums.

    Raises:
        ConversionRefused: a float32 graph answers a golden example differently.
    """
    for file_name, text in source.files().items():
        (folder / file_name).write_text(text)
    inputs = source.golden_inputs()
    expected = source.outputs(source.module, inputs)
    golden = [
        GoldenExample(*source.golden_example(given), {source.output_name: result.ravel().tolist()})
        for given, result in zip(inputs, expected, strict=True)
    ]
    write_golden(folder, golden)
    golden_comparison = task.compare(onnx_outputs(source, folder / GRAPH, inputs), expected)
    if precision == "float32":
        require_equal(golden_comparison, "ONNX, on the golden examples,", source.output_unit)
        tolerance = Tolerance(MAX_LOGIT_DIFFERENCE * source.output_unit)
    else:
        # Rounding depends on the other items of the batch and on the processor's instructions: allow twice the observed
        # difference. Only golden examples whose logits lie closer than that may change their label; the
        # quality on labelled inputs bounds the cost of the precision.
        seen = max(
            comparison.max_abs_logit_difference,
            golden_comparison.max_abs_logit_difference,
        )
        tolerance = Tolerance(twice(seen), labels_must_agree=False)
    return Manifest(
        format=FORMAT,
        name=name,
        task=task.name,
        precision=precision,
        inputs=[Tensor(tensor, *source.input_form) for tensor in source.input_names],
        outputs=[Tensor(source.output_name, "FP32", source.output_shape)],
        labels=source.labels,
        limits=source.limits,
        skips_padding=source.skips_padding,
        tolerance=tolerance,
        files={},
        provenance=about | source.provenance | {"converted_by": this_command(), "torch": str(torch.__version__)},
        quality=quality,
    )


def model_card(manifest: Manifest, version: int, task: OneGraphTask[S]) -> str:
    """Write the text of the folder's README.md; every figure comes from the manifest."""
    classes = f" Classes: {', '.join(manifest.labels)}." if manifest.labels else ""
    lines = [
        f"# {manifest.name}, version {version}",
        "",
        f"Task: {manifest.task}.{classes} Precision: {manifest.precision}. {_what_it_takes(manifest)}",
        "",
        *card_of_provenance(manifest),
        "## Measured",
        "",
        *task.quality_lines(manifest),
    ]
    for runtime, comparison in manifest.quality["compared_with_pytorch"].items():
        on = f"- {runtime} against PyTorch on {comparison['num_examples']} inputs:"
        if "min_cosine" in comparison:
            lines.append(
                f"{on} vectors of length 1 differ by at most {comparison['max_abs_logit_difference']:.2g} in an"
                f" element, lowest cosine {comparison['min_cosine']:.6f}"
            )
        else:
            lines.append(
                f"{on} logits differ by at most {comparison['max_abs_logit_difference']:.2g},"
                f" {comparison['labels_changed']} labels change"
            )
    if NOT_COMPARED in manifest.quality:
        lines.append(f"- not compared with PyTorch: {manifest.quality[NOT_COMPARED]}")
    return "\n".join(lines) + f"\n\n`{MANIFEST}` has all figures, and the checksum of every file.\n"


def _what_it_takes(manifest: Manifest) -> str:
    if manifest.limits.max_tokens is not None:
        return f"Longest input: {manifest.limits.max_tokens} tokens."
    height, width = manifest.inputs[0].shape[2:]
    return f"Takes JPEG, PNG and WebP files of any size, and computes on {height} x {width} pixels."
