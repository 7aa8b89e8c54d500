"""Unfinished folders: a conversion that ended leaves nothing behind."""

from pathlib import Path

import pytest

from export.conversion.model_folder.staging import folder_in_the_making


def test_nothing_is_left_of_a_conversion_that_ended(tmp_path: Path) -> None:
    """Neither of one that failed nor of one that was killed; one that still runs is left alone."""
    (tmp_path / ".converting-killed/folder").mkdir(parents=True)
    with folder_in_the_making(tmp_path) as folder:
        assert not (tmp_path / ".converting-killed").exists()
        with pytest.raises(ValueError, match="failed"), folder_in_the_making(tmp_path):
            raise ValueError("failed")
        assert [path.name for path in tmp_path.iterdir()] == [folder.parent.name]
    assert list(tmp_path.iterdir()) == []
