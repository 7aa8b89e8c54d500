"""A real Prometheus on a real server under load: every expression of the dashboard and of the rules returns data."""

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
import yaml

from load_tests.processes import free_port
from proto import heed_pb2, heed_pb2_grpc
from service.monitoring.dashboard import FILE
from tests.conftest import ROOT, START_S, Server, running_server

FOLDER = ROOT / "service/monitoring"
RUNBOOK = ROOT / "docs/operations.md"
ALERTS = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def tool(name: str) -> str:
    """Find a program of Prometheus."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on the path (Debian's package prometheus has it)")
    return path


@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]],
)
def test_promtool_accepts(arguments: list[str]) -> None:
    """Configuration, rules, and each alert in a case where it fires and in one where it must not."""
    done = subprocess.run([tool("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_firing_and_silent() -> None:
    """The unit tests of the rules have a case where each alert fires and one where it must not."""
    cases = [
        case
        for test in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    for rule in ALERTS:
        fires = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]}
        assert fires == {True, False}, rule["alert"]


def test_every_alert_has_its_section_in_the_runbook() -> None:
    """The anchor of its annotation exists."""
    headings = {
        re.sub(r"[^\w -]", "", line[3:].strip().lower()).replace(" ", "-")
        for line in RUNBOOK.read_text().splitlines()
        if line.startswith("###")
    }
    for rule in ALERTS:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ROOT / page == RUNBOOK
        assert anchor in headings, rule["alert"]


@pytest.fixture(scope="module")
def loaded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with models of every task and a short canary interval."""
    store = tmp_path_factory.mktemp("store")
    for name in ("sentiment-small", "cifar10-vit", "translation-en-de"):
        (store / name).symlink_to(ROOT / "model_store" / name)
    with running_server(store, "--canary-interval-s", "0.5") as server:
        yield server


@pytest.fixture(scope="module")
def ask(loaded_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[Any]]]:
    """A Prometheus with our rules that has scraped the server under load; asks it for an expression's series."""
    prometheus, folder, address = tool("prometheus"), tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{free_port()}"
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "rules.yml")]
    (config["scrape_configs"][0]["static_configs"],) = [[{"targets": [loaded_server.http.removeprefix("http://")]}]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    command += [f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as running:
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=START_S) as client:

                def ask(expression: str) -> list[Any]:
                    response = client.get("/api/v1/query", params={"query": expression})
                    document = response.json()
                    assert document["status"] == "success", (expression, document)
                    found = document["data"]["result"]
                    return [series for series in found if series["value"][1] != "NaN"]

                wait_until(lambda: client.get("/-/ready").status_code == 200)
                # A rate needs two scrapes of a series with load between them.
                wait_until(lambda: load(loaded_server) and bool(ask("heed:error_ratio:rate6h > 0")))
                wait_until(lambda: load(loaded_server) and bool(ask(FIRST_AND_LAST)))
                yield ask
        finally:
            running.terminate()
            running.wait(START_S)


# Series that need a change between two scrapes, or a rule that depends on another.
FIRST_AND_LAST = (
    'heed:request_seconds:p99_5m{model="translation-en-de"} > 0 and on () heed:padding:ratio_rate5m'
    ' and on () sum(increase(heed_canary_runs_total{outcome="ok"}[1m])) > 2 and on () ALERTS'
)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds; fail after a while."""
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.2)
    raise AssertionError("it did not come to pass")


def load(server: Server) -> bool:
    """Send valid, invalid and overdue requests over both protocols."""
    image = next((ROOT / "model_store/cifar10-vit/1").glob("golden.json"))
    file = json.loads(image.read_text())[0]["inputs"]["image"]
    with httpx.Client(base_url=server.http, timeout=START_S) as client:
        for _ in range(3):
            assert client.post(
                "/models/sentiment-small", json={"inputs": ["good", "a longer text than that"]}
            ).is_success
            assert client.post("/models/translation-en-de", json={"inputs": "A dog."}).is_success
            assert client.post("/models/cifar10-vit", json={"inputs": file}).is_success
            assert client.post("/models/sentiment-small", json={"inputs": ""}).status_code == 400
            explained = {"inputs": "A good film.", "parameters": {"explain": {"method": "occlusion"}}}
            assert client.post("/models/sentiment-small", json=explained).is_success
            hopeless = {"x-request-timeout-ms": "1"}
            long = {"inputs": ["a dog " * 30] * 64}
            assert client.post("/models/translation-en-de", json=long, headers=hopeless).status_code == 504
    with grpc.insecure_channel(server.grpc) as channel:
        stub = heed_pb2_grpc.HeedStub(channel)
        for _ in range(3):
            stub.ClassifyText(heed_pb2.ClassifyTextRequest(model="sentiment-small", text="good"), timeout=START_S)
    return True


def expressions(document: dict[str, Any]) -> list[tuple[str, str]]:
    """List title and expression of each query of a dashboard, with its variables filled in."""
    filled = {"$__rate_interval": "10s", "$model": ".*", "$version": ".*"}
    found = []
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in filled.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            found.append((panel["title"], expression))
    return found


def test_every_query_of_the_dashboard_returns_data(ask: Callable[[str], list[Any]]) -> None:
    """Each expression returns data, and each variable has values."""
    document = json.loads(FILE.read_text())
    empty = [(title, expression) for title, expression in expressions(document) if not ask(expression)]
    assert empty == []
    for variable in document["templating"]["list"]:
        series = re.match(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert series
        values = {each["metric"][series[2]] for each in ask(series[1].replace("$model", ".*"))}
        assert values >= ({"sentiment-small"} if series[2] == "model" else {"1"})


def test_rules_are_recorded_and_alerts_read_existing_series(ask: Callable[[str], list[Any]]) -> None:
    """An alert on a misspelt series would never fire."""
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                assert ask(rule["record"]), rule["record"]
            else:
                ask(rule["expr"])
                names = set(re.findall(r"\b(?:heed[\w:]+|up)(?=[\s{\[)])", rule["expr"] + " "))
                assert names, rule["alert"]
                for name in names:
                    assert ask(name), (rule["alert"], name)
    assert not ask('ALERTS{alertname=~"HeedTargetDown|HeedModelNotReady|HeedCanaryFails"}')
