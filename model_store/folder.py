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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

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


class FolderError(Exception):
    """A model folder that must not be served; the message says why."""


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
    float16: HalfPrecision | None = None  # of the graphs for GPUs; all else is said of the others


class GoldenExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One raw input, the tensors that preprocessing makes of it, and the original model's outputs.

    An encoded file stands as base64, a tensor too large to be written as "sha256:" and the digest of its bytes.
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
    """One version of one model on disk. `manifest` is None for a bare ONNX graph."""

    name: str
    version: int
    path: Path
    manifest: Manifest | None
    golden: list[GoldenExample]
    card: str | None = None  # the text of `README.md`
    graph_name: str = GRAPH  # of the graphs that are served
    encoder_name: str = ENCODER

    @property
    def graph(self) -> Path:
        """The graph that is served; of a translation model the decoder step."""
        return self.path / self.graph_name

    @property
    def encoder(self) -> Path:
        """Of a translation model."""
        return self.path / self.encoder_name

    def in_half_precision(self) -> "ModelFolder | None":
        """The same with the graphs that a GPU gets, and how far their answers may lie off; None where it has none."""
        if self.manifest is None or self.manifest.float16 is None:
            return None
        tolerance = self.manifest.float16.tolerance
        manifest = msgspec.structs.replace(self.manifest, precision="float16", tolerance=tolerance)
        return replace(self, manifest=manifest, graph_name=GRAPH_FLOAT16, encoder_name=ENCODER_FLOAT16)


@dataclass(frozen=True)
class FoundFolder:
    """A folder of the store, not read yet; `problem` says why it cannot be a model."""

    name: str
    version: str
    path: Path
    problem: str | None = None


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
                FoundFolder(model.name, path.name, path) for path in sorted(versions, key=lambda path: int(path.name))
            ]
        else:
            why = f"no version folder in it: put the files into {model.name}/1/"
            found.append(FoundFolder(model.name, "", model, why))
    return found


def read(found: FoundFolder) -> ModelFolder:
    """Read and check one folder; a manifest's checksums must hold.

    Raises:
        FolderError: the folder is incomplete, damaged, or of an unknown format.
    """
    if found.problem:
        raise FolderError(found.problem)
    path = found.path
    if not (path / GRAPH).is_file():
        raise FolderError(f"{GRAPH} is missing")
    if not (path / MANIFEST).is_file():
        return ModelFolder(found.name, int(found.version), path, None, [], _card(path))
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise FolderError(f"{MANIFEST}: {error}") from error
    if manifest.format != FORMAT:
        raise FolderError(f"{MANIFEST}: format {manifest.format} is not {FORMAT}, the one this server reads")
    for name, expected in manifest.files.items():
        # A manifest is data from elsewhere: it must not make the server read outside the folder.
        if Path(name).name != name or not (path / name).is_file():
            raise FolderError(f"{name!r} is in the manifest, but is not a file of the folder")
        if (actual := sha256(path / name)) != expected:
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
        golden = msgspec.json.decode((path / GOLDEN).read_bytes(), type=list[GoldenExample])
    except msgspec.DecodeError as error:
        raise FolderError(f"{GOLDEN}: {error}") from error
    if not golden:
        raise FolderError(f"{GOLDEN}: has no example")
    return ModelFolder(found.name, int(found.version), path, manifest, golden, _card(path))


def _card(path: Path) -> str | None:
    # A card is for people: one that is not quite UTF-8 is still worth reading.
    return (path / CARD).read_text(encoding="utf-8", errors="replace") if (path / CARD).is_file() else None


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
        return msgspec.json.decode((path / EXPLAIN_GOLDEN).read_bytes(), type=ExplainGolden)
    except (OSError, msgspec.DecodeError) as error:
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
