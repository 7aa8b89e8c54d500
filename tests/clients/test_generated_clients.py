"""A client that openapi-python-client generates from /openapi.json answers, infers and explains without changes."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server, noise_files

PACKAGE = "generated_heed_client"
METHODS = {"get", "post"}


@pytest.fixture(scope="module")
def package(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Generate the client; a warning of the generator, which leaves out what it does not understand, is an error."""
    folder = tmp_path_factory.mktemp("generated")
    document, settings = folder / "openapi.json", folder / "settings.yml"
    document.write_bytes(httpx.get(f"{server.http}/openapi.json").content)
    settings.write_text("post_hooks: []\n")  # without them, the generator looks for a linter
    program = [sys.executable, "-m", "openapi_python_client", "generate", "--meta=none", "--fail-on-warning"]
    paths = [f"--path={document}", f"--output-path={folder / PACKAGE}", f"--config={settings}"]
    run = subprocess.run([*program, *paths], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    sys.path.insert(0, str(folder))
    generated = importlib.import_module(PACKAGE)
    importlib.import_module(f"{PACKAGE}.models")
    yield generated
    sys.path.remove(str(folder))


def operation(name: str) -> Any:
    """Return the generated module of an operation, by its id in snake case."""
    return importlib.import_module(f"{PACKAGE}.api.default.{name}")


def test_there_is_an_operation_for_each_path(package: Any, server: Server) -> None:
    """The generator leaves out no operation."""
    document = httpx.get(f"{server.http}/openapi.json").json()
    ids = [each["operationId"] for path in document["paths"].values() for key, each in path.items() if key in METHODS]
    folder = Path(importlib.import_module(f"{PACKAGE}.api.default").__path__[0])
    generated = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert generated == {"".join(f"_{c.lower()}" if c.isupper() else c for c in each) for each in ids}
    assert len(ids) == len(generated)


def test_infer_and_explain(package: Any, server: Server) -> None:
    """Typed calls of both, with and without a version; the outputs have their data."""
    models = package.models
    text = models.InferInput(name="text", shape=[1], datatype="BYTES", data=["a fine film"])
    asked = models.InferRequest(inputs=[text])
    explain = models.InferRequest.from_dict({"inputs": [text.to_dict()], "parameters": {"method": "occlusion"}})
    with package.Client(base_url=server.http) as client:
        for suffix, path in (("", {}), ("_of_version", {"version": "1"})):
            answer = operation("infer" + suffix).sync("sentiment", client=client, body=asked, **path)
            assert isinstance(answer, models.InferResponse)
            outputs = {output.name: output for output in answer.outputs}
            assert outputs["label"].shape == [1]
            assert outputs["label"].data in (["POSITIVE"], ["NEGATIVE"])
            explained = operation("explain" + suffix).sync("sentiment", client=client, body=explain, **path)
            assert isinstance(explained, models.ExplainResponse)
            assert [feature.text for feature in explained.features] == ["a", "fine", "film"]
            assert explained.target == outputs["label"].data[0]


def test_the_task_api(package: Any, committed_server: Server) -> None:
    """Each task's request has a type, an image is a file, and an error has its text."""
    models, answer = package.models, operation("answer")
    with package.Client(base_url=committed_server.http) as client:
        asked = models.TextClassificationRequest(inputs="a fine film")
        (scores,) = answer.sync("sentiment", client=client, body=asked)
        assert {score.label for score in scores} == {"POSITIVE", "NEGATIVE"}
        refused = answer.sync("unknown", client=client, body=asked)
        assert isinstance(refused, models.ErrorBody)
        assert "unknown" in refused.error
        search = models.TranslationParameters(num_beams=2)
        asked = models.TranslationRequest(inputs="The dog is asleep.", parameters=search)
        (translated,) = answer.sync("translation-en-de", client=client, body=asked)
        assert translated.translation_text
        picture = importlib.import_module(f"{PACKAGE}.types").File(payload=BytesIO(noise_files(1)[0]))
        assert len(answer.sync("cifar10-vit", client=client, body=picture)) == 5


def test_health_and_metadata(package: Any, server: Server) -> None:
    """Calls without a body have typed answers."""
    with package.Client(base_url=server.http) as client:
        assert operation("server_ready").sync(client=client).ready
        assert "sentiment" in [entry.name for entry in operation("list_models").sync(client=client).models]
        metadata = operation("model_metadata").sync("sentiment", client=client)
        assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in metadata.inputs] == [("text", "BYTES", [-1])]
