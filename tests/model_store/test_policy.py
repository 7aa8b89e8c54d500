"""Declarations about a model's batching are read from files of the store."""

import os
from pathlib import Path

import pytest

from model_store.folder import FolderError
from model_store.policy import BatchingDeclaration, read_batching_declaration

TRITON_CONFIG = """
# max_batch_size: 3
name: "ranker"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] reshape { shape: [ ] } } ]
parameters { key: "max_batch_size" value: { string_value: "max_batch_size: 99" } }
dynamic_batching { preferred_batch_size: [ 4, 8 ] }
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("policy.toml", "[batching]\nrows_independent = true", BatchingDeclaration(True, None, "policy.toml")),
        (
            "policy.toml",
            "[batching]\nrows_independent = false\nmax_rows = 4",
            BatchingDeclaration(False, 4, "policy.toml"),
        ),
        ("policy.toml", "", None),
        ("config.pbtxt", TRITON_CONFIG, BatchingDeclaration(True, 8, "config.pbtxt")),
        ("config.pbtxt", "max_batch_size: 0", BatchingDeclaration(False, None, "config.pbtxt")),
        ("config.pbtxt", 'name: "x"', None),
        ("config.pbtxt", "output { max_batch_size: 7 }", None),
    ],
)
def test_a_declaration_is_read(name: str, text: str, expected: BatchingDeclaration | None, tmp_path: Path) -> None:
    """It comes from policy.toml, or from `max_batch_size` of Triton's config.pbtxt."""
    (tmp_path / name).write_text(text)
    assert read_batching_declaration(tmp_path) == expected


def test_without_a_file_nothing_is_declared(tmp_path: Path) -> None:
    """Neither the store nor the state folder has a file."""
    assert read_batching_declaration(tmp_path, tmp_path / "absent") is None


def test_the_nearest_declaration_counts(tmp_path: Path) -> None:
    """The state folder's policy overrides the store's, and any policy overrides Triton's configuration."""
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 8")
    (tmp_path / "policy.toml").write_text("[batching]\nrows_independent = true\nmax_rows = 2")
    declaration = read_batching_declaration(tmp_path, tmp_path / "state")
    assert declaration == BatchingDeclaration(True, 2, "policy.toml")
    (tmp_path / "state").mkdir()
    (tmp_path / "state/policy.toml").write_text("[batching]\nrows_independent = false")
    assert read_batching_declaration(tmp_path, tmp_path / "state") == BatchingDeclaration(False, None, "policy.toml")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("policy.toml", "[batching", "policy.toml: "),
        ("policy.toml", "[batching]\nrows_independent = 1", "Expected `bool`, got `int` - at `$.batching.rows_indepen"),
        ("policy.toml", "[batching]\nrow_independent = true", "unknown field `row_independent`"),
        ("policy.toml", "[batches]", "unknown field `batches`"),
        ("policy.toml", "[batching]\nrows_independent = true\nmax_rows = 0", "batching.max_rows is 0, the least is 1"),
        ("policy.toml", b"\xff", "policy.toml: "),
        ("policy.toml", b" " * (2**20 + 1), "policy.toml: more than 1048576 bytes"),
        ("config.pbtxt", 'max_batch_size: "x"', "config.pbtxt: 1:17 : "),
        ("config.pbtxt", "max_batch_size: -1", "max_batch_size is -1, the least is 0"),
        ("config.pbtxt", "input {", "config.pbtxt: brackets do not match"),
    ],
)
def test_an_invalid_declaration_is_refused(name: str, text: str | bytes, expected: str, tmp_path: Path) -> None:
    """The error names file and field, because a typing error must not count as no declaration."""
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(FolderError) as refusal:
        read_batching_declaration(tmp_path)
    assert expected in str(refusal.value)


@pytest.mark.parametrize("name", ["policy.toml", "config.pbtxt"])
def test_a_declaration_outside_of_the_store_is_refused(name: str, tmp_path: Path) -> None:
    """Links within the store are followed, links out of it are refused, and a pipe does not block."""
    model = tmp_path / "store/ranker"
    model.mkdir(parents=True)
    text = "max_batch_size: 8" if name == "config.pbtxt" else "[batching]\nrows_independent = true"
    (tmp_path / "store/shared").write_text(text)
    (tmp_path / "outside").write_text(text)
    (model / name).symlink_to("../shared")
    assert read_batching_declaration(model) is not None
    (model / name).unlink()
    (model / name).symlink_to("../../outside")
    with pytest.raises(FolderError, match="a link that leaves the model store"):
        read_batching_declaration(model)
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(FolderError, match=name):
        read_batching_declaration(model)
