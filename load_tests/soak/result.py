"""The part of docs/benchmarks.md that a soak writes when it is done."""

import argparse

from load_tests.page import command_of, commit, machine
from load_tests.soak.tally import FAILURES, Tally


def page_of(tally: Tally, arguments: argparse.Namespace) -> str:
    """Format the figures as Markdown."""
    memory = [mib for _, mib in tally.memory_mib if mib]
    quarter = max(1, len(memory) // 4)
    faults = ", ".join(f"{number:,} x {name}" for name, number in tally.faults.items()) or "none"
    retries = ", ".join(f"{number:,} {name}" for name, number in tally.retries.items()) or "none"
    lines = [
        f"`{command_of('load_tests.soak')}` at {commit()}, {machine()}: {tally.done:,} requests of"
        f" {arguments.users} users in {tally.wall_s / 3600:.1f} h and {tally.sessions} sessions.",
        "",
        "| wrong | lost | unexpected 5xx | overloaded | given up or out of time | int8 answers that moved |",
        "| --- | --- | --- | --- | --- | --- |",
        "| " + " | ".join(f"{tally.sum_of(name):,}" for name in (*FAILURES, "overloaded", "cancelled", "moved")) + " |",
        "",
        f"- Faults: {faults}.",
        f"- Sent again, to the other server: {retries}.",
    ]
    if memory:
        first, last = memory[:quarter], memory[-quarter:]
        lines.append(
            f"- Resident memory of a server: {sum(first) / len(first):.0f} MiB in the first quarter,"
            f" {sum(last) / len(last):.0f} in the last, {max(memory):.0f} at most."
        )
    lines += ["", "| kind | requests | right | other outcomes |", "| --- | --- | --- | --- |"]
    for kind, outcomes in sorted(tally.counts.items()):
        others = ", ".join(f"{number:,} {name}" for name, number in outcomes.items() if name != "right") or "-"
        lines.append(f"| {kind} | {sum(outcomes.values()):,} | {outcomes.get('right', 0):,} | {others} |")
    return "\n".join(lines)
