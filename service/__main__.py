"""`python -m service`: prepares the process, then runs `service.server` in it."""

import contextlib
import logging
import os
import signal
import sys

import structlog

from service.config import ServiceConfig, read_config


def main() -> int:
    """Run the server; its exit status."""
    try:
        config = read_config(sys.argv[1:])
    except ValueError as error:
        print(f"python -m service: {error}", file=sys.stderr)
        return 2
    configure_logging(config)
    prepare_process()
    # After that, for libraries look at the environment when they are imported.
    import uvloop

    from service.device import DeviceMissing, choose_device
    from service.server import serve

    try:
        device = choose_device(config.device)
    except DeviceMissing as error:
        print(f"python -m service: {error}", file=sys.stderr)
        return 2
    return uvloop.run(serve(config, device))


def prepare_process() -> None:
    """What the whole process is set to before threads begin and libraries are imported."""
    # Until `service.server` takes SIGTERM over. The first process of a container would otherwise not hear it: the
    # kernel keeps signals without a handler from it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Linux, where it is allowed, for all threads to come: one that wakes up does not interrupt the one that computes,
    # but waits for its turn. On busy cores that saved a seventh or more of a request's CPU time (docs/decisions.md).
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # One request's texts are tokenized in one thread: the library would else take all cores from the engines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # gRPC's core writes lines of its own format to standard error; what they tell, errors of ours tell as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # gRPC waits for its sockets in the thread that hands their events on, as it did before version 1.80, and not in
    # more threads behind that one: about 10 % less CPU time for a request without a model (docs/decisions.md).
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_poller_for_python")


def configure_logging(config: ServiceConfig) -> None:
    """Structured lines on standard error: JSON, or columns for people."""
    level = getattr(logging, config.log_level.upper())
    renderer: structlog.typing.Processor
    if config.log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *((structlog.processors.dict_tracebacks,) if config.log_format == "json" else ()),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Each line in one piece: threads of libraries write to the same place.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries (uvicorn, grpc) log through the standard library: warnings and worse, in the same place.
    logging.basicConfig(
        level=max(level, logging.WARNING),
        stream=sys.stderr,
        format="%(name)s: %(message)s",
    )


if __name__ == "__main__":
    sys.exit(main())
