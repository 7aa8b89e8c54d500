"""Model folders are read and checked, and refused with a reason."""

import json
import shutil
from pathlib import Path

import pytest

from model_store.folder import (
    ExplainGolden,
    FolderError,
    FoundFolder,
    GoldenRow,
    next_version,
    read,
    read_explain_golden,
    scan,
    write_explain_golden,
)
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the committed model."""
    return Path(shutil.copytree(ROOT / "model_store/sentiment-small/1", tmp_path / "sentiment-small/1"))


def found(path: Path) -> FoundFolder:
    """Name the folder as `scan` does."""
    return FoundFolder(path.parent.name, path.name, path)


def change_manifest(folder: Path, **changes: object) -> None:
    """Change values of the manifest."""
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | changes))


def test_a_folder_without_its_manifest_is_served_bare_with_a_remark(folder: Path) -> None:
    """The remark names the unused tokenizer and golden examples; a folder with only a graph has no remark."""
    (folder / "manifest.json").unlink()
    remark = read(found(folder)).remark or ""
    assert remark.startswith("served as bare tensors: config.json, golden.json, tokenizer.json")
    assert remark.endswith("not used, for manifest.json is missing")
    for path in folder.iterdir():
        if path.name != "model.onnx":
            path.unlink()
    assert read(found(folder)).remark is None


def test_the_committed_model_is_complete(folder: Path) -> None:
    """Checksums match, and there are golden examples."""
    model = read(found(folder))
    assert model.manifest is not None
    assert (model.name, model.version, model.manifest.task) == ("sentiment-small", 1, "text-classification")
    assert len(model.golden) >= 8
    assert model.manifest.quality["validation"]["accuracy"] >= 0.81
    assert model.manifest.quality["compared_with_pytorch"]["onnx"]["max_abs_logit_difference"] <= 1e-4


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "model.float16.onnx", "tokenizer.json", "golden.json", "config.json", "README.md", "explain.onnx"],
)
def test_a_changed_byte_in_any_file_is_refused(folder: Path, name: str) -> None:
    """This includes files that no answer depends on."""
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(FolderError, match=f"{name} is damaged"):
        read(found(folder))


@pytest.mark.parametrize("name", ["generation_config.json", "model.onnx.data", "weights/1.bin"])
def test_a_file_without_a_checksum_is_refused(folder: Path, name: str) -> None:
    """Any file might be read; only leftovers of file managers are ignored."""
    (folder / ".DS_Store").touch()
    read(found(folder))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(FolderError, match=f"manifest.json: no checksum for {name}; only what it lists"):
        read(found(folder))


def test_file_names_with_a_path_are_refused(folder: Path) -> None:
    """A manifest cannot name files outside of its folder."""
    change_manifest(folder, files={"../../secret": "0" * 64})
    with pytest.raises(FolderError, match="not a file of the folder"):
        read(found(folder))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": 2}, "format 2 is not 1"),
        ({"labels": "POSITIVE"}, r"Expected `array`, got `str` - at `\$.labels`"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"files": {}}, "no checksum for golden.json, model.onnx"),
        ({"float16": {"tolerance": {}, "quality": {}}}, "missing required field `max_abs_logit_difference`"),
    ],
)
def test_an_invalid_manifest_is_refused(folder: Path, changes: dict[str, object], expected: str) -> None:
    """No part of it is used."""
    change_manifest(folder, **changes)
    with pytest.raises(FolderError, match=expected):
        read(found(folder))


@pytest.mark.parametrize(("name", "graph"), [("sentiment-small", "model"), ("translation-en-de", "encoder")])
def test_half_precision_graphs_of_the_manifest_must_exist(name: str, graph: str, tmp_path: Path) -> None:
    """They need a checksum; a folder without any is served on a GPU in float32."""
    folder = Path(shutil.copytree(ROOT / "model_store" / name / "1", tmp_path / name / "1"))
    halved = read(found(folder)).in_half_precision()
    assert halved is not None
    assert (halved.graph_name, halved.encoder_name) == ("model.float16.onnx", "encoder.float16.onnx")
    assert halved.manifest is not None
    assert halved.manifest.precision == "float16"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    for file in folder.glob("*.float16.onnx"):
        if file.name == f"{graph}.float16.onnx":
            file.unlink()
            del files[file.name]
    change_manifest(folder, files=files)
    with pytest.raises(FolderError, match=f"no checksum for {graph}.float16.onnx, which float16 is said of"):
        read(found(folder))
    change_manifest(folder, float16=None)
    assert read(found(folder)).in_half_precision() is None


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "No such file"), ("[]", "Expected `object`"), ('{"rows":[]}', "required field")]
)
def test_invalid_golden_rows_are_refused(tmp_path: Path, content: str | None, expected: str) -> None:
    """Valid rows are the same after writing and reading."""
    if content is not None:
        (tmp_path / "golden.explain.json").write_text(content)
    with pytest.raises(FolderError, match=f"golden.explain.json: .*{expected}"):
        read_explain_golden(tmp_path)
    row = GoldenRow(0, None, 0.5, {"attribution": [1.0, -2.5]})
    golden = ExplainGolden({"attribution": 1e-3}, {"gap": 0.0}, [row, row])
    write_explain_golden(tmp_path, golden)
    assert read_explain_golden(tmp_path) == golden


def test_a_missing_file_is_named(folder: Path) -> None:
    """Examples are a listed file and the graph."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FolderError, match="'tokenizer.json' is in the manifest, but"):
        read(found(folder))
    (folder / "model.onnx").unlink()
    with pytest.raises(FolderError, match="model.onnx is missing"):
        read(found(folder))


def test_a_store_is_listed_by_name_and_number(tmp_path: Path) -> None:
    """Versions are in numeric order; a folder that cannot be a model has a reason, hidden ones are skipped."""
    for name in ("b/10", "b/9", "b/notes", "a/1", "with space/1", "empty", ".hidden/1", "__pycache__/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README.md").touch()
    listed = scan(tmp_path)
    assert [(f.name, f.version) for f in listed if not f.problem] == [("a", "1"), ("b", "9"), ("b", "10")]
    assert {f.name for f in listed if f.problem} == {"with space", "empty"}
    assert next_version(tmp_path, "b") == 11
    assert next_version(tmp_path, "new") == 1
    with pytest.raises(FolderError, match="is not a folder"):
        scan(tmp_path / "nowhere")
