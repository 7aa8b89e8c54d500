"""Private copies of a folder's files: what may be copied, and that nothing changes them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_store.external_data import external_locations
from model_store.folder import FolderError, FoundFolder, read, scan
from model_store.private_files import FolderCopy


def write_external(folder: Path, location: str = "model.onnx.data") -> None:
    """A bare model x + w, whose w lies in another file; what the graph calls that file may be a lie."""
    folder.mkdir(parents=True)
    weights = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    weights.raw_data = b""
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.onnx.data").write_bytes(np.arange(4, dtype=np.float32).tobytes())


def read_first(store: Path) -> None:
    """Read the first folder of a store."""
    read(scan(store)[0])


def test_a_copy_is_sealed(tmp_path: Path) -> None:
    """Nobody can write to it, shorten it or lengthen it, not even this process."""
    (tmp_path / "a").write_bytes(b"12345")
    copy = FolderCopy(tmp_path, None).copy("a")
    fd = os.open(copy.path, os.O_RDWR)
    try:
        for change in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 9)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)
    (tmp_path / "a").write_bytes(b"other")
    assert (copy.read_bytes(), copy.num_bytes) == (b"12345", 5)


def test_the_memory_of_a_copy_is_given_back() -> None:
    """With the last reference to it: a server that has loaded a model does not keep the files."""

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    folder = read(FoundFolder("sentiment-small", "1", Path("model_store/sentiment-small/1")))
    assert open_files() >= before + len(folder.files)
    del folder
    assert open_files() == before


def test_a_file_of_no_bytes_is_a_file(tmp_path: Path) -> None:
    """It can be read, mapped and checked like any other."""
    (tmp_path / "empty").touch()
    copy = FolderCopy(tmp_path, None).copy("empty")
    assert (copy.read_bytes(), copy.num_bytes, copy.sha256()[:8]) == (b"", 0, "e3b0c442")


def link_card_outside(folder: Path) -> None:
    """A model card that is a file of the system."""
    (folder / "README.md").symlink_to("/etc/passwd")


def link_graph_outside(folder: Path) -> None:
    """A graph that lies elsewhere."""
    moved = folder.parents[2] / "outside.onnx"
    (folder / "model.onnx").rename(moved)
    (folder / "model.onnx").symlink_to(moved)


def link_weights_outside(folder: Path) -> None:
    """Weights that lie elsewhere, by a relative link."""
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").symlink_to("../../../../../../../../../../etc/passwd")


def link_in_a_circle(folder: Path) -> None:
    """A model card that is a link to itself."""
    (folder / "README.md").symlink_to("README.md")


def link_nowhere(folder: Path) -> None:
    """A model card that is not there."""
    (folder / "README.md").symlink_to("gone.md")


def put_pipe(folder: Path) -> None:
    """A model card that nobody writes to: who opens it waits for ever."""
    os.mkfifo(folder / "README.md")


def link_to_device(folder: Path) -> None:
    """Weights without end."""
    (folder / "model.onnx.data").unlink()
    os.mknod(folder / "model.onnx.data", 0o600 | 0o020000, os.makedev(1, 5))


def put_folder(folder: Path) -> None:
    """A folder where the card should be."""
    (folder / "README.md").mkdir()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (link_card_outside, "README.md is a link that leaves the model store"),
        (link_graph_outside, "model.onnx is a link that leaves the model store"),
        (link_weights_outside, "model.onnx.data is a link that leaves the model store"),
        (link_in_a_circle, "README.md cannot be read"),
        (link_nowhere, "README.md is missing, its link leads nowhere"),
        (put_pipe, "README.md is a pipe, not a file"),
        pytest.param(
            link_to_device,
            "model.onnx.data is a device, not a file",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices"),
        ),
        (put_folder, "README.md is a folder, not a file"),
    ],
)
def test_what_is_no_file_of_the_store_is_refused(tmp_path: Path, spoil: Callable[[Path], None], why: str) -> None:
    """In a sentence that names the file, and without waiting for anybody."""
    folder = tmp_path / "store/model/1"
    write_external(folder)
    read_first(tmp_path / "store")
    spoil(folder)
    with pytest.raises(FolderError, match=why):
        read_first(tmp_path / "store")


@pytest.mark.parametrize("location", ["../../../../etc/passwd", "/etc/passwd", "a/../../b", "..", ""])
def test_a_graph_reads_weights_from_its_own_folder_only(tmp_path: Path, location: str) -> None:
    """Whatever path it names, and wherever the server was started."""
    write_external(tmp_path / "model/1", location)
    with pytest.raises(FolderError, match="reads weights from .*; it may read files of its own folder only"):
        read_first(tmp_path)


@pytest.mark.parametrize("location", ["weights/part.bin", "./model.onnx.data", "model.onnx.data"])
def test_a_graph_may_read_weights_from_any_path_within_its_folder(tmp_path: Path, location: str) -> None:
    """Written as graphs write them."""
    from service.engines.host import EngineHost
    from service.engines.onnx import OnnxEngine

    folder = tmp_path / "model/1"
    write_external(folder, location)
    (folder / location).parent.mkdir(exist_ok=True)
    if not (folder / location).exists():
        (folder / "model.onnx.data").rename(folder / location)
    engine = OnnxEngine(read(scan(tmp_path)[0]).graph, 1, EngineHost())
    outputs = engine.run({"x": np.ones((1, 4), dtype=np.float32)})
    np.testing.assert_array_equal(outputs["y"], [[1, 2, 3, 4]])


def mount_like_kubernetes(store: Path, files: Path) -> None:
    """A volume of a ConfigMap: each file a link into `..data`, which is a link to a folder with a date."""
    version = store / "model/1"
    shutil.copytree(files, version / "..2026_01_01")
    (version / "..data").symlink_to("..2026_01_01")
    for file in files.iterdir():
        (version / file.name).symlink_to(Path("..data") / file.name)


def cache_like_hub(store: Path, files: Path) -> None:
    """A snapshot of the Hugging Face hub's cache outside of the store: each file a link to a blob."""
    cache = store.parent / "models--me--model"
    (cache / "snapshots/abc").mkdir(parents=True)
    shutil.copytree(files, cache / "blobs")
    for file in files.iterdir():
        (cache / "snapshots/abc" / file.name).symlink_to(Path("../../blobs") / file.name)
    (store / "model").mkdir(parents=True)
    (store / "model/1").symlink_to(cache / "snapshots/abc")


