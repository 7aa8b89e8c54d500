"""The Python examples of Triton's client repository run unchanged; skipped where the repository is not here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.triton_examples import (
    EXAMPLES,
    EXAMPLES_VARIABLE,
    NOT_RUN,
    OPTIONS,
    Example,
    run_example,
    write_models,
)
from tests.conftest import Server, running_server

MISSING = f"Triton's examples are not here: {EXAMPLES_VARIABLE} does not name their folder"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Return the folder of the examples."""
    if not (given := os.environ.get(EXAMPLES_VARIABLE)):
        pytest.skip(MISSING)
    return Path(given)


@pytest.fixture(scope="module")
def triton_like(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with the models that the examples name."""
    store = tmp_path_factory.mktemp("triton")
    write_models(store)
    with running_server(store, *OPTIONS) as server:
        yield server


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_passes(example: Example, folder: Path, triton_like: Server, tmp_path: Path) -> None:
    """It ends with status 0 and reports no error."""
    assert (output := run_example(example, folder, triton_like, tmp_path)) is None, output


def test_every_example_is_run_or_named(folder: Path) -> None:
    """None is left out silently."""
    assert {path.name for path in folder.glob("*.py")} == {example.file for example in EXAMPLES} | {*NOT_RUN}
