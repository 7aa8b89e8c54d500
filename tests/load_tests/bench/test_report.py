"""The report of the benchmark: what the server costs beside echo servers."""

from load_tests.bench.report import echo_ratios, report_overhead

ROUNDS = [
    {
        "overhead": {
            f"{name}, {users}": cost
            for users in (1, 16, 64)
            for name, cost in {"echo": 0.2, "tuned echo": echo, "grpc": 0.3, "http": 0.4}.items()
        }
    }
    for echo in (0.1, 0.15, 0.3)
]


def test_the_server_is_compared_with_both_echoes() -> None:
    """The ratio to each is taken within a round; the table has the median and the range of both."""
    assert [round(ratio, 6) for ratio in echo_ratios(ROUNDS, "echo", 1)] == [1.5, 1.5, 1.5]
    assert [round(ratio, 6) for ratio in echo_ratios(ROUNDS, "tuned echo", 1)] == [3.0, 2.0, 1.0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in report_overhead(ROUNDS) if "|" in line]
    row = dict(zip(table[0], table[2], strict=True))
    assert row["users"] == "1"
    assert row["echo with the service's settings"] == "0.150 (0.100 to 0.300)"
    assert row["gRPC / bare echo"] == "1.50 (1.50 to 1.50)"
    assert row["gRPC / echo with the service's settings"] == "2.00 (1.00 to 3.00)"
