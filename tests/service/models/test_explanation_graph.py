"""The explanation graph is opened and checked at first use, and cannot harm predictions."""

import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest

from model_store.folder import (
    EXPLAIN,
    EXPLAIN_GOLDEN,
    FoundFolder,
    read,
    read_explain_golden,
    write_explain_golden,
    write_manifest,
)
from service.errors import EngineFailed, Unavailable
from service.models.explanation_graph import ExplainGraph
from service.models.loading import Loader
from service.tasks.text.classification import text_row
from tests.conftest import ROOT, Server, running_server

TEXT = "Not a wonderful film."
BODY: dict[str, Any] = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}


def copied(folder: Path, model: str = "sentiment-small") -> Path:
    """Copy a version's folder so that it can be changed."""
    return shutil.copytree(ROOT / "model_store" / model / "1", folder / "1")


def loaded_graph(path: Path) -> ExplainGraph:
    """Load the explanation graph of a folder; it is not open yet."""
    graph = Loader(4, 1, lambda: 0.0).load(FoundFolder("sentiment", "1", path)).graph
    assert graph is not None
    return graph


def rewrite_golden(path: Path, change: Callable[[Any], None]) -> None:
    """Change the golden rows and update their checksum."""
    manifest = read(FoundFolder("sentiment", "1", path)).manifest
    assert manifest is not None
    golden = read_explain_golden(path)
    change(golden)
    write_explain_golden(path, golden)
    write_manifest(path, manifest)


def test_results_are_those_of_the_graph(tmp_path: Path) -> None:
    """Several alphas in one call give ONNX Runtime's results for each alone; invalid inputs raise an error."""
    path = copied(tmp_path)
    graph = loaded_graph(path)
    assert not graph.ready
    graph.open()
    assert graph.ready
    assert graph.attentions == {"encoder": ("attention", 3, 4)}
    session = onnxruntime.InferenceSession(str(path / EXPLAIN), providers=["CPUExecutionProvider"])
    ids, alphas_B = [2, 9, 30, 7, 3], np.array([1.0, 0.25], dtype=np.float32)
    found, took_s = graph.ask(text_row(ids, 1), alphas_B, ["logits", "attribution"])
    assert found.keys() == {"logits", "attribution"}
    assert took_s > 0
    for number, alpha in enumerate(alphas_B):
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, 5), dtype=np.int64)}
        feeds |= {"target": np.array([1]), "alpha": np.array([alpha])}
        for name in found:
            (expected,) = session.run([name], feeds)
            np.testing.assert_allclose(found[name][number], expected[0], atol=1e-5)
    with pytest.raises(EngineFailed, match="the explanation graph failed on this input"):
        graph.ask(text_row([10**9], 1), alphas_B, ["logits"])


def spoil_value(golden: Any) -> None:
    """Change an attribution so that the network's value differs."""
    golden.rows[1].outputs["attribution"][2] += 0.1


def spoil_number(golden: Any) -> None:
    """Add one attention weight too many."""
    golden.rows[0].outputs["attention"].append(0.0)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda path: rewrite_golden(path, spoil_value),
            "attribution of golden example 1: differs by 0.0[0-9]+, the file allows 0.001",
        ),
        (lambda path: rewrite_golden(path, spoil_number), "attention of golden example 0: 72 numbers, not 73"),
    ],
)
def test_a_graph_that_fails_its_check_is_refused_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    """Every use fails with the reason; loading the model does not notice it."""
    path = copied(tmp_path)
    spoil(path)
    graph = loaded_graph(path)
    for _ in range(2):
        with pytest.raises(Unavailable, match=why):
            graph.open()
    assert not graph.ready


def test_the_graph_is_that_of_the_folder_when_it_was_loaded(tmp_path: Path) -> None:
    """The folder may be changed or deleted between loading and the first explanation."""
    path = copied(tmp_path)
    graph, expected = loaded_graph(path), loaded_graph(path)
    expected.open()
    shutil.rmtree(path)
    graph.open()
    alphas_B = np.array([0.5], dtype=np.float32)
    found, _ = graph.ask(text_row([2, 9, 3], 1), alphas_B, ["attribution"])
    wanted, _ = expected.ask(text_row([2, 9, 3], 1), alphas_B, ["attribution"])
    np.testing.assert_array_equal(found["attribution"], wanted["attribution"])


def test_opening_is_retried_after_file_descriptors_ran_out(tmp_path: Path) -> None:
    """EMFILE at the first use is temporary, so the next request opens the graph."""
    graph = loaded_graph(copied(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # an open graph stays open
    try:
        for _ in range(2):
            with pytest.raises(Unavailable, match="the explanation graph of model 'sentiment' version '1' is not used"):
                graph.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not graph.ready
    graph.open()
    assert graph.ready


def ready_entries(server: Server) -> list[dict[str, Any]]:
    """Return the log entries of explanation graphs."""
    return [entry for entry in server.log if entry["event"].startswith("explanation graph")]


def test_the_server_opens_the_graph_once_at_the_first_request(tmp_path: Path) -> None:
    """Other methods do not open it, concurrent requests share it, and a broken graph affects nothing else."""
    for name in ("sound", "spoiled", "without"):
        copied(tmp_path / name)
    rewrite_golden(tmp_path / "spoiled/1", spoil_value)
    manifest = read(FoundFolder("without", "1", tmp_path / "without/1")).manifest
    assert manifest is not None
    for name in (EXPLAIN, EXPLAIN_GOLDEN):
        (tmp_path / "without/1" / name).unlink()
    write_manifest(tmp_path / "without/1", manifest)

    def explain(http: httpx.Client, model: str, method: str) -> httpx.Response:
        return http.post(f"/v2/models/{model}/explain", json=BODY | {"parameters": {"method": method}})

    with running_server(tmp_path) as server, httpx.Client(base_url=server.http, timeout=30) as http:
        assert explain(http, "sound", "occlusion").status_code == 200
        assert ready_entries(server) == []
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(explain, http, "sound", method) for method in ("attention", "gradients") * 2]
            assert [each.result().status_code for each in asked] == [200] * 4
        assert [entry["model"] for entry in ready_entries(server)] == ["sound"]
        for _ in range(2):
            refused = explain(http, "spoiled", "gradients")
            assert refused.status_code == 503
            assert refused.json()["error"].startswith(
                "the explanation graph of model 'spoiled' version '1' is not used:"
            )
        server.wait_for("explanation graph is not used", model="spoiled")
        assert len(ready_entries(server)) == 2
        assert explain(http, "spoiled", "occlusion").status_code == 200
        assert http.post("/models/spoiled", json={"inputs": TEXT}).status_code == 200
        assert http.get("/readyz").status_code == 200
        refused = explain(http, "without", "attention")
        assert refused.status_code == 400
        text = "model 'without' has no graph for method 'attention'; it has occlusion, lime, shap"
        assert refused.json() == {"error": text}
        index = {model["name"]: model["explain"] for model in http.get("/v2/models").json()["models"]}
        assert index["without"] == ["occlusion", "lime", "shap"]
        assert index["sound"] == ["occlusion", "lime", "shap", "attention", "gradients"]