def link_version(store: Path, files: Path) -> None:
    """A version folder that lies elsewhere."""
    (store / "model").mkdir(parents=True)
    (store / "model/1").symlink_to(files)


def link_store(store: Path, files: Path) -> None:
    """A store that is a link, with a file that is a link to another version."""
    real = store.parent / "real"
    shutil.copytree(files, real / "model/1")
    shutil.copytree(files, real / "model/2")
    (real / "model/1/model.onnx.data").unlink()
    (real / "model/1/model.onnx.data").symlink_to("../2/model.onnx.data")
    store.symlink_to(real)


@pytest.mark.parametrize("lay_out", [mount_like_kubernetes, cache_like_hub, link_version, link_store])
def test_links_that_stay_in_the_store_are_followed(tmp_path: Path, lay_out: Callable[[Path, Path], None]) -> None:
    """As Kubernetes, the hub's cache and people make them."""
    write_external(tmp_path / "files")
    (tmp_path / "files/README.md").write_text("a card")
    lay_out(tmp_path / "store", tmp_path / "files")
    folder = read(scan(tmp_path / "store")[0])
    assert folder.card == "a card"
    assert folder.graph.weights.keys() == {"model.onnx.data"}


def test_a_folder_that_is_written_to_all_the_time_is_refused(tmp_path: Path) -> None:
    """Half of one model and half of another is neither; and one whose writer ends is read."""
    write_external(tmp_path / "model/1")
    data = tmp_path / "model/1/model.onnx.data"
    data.write_bytes(bytes(8 * 2**20))
    copied = FolderCopy(tmp_path / "model/1", None)
    copied.graph("model.onnx")
    assert copied.changed() is None
    writing = subprocess.Popen([sys.executable, "-c", f"import os\nwhile True: os.utime({str(data)!r})"])
    why = ""
    try:
        while not why:
            try:
                read_first(tmp_path)
            except FolderError as error:
                why = str(error)
    finally:
        writing.kill()
        writing.wait()
    assert why == "model.onnx.data changed while it was read, 3 times; put new files into a new version"
    assert copied.changed() == "model.onnx.data"
    read_first(tmp_path)


def test_locations_are_found_wherever_a_tensor_can_stand() -> None:
    """Initializers, sparse ones, attributes, branches and functions; a graph that is cut off is no error here."""

    def external(location: str) -> TensorProto:
        tensor = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="length", value="4")
        tensor.external_data.add(key="location", value=location)
        return tensor

    inner = helper.make_graph([], "inner", [], [], [external("in a branch")])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=external("of a constant")),
        helper.make_node("If", ["c"], ["b"], then_branch=inner),
        helper.make_node("Mine", [], ["d"], many=[external("one of many"), external("another of many")]),
    ]
    graph = helper.make_graph(nodes, "outer", [], [], [external("initializer")])
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("sparse values"))
    sparse.indices.CopyFrom(external("sparse indices"))
    constant = helper.make_node("Constant", [], ["f"], value=external("in a function"))
    function = helper.make_function("mine", "F", [], ["f"], [constant], [helper.make_opsetid("", 17)])
    content = helper.make_model(graph, functions=[function]).SerializeToString()
    assert external_locations(memoryview(content)) == {
        "in a branch",
        "of a constant",
        "one of many",
        "another of many",
        "initializer",
        "sparse values",
        "sparse indices",
        "in a function",
    }
    for end in range(len(content)):
        external_locations(memoryview(content)[:end])
    assert onnx.load_model_from_string(content).graph.name == "outer"
