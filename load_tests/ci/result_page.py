"""The result of a gate run as one HTML page: tables and drawings, readable on light and on dark ground.

The drawings are SVG within the page. What matplotlib draws in INK takes the colour of the page's text; the other
colours can be told apart from both grounds.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from load_tests.ci.comparison import Change, cells_of, differences
from load_tests.judging import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
FAINT = "#888889"
COLOURS = ("#3b82f6", "#e07b1a", "#2f9e62", "#c2478f", "#8b6fe8")
CPU = {
    "server_s": ("server", "#3b82f6"),
    "load_s": ("load generator", "#e07b1a"),
    "others_s": ("others", "#c2478f"),
    "steal_s": ("stolen by the host", "#d64545"),
    "idle_s": ("idle", "#9aa3ad"),
}
STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c2128; --faint: #667080; --line: #d5dae1;
  --good: #1a7f45; --bad: #c62828; --mark: #fff1d6; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --ink: #e3e7ec; --faint: #98a3b1; --line: #333b45;
  --good: #4cc27d; --bad: #ff7b72; --mark: #3d3117; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.facts { color: var(--faint); } .good { color: var(--good); } .bad { color: var(--bad); }
b.good, b.bad { font-size: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; } td.number, th.number { text-align: right; }
tr.mark td { background: var(--mark); }
.plots { margin-top: 2rem; display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; } figcaption { color: var(--faint); font-size: .9rem; }
code { font-size: .9em; }
"""


def page_of(
    report: Mapping[str, Any], verdicts: Sequence[Verdict], changes: Sequence[Change], before: Mapping[str, Any] | None
) -> str:
    """Return the whole page; `before` is the run that `changes` compare with."""
    missed = report["missed"]
    said = f"Missed: {', '.join(missed)}" if missed else "Every limit that can be judged was kept"
    facts = [
        f"{report['started']}, commit {report['commit']}, target {report['target']}, {report['machine']}",
        "sent: " + "; ".join(f"{model}: {source}" for model, source in report["sent"].items()),
    ]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Under load: {html.escape(report['started'])}</title><style>{STYLE}</style></head><body>",
        f'<h1>Under load</h1><p><b class="{"bad" if missed else "good"}">{html.escape(said)}.</b></p>',
        *(f'<p class="facts">{html.escape(fact)}</p>' for fact in facts),
        f"<p><code>{html.escape(report['command'])}</code></p>",
        "<h2>Limits</h2>",
        limits_table(verdicts),
        "<h2>Phases</h2>",
        f"<p>{html.escape(knee_sentence(report['knee']))}</p>",
        phases_table(report["phases"]),
        '<div class="plots">',
        *(drawing(title, note, draw, report) for title, note, draw in DRAWINGS),
        "</div>",
        comparison_part(report, changes, before),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def knee_sentence(knee: Mapping[str, Any] | None) -> str:
    """Describe where latency breaks."""
    if knee is None:
        return "No step was measured."
    where = f"{knee['requests_per_s']:.0f} answers/s, with {knee['users']} users (p95 {whole(knee['p95_ms'])} ms)"
    most = f"the highest throughput was {knee['highest_requests_per_s']:.0f} answers/s"
    if not knee["reached"]:
        return f"Saturation was not reached: the last step, {where}, was still gaining; {most}."
    return f"Latency breaks at {where}: from there on more users gain at most 10 % and only wait longer; {most}."


def whole(value: float | None) -> str:
    """Format a number without decimals; a dash where it is unknown."""
    return "-" if value is None else f"{value:.0f}"


def one_decimal(value: float | None) -> str:
    """Format a number with one decimal; a dash where it is unknown."""
    return "-" if value is None else f"{value:.1f}"


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], texts: int) -> str:
    """Format rows, each with a class; the first `texts` columns are words, the others numbers."""

    def cell(kind: str, column: int, text: str) -> str:
        align = "" if column < texts else ' class="number"'
        return f"<{kind}{align}>{html.escape(text)}</{kind}>"

    lines = ["".join(cell("th", column, text) for column, text in enumerate(head))]
    body = [
        f'<tr class="{of}">' + "".join(cell("td", column, text) for column, text in enumerate(row)) + "</tr>"
        for of, row in rows
    ]
    return f'<div class="scroll"><table><tr>{lines[0]}</tr>{"".join(body)}</table></div>'


