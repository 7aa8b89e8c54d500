"""Reads and writes model folders: `<store>/<name>/<version>/`.

    manifest.json     task, tensors, labels, limits, sha256 of every other file, provenance, measured quality
    model.onnx        the graph; of a translation model the decoder step
    encoder.onnx      of a translation model: the encoder
    model.float16.onnx, encoder.float16.onnx    of many: the same in half precision, for GPUs; their weights are bytes
                      of the graphs above
    model.torchscript.pt     of many: the same graph for PyTorch's runtimes; the service does not read it
    tokenizer.json    how text becomes ids (Hugging Face `tokenizers`)
    target_tokenizer.json    of a translation model that writes in other pieces than it reads
    preprocessor_config.json    how images become pixels (Hugging Face form)
    golden.json       raw inputs, the tensors they become, and what the original PyTorch model answers
    explain.onnx      of many: attention weights and gradients; its weights are bytes of the graphs above
    golden.explain.json    rows for it, and what PyTorch makes of them
    README.md         the model card

A folder with `model.onnx` alone is a model too: tensors in, tensors out.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from model_store.private_files import MAX_READINGS, FolderCopy, FolderError, PrivateFile, PrivateGraph, graph_of

__all__ = ["FolderError"]  # of `private_files`, for all who read folders

FORMAT = 1  # of the manifest; a reader refuses what it does not know
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
PREPROCESSOR, CARD = "preprocessor_config.json", "README.md"
# Files that only a folder with a manifest makes use of; `export load` writes such folders.
NEEDS_MANIFEST = (
    "config.json",
    GOLDEN,
    TOKENIZER,
    TARGET_TOKENIZER,
    PREPROCESSOR,
    "tokenizer_config.json",
    "generation_config.json",
    ENCODER,
    EXPLAIN,
)


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the graph. `datatype` is a name of the Open Inference Protocol; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: list[int]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one input may be; images have no limit of the model's own."""

    max_tokens: int | None = None


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the served outputs may lie from the golden ones."""

    max_abs_logit_difference: float
    labels_must_agree: bool = True


class HalfPrecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the graphs in half precision of a folder are worth."""

    tolerance: Tolerance
    quality: dict[str, Any]  # measured on these graphs, beside the others


class BatchSensitivity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far an answer moves with the other items of its engine call: largest changes found, not a bound.

    Measured where a graph gives all rows of a call one scale, as dynamic int8 quantization does. A change is the
    absolute difference of a score to that of the item computed alone.
    """

    score: str  # what was compared: "probability", or "translation score" (log probability by length)
    worst: float  # largest change in random or chosen company
    worst_in_random_company: float
    mean: float  # mean change in random company
    num_items: int  # inputs drawn for random company
    num_answers: int  # answers compared in random company, over all batch sizes and searches
    answers_changed: int  # of these: another label, or other tokens
    batch_sizes: list[int]  # items of a call, the measured one included
    seed: int  # of what was drawn

    def __str__(self) -> str:
        """A phrase for people: card, index of models."""
        return f"not independent, worst change {self.worst:.3f}"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """`manifest.json`."""

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
    files: dict[str, str]  # file name to sha256, for every file of the folder but the manifest
    provenance: dict[str, Any]  # data, licence, command, commit, hardware
    quality: dict[str, Any]  # measured on the exported graph, with n and spread
    batch_sensitivity: BatchSensitivity | None = None  # None: answers do not depend on their company
    float16: HalfPrecision | None = None  # of the graphs for GPUs; all else is said of the others


class GoldenExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One raw input, the tensors that preprocessing makes of it, and the original model's outputs.

    An encoded file stands as base64, a tensor too large to be written as "sha256:" and the digest of its bytes. A text
    beside "truncate": "true" is too long, and is cut.
    """

    inputs: dict[str, str]
    tensors: dict[str, list[int] | str]
    outputs: dict[str, list[float]]


class GoldenRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row that `explain.onnx` is given, and what PyTorch makes of it.

    The input is that of a golden example, by its number in `golden.json`. A classifier explains a class, a translation
    model the example's `greedy` translation and the end of the sentence. Outputs are flattened, without padding; of
    attention weights [L, H, T, T] each head's first query alone, [L, H, T].
    """

    example: int
    target: int | None
    alpha: float
    outputs: dict[str, list[float]]


class ExplainGolden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`golden.explain.json`: rows, how far each output may lie off, and what was measured when the graph was made.

    An output may differ by its tolerance, times the largest golden number of the row where that is more than 1.
    """

    tolerance: dict[str, float]
    measured: dict[str, float]
    rows: list[GoldenRow]


