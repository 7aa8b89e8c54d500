"""The server's options: each has a flag and a HEED_* variable, and is read once into frozen dataclasses.

A flag overrides its variable. Unknown flags, unknown HEED_* variables and contradictions are refused at start, so that
a misspelt option never falls back to its default.
"""

import argparse
import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from service.version import installed_version

# Variables of other parts of the project that may be set in the same environment: training, docker-compose.yml.
FOREIGN_VARIABLES = {"HEED_DATASETS", "HEED_BIND_ADDRESS", "HEED_CPUS", "HEED_MEMORY"}
MAX_IMAGE_PIXELS = 178_956_970  # Pillow's own limit, which no option can raise
MAX_BODY_BYTES = 2**31 - 1  # gRPC stores sizes in 32 bits


def option(default: Any, text: str) -> Any:
    """Make a dataclass field that is also a flag, with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """All options of `python -m service`."""

    model_store: Path = option(Path("model_store"), "folder of model folders: <name>/<version>/")
    state_dir: str = option(
        "", "folder for results kept across restarts, and for policies of a read-only store; empty: none"
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 opens the server to the network")
    http_port: int = option(8080, "port of HTTP; 0 takes a free one")
    grpc_port: int = option(8081, "port of gRPC; 0 takes a free one")
    device: Literal["cpu", "cuda", "auto"] = option(
        "cpu", "where models are computed; auto: cuda where it works, else cpu"
    )
    instances: int = option(0, "engine calls of one model that run side by side; 0: one for each core, 2 on a GPU")
    threads_per_instance: int = option(0, "threads of one engine call; 0: the cores divided by the instances")
    max_queue: int = option(
        1024,
        "rows that may wait for one model; further requests are refused at once",
    )
    max_batch_rows: int = option(64, "rows of one engine call")
    max_batch_tokens: int = option(16384, "padded tokens of one engine call: longest row x rows")
    max_request_rows: int = option(512, "rows of one request")
    max_body_bytes: int = option(16 * 2**20, "size of one request, over HTTP and gRPC")
    max_image_pixels: int = option(50_000_000, "pixels of one image; larger ones are refused by their header")
    max_request_memory_bytes: int = option(
        128 * 2**20, "bodies and messages that the server holds at once, in bytes; beyond that requests are refused"
    )
    max_image_memory_bytes: int = option(
        224 * 2**20, "decoded images that the server holds at once, in bytes; beyond that images wait their turn"
    )
    max_connections: int = option(2048, "connections of HTTP, and as many of gRPC; further ones are refused")
    client_timeout_s: float = option(
        10.0, "time for an HTTP client to send its headers, or to transfer each 64 KiB of a body or an answer"
    )
    max_concurrent_streams: int = option(128, "concurrent gRPC calls of one connection; clients queue further ones")
    grpc_message_timeout_s: float = option(20.0, "time for a gRPC client to send a message, or to read one of a stream")
    max_connection_age_s: float = option(
        0.0, "maximum age of a gRPC connection, whose client then connects again; 0 for no limit"
    )
    triton_compatible: Literal["off", "on"] = option(
        "off",
        "on: answer typed gRPC requests in raw form, name the server 'triton', show inputs [n] as [n, 1]",
    )
    default_timeout_s: float = option(60.0, "deadline of a request without one")
    load_timeout_s: float = option(300.0, "time to load and prove one model; a model that takes longer is not served")
    engine_timeout_s: float = option(
        120.0, "an engine call that takes longer is terminated; unready if it does not stop"
    )
    drain_timeout_s: float = option(
        30.0, "time after SIGTERM to answer admitted requests; a second SIGTERM shortens it"
    )
    unready_before_drain_s: float = option(
        2.0, "time after SIGTERM when the server is unready but still answers; at most half of drain_timeout_s"
    )
    canary_interval_s: float = option(
        30.0, "time between two golden examples that the canary replays of each model; 0 turns it off"
    )
    huge_pages: Literal["on", "off"] = option(
        "on", "move loaded models to pages of 2 MiB; off: less memory, and a few percent more CPU time"
    )
    tracing: Literal["off", "on"] = option(
        "off", "on: export traces by OTLP as the OTEL_* variables say; needs the extra 'tracing'"
    )
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "debug also logs each request")
    log_format: Literal["json", "console"] = option("json", "one JSON object a line, or columns for people")

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ValueError: names the option and its limit.
        """
        for entry in fields(self):
            # argparse checks choices only for flags; values of variables are defaults to it.
            if (choices := get_args(entry.type)) and getattr(self, entry.name) not in choices:
                given = f"{entry.name} ({variable_of(entry.name)})"
                raise ValueError(f"{given} must be one of {', '.join(choices)}, not {getattr(self, entry.name)!r}")
        for name in ("instances", "threads_per_instance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (automatic) or more, not {getattr(self, name)}")
        for name in ("http_port", "grpc_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} must lie between 0 and 65535, not {getattr(self, name)}")
        for name in (
            "max_queue",
            "max_batch_rows",
            "max_batch_tokens",
            "max_request_rows",
            "max_body_bytes",
            "max_image_pixels",
            "max_request_memory_bytes",
            "max_image_memory_bytes",
            "max_connections",
            "max_concurrent_streams",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, most in (("max_image_pixels", MAX_IMAGE_PIXELS), ("max_body_bytes", MAX_BODY_BYTES)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, not {getattr(self, name)}")
        for name in (
            "client_timeout_s",
            "grpc_message_timeout_s",
            "default_timeout_s",
            "load_timeout_s",
            "engine_timeout_s",
            "drain_timeout_s",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in ("canary_interval_s", "max_connection_age_s", "unready_before_drain_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 (off) or more, and finite, not {getattr(self, name)}")
        if self.http_port == self.grpc_port != 0:
            raise ValueError(f"http_port and grpc_port are both {self.http_port}; each needs its own")
        if self.max_request_rows > self.max_queue:
            raise ValueError(
                f"max_request_rows {self.max_request_rows} is more than max_queue {self.max_queue}:"
                " the largest requests could never be admitted"
            )
        if self.max_body_bytes > self.max_request_memory_bytes:
            raise ValueError(
                f"max_body_bytes {self.max_body_bytes} is more than max_request_memory_bytes"
                f" {self.max_request_memory_bytes}: the largest requests could never be read"
            )

    def engine_layout(self, num_cores: int, *, on_gpu: bool) -> tuple[int, int]:
        """Return the number of engine instances and the threads of each, for a machine with `num_cores` cores.

        The default is one thread per instance: parallel single-threaded calls finish more rows per CPU second than one
        call on several threads, and all instances share one copy of the weights.
        """
        if on_gpu:  # the second instance prepares its batch while the first computes
            return self.instances or 2, self.threads_per_instance or 1
        instances = self.instances or max(1, num_cores // (self.threads_per_instance or 1))
        return instances, self.threads_per_instance or max(1, num_cores // instances)


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, by its CPU affinity and its control groups' quotas.

    A container with `--cpus 2` may run on all cores of its host, but is throttled when it uses more than two.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _cpu_quotas(root))]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of each control group of this process (cgroups(7), both versions)."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted, names = "sys/fs/cgroup", ["cpu.max"]
        if controllers:
            mounted, names = "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        # A group is also limited by its parents; in a container, only the outermost group may be visible.
        for group in (PurePosixPath(own), *PurePosixPath(own).parents):
            folder = root / mounted / group.relative_to("/")
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if int(quota) > 0:
                    yield int(quota) / int(period)


def address_of(host: str, port: int) -> str:
    """Format host and port for URLs and gRPC, with brackets around an IPv6 address (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# What stands for the value of an option in the help, by the last word of its name.
METAVARS = {
    "s": "SECONDS",
    "bytes": "BYTES",
    "rows": "ROWS",
    "tokens": "TOKENS",
    "pixels": "PIXELS",
    "queue": "ROWS",
    "port": "PORT",
    "host": "ADDRESS",
    "store": "FOLDER",
    "dir": "FOLDER",
}


def metavar_of(option_name: str, default: Any) -> str:
    """Return what stands for the value of an option in the help: its kind or unit."""
    return METAVARS.get(option_name.rsplit("_", 1)[-1], "N" if isinstance(default, int) else "TEXT")


def variable_of(option_name: str) -> str:
    """Return the environment variable of an option: HEED_HTTP_PORT for http_port."""
    return f"HEED_{option_name.upper()}"


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes has set a variable; it does so in a namespace with a service named heed."""
    if name == "HEED_PORT":
        return "://" in value  # a port alone may be meant for this server
    return re.fullmatch(r"HEED_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)", name) is not None


def option_parser(prog: str, description: str, environment: Mapping[str, str] = os.environ) -> argparse.ArgumentParser:
    """Make a parser with a flag for each option; its default is the option's HEED_* variable, if that is set."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=f"heed {installed_version()}")
    for entry in fields(ServiceConfig):
        default = entry.default
        assert default is not MISSING
        choices = get_args(entry.type) or None
        variable = variable_of(entry.name)
        parser.add_argument(
            f"--{entry.name.replace('_', '-')}",
            # argparse converts and checks a default that is a string like the value of a flag.
            default=environment.get(variable, str(default)),
            type=type(default),
            choices=choices,
            metavar=None if choices else metavar_of(entry.name, default),
            help=f"{entry.metadata['help']} ({variable}; default {default})",
        )
    return parser


def config_of(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ServiceConfig:
    """Make the configuration of parsed flags.

    Raises:
        ValueError: a variable is unknown, or a value breaks a limit.
    """
    known = {*FOREIGN_VARIABLES, *(variable_of(entry.name) for entry in fields(ServiceConfig))}
    unknown = sorted(
        name
        for name, value in environment.items()
        if name.startswith("HEED_") and name not in known and not _is_of_kubernetes(name, value)
    )
    if unknown:
        raise ValueError(f"unknown environment variable {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return ServiceConfig(**vars(arguments))


def read_config(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> ServiceConfig:
    """Read the options from flags, else from HEED_* variables, else from the defaults.

    Raises:
        SystemExit: help was requested, or a flag is wrong; argparse has printed the reason.
        ValueError: a variable is unknown, or a value breaks a limit.
    """
    description = "Serves the models of a model store over HTTP and gRPC."
    parser = option_parser("python -m service", description, environment)
    return config_of(parser.parse_args(arguments), environment)
