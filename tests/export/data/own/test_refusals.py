"""Lists of names in sentences."""

from export.data.own.refusals import closest, first_line, listed


def test_long_lists_are_cut_and_say_so() -> None:
    """Ten names are enough."""
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(14)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more"


def test_the_closest_name_comes_first() -> None:
    """Case does not count."""
    assert closest("Lable", ["text", "id", "label"]).startswith("'label'")


def test_messages_of_libraries_become_one_line() -> None:
    """Some have none."""
    assert first_line(ValueError("\nfirst\nsecond")) == "first"
    assert first_line(OSError()) == "OSError"
