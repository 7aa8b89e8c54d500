"""Fixtures of the tests of other servers' APIs."""

from collections.abc import Iterator

import pytest

from tests.conftest import Server, running_server
from tests.text_models import write_embedder


@pytest.fixture(scope="package")
def two_embedders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server on two embedders; the second has a default prompt, and settings of its own."""
    store = tmp_path_factory.mktemp("two-embedders")
    write_embedder(store / "first/1")
    write_embedder(store / "second/1", normalize=False, default_prompt="passage", similarity="dot")
    with running_server(store) as running:
        yield running
