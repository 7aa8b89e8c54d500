"""`python -m load_tests.gpu_check`, run on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from load_tests.gpu_check.served import problems_of
from tests.conftest import ROOT


@pytest.mark.slow
def test_parity_engine_and_served_throughput_are_measured(tmp_path: Path) -> None:
    """Every model is in the JSON and the table; a model that is not served is named and sets the status."""
    store, results, page = tmp_path / "store", tmp_path / "results.json", tmp_path / "page.md"
    store.mkdir()
    for name in ("sentiment-small", "translation-en-de", "cifar10-vit"):
        (store / name).symlink_to(ROOT / "model_store" / name)
    page.write_text("<!-- gpu: begin --><!-- gpu: end -->\n")
    command = [sys.executable, "-m", "load_tests.gpu_check", "--device", "cpu", "--model-store", str(store)]
    command += ["--results", str(results), "--document", str(page), "--seconds", "0.01", "--requests", "64"]
    done = subprocess.run(
        [*command, "--clients", "2", "--concurrency", "8", "16"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert found["parity"] == {"cifar10-vit": None, "sentiment-small": None, "translation-en-de": None}
    assert found["problems"] == []
    assert found["taken"] == {
        "bare": {"precision": None, "cache": None},
        "cifar10-vit": {"precision": "float32", "cache": None},
        "sentiment-small": {"precision": "float32", "cache": None},
        "translation-en-de": {"precision": "float32", "cache": "host"},
    }
    assert found["bare"]["graph"] == "cifar10-vit/model.onnx"
    assert found["bare"]["max_abs_difference"] < 1e-4
    assert {row["model"] for row in found["served"]} == {"sentiment-small", "translation-en-de"}
    assert all(row["requests_per_s"] > 0 and row["clients"] == 2 for row in found["served"])
    assert all(row["rows_per_s"] > 0 for row in found["engine"])
    assert {row["model"] for row in found["images"]} == {"cifar10-vit"}
    assert all(row["rows_per_s"] > 0 and not row["captured"] for row in found["images"])
    assert found["left_out"] == []
    assert "| translation-en-de | yes, golden examples within tolerance | float32 | host |" in page.read_text()
    assert "`cifar10-vit/model.onnx` without its manifest: within" in page.read_text()
    assert "| cifar10-vit, 32 images |" in page.read_text()

    damaged = tmp_path / "damaged/sentiment-small/1"
    damaged.mkdir(parents=True)
    (tmp_path / "damaged/translation-en-de").symlink_to(ROOT / "model_store/translation-en-de")
    for file in (ROOT / "model_store/sentiment-small/1").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes() + (b" " if file.name == "tokenizer.json" else b""))
    command[command.index("--model-store") + 1] = str(tmp_path / "damaged")
    done = subprocess.run([*command, "--budget-s", "0"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert "tokenizer.json" in found["parity"]["sentiment-small"]
    assert [problem.split(":")[0] for problem in found["problems"]] == ["sentiment-small is not served"]
    assert found["served"] == found["engine"] == []
    assert len(found["left_out"]) > 6


@pytest.mark.parametrize(
    ("precision", "cache", "difference", "expected"),
    [
        ("float16", "device", 0.001, []),
        ("float32", "host", 0.001, ["translation-en-de is served in float32, though it has graphs in half precision"]),
        ("float16", "host", 0.001, ["translation-en-de keeps its cache in the host's memory"]),
        ("float16", "device", 0.5, ["the bare graph answers 0.5 off the CPU's answers"]),
        ("float16", "device", float("nan"), ["the bare graph answers nan off the CPU's answers"]),
    ],
)
def test_unexpected_graphs_on_a_gpu_are_problems(
    precision: str, cache: str, difference: float, expected: list[str]
) -> None:
    """Problems are other graphs than half precision, a cache on the host, and different answers of a bare graph."""
    found = {
        "device": "cuda",
        "parity": {"translation-en-de": None},
        "taken": {
            "bare": {"precision": None, "cache": None},
            "translation-en-de": {"precision": precision, "cache": cache},
        },
        "bare": {"max_abs_difference": difference},
    }
    assert problems_of(ROOT / "model_store", found) == expected
