"""The marked part of a page is rewritten."""

from pathlib import Path

import pytest

from load_tests.page import MarkedPart

PAGE = "# Title\n\n<!-- load: begin -->\n\nold\n<!-- load: end -->\n\nrest <!-- bench: begin -->\n"


def test_only_the_marked_part_is_replaced(tmp_path: Path) -> None:
    """The part can be replaced again."""
    document = tmp_path / "page.md"
    document.write_text(PAGE)
    part = MarkedPart.of(document, "load")
    part.replace("new")
    part.replace("newer")
    assert document.read_text() == PAGE.replace("old", "newer")


@pytest.mark.parametrize("name", ["other", "bench"])
def test_a_page_without_the_marks_is_refused(name: str, tmp_path: Path) -> None:
    """Both marks are needed, and nothing is written."""
    document = tmp_path / "page.md"
    document.write_text(PAGE)
    with pytest.raises(ValueError, match=f"has no <!-- {name}: begin --> and <!-- {name}: end -->"):
        MarkedPart.of(document, name)
    with pytest.raises(ValueError, match=r"missing\.md"):
        MarkedPart.of(tmp_path / "missing.md", name)
    assert document.read_text() == PAGE
