"""`python -m tests.check`: lint, format, types, imports, unused names, generated code; one line at the end."""

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS = {
    "ruff": [BIN / "ruff", "check", "."],
    "format": [BIN / "ruff", "format", "--check", "."],
    "mypy": [BIN / "mypy"],
    "imports": [BIN / "lint-imports"],
    "unused": [sys.executable, "-m", "tests.unused"],
    "protobuf": [sys.executable, "-m", "proto.generate", "--check"],
}


def main() -> int:
    """Run every check, even after a failure; the exit status is 1 if one failed."""
    failed = []
    for name, command in CHECKS.items():
        print(f"--- {name}", flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    passed = [name for name in CHECKS if name not in failed]
    print(f"checks passed: {', '.join(passed) or 'none'}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
