"""`python -m tests [--slow]`: every test but the slow ones, or these alone; one line at the end says what passed.

Clients that others wrote bring protobuf classes of the same names as ours, which cannot live in one process with them:
their tests run in a process of their own.
"""

import re
import subprocess
import sys

SUITES = (["tests", "--ignore=tests/clients", "-m", "not slow"], ["tests/clients"])
SLOW = (["tests", "--ignore=tests/clients", "-m", "slow"],)


def main() -> int:
    """Run the suites; non-zero when anything failed."""
    slow, options = "--slow" in sys.argv[1:], [each for each in sys.argv[1:] if each != "--slow"]
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    status = 0
    for suite in SLOW if slow else SUITES:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", *suite, *options],
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
