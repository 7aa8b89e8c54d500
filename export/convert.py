"""Turns a trained text classifier into a model folder, and refuses where the result is not the same model.

    PyTorch ──> torch.export ──> ONNX ──> ONNX Runtime's transformer optimizer ──> (int8) ──> compared ──> folder
           └──> TorchScript ──────────────────────────────────────────────────────────────> compared ──┘

The folder appears in the store only when every comparison has passed.
"""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions
from rich.console import Console

from export.data import LabelledTexts
from export.evaluate import classification_quality
from export.golden_texts import GOLDEN_TEXTS
from export.provenance import this_command
from export.source import TextClassifierSource
from model_store.folder import (
    CARD,
    FORMAT,
    GRAPH,
    MANIFEST,
    TOKENIZER,
    GoldenExample,
    Limits,
    Manifest,
    Tensor,
    Tolerance,
    next_version,
    write_golden,
    write_manifest,
)

Precision = Literal["float32", "int8"]

TORCHSCRIPT = "model.torchscript.pt"
MIN_COMPARED_TEXTS = 500
MAX_LOGIT_DIFFERENCE = 1e-4  # float32: ONNX and TorchScript against PyTorch
MAX_ACCURACY_LOSS = 0.005  # int8: half a percentage point
OPSET = 20
# Weights smaller than this are not worth a node of their own.
MIN_HALVED_ELEMENTS = 1024


class ConversionRefused(Exception):
    """The converted model is not the model that was trained; nothing was written."""


@dataclass(frozen=True)
class Comparison:
    """Converted outputs against PyTorch's on the same texts."""

    num_texts: int
    max_abs_logit_difference: float
    labels_changed: int


def convert(
    source: TextClassifierSource,
    *,
    name: str,
    store: Path,
    compare_on: Sequence[str],
    labelled: LabelledTexts | None,
    precision: Precision,
    about: dict[str, Any],
    console: Console,
    also_measured_on: Mapping[str, LabelledTexts] = MappingProxyType({}),
) -> Path:
    """Write the next version of model `name` into the store.

    Args:
        source: the model.
        name: of the model folder.
        store: the model store.
        compare_on: at least 500 texts for the comparison with PyTorch.
        labelled: labelled texts to measure quality on; needed for int8.
        precision: of the graph's products.
        about: goes into the manifest's provenance and the model card: data, licence, ...
        console: for progress.
        also_measured_on: further labelled texts, by a name for the model card.

    Returns:
        the new folder.

    Raises:
        ConversionRefused: the outputs differ from PyTorch's, or int8 costs too much accuracy.
        ValueError: too few texts to compare on, or none with labels for int8.
    """
    if len(compare_on) < MIN_COMPARED_TEXTS:
        raise ValueError(f"{len(compare_on)} texts to compare on, at least {MIN_COMPARED_TEXTS} are needed")
    if precision == "int8" and labelled is None:
        raise ValueError("int8 needs labelled texts, to measure what it costs in accuracy")
    with tempfile.TemporaryDirectory(dir=_made(store), prefix=".converting-") as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        console.print("exporting to ONNX")
        export_onnx(source, folder / GRAPH)
        if precision == "int8":
            console.print("quantizing to int8")
            quantize(folder / GRAPH)
        else:
            halve_exact_weights(folder / GRAPH)
        console.print(f"comparing with PyTorch on {len(compare_on)} texts")
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
            quality |= measure_quality(source, folder / GRAPH, labelled, precision)
        for split, texts in also_measured_on.items():
            logits_BC = onnx_logits(source, folder / GRAPH, texts.texts)
            quality[split] = classification_quality(logits_BC, np.array(texts.labels)).as_dict()
        target = publish(source, folder, name, store, precision, onnx_comparison, quality, about)
    console.print(f"written: {target}")
    return target


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- graphs ----------------------------------------------------------------------------------------------------------


def export_onnx(source: TextClassifierSource, path: Path) -> None:
    """Through torch.export, batch and sequence dynamic; then optimized for transformers by ONNX Runtime's own tool."""
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in source.input_names)
    axes = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("tokens", min=1, max=source.max_tokens),
    }
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnxruntime"):
        warnings.simplefilter("ignore")  # about the exporter's own internals
        program = torch.onnx.export(
            source.for_export().eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(source.input_names),
            output_names=["logits"],
            dynamic_shapes=tuple(axes for _ in source.input_names),
            verbose=False,
        )
        assert program is not None
        program.save(path)
        options = FusionOptions("bert")
        # On a CPU SkipLayerNormalization is slower than the sum and the LayerNormalization that it replaces (measured:
        # docs/benchmarks.md).
        options.enable_skip_layer_norm = False
        optimized = optimizer.optimize_model(
            str(path),
            model_type="bert",
            num_heads=source.num_heads,
            hidden_size=source.hidden_size,
            opt_level=0,
            optimization_options=options,
        )
        optimized.save_model_to_file(str(path))


