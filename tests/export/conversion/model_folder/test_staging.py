"""Unfinished folders: an ended conversion leaves nothing behind."""

from pathlib import Path

import pytest

from export.conversion.model_folder.staging import folder_in_the_making


def test_failed_and_killed_conversions_leave_nothing(tmp_path: Path) -> None:
    """The folder of a conversion that still runs is kept."""
    (tmp_path / ".converting-killed/folder").mkdir(parents=True)
    with folder_in_the_making(tmp_path) as folder:
        assert not (tmp_path / ".converting-killed").exists()
        with pytest.raises(ValueError, match="failed"), folder_in_the_making(tmp_path):
            raise ValueError("failed")
        assert [path.name for path in tmp_path.iterdir()] == [folder.parent.name]
    assert list(tmp_path.iterdir()) == []
