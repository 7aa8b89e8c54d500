"""A store of links has the models that a command line names."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_store.folder import read, scan
from service.sources.kinds import SourceRefused
from service.sources.opening import SourceOptions, open_store
from tests.conftest import ROOT

SMALL = ROOT / "model_store/sentiment-small"


def opened(tmp_path: Path, *sources: Path, name: str | None = None) -> Path:
    """Return the store of these sources, with a cache in the test's folder."""
    return open_store([str(source) for source in sources], SourceOptions(tmp_path / "cache", name), print)


def test_links_lead_to_folders_that_the_reader_takes(tmp_path: Path) -> None:
    """A model and a version are read as they are in their own store, and the store is made once."""
    version = Path(shutil.copytree(SMALL / "1", tmp_path / "copied"))
    store = opened(tmp_path, SMALL, version)
    folders = {found.name: read(found) for found in scan(store)}
    assert folders.keys() == {"sentiment-small", "copied"}
    assert folders["copied"].graph.sha256() == folders["sentiment-small"].graph.sha256()
    assert opened(tmp_path, version, SMALL) == store
    assert [found.name for found in scan(opened(tmp_path, version, name="renamed"))] == ["renamed"]
    assert opened(tmp_path, version) != store


def test_a_store_is_served_as_it_is(tmp_path: Path) -> None:
    """Beside other sources its models are linked, all their versions with them."""
    shutil.copytree(SMALL, tmp_path / "models/a")
    shutil.copytree(SMALL / "1", tmp_path / "models/a/2")
    assert opened(tmp_path, tmp_path / "models") == tmp_path / "models"
    found = scan(opened(tmp_path, tmp_path / "models", SMALL))
    assert [(each.name, each.version) for each in found] == [("a", "1"), ("a", "2"), ("sentiment-small", "1")]


def test_a_graph_is_copied_with_its_weights_and_labels(tmp_path: Path) -> None:
    """A graph that reads weights from elsewhere is refused; a changed graph is another model."""
    weight = numpy_helper.from_array(np.arange(600, dtype=np.float32), "w")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [600]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", tensors[:1], tensors[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    store = opened(tmp_path, path)
    folder = read(scan(store)[0])
    assert (folder.name, sorted(folder.files)) == ("net", ["labels.txt", "model.onnx", "net.data"])
    (tmp_path / "labels.txt").write_text("a\nc\n")
    assert opened(tmp_path, path) != store
    (tmp_path / "net.data").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceRefused, match="net.data is missing"):
        opened(tmp_path, path)


def test_two_models_have_two_names(tmp_path: Path) -> None:
    """One name for several models is refused too, as is a cache that cannot be written."""
    copied = Path(shutil.copytree(SMALL, tmp_path / "sentiment-small"))
    with pytest.raises(SourceRefused, match="another source has a model named sentiment-small too"):
        opened(tmp_path, SMALL, copied)
    with pytest.raises(SourceRefused, match="--name 'a' names one model"):
        opened(tmp_path, SMALL, copied, name="a")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(SourceRefused, match=r"cache cannot be written .* --cache"):
        opened(tmp_path, SMALL)
