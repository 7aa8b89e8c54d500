"""Options from flags and variables, and their limits."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from service.config import ServiceConfig, available_cores, read_config


def test_a_flag_wins_over_its_variable_and_both_over_the_default() -> None:
    """The order is flag, variable, default."""
    config = read_config(
        ["--http-port", "1234"], {"HEED_HTTP_PORT": "99", "HEED_GRPC_PORT": "98", "HEED_MODEL_STORE": "/x"}
    )
    assert (config.http_port, config.grpc_port, config.model_store) == (1234, 98, Path("/x"))
    assert read_config([], {"HEED_DATASETS": "elsewhere", "OTHER": "1"}) == ServiceConfig()


def test_variables_of_kubernetes_are_ignored() -> None:
    """They belong to a service named heed; HEED_PORT with only a number is refused."""
    found = {"HEED_SERVICE_HOST": "10.0.0.1", "HEED_SERVICE_PORT": "8080", "HEED_SERVICE_PORT_GRPC": "8081"}
    found |= {"HEED_PORT": "tcp://10.0.0.1:8080", "HEED_PORT_8080_TCP": "tcp://10.0.0.1:8080"}
    found |= {"HEED_PORT_8080_TCP_PROTO": "tcp", "HEED_PORT_8080_TCP_PORT": "8080", "HEED_PORT_8080_TCP_ADDR": "x"}
    assert read_config([], found) == ServiceConfig()
    with pytest.raises(ValueError, match="unknown environment variable HEED_PORT;"):
        read_config([], {"HEED_PORT": "8080"})


def test_choices_hold_for_variables_too() -> None:
    """A variable with another value is refused like a flag."""
    with pytest.raises(ValueError, match="HEED_LOG_LEVEL.* must be one of debug, info, warning, error, not 'verbose'"):
        read_config([], {"HEED_LOG_LEVEL": "verbose"})
    assert read_config([], {"HEED_LOG_LEVEL": "debug"}).log_level == "debug"


def test_there_are_at_most_thirty_two_options() -> None:
    """A new option must replace another one."""
    assert len(dataclasses.fields(ServiceConfig)) <= 32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_queue": 0}, "max_queue must be at least 1, not 0"),
        ({"instances": -1}, "instances must be 0"),
        ({"default_timeout_s": 0.0}, "default_timeout_s must be above 0"),
        ({"default_timeout_s": float("nan")}, "default_timeout_s must be above 0"),
        ({"drain_timeout_s": float("inf")}, "drain_timeout_s must be above 0 and finite, not inf"),
        ({"http_port": 70000}, "http_port must lie between 0 and 65535"),
        ({"max_body_bytes": 2**31}, "max_body_bytes must be at most 2147483647, not 2147483648"),
        ({"max_request_memory_bytes": 1000}, "max_body_bytes 16777216 is more than max_request_memory_bytes 1000"),
        ({"max_image_memory_bytes": 0}, "max_image_memory_bytes must be at least 1, not 0"),
        ({"max_image_pixels": 10**9}, "max_image_pixels must be at most 178956970"),
        ({"log_format": "xml"}, r"log_format \(HEED_LOG_FORMAT\) must be one of json, console, not 'xml'"),
    ],
)
def test_values_out_of_range_name_the_option_and_the_limit(options: dict[str, Any], expected: str) -> None:
    """The error comes at start and not at the first request."""
    with pytest.raises(ValueError, match=expected):
        ServiceConfig(**options)


@pytest.mark.parametrize(
    ("instances", "threads", "cores", "layout"),
    [
        (0, 0, 1, (1, 1)),
        (0, 0, 8, (8, 1)),
        (2, 0, 8, (2, 4)),
        (0, 4, 8, (2, 4)),
        (3, 3, 1, (3, 3)),
        (0, 16, 8, (1, 16)),
    ],
)
def test_cores_are_divided_among_instances_and_threads(
    instances: int, threads: int, cores: int, layout: tuple[int, int]
) -> None:
    """Defaults follow from the number of cores."""
    assert ServiceConfig(instances=instances, threads_per_instance=threads).engine_layout(cores, on_gpu=False) == layout


V1, V2 = "sys/fs/cgroup/cpu", "sys/fs/cgroup"
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("", {}, None),
        ("0::/\n", {f"{V2}/cpu.max": "max 100000\n"}, None),
        ("0::/\n", {f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ("0::/outer/inner\n", {f"{V2}/outer/cpu.max": "100000 100000", f"{V2}/outer/inner/cpu.max": "max 100000"}, 1),
        ("0::/../elsewhere\n", {f"{V2}/cpu.max": "20000 100000"}, 1),
        ("3:cpu,cpuacct:/docker/1\n1:name=x:/\n", {f"{V1}/{QUOTA}": "100000", f"{V1}/{PERIOD}": "100000"}, 1),
        ("3:cpuset:/\n2:cpu:/\n", {f"{V1}/{QUOTA}": "-1\n", f"{V1}/{PERIOD}": "100000\n"}, None),
        ("0::/\n", {f"{V2}/cpu.max": "junk"}, None),
    ],
)
def test_available_cores_respect_cgroup_quotas(
    groups: str, files: dict[str, str], quota: int | None, tmp_path: Path
) -> None:
    """Both cgroup versions and outer groups count; without a quota all cores of the process do."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == (quota or len(os.sched_getaffinity(0)))
    assert available_cores(tmp_path / "nothing") == len(os.sched_getaffinity(0))
