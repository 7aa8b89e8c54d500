"""The check of unused names."""

from pathlib import Path

from tests.unused import unused_names

MODULE = """
USED, UNUSED = 1, 2

class Record:
    field: int

    def called(self) -> int:
        return USED

    @property
    def never_read(self) -> int:
        return 1

def never_called(record: Record) -> int:
    return record.called()
"""


def test_functions_properties_and_constants_without_a_use_are_found(tmp_path: Path) -> None:
    """Fields of a record are left out."""
    (tmp_path / "module.py").write_text(MODULE)
    found = unused_names([tmp_path])
    assert set(found) == {"UNUSED", "never_read", "never_called"}
    assert found["never_called"].endswith("module.py:14: nothing uses the function never_called")
