"""The console script `heed`: starts the server, or a command of `python -m export`.

Nothing is imported before the command is known, so `heed serve` starts as fast as `python -m service`. Commands of
`export/` are started by module name, because `service/` may not import `export/`, and serving-only installations lack
its dependencies.
"""

import runpy
import sys

from service.version import installed_version

USAGE = """usage: heed [--help] [--version] <command> [options]

  serve      start the server, as `python -m service` does; `heed serve --help` lists its options
  <command>  a command of `python -m export`, such as train, convert and load; `heed export --help` lists them;
             needs the extra `train`
"""
MISTAKE = 2  # exit status of argparse for a wrong command line


def main() -> int:
    """Run one command and return its exit status."""
    match sys.argv[1:]:
        case [] | ["-h" | "--help"]:
            print(USAGE, end="")
        case ["--version"]:
            print(f"heed {installed_version()}")
        case ["serve", *options]:
            from service.__main__ import main as serve

            sys.argv = ["heed serve", *options]
            return serve()
        case [command, *options]:
            return run_export(command, options)
    return 0


def run_export(command: str, options: list[str]) -> int:
    """Run a command of `python -m export` in this process; the command `export` itself shows the program's help.

    Raises:
        SystemExit: carries the command's exit status.
    """
    sys.argv[1:] = options if command == "export" else [command, *options]
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
