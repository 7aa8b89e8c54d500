"""Overwriting or truncating model files does not change a running server."""

import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Server, running_server
from tests.model_store.test_private_files import write_external


def ask(server: Server, path: str, body: dict[str, Any]) -> Any:
    """Send a request; return the document of the response."""
    request = urllib.request.Request(f"{server.http}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def predict(server: Server) -> list[Any]:
    """Return the answers of both models."""
    text = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["Not a wonderful film.", "I loved it."]}
    numbers = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}
    sentiment = ask(server, "/v2/models/sentiment/infer", {"inputs": [text]})
    external = ask(server, "/v2/models/external/infer", {"inputs": [numbers]})
    return [[output["data"] for output in document["outputs"]] for document in (sentiment, external)]


def explain(server: Server) -> Any:
    """Return an explanation by the model's own graph, which is opened at first use."""
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Not a wonderful film."]}
    why = ask(server, "/v2/models/sentiment/explain", {"inputs": [text], "parameters": {"method": "gradients"}})
    return why["score"], why["features"], why["fidelity"]["deletion_area"], why["fidelity"]["insertion_area"]


def num_memory_files(server: Server) -> int:
    """Return the number of private copies that the server still holds."""
    return sum("heed-model" in str(file.readlink()) for file in Path(f"/proc/{server.popen.pid}/fd").iterdir())


def spoil(store: Path, *, cut_off: bool) -> None:
    """Overwrite every file with zeros in place, or truncate it."""
    files = [path for path in store.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        num_bytes = path.stat().st_size
        with path.open("r+b") as file:
            if not cut_off:
                file.write(bytes(num_bytes))
            file.truncate(0 if cut_off else num_bytes)
            os.fsync(file)


def make_models(store: Path) -> Path:
    """Make a model with a manifest, and a bare one with weights in another file."""
    shutil.copytree(ROOT / "model_store/sentiment-small", store / "sentiment")
    write_external(store / "external/1")
    return store


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Any]:
    """Return predictions and an explanation of a server whose files are unchanged."""
    with running_server(make_models(tmp_path_factory.mktemp("untouched") / "models")) as server:
        return predict(server), explain(server)


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("explained_before", [False, True])
def test_answers_do_not_change_with_the_files(
    tmp_path: Path, expected: tuple[list[Any], Any], cut_off: bool, explained_before: bool
) -> None:
    """Predictions and explanations stay the same to the bit, before and after the first explanation."""
    predicted, explained = expected
    with running_server(make_models(tmp_path / "models")) as server:
        assert predict(server) == predicted
        if explained_before:
            assert explain(server) == explained
        # The explanation graph, its weights and its golden rows are held until it is opened.
        assert num_memory_files(server) == (0 if explained_before else 3)
        spoil(tmp_path / "models", cut_off=cut_off)
        for _ in range(2):
            assert explain(server) == explained
            assert predict(server) == predicted
        assert predicted[1] == [[1.0, 3.0, 5.0, 7.0]]
        assert server.stop() == 0