def quantize(path: Path) -> None:
    """Weights to int8 per channel, activations to int8 at run time (dynamic quantization), in place."""
    with _quiet(None):
        quantize_dynamic(path, path, weight_type=QuantType.QInt8, per_channel=True)


def halve_exact_weights(path: Path) -> None:
    """Store weights in half precision where that loses nothing, in place.

    Training keeps weights that are half-precision numbers (see `train.py`); a Cast node, which ONNX Runtime folds away
    when it loads the graph, makes them float32 again, bit for bit.
    """
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        full = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if full.size < MIN_HALVED_ELEMENTS or not np.array_equal(half.astype(np.float32), full):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(
            helper.make_node(
                "Cast",
                [f"{name}.half"],
                [name],
                name=f"{name}.cast",
                to=TensorProto.FLOAT,
            )
        )
    for node in reversed(casts):
        graph.node.insert(0, node)
    onnx.save(model, path)


def write_torchscript(
    source: TextClassifierSource,
    path: Path,
    texts: Sequence[str],
    reference_BC: NDArray[np.float32],
) -> Comparison:
    """The compatibility format; compared like the ONNX graph.

    Raises:
        ConversionRefused: it answers differently.
    """
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in source.input_names)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of shapes it records; that they stay dynamic is compared below
        torch.jit.save(
            torch.jit.trace(source.module, example, check_trace=False, strict=False),
            path,
        )
        comparison = compare(source.logits(torch.jit.load(path), texts), reference_BC)
    require_equal(comparison, "TorchScript")
    return comparison


class _quiet:  # noqa: N801, used as a statement
    """Silence loggers for a while: the exporters report every internal step."""

    def __init__(self, *names: str | None) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)


# --- comparisons -----------------------------------------------------------------------------------------------------


def onnx_logits(
    source: TextClassifierSource, path: Path, texts: Sequence[str], batch_size: int = 32
) -> NDArray[np.float32]:
    """What the graph answers in batches of the given order, padded; [B, C]."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    task = source.task()
    items = [task.preprocess(text, truncate=True, field="text") for text in texts]
    batches = [items[first : first + batch_size] for first in range(0, len(items), batch_size)]
    return np.concatenate([session.run(["logits"], task.collate(batch))[0] for batch in batches])


def compare(logits_BC: NDArray[np.float32], reference_BC: NDArray[np.float32]) -> Comparison:
    """Converted logits against PyTorch's."""
    return Comparison(
        num_texts=len(logits_BC),
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
            f" {MAX_LOGIT_DIFFERENCE:g}), {comparison.labels_changed} of {comparison.num_texts} labels change"
        )


def measure_quality(
    source: TextClassifierSource,
    path: Path,
    labelled: LabelledTexts,
    precision: Precision,
) -> dict[str, Any]:
    """Quality of the graph on labelled texts; for int8 beside PyTorch's, and refused where it falls too far.

    Raises:
        ConversionRefused: int8 loses more than half a point of accuracy.
    """
    labels_B = np.array(labelled.labels)
    measured = classification_quality(onnx_logits(source, path, labelled.texts), labels_B)
    quality: dict[str, Any] = {"validation": measured.as_dict()}
    if precision == "int8":
        before = classification_quality(source.logits(source.module, labelled.texts), labels_B)
        loss = before.accuracy - measured.accuracy
        quality |= {
            "accuracy_before_quantization": before.accuracy,
            "accuracy_loss": loss,
        }
        if loss > MAX_ACCURACY_LOSS:
            raise ConversionRefused(
                f"int8 loses {100 * loss:.2f} points of accuracy ({100 * before.accuracy:.2f} % to"
                f" {100 * measured.accuracy:.2f} %), allowed are {100 * MAX_ACCURACY_LOSS:.1f}"
            )
    return quality


# --- the folder ------------------------------------------------------------------------------------------------------


