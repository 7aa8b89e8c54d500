"""The figures of the stalls, the promises that they break, and their part of docs/benchmarks.md."""

from typing import Any

MAX_WAIT_MS = 50.0
MAX_PEAK_MIB, MAX_AFTERWARDS_MIB = 512.0, 64.0  # above the idle memory
# No request may get these statuses: they mean that the server has failed.
FAILURES = ("500", "502", "INTERNAL", "UNKNOWN")
PERMITTED = ("200", "OK")


def own_wait_ms(window: dict[str, Any]) -> float:
    """Return the longest wait in milliseconds, without the times in which a core was not available."""
    if not window["long_waits_s"]:
        return float(window["p100_ms"])
    waits_s: list[tuple[float, float]] = window["long_waits_s"]
    return 1e3 * max(end_s - begin_s - overlap_s((begin_s, end_s), window["gaps_s"]) for begin_s, end_s in waits_s)


def overlap_s(span_s: tuple[float, float], gaps_s: list[tuple[float, float]]) -> float:
    """Return the seconds of a span that lie within gaps, which may overlap each other."""
    begin_s, end_s = span_s
    covered_s, until_s = 0.0, begin_s
    for gap_begin_s, gap_end_s in sorted(gaps_s):
        covered_s += max(0.0, min(end_s, gap_end_s) - max(until_s, gap_begin_s))
        until_s = max(until_s, gap_end_s)
    return covered_s


def is_disturbed(window: dict[str, Any]) -> bool:
    """Return whether others waited too long only because a core was not available: such a round measures the host."""
    return bool(own_wait_ms(window) <= MAX_WAIT_MS < window["p100_ms"])


def problems_of(result: dict[str, Any]) -> list[str]:
    """Return each missed promise as a sentence."""
    problems = []
    for row in result["cases"]:
        for window in row["rounds"]:
            if window["p100_ms"] > MAX_WAIT_MS:
                problems.append(f"{row['name']}: others waited {window['p100_ms']:.0f} ms, more than {MAX_WAIT_MS:g}")
            if window["not_ok"]:
                problems.append(f"{row['name']}: {window['not_ok']} answers of /healthz were not 200")
            statuses = {answer.partition(" x ")[0] for answer in window["answer"].split(", ")}
            if not statuses.isdisjoint(FAILURES):
                problems.append(f"{row['name']}: answered {window['answer']}")
            elif row["permitted"] and statuses.isdisjoint(PERMITTED):
                problems.append(f"{row['name']}: permitted, and answered {window['answer']}")
    if memory := result["memory"]:
        for what, limit in (("peak_mib", MAX_PEAK_MIB), ("afterwards_mib", MAX_AFTERWARDS_MIB)):
            if memory[what] - memory["idle_mib"] > limit:
                problems.append(f"memory: {what} {memory[what]:.0f}, idle {memory['idle_mib']:.0f}, limit + {limit:g}")
        if memory["answer"] != "200":
            problems.append(f"memory: after the attacks a request was answered {memory['answer']}")
    return problems


def page_of(result: dict[str, Any]) -> str:
    """Format the figures as Markdown."""
    lines = [
        f"`{result['command']}` at commit {result['commit']}, {result['date']}, {result['machine']}; server at default"
        f" limits on one core, load and prober on the other, {result['num_rounds']} rounds."
        f" Stolen by the host: {result['steal_s']:.1f} CPU s in {result['wall_s']:.0f} s."
        " p100 is the longest wait of the prober in all rounds, p99 the largest of the rounds, *prober late* how late"
        " the prober itself was woken at worst. Where others waited for more than"
        f" {MAX_WAIT_MS:g} ms, but for less without the gaps in which a core was not available even to a process of the"
        " highest real-time priority, the round is repeated"
        f"{'.' if result['watched'] else '; not here, where such a priority is not permitted.'}",
        "",
        "| request or fault | answers | seconds | p99 ms | p100 ms | prober late ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["cases"]:
        rounds = row["rounds"]
        answers = " / ".join(dict.fromkeys(window["answer"] for window in rounds))
        worst = {name: max(window[name] for window in rounds) for name in ("p99_ms", "p100_ms", "late_ms", "seconds")}
        lines.append(
            f"| {row['name']} | {answers} | {worst['seconds']:.1f} | {worst['p99_ms']:.1f} | {worst['p100_ms']:.1f}"
            f" | {worst['late_ms']:.1f} |"
        )
    if repeated := [(row["name"], window) for row in result["cases"] for window in row["repeated"]]:
        lines += ["", "Rounds that were repeated:"]
        lines += [
            f"- {name}: waited {window['p100_ms']:.1f} ms, {own_wait_ms(window):.1f} without the gaps"
            for name, window in repeated
        ]
    if memory := result["memory"]:
        sent = ", ".join(f"{number:,} x {name}" for name, number in memory["sent"].items())
        lines += [
            "",
            f"Attacks at once for {memory['seconds']:g} s ({sent}):",
            "",
            "| resident memory | MiB | above idle | limit |",
            "| --- | --- | --- | --- |",
            f"| idle | {memory['idle_mib']:.0f} | | |",
        ]
        for name, what, limit in (
            ("at most, during the attacks", "peak_mib", MAX_PEAK_MIB),
            (f"{memory['rest_s']:g} s after them", "afterwards_mib", MAX_AFTERWARDS_MIB),
        ):
            above = memory[what] - memory["idle_mib"]
            lines.append(f"| {name} | {memory[what]:.0f} | {above:+.0f} | {limit:+.0f} |")
        lines += ["", f"A request right after them: {memory['answer']}."]
    problems = result["problems"]
    lines += ["", "Every promise is kept." if not problems else "Missed:"]
    lines += [f"- {problem}" for problem in problems]
    return "\n".join(lines)