@dataclass(frozen=True)
class ModelFolder:
    """One version of one model, as it was when it was read.

    Attributes:
        path: where it lies on disk; what lies there now may be something else.
        manifest: None for a bare ONNX graph.
        golden: the golden examples.
        files: private copies: of all files of the manifest, or of those that a bare graph needs.
    """

    name: str
    version: int
    path: Path
    manifest: Manifest | None
    golden: list[GoldenExample]
    files: Mapping[str, PrivateFile]
    card: str | None = None  # the text of `README.md`
    graph_name: str = GRAPH  # of the graphs that are served
    encoder_name: str = ENCODER
    remark: str | None = None  # what its owner should know; None where nothing is unusual

    @property
    def graph(self) -> PrivateGraph:
        """The graph that is served; of a translation model the decoder step.

        Raises:
            FolderError: it reads weights from a file that is not of the folder.
        """
        return self.open_graph(self.graph_name)

    @property
    def encoder(self) -> PrivateGraph:
        """The encoder of a translation model; raises as `graph`."""
        return self.open_graph(self.encoder_name)

    def open_graph(self, name: str) -> PrivateGraph:
        """A graph of the folder, with the files that it reads weights from.

        Raises:
            FolderError: it is missing, or reads weights from a file that is not of the folder.
        """
        return graph_of(name, self.file(name), self.file)

    def file(self, name: str) -> PrivateFile:
        """The private copy of a file.

        Raises:
            FolderError: the folder has no such file.
        """
        if name not in self.files:
            raise FolderError(f"{name} is missing" + ("" if self.manifest is None else " in manifest.json"))
        return self.files[name]

    def read_text(self, name: str) -> str:
        """The text of a file.

        Raises:
            FolderError: the folder has no such file, or it is not UTF-8.
        """
        try:
            return self.file(name).read_text()
        except UnicodeDecodeError as error:
            raise FolderError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error

    def in_half_precision(self) -> "ModelFolder | None":
        """Return this folder with its float16 graphs and their tolerance; None if it has none."""
        if self.manifest is None or self.manifest.float16 is None:
            return None
        tolerance = self.manifest.float16.tolerance
        manifest = msgspec.structs.replace(self.manifest, precision="float16", tolerance=tolerance)
        return replace(self, manifest=manifest, graph_name=GRAPH_FLOAT16, encoder_name=ENCODER_FLOAT16)


@dataclass(frozen=True)
class FoundFolder:
    """A folder of the store, not read yet.

    Attributes:
        problem: why it cannot be a model, or None.
        store: where links of the folder may lead to, besides the folder itself.
    """

    name: str
    version: str
    path: Path
    problem: str | None = None
    store: Path | None = None


def scan(store: Path) -> list[FoundFolder]:
    """What lies in the store, by name and version.

    Raises:
        FolderError: the store is not a folder.
    """
    if not store.is_dir():
        raise FolderError(f"the model store {store} is not a folder")
    found = []
    for model in sorted(path for path in store.iterdir() if path.is_dir() and path.name[0] not in "._"):
        versions = [path for path in model.iterdir() if path.is_dir() and re.fullmatch(r"[1-9][0-9]*", path.name)]
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
    """Copy and check one folder; a manifest's checksums must hold of the copies.

    Raises:
        FolderError: the folder is incomplete, damaged, or of an unknown format; a link leaves the store; or somebody
            writes to it all the time.
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
        # A manifest is data from elsewhere: it must not make the server read outside the folder.
        if Path(name).name != name or not (path / name).is_file():
            raise FolderError(f"{name!r} is in the manifest, but is not a file of the folder")
        if (actual := copied.copy(name).sha256()) != expected:
            raise FolderError(f"{name} is damaged: sha256 {actual[:12]}..., the manifest says {expected[:12]}...")
    if missing := {GRAPH, GOLDEN} - manifest.files.keys():
        raise FolderError(f"{MANIFEST}: no checksum for {', '.join(sorted(missing))}")
    halves = {GRAPH_FLOAT16} | ({ENCODER_FLOAT16} if ENCODER in manifest.files else set())
    if manifest.float16 is not None and (missing := halves - manifest.files.keys()):
        raise FolderError(f"{MANIFEST}: no checksum for {', '.join(sorted(missing))}, which float16 is said of")
    # Any file may be read, for a graph names those that hold its weights: what has no checksum must not be there. But
    # hidden files, which file managers leave behind, no graph of ours names.
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
    return ModelFolder(found.name, int(found.version), path, manifest, golden, files, _card(copied))


def _card(copied: FolderCopy) -> str | None:
    # A card is for people: one that is not quite UTF-8 is still worth reading.
    return copied.copy(CARD).read_text(errors="replace") if copied.has(CARD) else None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the checksums of all other files in the folder, as they are now."""
    files = {file.name: sha256(file) for file in sorted(path.iterdir()) if file.is_file() and file.name != MANIFEST}
    document = msgspec.json.encode(msgspec.structs.replace(manifest, files=files))
    (path / MANIFEST).write_bytes(msgspec.json.format(document, indent=2) + b"\n")


def write_golden(path: Path, golden: list[GoldenExample]) -> None:
    """Write `golden.json`, an example a line."""
    lines = b",\n".join(msgspec.json.encode(example) for example in golden)
    (path / GOLDEN).write_bytes(b"[\n" + lines + b"\n]\n")


def read_explain_golden(path: Path) -> ExplainGolden:
    """Read the `golden.explain.json` of a version's folder.

    Raises:
        FolderError: it is missing or not understood.
    """
    try:
        return decode_explain_golden((path / EXPLAIN_GOLDEN).read_bytes())
    except OSError as error:
        raise FolderError(f"{EXPLAIN_GOLDEN}: {error}") from error


def decode_explain_golden(content: bytes) -> ExplainGolden:
    """Decode a `golden.explain.json`.

    Raises:
        FolderError: it is not understood.
    """
    try:
        return msgspec.json.decode(content, type=ExplainGolden)
    except msgspec.DecodeError as error:
        raise FolderError(f"{EXPLAIN_GOLDEN}: {error}") from error


def write_explain_golden(path: Path, golden: ExplainGolden) -> None:
    """Write `golden.explain.json`, a row a line."""
    head = msgspec.json.encode({"tolerance": golden.tolerance, "measured": golden.measured})[1:-1]
    rows = b",\n".join(msgspec.json.encode(row) for row in golden.rows)
    (path / EXPLAIN_GOLDEN).write_bytes(b"{" + head + b',"rows":[\n' + rows + b"\n]}\n")


def next_version(store: Path, name: str) -> int:
    """One more than the highest version that is there."""
    present = [int(found.version) for found in scan(store) if found.name == name and found.version]
    return max(present, default=0) + 1


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
