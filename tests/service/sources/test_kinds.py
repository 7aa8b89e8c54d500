"""What a command line names is recognized by the files that are there."""

from pathlib import Path

import pytest

from service.sources.kinds import SourceRefused, checked_name, recognize


def touched(folder: Path, *names: str) -> Path:
    """Make a folder with empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "given", "kind", "name"),
    [
        (["mine/config.json", "mine/model.safetensors"], "mine", "checkpoint", "mine"),
        (["mine/config.json", "mine/pytorch_model.bin", "mine/model.onnx"], "mine", "checkpoint", "mine"),
        (["mine/config.json", "mine/model.onnx"], "mine", "version", "mine"),
        (["mine/adapter_config.json"], "mine", "checkpoint", "mine"),
        (["mine/1/manifest.json", "mine/1/config.json", "mine/1/model.onnx"], "mine/1", "version", "mine"),
        (["mine/1/model.onnx", "mine/2/model.onnx"], "mine", "model", "mine"),
        (["all/mine/1/model.onnx", "all/other/3/model.onnx"], "all", "store", ""),
        (["graphs/net.onnx", "graphs/other.onnx"], "graphs/net.onnx", "onnx", "net"),
        (["graphs/net.onnx"], "graphs", "onnx", "graphs"),
        (["net/model.onnx"], "net/model.onnx", "version", "net"),
        (["models--me--net/snapshots/0a1b/config.json"], "models--me--net/snapshots/0a1b", "checkpoint", "net"),
    ],
)
def test_a_source_is_recognized(files: list[str], given: str, kind: str, name: str, tmp_path: Path) -> None:
    """The name is that of the folder or file, and not a version's number or a commit."""
    source = recognize(str(touched(tmp_path, *files) / given))
    assert (source.kind, source.name) == (kind, name)


def test_a_hub_id_has_an_owner_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name wins; a misspelt folder is not taken for a hub id."""
    monkeypatch.chdir(touched(tmp_path, "me/net/config.json", "me/net/model.safetensors"))
    assert recognize("somebody/net").kind == "hub"
    assert recognize("me/net").kind == "checkpoint"
    with pytest.raises(SourceRefused, match="me/nte is not there; folders beside it: me/net "):
        recognize("me/nte")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("notes.txt", "is a file; a model is a folder, or a graph in a file that ends in .onnx"),
        ("nowhere", "is not there; folders beside it: .*graphs"),
        ("graphs", "is neither a checkpoint nor a model: it has a.onnx, b.onnx; give one file"),
        ("empty", "it has no config.json, no manifest.json and no model.onnx"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(given: str, said: str, tmp_path: Path) -> None:
    """It says what was found and what is taken."""
    touched(tmp_path, "notes.txt", "graphs/a.onnx", "graphs/b.onnx", "empty/.hidden")
    with pytest.raises(SourceRefused, match=said):
        recognize(str(tmp_path / given))


def test_a_models_name_is_checked() -> None:
    """The sentence says how another name is given."""
    assert checked_name("net-1.0", "folder") == "net-1.0"
    with pytest.raises(SourceRefused, match=r"'my net' cannot be a model's name, .* --name"):
        checked_name("my net", "my net")
