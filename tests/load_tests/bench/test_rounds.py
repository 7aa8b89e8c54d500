"""Model stores that the benchmarks build and reuse."""

from pathlib import Path

from load_tests.bench.rounds import forget_unless_made_by


def test_a_store_of_another_commit_is_rebuilt(tmp_path: Path) -> None:
    """Otherwise a graph of another commit would be measured under the name of this one."""
    for origin, kept in (("abc", False), ("abc", True), ("def", False), ("def-dirty", False), ("def-dirty", False)):
        forget_unless_made_by(tmp_path / "store", origin)
        assert (tmp_path / "store/model.onnx").exists() == kept, origin
        (tmp_path / "store/model.onnx").touch()
