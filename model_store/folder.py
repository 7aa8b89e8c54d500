"""Reads and writes model folders: `<store>/<name>/<version>/`.

    manifest.json     task, tensors, labels, limits, sha256 of every other file, provenance, measured quality
    model.onnx        the graph; for a translation model, the decoder step
    encoder.onnx      translation models: the encoder
    model.float16.onnx, encoder.float16.onnx    optional: the same in half precision, for GPUs; their weights are bytes
                      of the graphs above
    model.torchscript.pt     optional: the same graph for PyTorch's runtimes; the service does not read it
    tokenizer.json    how text becomes ids (Hugging Face `tokenizers`)
    target_tokenizer.json    translation models with a separate tokenizer for the target language
    preprocessor_config.json    how images become pixels (Hugging Face form)
    task.json         optional: settings of the task, such as thresholds of classes or prompts; each task has its own
    golden.json       raw inputs, the tensors they become, and the answers of the original PyTorch model
    explain.onnx      optional: attention weights and gradients; its weights are bytes of the graphs above
    golden.explain.json    rows for explain.onnx, and PyTorch's outputs for them
    README.md         the model card

A folder with `model.onnx` alone is a model too: tensors in, tensors out.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from model_store.private_files import MAX_READINGS, FolderCopy, FolderError, PrivateFile, PrivateGraph, graph_of

__all__ = ["FolderError"]  # defined in `private_files`, exported for callers of this module

FORMAT = 1  # version of the manifest's format; readers refuse other versions
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
GRAPH_FLOAT16, ENCODER_FLOAT16 = "model.float16.onnx", "encoder.float16.onnx"
MANIFEST, GOLDEN, GRAPH, ENCODER, EXPLAIN, EXPLAIN_GOLDEN, TORCHSCRIPT, TOKENIZER, TARGET_TOKENIZER = (
    "manifest.json",
    "golden.json",
    "model.onnx",
    "encoder.onnx",
    "explain.onnx",
    "golden.explain.json",
    "model.torchscript.pt",
    "tokenizer.json",
    "target_tokenizer.json",
)
PREPROCESSOR, TASK_SETTINGS, CARD = "preprocessor_config.json", "task.json", "README.md"
NOT_COMPARED = "not_compared_with_pytorch"  # in `quality` of a manifest: why nothing proves the graph
LABELS = "labels.txt"  # names of a bare graph's classes, one a line
# Files that are used only in a folder with a manifest; `export load` writes such folders.
NEEDS_MANIFEST = (
    "config.json",
    GOLDEN,
    TOKENIZER,
    TARGET_TOKENIZER,
    PREPROCESSOR,
    TASK_SETTINGS,
    "tokenizer_config.json",
    "generation_config.json",
    ENCODER,
    EXPLAIN,
)


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the graph, with a datatype of the Open Inference Protocol; -1 in `shape` stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one input; for images, models have none."""

    max_tokens: int | None = None


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest allowed difference between served and golden outputs."""

    max_abs_logit_difference: float
    labels_must_agree: bool = True


class HalfPrecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tolerance and quality of a folder's graphs in half precision."""

    tolerance: Tolerance
    quality: dict[str, Any]  # measured on these graphs, in the same run as on the other graphs


class BatchSensitivity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measured influence of the other items of an engine call on an answer: the largest changes found, not a bound.

    It is measured for graphs in which all rows of a call share one scale, as in dynamic int8 quantization. A change is
    the absolute difference between an item's score in a batch and its score alone.
    """

    score: str  # the compared score: "probability", or "translation score" (log probability divided by length)
    worst: float  # largest change beside random or chosen items
    worst_in_random_company: float
    mean: float  # mean change beside random items
    num_items: int  # inputs drawn for the random batches
    num_answers: int  # answers compared in random batches, over all batch sizes and searches
    answers_changed: int  # number of these with another label or other tokens
    batch_sizes: list[int]  # items of a call, including the measured one
    seed: int  # seed of the random draws

    def __str__(self) -> str:
        """Describe the influence in a phrase, for the model card and the model index."""
        return f"not independent, worst change {self.worst:.3f}"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The content of `manifest.json`."""

    format: int
    name: str
    task: str
    precision: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    labels: list[str]
    limits: Limits
    tolerance: Tolerance
    skips_padding: bool = False  # the graph computes real tokens only: rows of any length can share a call
    files: dict[str, str]  # sha256 by file name, for every file of the folder except the manifest
    provenance: dict[str, Any]  # data, licence, command, commit, hardware
    quality: dict[str, Any]  # measured on the exported graph, with n and spread
    batch_sensitivity: BatchSensitivity | None = None  # None: answers do not depend on the other items of a call
    float16: HalfPrecision | None = None  # about the graphs for GPUs; all other fields describe the other graphs


class GoldenExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One raw input, its tensors after preprocessing, and the original model's outputs.

    Encoded files are stored as base64, and large tensors as "sha256:" and the digest of their bytes. With "truncate":
    "true", the text is longer than the limit and is truncated.
    """

    inputs: dict[str, str]
    tensors: dict[str, list[int] | str]
    outputs: dict[str, list[float]]


class GoldenRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input row of `explain.onnx`, and PyTorch's outputs for it.

    The input is a golden example, by its index in `golden.json`. A classifier explains a class; a translation model
    explains the example's `greedy` translation with its end-of-sentence token. Outputs are flattened, without padding;
    attention weights [L, H, T, T] are reduced to each head's first query, [L, H, T].
    """

    example: int
    target: int | None
    alpha: float
    outputs: dict[str, list[float]]


class ExplainGolden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `golden.explain.json`: rows, the tolerance of each output, and measurements at conversion.

    An output may differ by its tolerance, multiplied by the largest golden number of the row if that is above 1.
    """

    tolerance: dict[str, float]
    measured: dict[str, float]
    rows: list[GoldenRow]


@dataclass(frozen=True)
class ModelFolder:
    """A model version as it was when its folder was read.

    Attributes:
        path: the folder on disk, whose content may have changed since.
        manifest: None for a bare ONNX graph.
        golden: the golden examples.
        files: private copies of all files in the manifest, or of the files that a bare graph needs.
    """

    name: str
    version: int
    path: Path
    manifest: Manifest | None
    golden: list[GoldenExample]
    files: Mapping[str, PrivateFile]
    card: str | None = None  # content of `README.md`
    graph_name: str = GRAPH  # precision of the served graphs
    encoder_name: str = ENCODER
    remark: str | None = None  # a warning for the model's owner; None if nothing is unusual

    @property
    def graph(self) -> PrivateGraph:
        """Return the served graph; for a translation model, the decoder step.

        Raises:
            FolderError: the graph reads weights from outside of the folder.
        """
        return self.open_graph(self.graph_name)

    @property
    def encoder(self) -> PrivateGraph:
        """Return the encoder of a translation model; raises the errors of `graph`."""
        return self.open_graph(self.encoder_name)

    def open_graph(self, name: str) -> PrivateGraph:
        """Return a graph of the folder, with the files that it reads weights from.

        Raises:
            FolderError: the graph is missing, or reads weights from outside of the folder.
        """
        return graph_of(name, self.file(name), self.file)

    def file(self, name: str) -> PrivateFile:
        """Return the private copy of a file.

        Raises:
            FolderError: the folder has no such file.
        """
        if name not in self.files:
            raise FolderError(f"{name} is missing" + ("" if self.manifest is None else " in manifest.json"))
        return self.files[name]

    def read_text(self, name: str) -> str:
        """Read a text file.

        Raises:
            FolderError: the folder has no such file, or it is not UTF-8.
        """
        try:
            return self.file(name).read_text()
        except UnicodeDecodeError as error:
            raise FolderError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error

    def labels(self) -> Sequence[str]:
        """Return the names of a bare graph's classes; empty if its folder has none.

        Raises:
            FolderError: the file of the names is empty, is not UTF-8, or has an empty line.
        """
        if LABELS not in self.files:
            return ()
        labels = tuple(line.strip() for line in self.read_text(LABELS).splitlines())
        if not labels:
            raise FolderError(f"{LABELS} is empty; it has the name of one class a line")
        if "" in labels:
            raise FolderError(f"{LABELS}: line {labels.index('') + 1} is empty; it has the name of one class a line")
        return labels

    def in_half_precision(self) -> "ModelFolder | None":
        """Return this folder with its float16 graphs and their tolerance; None if it has none."""
        if self.manifest is None or self.manifest.float16 is None:
            return None
        tolerance = self.manifest.float16.tolerance
        manifest = msgspec.structs.replace(self.manifest, precision="float16", tolerance=tolerance)
        return replace(self, manifest=manifest, graph_name=GRAPH_FLOAT16, encoder_name=ENCODER_FLOAT16)


@dataclass(frozen=True)
class FoundFolder:
    """A folder of the store that has not been read yet.

    Attributes:
        problem: why the folder cannot be a model, or None.
        store: the model store; links in the folder may lead to other places in it.
    """

    name: str
    version: str
    path: Path
    problem: str | None = None
    store: Path | None = None


def scan(store: Path) -> list[FoundFolder]:
    """List the model folders of the store, by name and version.

    Raises:
        FolderError: the store is not a folder, or cannot be read.
    """
    if not store.is_dir():
        why = "" if store.exists() else ": nothing is there"
        raise FolderError(f"the model store {store.absolute()} is not a folder{why}")
    try:
        models = sorted(path for path in store.iterdir() if path.is_dir() and path.name[0] not in "._")
    except OSError as error:
        raise FolderError(f"the model store {store.absolute()} cannot be read: {error.strerror}") from error
    found = []
    for model in models:
        try:
            versions = [path for path in model.iterdir() if path.is_dir() and re.fullmatch(r"[1-9][0-9]*", path.name)]
        except OSError as error:  # the other models are served
            found.append(FoundFolder(model.name, "", model, f"{model.absolute()} cannot be read: {error.strerror}"))
            continue
        if not NAME.fullmatch(model.name):
            found.append(
                FoundFolder(
                    model.name,
                    "",
                    model,
                    "a model's name may have letters, digits, '.', '_' and '-'",
                )
            )
        elif versions:
            found += [
                FoundFolder(model.name, path.name, path, store=store)
                for path in sorted(versions, key=lambda path: int(path.name))
            ]
        else:
            why = f"no version folder in it: put the files into {model.name}/1/"
            found.append(FoundFolder(model.name, "", model, why))
    return found


def read(found: FoundFolder) -> ModelFolder:
    """Copy and check one folder; the copies must match the manifest's checksums.

    Raises:
        FolderError: the folder is incomplete, damaged or of an unknown format, a link leaves the store, or the folder
        keeps changing while it is read.
    """
    if found.problem:
        raise FolderError(found.problem)
    changed = None
    for _ in range(MAX_READINGS):
        copied = FolderCopy(found.path, found.store)
        try:
            folder = _read(found, copied)
        except FolderError:
            if not (changed := copied.changed()):
                raise
        else:
            if not (changed := copied.changed()):
                return folder
    raise FolderError(f"{changed} changed while it was read, {MAX_READINGS} times; put new files into a new version")


def _read(found: FoundFolder, copied: FolderCopy) -> ModelFolder:
    path = found.path
    copied.copy(GRAPH)
    if not copied.has(MANIFEST):
        copied.graph(GRAPH)
        if copied.has(LABELS):
            copied.copy(LABELS)
        card = _card(copied)
        beside = [name for name in NEEDS_MANIFEST if copied.has(name)]
        remark = f"served as bare tensors: {', '.join(beside)} not used, for {MANIFEST} is missing" if beside else None
        return ModelFolder(found.name, int(found.version), path, None, [], copied.files, card, remark=remark)
    try:
        manifest = msgspec.json.decode(copied.copy(MANIFEST).read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise FolderError(f"{MANIFEST}: {error}") from error
    if manifest.format != FORMAT:
        raise FolderError(f"{MANIFEST}: format {manifest.format} is not {FORMAT}, the one this server reads")
    for name, expected in manifest.files.items():
        # A manifest is untrusted: it must not make the server read files outside of the folder.
        if Path(name).name != name or not (path / name).is_file():
            raise FolderError(f"{name!r} is in the manifest, but is not a file of the folder")
        if (actual := copied.copy(name).sha256()) != expected:
            raise FolderError(f"{name} is damaged: sha256 {actual[:12]}..., the manifest says {expected[:12]}...")
    if missing := {GRAPH, GOLDEN} - manifest.files.keys():
        raise FolderError(f"{MANIFEST}: no checksum for {', '.join(sorted(missing))}")
    halves = {GRAPH_FLOAT16} | ({ENCODER_FLOAT16} if ENCODER in manifest.files else set())
    if manifest.float16 is not None and (missing := halves - manifest.files.keys()):
        raise FolderError(f"{MANIFEST}: no checksum for {', '.join(sorted(missing))}, which float16 is said of")
    # A graph may name any file of the folder for its weights, so files without a checksum are refused. Hidden files,
    # which file managers leave behind, are allowed, because no exported graph names one.
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    visible = {name for name in present if not name.startswith(".")}
    if unlisted := visible - manifest.files.keys() - {MANIFEST}:
        raise FolderError(
            f"{MANIFEST}: no checksum for {', '.join(sorted(unlisted))}; only what it lists may lie in the folder"
        )
    try:
        golden = msgspec.json.decode(copied.copy(GOLDEN).read_bytes(), type=list[GoldenExample])
    except msgspec.DecodeError as error:
        raise FolderError(f"{GOLDEN}: {error}") from error
    if not golden:
        raise FolderError(f"{GOLDEN}: has no example")
    files = {name: copied.files[name] for name in manifest.files}
    why = manifest.quality.get(NOT_COMPARED)
    remark = None if why is None else f"not compared with PyTorch: {why}"
    return ModelFolder(found.name, int(found.version), path, manifest, golden, files, _card(copied), remark=remark)


def _card(copied: FolderCopy) -> str | None:
    # A card is for people, so one that is not entirely UTF-8 is still shown.
    return copied.copy(CARD).read_text(errors="replace") if copied.has(CARD) else None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the present checksums of all other files in the folder."""
    files = {file.name: sha256(file) for file in sorted(path.iterdir()) if file.is_file() and file.name != MANIFEST}
    document = msgspec.json.encode(msgspec.structs.replace(manifest, files=files))
    (path / MANIFEST).write_bytes(msgspec.json.format(document, indent=2) + b"\n")


