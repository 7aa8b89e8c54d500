"""Trained runs measured side by side, as they are served."""

import json
from pathlib import Path

from rich.console import Console

from load_tests.bench.trained_runs import measure


async def test_every_model_is_measured_in_a_server_of_its_own(image_store: Path) -> None:
    """One short round: latency, throughput and cost, and how they were measured."""
    result = await measure(image_store, ["sentiment"], 1, 160, Console(quiet=True))
    assert result["models"].keys() == {"sentiment"}
    measured = result["models"]["sentiment"]
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    assert measured["requests_per_s"] > 0
    assert 0 < measured["cpu_s_per_1000"] < 100
    assert json.dumps(result)
    for field in ("command", "commit", "machine", "rounds", "wall_s"):
        assert result[field], field
