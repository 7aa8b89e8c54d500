"""`python -m tests`: every test, and one line at the end that says what passed.

Clients that others wrote bring protobuf classes of the same names as ours, which cannot live in one process with them:
their tests run in a process of their own.
"""

import re
import subprocess
import sys

SUITES = (["tests", "--ignore=tests/clients"], ["tests/clients"])


def main() -> int:
    """Run both suites; non-zero when anything failed."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    status = 0
    for suite in SUITES:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", *suite, *sys.argv[1:]],
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert run.stdout
        last = ""
        for line in run.stdout:
            print(line, end="", flush=True)
            last = line if re.search(r"\d+ (passed|failed|error)", line) else last
        status |= run.wait()
        for number, outcome in re.findall(r"(\d+) (passed|failed|error|skipped)", last):
            counts["failed" if outcome == "error" else outcome] += int(number)
    print(f"tests: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    print(f"{counts['passed']} passed, {counts['failed']} failed")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