def write_golden(path: Path, golden: list[GoldenExample]) -> None:
    """Write `golden.json`, one example per line."""
    lines = b",\n".join(msgspec.json.encode(example) for example in golden)
    (path / GOLDEN).write_bytes(b"[\n" + lines + b"\n]\n")


def read_explain_golden(path: Path) -> ExplainGolden:
    """Read the `golden.explain.json` of a model folder.

    Raises:
        FolderError: the file is missing or invalid.
    """
    try:
        return decode_explain_golden((path / EXPLAIN_GOLDEN).read_bytes())
    except OSError as error:
        raise FolderError(f"{EXPLAIN_GOLDEN}: {error}") from error


def decode_explain_golden(content: bytes) -> ExplainGolden:
    """Decode the content of a `golden.explain.json`.

    Raises:
        FolderError: the content is invalid.
    """
    try:
        return msgspec.json.decode(content, type=ExplainGolden)
    except msgspec.DecodeError as error:
        raise FolderError(f"{EXPLAIN_GOLDEN}: {error}") from error


def write_explain_golden(path: Path, golden: ExplainGolden) -> None:
    """Write `golden.explain.json`, one row per line."""
    head = msgspec.json.encode({"tolerance": golden.tolerance, "measured": golden.measured})[1:-1]
    rows = b",\n".join(msgspec.json.encode(row) for row in golden.rows)
    (path / EXPLAIN_GOLDEN).write_bytes(b"{" + head + b',"rows":[\n' + rows + b"\n]}\n")


def next_version(store: Path, name: str) -> int:
    """Return the number after the highest version of a model."""
    present = [int(found.version) for found in scan(store) if found.name == name and found.version]
    return max(present, default=0) + 1


def sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
