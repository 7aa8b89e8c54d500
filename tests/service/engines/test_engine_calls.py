"""Calls whose work depends on a value, over a real server: a Loop of as many turns as its request says."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from onnx import TensorProto, helper

from tests.conftest import START_S, Server, running_server, write_onnx

ENDLESS = 2**62  # turns


@pytest.fixture(scope="module")
def loop_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one instance of a graph that adds 1 to a number, n times."""
    store = tmp_path_factory.mktemp("loop") / "models"
    scalars = {"number": (TensorProto.INT64, []), "going": (TensorProto.BOOL, []), "before": (TensorProto.INT64, [])}
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "body",
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in scalars.items()],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.INT64, []),
        ],
        [helper.make_tensor("one", TensorProto.INT64, [], [1])],
    )
    nodes = [
        helper.make_node("Constant", [], ["more"], value=helper.make_tensor("true", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Squeeze", ["n"], ["count"]),
        helper.make_node("Loop", ["count", "more", "zero"], ["y"], body=body),
    ]
    write_onnx(store / "loop/1", nodes, {"n": (TensorProto.INT64, [1])}, {"y": (TensorProto.INT64, [])})
    with running_server(store, "--instances", "1", "--threads-per-instance", "1", "--engine-timeout-s", "2") as server:
        yield server


def ask(server: Server, turns: int, timeout_s: float = START_S) -> tuple[int, Any]:
    """Ask the model; status and body of the answer."""
    body = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [turns]}]}
    headers = {"x-request-timeout-ms": str(int(1e3 * timeout_s))}
    request = urllib.request.Request(f"{server.http}/v2/models/loop/infer", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=START_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def metric(server: Server, series: str) -> float:
    """The value of a series."""
    with urllib.request.urlopen(f"{server.http}/metrics", timeout=START_S) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(series))


def test_a_value_that_makes_a_call_endless_stops_nobody(loop_server: Server) -> None:
    """After thirty calls of one turn: its deadline holds, others are answered meanwhile, its instance is free again."""
    for _ in range(30):
        assert ask(loop_server, 1)[0] == 200
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(ask(loop_server, ENDLESS, timeout_s=1.0)))
    asking.start()
    while asking.is_alive():
        with urllib.request.urlopen(f"{loop_server.http}/healthz", timeout=START_S) as response:
            assert response.status == 200
        asking.join(0.01)
    assert answers[0][0] == 504
    status, answer = ask(loop_server, 7)
    assert (status, answer["outputs"][0]["data"]) == (200, [7])
    assert metric(loop_server, 'heed_terminated_calls_total{model="loop",reason="abandoned",version="1"}') == 1.0
    assert metric(loop_server, 'heed_rows_in_vain_total{model="loop",version="1"}') == 1.0


def test_the_engine_timeout_ends_a_call_and_not_the_server(loop_server: Server) -> None:
    """The request is told why, and the server stays ready all the time."""
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(ask(loop_server, ENDLESS)))
    asking.start()
    while asking.is_alive():
        with urllib.request.urlopen(f"{loop_server.http}/readyz", timeout=START_S) as response:
            assert response.status == 200
        asking.join(0.05)
    assert answers[0][0] == 500
    assert "took longer than 2 s (engine_timeout_s)" in answers[0][1]["error"]
    assert ask(loop_server, 3)[0] == 200
    assert not any("terminate flag" in entry["event"] for entry in loop_server.log)
