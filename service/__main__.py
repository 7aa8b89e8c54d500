"""`python -m service`: prepares the process, then runs `service.server` in it."""

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.config import ServiceConfig
    from service.telemetry.logs import Logs

FLUSH_LOGS_S = 1.0  # at the end, for a reader of the log that is slow; one that has stopped is not waited for


def main() -> int:
    """Run the server; its exit status."""
    prepare_process()
    # Only now, for libraries look at the environment when they are imported.
    from service.config import read_config
    from service.telemetry.logs import Logs, log_hangup, log_uncaught

    try:
        config = read_config(sys.argv[1:])
    except ValueError as error:
        print(f"python -m service: {error}", file=sys.stderr)
        return 2
    logs = Logs(config)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: log_hangup())
    try:
        return run(config, logs)
    except Exception:
        log_uncaught(*sys.exc_info())
        return 1
    finally:
        logs.close(FLUSH_LOGS_S)


def run(config: "ServiceConfig", logs: "Logs") -> int:
    """Import what serves, and serve; the exit status."""
    import uvloop

    from service.engines.device import DeviceMissing, choose_device
    from service.server import serve

    try:
        device = choose_device(config.device)
    except DeviceMissing as error:
        logs.close(FLUSH_LOGS_S)  # a mistake of the command line is told in words, not in the log's format
        print(f"python -m service: {error}", file=sys.stderr)
        return 2
    return uvloop.run(serve(config, device, logs))


def prepare_process() -> None:
    """What the whole process is set to before threads begin and libraries are imported."""
    from service.process.allocator import give_long_allocations_own_pages
    from service.process.thread_priority import use_batch_policy

    # Until `service.server` takes SIGTERM over. The first process of a container would otherwise not hear it: the
    # kernel keeps signals without a handler from it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if hasattr(signal, "SIGHUP"):  # a terminal that closes, or an operator who expects a reload, must not end a server
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    use_batch_policy()
    give_long_allocations_own_pages()
    # One request's texts are tokenized in one thread: the library would else take all cores from the engines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # gRPC's core writes lines of its own format to standard error; what they tell, errors of ours tell as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


if __name__ == "__main__":
    sys.exit(main())
