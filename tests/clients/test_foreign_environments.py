"""Clients of others whose packages do not fit into this environment: each is installed into one of its own.

`programs/` has a program for each client, which prints what it was answered, and the exact versions that are installed.
Skipped where they cannot be installed: without a registry, or without node.
"""

import ctypes.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import ROOT, Server, running_server
from tests.text_models import DIMENSIONS

pytestmark = pytest.mark.slow
PROGRAMS = Path(__file__).parent / "programs"
INSTALL_S = 420.0
RUN_S = 120.0
LABELS = ["POSITIVE", "NEGATIVE"]  # of "A wonderful film." and "A boring film."


def install(what: str, command: list[str | Path], folder: Path) -> None:
    """Run an installation; skip the test, with the end of its output, if it fails."""
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{what} cannot be installed: {error}")
    if run.returncode:
        pytest.skip(f"{what} cannot be installed: {(run.stderr or run.stdout).strip()[-500:]}")


def output_of(command: list[str | Path], folder: Path, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return what a program prints; fail with its errors if its status is not 0."""
    run = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that installs the requirements of a client and returns the environment's programs."""
    made: dict[str, Path] = {}

    def bin_of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            requirements = PROGRAMS / f"{name}_requirements.txt"
            install(name, [sys.executable, "-m", "venv", folder], folder)
            pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--prefer-binary"]
            install(name, [*pip, "--requirement", requirements], folder)
            made[name] = folder / "bin"
        return made[name]

    return bin_of


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the packages of package.json beside copies of the programs."""
    if not (npm := shutil.which("npm")):
        pytest.skip("node's npm is not on the path")
    folder = tmp_path_factory.mktemp("node")
    for pattern in ("*.ts", "*.json"):
        for program in PROGRAMS.glob(pattern):
            shutil.copy(program, folder)
    install("package.json", [npm, "install", "--no-audit", "--no-fund", "--loglevel=error"], folder)
    return folder


@pytest.fixture(scope="module")
def generated_clients(node_folder: Path, committed_server: Server) -> Path:
    """Generate both typed clients from /openapi.json, and compile their programs with all checks of TypeScript."""
    document = node_folder / "openapi.json"
    document.write_bytes(httpx.get(f"{committed_server.http}/openapi.json").content)
    tools = node_folder / "node_modules/.bin"
    output_of([tools / "openapi-ts", "-i", document, "-o", node_folder / "generated"], node_folder)
    output_of([tools / "openapi-typescript", document, "-o", node_folder / "schema.d.ts"], node_folder)
    output_of([tools / "tsc", "--project", "."], node_folder)
    return node_folder


def test_kserve(environment: Callable[[str], Path], committed_server: Server) -> None:
    """KServe's Python SDK with protocol v2: JSON and binary tensors over HTTP, raw tensors over gRPC, errors."""
    command = [environment("kserve") / "python", PROGRAMS / "kserve_client.py"]
    answers = json.loads(output_of([*command, committed_server.http, committed_server.grpc], PROGRAMS))
    http, grpc = answers["http"], answers["grpc"]
    assert all(each[key] for each in (http, grpc) for key in ("live", "ready", "model_ready"))
    assert http["unknown_ready"] is False
    expected = {"id": "from-kserve", "labels": LABELS}
    assert http["json"] == http["binary"] == {**expected, "model": "sentiment"}
    assert grpc["raw"] == expected
    assert "input text is missing" in http["refused"]


def test_openai(environment: Callable[[str], Path], text_server: Server) -> None:
    """OpenAI's client, blocking and not: vectors as base64 (its default) and as numbers, ids, models, errors."""
    command = [environment("openai") / "python", PROGRAMS / "openai_client.py"]
    answers = json.loads(output_of([*command, text_server.http], PROGRAMS))
    vectors = answers["vectors"]
    assert len(vectors["base64"][0]) == DIMENSIONS
    for kind in ("float", "ids", "async"):
        np.testing.assert_allclose(vectors[kind], vectors["base64"], atol=1e-6)
    assert len(answers["short"]) == 4
    assert answers["usage"] == answers["num_ids"]
    assert (answers["models"], answers["model"]) == (["embedder"], "embedder")
    assert answers["unknown"] == {"status": 404, "code": "model_not_found"}
    assert answers["too_wide"] == {"status": 400, "code": None}


def test_pytriton(environment: Callable[[str], Path], committed_server: Server) -> None:
    """PyTriton's clients read the configuration first, and send batches as [n] or [n, 1], or a sample."""
    command = [environment("pytriton") / "python", PROGRAMS / "pytriton_client.py"]
    urls = [committed_server.http, f"grpc://{committed_server.grpc}"]
    answers = json.loads(output_of([*command, *urls], PROGRAMS))
    assert set(answers) == {"http", "grpc"}
    for each in answers.values():
        assert each["max_batch_size"] > 0
        assert each["shapes"] == {"text": [1], "label": [1], "score": [1], "probabilities": [2]}
        assert each["batch"] == each["rows"] == LABELS
        assert (each["named"], each["sample"]) == (LABELS[:1], LABELS[1:])
        assert "input 'text' has shape [1, 2]" in each["refused"]
    assert answers["http"]["futures"] == [[label] for label in LABELS * 2]


def test_the_protocols_generated_clients(environment: Callable[[str], Path], committed_server: Server) -> None:
    """The Open Inference Protocol's own packages, which are generated from its documents, over HTTP and gRPC."""
    command = [environment("pytriton") / "python", PROGRAMS / "open_inference_client.py"]
    answers = json.loads(output_of([*command, committed_server.http, committed_server.grpc], PROGRAMS))
    for each in answers.values():
        assert (each["inputs"], each["id"], each["labels"]) == (["text"], "typed", LABELS)
    assert answers["grpc"]["ready"]
    assert "'unknown' is not in the store" in answers["http"]["refused"]["error"]


def test_perf_analyzer(environment: Callable[[str], Path], tmp_path: Path) -> None:
    """Triton's load generator reads configuration, metadata and statistics, over both protocols and on a stream."""
    if ctypes.util.find_library("b64") is None:
        pytest.skip("perf_analyzer needs libb64, which is not here (Debian: libb64-0d)")
    folder = environment("perf_analyzer").parent
    libraries = {path.parent for path in folder.rglob("libcudart.so*")}
    path = {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    for name in ("sentiment-small", "translation-en-de"):
        (tmp_path / name).symlink_to(ROOT / "model_store" / name)
    with running_server(tmp_path, "--triton-compatible", "on") as server:
        http, grpc = ["-i", "http", "-u", server.http.removeprefix("http://")], ["-i", "grpc", "-u", server.grpc]
        for model, options in (
            ("sentiment-small", http),
            ("sentiment-small", [*grpc, "-b", "4"]),
            ("sentiment-small", [*grpc, "--async", "--concurrency-range", "4:4"]),
            ("translation-en-de", http),
            ("translation-en-de", [*grpc, "--async", "--streaming"]),
        ):
            command = [folder / "bin/perf_analyzer", "-m", model, *options]
            command += ["--string-data", "A wonderful film.", "--request-count", "20", "--max-trials", "1"]
            printed = output_of(command, tmp_path, path)
            assert re.search("Successful request count: 20", printed), (model, options, printed)


def test_grpcurl(environment: Callable[[str], Path], committed_server: Server) -> None:
    """It lists and describes by reflection, and calls with JSON."""
    grpcurl = [environment("grpcurl") / "grpcurl", "-plaintext"]
    address, service = committed_server.grpc, "inference.GRPCInferenceService"

    def said(*arguments: str) -> str:
        return output_of([*grpcurl, *arguments], PROGRAMS)

    assert {service, "heed.v1.Heed", "grpc.health.v1.Health"} <= set(said(address, "list").split())
    assert f"{service}.ModelInfer" in said(address, "list", service).split()
    for symbol in (service, f"{service}.ModelInfer", "inference.ModelInferRequest", "heed.v1.Heed.Explain"):
        assert said(address, "describe", symbol).startswith(f"{symbol} is a ")
    assert json.loads(said("-d", "{}", address, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}
    contents = {"bytes_contents": ["QSB3b25kZXJmdWwgZmlsbS4="]}  # "A wonderful film."
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": contents}
    sent = json.dumps({"model_name": "sentiment", "inputs": [text]})
    answer = json.loads(said("-d", sent, address, f"{service}/ModelInfer"))
    assert answer["outputs"][0]["contents"] == {"bytes_contents": ["UE9TSVRJVkU="]}  # POSITIVE


@pytest.mark.parametrize("program", ["hey_api_client.ts", "openapi_fetch_client.ts"])
def test_typed_clients(program: str, generated_clients: Path, committed_server: Server) -> None:
    """@hey-api/openapi-ts and openapi-typescript: an inference, an explanation, the task API and an error."""
    command = [generated_clients / "node_modules/.bin/tsx", program, committed_server.http]
    answers: dict[str, Any] = json.loads(output_of(command, generated_clients))
    assert (answers["outputs"], answers["label"]) == (["label", "score", "probabilities"], LABELS[:1])
    assert (answers["target"], answers["words"]) == (LABELS[0], ["a", "fine", "film"])
    ((best,),) = answers["answered"]
    assert best["label"] == LABELS[0]
    assert "'unknown' is not in the store" in answers["refused"]


def test_huggingface_inference(node_folder: Path, committed_server: Server) -> None:
    """@huggingface/inference: every task with its parameters, a streamed translation, and an error's text."""
    command = [node_folder / "node_modules/.bin/tsx", "huggingface_client.ts", committed_server.http]
    answers = json.loads(output_of([*command, ROOT / "docs/ship.jpg"], node_folder))
    assert [each["label"] for each in answers["text"]] == LABELS
    assert answers["best"] == answers["text"][:1]
    assert (answers["picture"][0]["label"], len(answers["picture"])) == ("ship", 5)
    translated = answers["translated"]["translation_text"]
    assert "Hund" in translated
    assert answers["several"][0] == answers["translated"]
    assert "Hund" in answers["beams"]["translation_text"]
    *pieces, last = answers["pieces"]
    assert "".join(each["text"] for each in pieces) == last["translation_text"] == translated
    assert answers["refused"] == {"error": "inputs is empty"}
