"""The key of a converted checkpoint; conversions themselves are in `tests/test_heed.py`."""

from dataclasses import replace
from pathlib import Path

import pytest

from service.sources.conversion_cache import Checkpoint, default_cache, files_of, fingerprint, hub_snapshot


def checkpoint_of(folder: Path) -> Checkpoint:
    """Describe a folder's conversion with the default options."""
    return Checkpoint(str(folder), folder, "mine", None, "float32", None)


def test_the_key_follows_content_and_options(tmp_path: Path) -> None:
    """A copy elsewhere has the same key; each option and each byte of a file changes it, a new date does not."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text("{}")
    first, second = checkpoint_of(tmp_path / "a"), checkpoint_of(tmp_path / "b")
    key = fingerprint(first)
    assert fingerprint(second) == key
    (tmp_path / "measured.csv").write_text("text,label\n")
    others = [
        replace(first, name="other"),
        replace(first, task="translation"),
        replace(first, precision="int8"),
        replace(first, validate_on="sst2"),
        replace(first, validate_on=str(tmp_path / "measured.csv")),
    ]
    keys = [key, *map(fingerprint, others)]
    (tmp_path / "measured.csv").write_text("text,label\nfine,1\n")
    keys.append(fingerprint(others[-1]))
    (tmp_path / "a/config.json").touch()
    assert fingerprint(first) == key
    (tmp_path / "a/config.json").write_text("{ }")
    keys.append(fingerprint(first))
    assert len(set(keys)) == len(keys)


def test_files_that_are_no_part_of_a_checkpoint_are_left_out(tmp_path: Path) -> None:
    """These are hidden files and the intermediate checkpoints of a training."""
    for name in ("config.json", "1_Pooling/config.json", ".git/HEAD", "checkpoint-500/model.safetensors", ".lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(files_of(tmp_path)) == ["config.json", "1_Pooling/config.json"]


def test_a_downloaded_model_of_the_hub_counts_as_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was never downloaded has no key yet."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    source = Checkpoint("me/net", None, "net", None, "float32", None)
    assert (hub_snapshot("me/net"), fingerprint(source)) == (None, None)
    keys = set()
    for commit in ("0a", "1b"):
        snapshot = tmp_path / "models--me--net/snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").touch()
        (tmp_path / "models--me--net/refs").mkdir(exist_ok=True)
        (tmp_path / "models--me--net/refs/main").write_text(commit)
        assert hub_snapshot("me/net") == snapshot
        keys.add(fingerprint(source))
    assert len(keys) == 2


def test_the_cache_lies_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path counts as none (XDG base directory specification)."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/heed")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == Path.home() / ".cache/heed"
