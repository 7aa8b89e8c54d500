"""`python -m tests [--slow | --families]`: runs all tests except the slow ones, or only these, and prints the counts.

Third-party clients have protobuf classes of the same names as ours, and two such classes cannot be in one process, so
these tests run in a process of their own, beside the others. Two processes share the other tests, a file at a time in
the order of `LONGEST_FILES` (tests/conftest.py), because most of them wait for servers and for time limits. The slow
tests of conversions and of explanations use one core each: three processes share them, and a fourth one installs
clients and runs them. The slow tests that start servers and load them come last and have the machine to themselves.

With `--families`, the whole matrix of families, tasks and precisions is computed, and docs/families.md is written.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import SHARED_FOLDER
from tests.families import RECORD, write_page

NO_TESTS = 5  # pytest's exit status if an option such as `-k` deselects every test
# Suites of a group run at once, the groups one after another.
SHARED = ("--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder")
QUICK = "not slow and not families"
SUITES = ((["tests", "--ignore=tests/clients", "-m", QUICK, *SHARED], ["tests/clients", "-m", QUICK]),)
# These take as long as all others together.
EXPLAINED = sorted(map(str, Path("tests/export/conversion").glob("test_explanation_*.py")))
SLOW = (
    (
        [*EXPLAINED, "-m", "slow"],
        ["tests/export", *(f"--ignore={path}" for path in EXPLAINED), "-m", "slow"],
        ["tests/service/explanation/methods", "-m", "slow"],
        ["tests/clients", "-m", "slow"],
    ),
    (
        [
            "tests",
            "--ignore=tests/clients",
            "--ignore=tests/export",
            "--ignore=tests/service/explanation/methods",
            "-m",
            "slow",
        ],
    ),
)
# Files whose tests are the cells of a matrix of families.
FAMILIES = (([*sorted(map(str, Path("tests").glob("**/test_*_families.py")))],),)
GROUPS = {"": SUITES, "--slow": SLOW, "--families": FAMILIES}


def run_suite(suite: list[str], shown: bool, options: list[str], shared: str) -> tuple[int, str]:
    """Run a suite in a process of its own.

    Args:
        suite: arguments of pytest.
        shown: print each line at once instead of all of them at the end. One suite of a group is shown.
        options: further arguments of pytest.
        shared: folder for what the suites make once.

    Returns:
        the exit status, and the line that counts the tests.
    """
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--durations=15", *suite, *options],
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | {SHARED_FOLDER: shared},
    )
    assert run.stdout
    last, kept = "", []
    for line in run.stdout:
        if shown:
            print(line, end="", flush=True)
        else:
            kept.append(line)
        last = line if re.search(r"\d+ (passed|failed|error)", line) else last
    print("".join(kept), end="", flush=True)
    return run.wait(), last


def main() -> int:
    """Run the suites; the exit status is non-zero if a test failed."""
    options = [each for each in sys.argv[1:] if each not in GROUPS]
    chosen = next((each for each in sys.argv[1:] if each in GROUPS), "")
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    status = 0
    for group in GROUPS[chosen]:
        with TemporaryDirectory() as shared, ThreadPoolExecutor(len(group)) as threads:
            record = Path(shared, "families.jsonl")
            if chosen == "--families":
                os.environ[RECORD] = str(record)
            shown = [number == 0 for number in range(len(group))]
            outcomes = list(threads.map(partial(run_suite, options=options, shared=shared), group, shown))
            if chosen == "--families" and not options and not any(ended for ended, _ in outcomes):
                write_page(record)
        for ended, last in outcomes:
            status |= ended if ended != NO_TESTS else 0
            for number, outcome in re.findall(r"(\d+) (passed|failed|error|skipped)", last):
                counts["failed" if outcome == "error" else outcome] += int(number)
    print(f"tests: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    print(f"{counts['passed']} passed, {counts['failed']} failed")
    return 1 if status or not any(counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
