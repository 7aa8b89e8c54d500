"""Closed-loop drivers of the benchmarks."""

from collections.abc import Sequence

import pytest

from load_tests.drivers import Load, drive_grpc, drive_http, mean_batch_rows
from load_tests.material import load_sentences
from tests.conftest import Server


async def test_drivers_get_answers(server: Server) -> None:
    """Both protocols work."""
    texts: Sequence[str] = load_sentences().texts
    for drive, address in ((drive_grpc, server.grpc), (drive_http, server.http)):
        summary = (await drive(int(address.rsplit(":", 1)[1]), "sentiment", texts, 4, 40)).summary()
        assert summary["requests_per_s"] > 0
        assert summary["mean_batch_rows"] >= 1


def test_a_batch_counts_once_for_all_of_its_answers() -> None:
    """Batches of 63 rows and of 1 row have a mean of 32, although 63 of 64 answers report the large one."""
    assert mean_batch_rows({63: 63, 1: 1}) == pytest.approx(32)
    load = Load(batches=[(63, 630, 63)] * 63 + [(1, 10, 0)], latencies_s=[0.1], wall_s=1.0)
    assert load.summary()["mean_batch_rows"] == pytest.approx(32)
    assert load.summary()["padded_share"] == pytest.approx(63 / 640)