def publish(
    source: TextClassifierSource,
    folder: Path,
    name: str,
    store: Path,
    precision: Precision,
    comparison: Comparison,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Path:
    """Complete a folder that has its graph, and put it into the store as the model's next version."""
    manifest = describe(source, folder, name, precision, comparison, quality, about)
    version = next_version(store, name)
    (folder / CARD).write_text(model_card(manifest, version))
    write_manifest(folder, manifest)
    target = store / name / str(version)
    target.parent.mkdir(exist_ok=True)
    shutil.copytree(folder, target)
    return target


def describe(
    source: TextClassifierSource,
    folder: Path,
    name: str,
    precision: Precision,
    comparison: Comparison,
    quality: dict[str, Any],
    about: dict[str, Any],
) -> Manifest:
    """Write tokenizer, configuration and golden examples beside the graph; the manifest, without checksums yet.

    Raises:
        ConversionRefused: an int8 graph gives a golden example another label.
    """
    (folder / TOKENIZER).write_text(source.tokenizer_json)
    config = {
        "model_type": source.model_type,
        "pad_token_id": source.pad_id,
        "max_position_embeddings": source.max_tokens,
        "id2label": dict(enumerate(source.labels)),
        "label2id": {label: number for number, label in enumerate(source.labels)},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    task = source.task()
    ids = {text: task.preprocess(text, truncate=True, field="text") for text in GOLDEN_TEXTS}
    texts = [text for text in GOLDEN_TEXTS if not ids[text].truncated]
    golden_BC = source.logits(source.module, texts)
    golden = [
        GoldenExample({"text": text}, {"input_ids": ids[text].ids}, {"logits": logits_C.tolist()})
        for text, logits_C in zip(texts, golden_BC, strict=True)
    ]
    write_golden(folder, golden)
    golden_comparison = compare(onnx_logits(source, folder / GRAPH, texts), golden_BC)
    if precision == "float32":
        tolerance = Tolerance(MAX_LOGIT_DIFFERENCE)
    else:
        # Rounding depends on the company in the batch and on the CPU's int8 instructions; twice what was seen here.
        seen = max(
            comparison.max_abs_logit_difference,
            golden_comparison.max_abs_logit_difference,
        )
        tolerance = Tolerance(round(2 * seen, 3), labels_must_agree=golden_comparison.labels_changed == 0)
    return Manifest(
        format=FORMAT,
        name=name,
        task="text-classification",
        precision=precision,
        inputs=[Tensor(tensor, "INT64", [-1, -1]) for tensor in source.input_names],
        outputs=[Tensor("logits", "FP32", [-1, len(source.labels)])],
        labels=source.labels,
        limits=Limits(max_tokens=source.max_tokens),
        skips_padding=source.skips_padding,
        tolerance=tolerance,
        files={},
        provenance=about | source.provenance | {"converted_by": this_command(), "torch": str(torch.__version__)},
        quality=quality,
    )


def model_card(manifest: Manifest, version: int) -> str:
    """The folder's README.md; every figure comes from the manifest."""
    lines = [
        f"# {manifest.name}, version {version}",
        "",
        f"Task: {manifest.task}. Classes: {', '.join(manifest.labels)}. Precision: {manifest.precision}."
        f" Longest input: {manifest.limits.max_tokens} tokens.",
        "",
        "## Where it comes from",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in manifest.provenance.items()),
        "",
        "## Measured",
        "",
    ]
    for split, measured in manifest.quality.items():
        if isinstance(measured, dict) and "confusion_matrix" in measured:
            lines += [
                f"On {'the validation split' if split == 'validation' else split}, n = {measured['num_examples']},"
                " with the graph of this folder:",
                "",
                f"- accuracy {100 * measured['accuracy']:.2f} % (standard error"
                f" {100 * measured['accuracy_standard_error']:.2f})",
                f"- F1, mean over the classes: {measured['f1_macro']:.4f}",
                f"- expected calibration error: {measured['expected_calibration_error']:.4f}",
                f"- confusion matrix (rows: true class): {measured['confusion_matrix']}",
                "",
            ]
    lines += ["Against the model before its conversion:", ""]
    if "accuracy_loss" in manifest.quality:
        lines.append(f"- accuracy lost by quantization: {100 * manifest.quality['accuracy_loss']:.2f} points")
    for runtime, comparison in manifest.quality["compared_with_pytorch"].items():
        lines.append(
            f"- {runtime} against PyTorch on {comparison['num_texts']} texts: logits differ by at most"
            f" {comparison['max_abs_logit_difference']:.2g}, {comparison['labels_changed']} labels change"
        )
    return "\n".join(lines) + f"\n\n`{MANIFEST}` has the same in full, and the checksum of every file.\n"
