"""The benchmark of trained runs, served side by side."""

import json
from pathlib import Path

from rich.console import Console

from load_tests.bench.trained_runs import measure


async def test_every_model_has_latency_throughput_and_cost(image_store: Path) -> None:
    """One short round has all figures, and the conditions of the measurement."""
    result = await measure(image_store, ["sentiment"], 1, 160, Console(quiet=True))
    assert result["models"].keys() == {"sentiment"}
    measured = result["models"]["sentiment"]
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    assert measured["requests_per_s"] > 0
    assert 0 < measured["cpu_s_per_1000"] < 100
    assert json.dumps(result)
    for field in ("command", "commit", "machine", "rounds", "wall_s"):
        assert result[field], field
