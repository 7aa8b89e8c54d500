"""The command line of `python -m load_tests.bench`."""

import pytest

from load_tests.bench.__main__ import MIN_COUNT, main


@pytest.mark.parametrize("name", ["requests", "sentences"])
def test_too_few_requests_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error comes before anything is measured."""
    with pytest.raises(SystemExit):
        main([f"--{name}", str(MIN_COUNT - 1)])
    assert f"--{name} must be at least {MIN_COUNT}" in capsys.readouterr().err