def limits_table(verdicts: Sequence[Verdict]) -> str:
    """Format each limit with its measured value."""
    said = {True: "yes", False: "NO", None: "not judged"}
    rows = [
        (
            "mark bad" if each.kept is False else "",
            [
                each.model,
                each.limit,
                each.where,
                said[each.kept],
                f"{each.value:g}",
                "-" if each.measured is None else f"{each.measured:.4g}",
            ],
        )
        for each in verdicts
    ]
    return table(["model", "limit", "where", "kept", "value", "measured"], rows, texts=4)


def phases_table(phases: Sequence[Mapping[str, Any]]) -> str:
    """Format each phase: throughput and latency, and who used the CPU."""
    rows = []
    for phase in phases:
        figures, cpu = phase["all"], phase["cpu"]
        row = [
            phase["name"],
            *(whole(figures[name]) for name in ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")),
            f"{figures['failures']}",
            "unknown" if figures["mean_batch_rows"] is None else one_decimal(figures["mean_batch_rows"]),
            *(one_decimal(cpu[name]) for name in CPU),
        ]
        rows.append(("", row))
    head = ["phase", "answers/s", "p50 ms", "p95 ms", "p99 ms", "failed", "rows a batch"]
    note = '<p class="facts">The last five columns are CPU seconds of the phase, all cores together.</p>'
    return table([*head, "server", "load", "others", "stolen", "idle"], rows, texts=1) + note


def comparison_part(report: Mapping[str, Any], changes: Sequence[Change], before: Mapping[str, Any] | None) -> str:
    """Format the changes since another run."""
    if before is None:
        return "<h2>Beside the run before</h2><p>There is none.</p>"
    rows = []
    for change in changes:
        name, *numbers, mark = cells_of(change)
        rows.append(("mark bad" if change.regressed else "", [name, mark, *numbers]))
    notes = "".join(f'<p class="facts">{html.escape(each)}</p>' for each in differences(before, report))
    title = f"<h2>Beside the run of {html.escape(before['started'])}, commit {html.escape(before['commit'])}</h2>"
    return title + notes + table(["figure", "", "before", "now", "change"], rows, texts=2)


def draw_throughput(axes: "Axes", report: Mapping[str, Any]) -> None:
    """Draw answers/s by users, with the knee marked."""
    steps = steps_of(report)
    axes.plot(
        [step["users"] for step in steps], [step["all"]["requests_per_s"] for step in steps], "o-", color=COLOURS[0]
    )
    if knee := report["knee"]:
        axes.axvline(knee["users"], color=COLOURS[3], linestyle="--")
        axes.annotate(
            f"knee: {knee['requests_per_s']:.0f}/s ",
            (knee["users"], 0),
            textcoords="offset points",
            xytext=(-4, 6),
            ha="right",
            color=COLOURS[3],
        )
    users_axis(axes, steps)
    axes.set(ylabel="answers/s", ylim=(0, None))


def draw_latency(axes: "Axes", report: Mapping[str, Any]) -> None:
    """Draw p50, p95 and p99 by users."""
    steps = steps_of(report)
    for share, colour in zip((50, 95, 99), COLOURS, strict=False):
        known = [step for step in steps if step["all"][f"p{share}_ms"] is not None]
        axes.plot(
            [step["users"] for step in known],
            [step["all"][f"p{share}_ms"] for step in known],
            "o-",
            color=colour,
            label=f"p{share}",
        )
    if knee := report["knee"]:
        axes.axvline(knee["users"], color=COLOURS[3], linestyle="--")
    users_axis(axes, steps)
    axes.set(ylabel="latency, ms", ylim=(0, None))
    axes.legend()


def draw_arrivals(axes: "Axes", report: Mapping[str, Any]) -> None:
    """Draw the distribution of latency at the constant rate, model by model."""
    arrivals = next(phase for phase in report["phases"] if phase["kind"] == "arrivals")
    for (model, points), colour in zip(arrivals["latency_ms_by_share"].items(), COLOURS * 9, strict=False):
        axes.plot([share for share, _ in points], [value for _, value in points], "o-", color=colour, label=model)
    # The slowest 10 % get half of the width, so that the percentiles 90, 99 and 99.9 can be told apart.
    axes.set_xscale("function", functions=(nines, shares))
    axes.set_xticks([1, 50, 90, 99, 99.9], ["1", "50", "90", "99", "99.9"])
    axes.set_xlim(0, 99.95)
    axes.set(xlabel="percent of the answers", ylabel="latency, ms", ylim=(0, None))
    axes.legend()


def nines(share: Any) -> Any:
    """Convert a percentage to its number of nines."""
    import numpy as np

    return -np.log10(np.maximum(1 - np.asarray(share) / 100, 1e-4))


def shares(number: Any) -> Any:
    """Convert a number of nines to a percentage."""
    import numpy as np

    return 100 * (1 - 10 ** -np.asarray(number, float))


def draw_timeline(axes: "Axes", report: Mapping[str, Any]) -> None:
    """Draw answers/s and p95, second by second."""
    seconds = [entry["s"] for entry in report["timeline"]]
    axes.plot(seconds, [entry["answered"] for entry in report["timeline"]], color=COLOURS[0], label="answers/s")
    for phase in report["phases"]:
        axes.axvline(phase["begin_s"], color=FAINT, linewidth=0.6, linestyle=":")
    axes.set(xlabel="s", ylabel="answers/s", ylim=(0, None))
    right = axes.twinx()
    known = [entry for entry in report["timeline"] if entry["p95_ms"] is not None]
    right.plot([entry["s"] for entry in known], [entry["p95_ms"] for entry in known], color=COLOURS[1], label="p95, ms")
    right.set(ylabel="p95, ms", ylim=(0, None))
    lines = [*axes.get_lines()[:1], *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper left")


def draw_cpu(axes: "Axes", report: Mapping[str, Any]) -> None:
    """Draw the CPU use of each party, by phase, in cores."""
    phases = report["phases"]
    left = [0.0] * len(phases)
    for name, (label, colour) in CPU.items():
        cores = [(phase["cpu"][name] or 0.0) / phase["seconds"] for phase in phases]
        axes.barh([phase["name"] for phase in phases], cores, left=left, color=colour, label=label)
        left = [before + more for before, more in zip(left, cores, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="cores")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18), ncols=3, frameon=False)


def draw_batches(axes: "Axes", report: Mapping[str, Any]) -> None:
    """Draw answers by the rows of their batch, for each model."""
    known = {model: figures["batch_rows"] for model, figures in report["whole"].items() if figures["batch_rows"]}
    for (model, rows), colour in zip(known.items(), COLOURS * 9, strict=False):
        sizes = sorted(int(size) for size in rows)
        by_size = {int(size): count for size, count in rows.items()}
        axes.plot(sizes, [by_size[size] for size in sizes], ".-", color=colour, label=model)
    if known:
        axes.set_yscale("log")
        axes.legend()
    else:
        axes.text(0.5, 0.5, "unknown: the target tells nobody", ha="center", transform=axes.transAxes)
    axes.set(xlabel="rows of the batch", ylabel="answers")


DRAWINGS: tuple[tuple[str, str, "Callable[[Axes, Mapping[str, Any]], None]"], ...] = (
    ("Throughput", "Users who ask as fast as they are answered; dashed: where latency breaks.", draw_throughput),
    ("Latency by users", "All models together.", draw_latency),
    (
        "Latency at the constant rate",
        "Counted from the schedule; the last points are the slowest answers.",
        draw_arrivals,
    ),
    ("The run, second by second", "Dotted: a phase begins to be measured.", draw_timeline),
    ("Who used the CPU", "The load takes its share from the server on the same cores.", draw_cpu),
    ("Batches", "Answers of the whole run by the rows of the batch that each was computed in.", draw_batches),
)


def steps_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the phases of users."""
    return [phase for phase in report["phases"] if phase["kind"] == "users"]


def users_axis(axes: "Axes", steps: Sequence[Mapping[str, Any]]) -> None:
    """Label every step on the axis of users."""
    from matplotlib.ticker import NullFormatter

    axes.set_xscale("log", base=2)
    axes.set_xticks([step["users"] for step in steps], [str(step["users"]) for step in steps])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="users")


def drawing(title: str, note: str, draw: "Callable[[Axes, Mapping[str, Any]], None]", report: Mapping[str, Any]) -> str:
    """Draw one figure of the page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    # SVG ids are shared by the whole page, so each drawing gets a salt of its own.
    settings: dict[Any, Any] = dict.fromkeys(inks, INK) | {"svg.hashsalt": title, "svg.fonttype": "none"}
    settings |= {"axes.grid": True, "grid.color": FAINT, "grid.alpha": 0.3}
    settings |= {"font.family": "sans-serif", "legend.framealpha": 0.0}
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(6.2, 3.6), layout="constrained")
        axes.set_title(title)
        draw(axes, report)
        svg = svg_of(figure)
        pyplot.close(figure)
    return f"<figure>{svg}<figcaption>{html.escape(note)}</figcaption></figure>"


def svg_of(figure: "Figure") -> str:
    """Return the SVG element of a figure, in the page's ink."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
