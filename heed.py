"""The console script `heed`, also `python -m heed`: starts the server, answers a file, or runs a command of `export`.

Neither `service` nor `export` is imported before the command is known, so that help costs nothing, `heed serve` starts
as fast as `python -m service`, and an installation that can only serve needs none of the packages of training.
"""

import runpy
import sys
from importlib.metadata import PackageNotFoundError, version

SERVING = {
    "serve": "start the server on a model store, or on checkpoints, ONNX files and model folders",
    "predict": "answer each row of a file, without a server or with a running one",
}
EXPORT = {
    "train": "train a model into a run folder, or resume an unfinished run",
    "convert": "convert a finished run to the next version in the model store",
    "load": "convert a Hugging Face model to the next version in the model store",
    "queue": "train a list of runs in order",
    "measure": "measure the weights of a finished run again",
    "report": "write the page of trained models from the records of the runs",
    "explain-graph": "add the graph that explains to versions in the model store",
    "half-graphs": "add float16 graphs for GPUs to versions in the model store",
    "measure-batches": "measure how much int8 answers change with the other items of a batch",
    "explain": "study attention and explanations of the committed models",
    "untrained": "write a model with random weights, for measuring speed",
    "archive": "pack models of the store for TorchServe",
    "export": "show the help of all commands of training and conversion",
}
MISTAKE, INTERRUPTED = 2, 130  # exit statuses of argparse for a wrong command line, and of a shell for Ctrl-C


def main() -> int:
    """Run one command and return its exit status."""
    match sys.argv[1:]:
        case [] | ["-h" | "--help"]:
            print(usage(), end="")
        case ["--version"]:
            print(f"heed {installed_version()}")
        case ["serve", *options]:
            return serve(options)
        case ["predict", *options]:
            return predict(options)
        case [command, *options] if command in EXPORT:
            return run_export(command, options)
        case [command, *_]:
            return refuse(command)
    return 0


def usage() -> str:
    """Return the help: every command in one line."""

    def lines(commands: dict[str, str]) -> str:
        return "".join(f"  {name:<16} {text}\n" for name, text in commands.items())

    return (
        "usage: heed [--help] [--version] <command> [options]\n\n"
        f"serving (`python -m service`):\n{lines(SERVING)}\n"
        f"training and conversion (`python -m export`), with the extra `train`:\n{lines(EXPORT)}\n"
        "`heed <command> --help` lists the options of a command.\n"
    )


def installed_version() -> str:
    """Return the version; "unknown" if the package runs from a folder without being installed."""
    try:
        return version("heed")
    except PackageNotFoundError:
        return "unknown"


def refuse(command: str) -> int:
    """Say that there is no such command, with the most likely ones, and return the exit status."""
    from difflib import SequenceMatcher  # imported late, because it takes longer than the rest

    known = [*SERVING, *EXPORT]
    known.sort(key=lambda name: -SequenceMatcher(None, command.lower(), name).ratio())
    print(f"heed: there is no command {command!r}; there are {', '.join(known)}", file=sys.stderr)
    return MISTAKE


def say(line: str) -> None:
    """Print a line about what is done before the server starts."""
    print(line, file=sys.stderr, flush=True)


def serve(options: list[str]) -> int:
    """Start the server, on the models that the command line names or on the model store."""
    from service.config import config_of, option_parser

    parser = option_parser(
        "heed serve",
        "Serves models over HTTP and gRPC: those of the model store, or the named ones, which are converted first where"
        " they are checkpoints.",
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="a checkpoint's folder or hub id, an ONNX file, or a model folder"
    )
    try:
        from service.sources.kinds import SourceRefused
        from service.sources.opening import add_source_options, open_store, source_options
    except ModuleNotFoundError as error:
        from service.version import not_installed

        print(f"heed serve: {not_installed(error)}", file=sys.stderr)
        return MISTAKE
    add_source_options(parser)
    arguments = parser.parse_intermixed_args(options)
    sources, models = source_options(arguments), vars(arguments).pop("models")
    try:
        if models:
            if any(word.partition("=")[0] == "--model-store" for word in options):
                raise ValueError(f"--model-store and models ({', '.join(models)}): name the store as one of the models")
            config_of(arguments)  # a wrong option is refused before a conversion that takes minutes
            arguments.model_store = open_store(models, sources, say)
        config = config_of(arguments)
    except SourceRefused as error:
        print(f"heed serve: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:  # while it waited for another process
        print("heed serve: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        print(f"heed serve: {error}", file=sys.stderr)
        return MISTAKE
    from service.__main__ import main as run_server

    return run_server(config)


def predict(options: list[str]) -> int:
    """Answer each row of a file."""
    from service.version import not_installed

    try:
        from service.offline.command import main as run
    except ModuleNotFoundError as error:
        print(f"heed predict: {not_installed(error)}", file=sys.stderr)
        return MISTAKE
    return run(options)


def run_export(command: str, options: list[str]) -> int:
    """Run a command of `python -m export` in this process; the command `export` itself shows the program's help.

    Raises:
        SystemExit: carries the command's exit status.
    """
    sys.argv[1:] = (options or ["--help"]) if command == "export" else [command, *options]
    try:
        runpy.run_module("export", run_name="__main__", alter_sys=True)
    except ImportError as error:
        print(
            f"heed {command}: {error}. This installation can only serve; `pip install 'heed[train]'` installs what"
            " training and conversion need.",
            file=sys.stderr,
        )
        return MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
