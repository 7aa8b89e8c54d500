"""The Grafana dashboard as code.

`python -m service.monitoring.dashboard [--check]` writes, or compares, `grafana/dashboards/heed.json`.

Its rows show from top to bottom: whether users are affected, where the time goes, and why.
"""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)

FILE = Path(__file__).parent / "grafana/dashboards/heed.json"
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH, HEIGHT = 8, 7  # three panels a row
Panel = stat.Panel | timeseries.Panel

CHOSEN = 'model=~"$model", version=~"$version"'
STAGES = ("preprocess", "queue", "compute", "postprocess")
LEVELS_S = (0.1, 0.5)  # thresholds of a p99 for yellow and red; the second is that of the alert HeedSlow


def build() -> dashboard.Dashboard:
    """Build the whole dashboard."""
    page = (
        dashboard.Dashboard("Heed")
        .uid("heed")
        .description("Traffic, latency by stage, batches, queue, outcomes and canary of each model and version.")
        .tags(["heed", "inference"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(variable("model", "heed_model_ready"))
        .with_variable(variable("version", 'heed_model_ready{model=~"$model"}'))
    )
    numbers = 0
    for title, panels in (
        ("Now", now()),
        ("Traffic", traffic()),
        ("Latency", latency()),
        ("Batches and queue", batches_and_queue()),
        ("Explanations", explanations()),
        ("Process", process()),
    ):
        page = page.with_row(dashboard.Row(title))
        for panel in panels:
            numbers += 1
            page = page.with_panel(panel.id(numbers))
    return page


def variable(name: str, series: str) -> dashboard.QueryVariable:
    """Make a variable that selects some or all values of a label."""
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(PROMETHEUS)
        .query({"query": f"label_values({series}, {name})", "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def query(expression: str, legend: str) -> prometheus.Dataquery:
    """Make a query of an expression over time."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).datasource(PROMETHEUS).range()


def graph(title: str, about: str, unit: str, *queries: prometheus.Dataquery, stacked: bool = False) -> timeseries.Panel:
    """Make a panel of lines over time, or of stacked areas."""
    legend = VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(PROMETHEUS)
        .unit(unit)
        .min(0)
        .span(WIDTH)
        .height(HEIGHT)
        .fill_opacity(60 if stacked else 8)
        .line_width(1)
        .legend(legend.calcs(["mean", "max"]).show_legend(True))
    )
    if stacked:
        panel = panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    for letter, each in zip("ABCDEF", queries, strict=False):
        panel = panel.with_target(each.ref_id(letter))
    return panel


def figure(title: str, about: str, unit: str, expression: str, levels: list[tuple[float | None, str]]) -> stat.Panel:
    """Make a panel of one current number; each level is a value and the colour from that value on."""
    steps = [Threshold(value=value, color=color) for value, color in levels]
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(PROMETHEUS)
        .unit(unit)
        .span(4)
        .height(4)
        .color_mode(BigValueColorMode.BACKGROUND)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(prometheus.Dataquery().expr(expression).datasource(PROMETHEUS).instant().ref_id("A"))
    )


def quantile(share: float, metric: str, by: str = "model") -> str:
    """Return the expression of a quantile of a histogram."""
    buckets = f"rate({metric}_bucket{{{CHOSEN}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({by}, le) ({buckets}))"


def rate(metric: str, by: str, more: str = "") -> str:
    """Return the expression of the rate of a counter."""
    return f"sum by ({by}) (rate({metric}{{{CHOSEN}{more}}}[$__rate_interval]))"


ENTITLED = 'outcome!~"invalid|not_found|cancelled"'  # valid requests whose client did not leave
FAILED = 'outcome=~"unavailable|overloaded|expired|failed"'
GOOD_BAD: list[tuple[float | None, str]] = [(None, "green"), (0.001, "yellow"), (0.01, "red")]


def now() -> list[Panel]:
    """Make the panels of the present state."""
    return [
        figure(
            "Models not ready",
            "Folders of the store that are not served, or whose engine has died: /readyz says why.",
            "short",
            f"count(heed_model_ready{{{CHOSEN}}} == 0) or vector(0)",
            [(None, "green"), (1, "red")],
        ),
        figure(
            "Requests",
            "All requests that have ended, with any outcome.",
            "reqps",
            f"sum(rate(heed_requests_total{{{CHOSEN}}}[$__rate_interval]))",
            [(None, "blue")],
        ),
        figure(
            "Failed",
            "Fraction of the requests that failed; wrong and cancelled ones do not count.",
            "percentunit",
            f"sum(rate(heed_requests_total{{{CHOSEN}, {FAILED}}}[5m]) or vector(0))"
            f" / sum(rate(heed_requests_total{{{CHOSEN}, {ENTITLED}}}[5m]))",
            GOOD_BAD,
        ),
        figure(
            "p99",
            "From the decoded request to its answer, all chosen models together.",
            "s",
            f"histogram_quantile(0.99, sum by (le) (rate(heed_request_seconds_bucket{{{CHOSEN}}}[5m])))",
            [(None, "green"), (LEVELS_S[0], "yellow"), (LEVELS_S[1], "red")],
        ),
        figure(
            "Fullest queue",
            "Waiting rows as a fraction of the limit; at 100 % requests are refused.",
            "percentunit",
            f"max(heed_queue_rows{{{CHOSEN}}} / on (instance, job) group_left () heed_queue_limit_rows)",
            [(None, "green"), (0.5, "yellow"), (0.8, "red")],
        ),
        figure(
            "Golden examples wrong",
            "Canary replays of the last 10 minutes that drifted or failed.",
            "short",
            f'sum(increase(heed_canary_runs_total{{{CHOSEN}, outcome=~"drifted|failed"}}[10m])) or vector(0)',
            [(None, "green"), (1, "yellow"), (3, "red")],
        ),
    ]


def traffic() -> list[Panel]:
    """Make the panels of requests and their outcomes."""
    return [
        graph(
            "Requests by model",
            "Ended requests per second.",
            "reqps",
            query(rate("heed_requests_total", "model, version"), "{{model}}/{{version}}"),
            stacked=True,
        ),
        graph(
            "Outcomes",
            "How they ended; docs/serving.md lists the outcomes.",
            "reqps",
            query(rate("heed_requests_total", "outcome"), "{{outcome}}"),
            stacked=True,
        ),
        graph(
            "Protocols",
            "Over gRPC and over HTTP.",
            "reqps",
            query(rate("heed_requests_total", "protocol"), "{{protocol}}"),
            stacked=True,
        ),
    ]


def latency() -> list[Panel]:
    """Make the panels of latency and its stages."""
    return [
        graph(
            "p50 and p99",
            "From the decoded request to its answer.",
            "s",
            query(quantile(0.5, "heed_request_seconds"), "{{model}} p50"),
            query(quantile(0.99, "heed_request_seconds"), "{{model}} p99"),
        ),
        graph(
            "Mean by stage",
            "Mean time of each stage. A long queue calls for more cores, a long compute for a smaller model.",
            "s",
            *(
                query(
                    f"sum(rate(heed_{stage}_seconds_sum{{{CHOSEN}}}[$__rate_interval]))"
                    f" / sum(rate(heed_{stage}_seconds_count{{{CHOSEN}}}[$__rate_interval]))",
                    stage,
                )
                for stage in STAGES
            ),
            stacked=True,
        ),
        graph(
            "p99 by stage",
            "The stages do not add up: the slowest requests of one are not those of another.",
            "s",
            *(query(quantile(0.99, f"heed_{stage}_seconds", "job"), stage) for stage in STAGES),
        ),
    ]


def batches_and_queue() -> list[Panel]:
    """Make the panels of batches and queues."""
    return [
        graph(
            "Rows of a batch",
            "Mean rows of an engine call: 1 while the engine keeps up, more under load.",
            "short",
            query(f"{rate('heed_batch_rows_sum', 'model')} / {rate('heed_batch_rows_count', 'model')}", "{{model}}"),
        ),
        graph(
            "Padding",
            "Fraction of the computed tokens that was padding.",
            "percentunit",
            query(
                f"{rate('heed_padded_tokens_total', 'model')} / {rate('heed_batch_tokens_total', 'model')}",
                "{{model}}",
            ),
        ),
        graph(
            "Tokens computed",
            "Per second, padding included.",
            "short",
            query(rate("heed_batch_tokens_total", "model"), "{{model}}"),
            stacked=True,
        ),
        graph(
            "Waiting",
            "Rows in the queue of each model, and texts and images that are being prepared.",
            "short",
            query(f"sum by (model) (heed_queue_rows{{{CHOSEN}}})", "{{model}}"),
            query("sum(heed_preparing_rows)", "being prepared"),
        ),
        graph(
            "In the engine",
            "Rows inside engine calls.",
            "short",
            query(f"sum by (model) (heed_in_flight_rows{{{CHOSEN}}})", "{{model}}"),
        ),
        graph(
            "Golden examples",
            "Replayed by the canary, by outcome, in 10 minutes.",
            "short",
            query(
                f"sum by (model, outcome) (increase(heed_canary_runs_total{{{CHOSEN}}}[10m])) > 0",
                "{{model}} {{outcome}}",
            ),
        ),
    ]


def explanations() -> list[Panel]:
    """Make the panels of explanations."""
    return [
        graph(
            "Explanations",
            "Explanations per second by method. They count as requests; the times above leave them out.",
            "reqps",
            query(rate("heed_explain_seconds_count", "model, method"), "{{model}} {{method}}"),
            stacked=True,
        ),
        graph(
            "p99 of explanations",
            "From the decoded request to the explanation; under load they wait for the predictions.",
            "s",
            query(quantile(0.99, "heed_explain_seconds", "method"), "{{method}}"),
        ),
        graph(
            "Evaluations for explanations",
            "Inputs evaluated per second, and their rows that wait.",
            "short",
            query(rate("heed_explain_evaluations_total", "model"), "{{model}} asked per second"),
            query(f"sum by (model) (heed_low_priority_queue_rows{{{CHOSEN}}})", "{{model}} waiting"),
        ),
    ]


def process() -> list[Panel]:
    """Make the panels of the server's process."""
    return [
        graph(
            "CPU",
            "Cores kept busy.",
            "short",
            query('rate(process_cpu_seconds_total{job="heed"}[$__rate_interval])', "{{instance}}"),
        ),
        graph(
            "Memory",
            "Resident.",
            "bytes",
            query('process_resident_memory_bytes{job="heed"}', "{{instance}}"),
        ),
        graph(
            "Difference from golden answers",
            "Largest difference of a logit, or of a translation's score; more than the manifest allows is drift.",
            "short",
            query(f"max by (model, version) (heed_canary_difference{{{CHOSEN}}})", "{{model}}/{{version}}"),
        ),
    ]


def encoded() -> str:
    """Return the contents of the dashboard file."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"


def main() -> None:
    """Write the dashboard file, or compare it with `--check`."""
    if "--check" not in sys.argv[1:]:
        FILE.write_text(encoded())
    elif json.loads(FILE.read_text()) != json.loads(encoded()):
        raise SystemExit(f"{FILE.name} is not what dashboard.py gives, run `make generate`")


if __name__ == "__main__":
    main()
