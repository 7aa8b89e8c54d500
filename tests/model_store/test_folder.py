"""Model folders: what is read, what is refused and why."""

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
    """A copy of the committed model."""
    return Path(shutil.copytree(ROOT / "model_store/sentiment-small/1", tmp_path / "sentiment-small/1"))


def found(path: Path) -> FoundFolder:
    """As `scan` would name it."""
    return FoundFolder(path.parent.name, path.name, path)


def change_manifest(folder: Path, **changes: object) -> None:
    """Write other values into the manifest."""
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | changes))


def test_a_folder_of_ours_without_its_manifest_says_that_it_is_bare(folder: Path) -> None:
    """Its tokenizer and golden examples are not used; the remark names them. A graph alone is nothing unusual."""
    (folder / "manifest.json").unlink()
    remark = read(found(folder)).remark or ""
    assert remark.startswith("served as bare tensors: config.json, golden.json, tokenizer.json")
    assert remark.endswith("not used, for manifest.json is missing")
    for path in folder.iterdir():
        if path.name != "model.onnx":
            path.unlink()
    assert read(found(folder)).remark is None


def test_the_committed_model_is_whole(folder: Path) -> None:
    """Checksums hold, and there are golden examples."""
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
def test_a_changed_byte_in_any_file_is_noticed(folder: Path, name: str) -> None:
    """Also in those that no answer depends on."""
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(FolderError, match=f"{name} is damaged"):
        read(found(folder))


@pytest.mark.parametrize("name", ["generation_config.json", "model.onnx.data", "weights/1.bin"])
def test_a_file_without_a_checksum_is_noticed(folder: Path, name: str) -> None:
    """Whatever it is called, it might be read; but for what file managers leave behind."""
    (folder / ".DS_Store").touch()
    read(found(folder))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(FolderError, match=f"manifest.json: no checksum for {name}; only what it lists"):
        read(found(folder))


def test_a_manifest_cannot_lead_out_of_its_folder(folder: Path) -> None:
    """Names with a path in them are not files of the folder."""
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
def test_a_manifest_that_is_not_understood_is_refused(folder: Path, changes: dict[str, object], expected: str) -> None:
    """Rather than half read."""
    change_manifest(folder, **changes)
    with pytest.raises(FolderError, match=expected):
        read(found(folder))


@pytest.mark.parametrize(("name", "graph"), [("sentiment-small", "model"), ("translation-en-de", "encoder")])
def test_half_precision_that_is_described_must_be_there(name: str, graph: str, tmp_path: Path) -> None:
    """With its checksum; a folder may also have none, and is then served on a GPU as on a CPU."""
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
def test_golden_rows_that_are_not_understood_are_refused(tmp_path: Path, content: str | None, expected: str) -> None:
    """Rather than half read; what is written is read again."""
    if content is not None:
        (tmp_path / "golden.explain.json").write_text(content)
    with pytest.raises(FolderError, match=f"golden.explain.json: .*{expected}"):
        read_explain_golden(tmp_path)
    row = GoldenRow(0, None, 0.5, {"attribution": [1.0, -2.5]})
    golden = ExplainGolden({"attribution": 1e-3}, {"gap": 0.0}, [row, row])
    write_explain_golden(tmp_path, golden)
    assert read_explain_golden(tmp_path) == golden


def test_what_is_missing_is_named(folder: Path) -> None:
    """A listed file, the graph."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FolderError, match="'tokenizer.json' is in the manifest, but"):
        read(found(folder))
    (folder / "model.onnx").unlink()
    with pytest.raises(FolderError, match="model.onnx is missing"):
        read(found(folder))


def test_a_store_is_listed_by_name_and_number(tmp_path: Path) -> None:
    """Versions in numeric order; what cannot be a model says so; hidden folders and files are passed over."""
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
