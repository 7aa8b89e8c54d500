"""`python -m service`: prepares the process, then runs `service.server`."""

import os
import signal
import sys
from typing import TYPE_CHECKING

from service.version import not_installed

if TYPE_CHECKING:
    from service.config import ServiceConfig
    from service.telemetry.logs import Logs

FLUSH_LOGS_S = 1.0  # time at the end for a slow reader of the log


def main(given: "ServiceConfig | None" = None) -> int:
    """Run the server and return its exit status; a missing package is said in one sentence.

    Args:
        given: the options; None: they are read from the command line and the environment.
    """
    try:
        return start(given)
    except ModuleNotFoundError as error:
        print(f"python -m service: {not_installed(error)}", file=sys.stderr)
        return 2


def start(given: "ServiceConfig | None") -> int:
    """Prepare the process, read the options unless they are given, run the server, and return its exit status.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    prepare_process()
    # Imported late, because libraries read the environment when they are imported.
    from service.config import read_config
    from service.telemetry.logs import Logs, log_hangup, log_uncaught

    try:
        config = read_config(sys.argv[1:]) if given is None else given
    except ValueError as error:
        print(f"python -m service: {error}", file=sys.stderr)
        return 2
    logs = Logs(config)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: log_hangup())
    try:
        return run(config, logs)
    except ModuleNotFoundError:
        raise  # `main` says what installs the package
    except Exception:
        log_uncaught(*sys.exc_info())
        return 1
    finally:
        logs.close(FLUSH_LOGS_S)


def run(config: "ServiceConfig", logs: "Logs") -> int:
    """Import the server, run it, and return its exit status."""
    import uvloop

    from service.engines.device import DeviceMissing, choose_device
    from service.server import serve

    try:
        device = choose_device(config.device)
    except DeviceMissing as error:
        logs.close(FLUSH_LOGS_S)  # an error in the command line is printed as text, not in the log's format
        print(f"python -m service: {error}", file=sys.stderr)
        return 2
    return uvloop.run(serve(config, device, logs))


def prepare_process() -> None:
    """Set up the process before threads start and libraries are imported."""
    from service.process.allocator import give_long_allocations_own_pages
    from service.process.thread_priority import use_batch_policy

    # Until `service.server` installs its handler. The first process of a container would otherwise ignore SIGTERM,
    # because the kernel does not deliver signals without a handler to it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if hasattr(signal, "SIGHUP"):  # a closed terminal, or a reload that is not supported, must not end the server
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    use_batch_policy()
    give_long_allocations_own_pages()
    # One thread tokenizes the texts of a request: otherwise the library would take all cores from the engines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # gRPC's core writes lines in its own format to standard error; our own errors contain the same information.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


if __name__ == "__main__":
    sys.exit(main())
