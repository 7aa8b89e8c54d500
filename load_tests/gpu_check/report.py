"""The report of a GPU check in Markdown."""

from datetime import UTC, datetime
from typing import Any

from load_tests.gpu_check.graphs import CAPTURED, LENGTHS


def report(result: dict[str, Any]) -> str:
    """Format the result as Markdown."""
    lines = [
        f"`{result['command']}` at commit {result['commit']}, {datetime.now(UTC):%Y-%m-%d}, {result['machine']};"
        f" device {result['device']}, GPU {result['gpu']}; start to ready {result['start_s']:.1f} s.",
        "",
        "| model | served on the device | precision | cache |",
        "| --- | --- | --- | --- |",
    ]
    for model, why in result["parity"].items():
        how = result["taken"].get(model) or {}
        lines.append(
            f"| {model} | {why or 'yes, golden examples within tolerance'} | {how.get('precision') or ''} |"
            f" {how.get('cache') or ''} |"
        )
    if bare := result["bare"]:
        lines += [
            "",
            f"`{bare['graph']}` without its manifest: within {bare['max_abs_difference']:.2g} of the CPU's answers,"
            f" {bare['requests_per_s']:.0f} requests/s of {bare['rows']} rows in JSON, one after another.",
        ]
    lines += [
        "",
        "| served, at once | requests/s | p50 ms | p99 ms | rows a batch | GPU busy | GPU memory MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["served"]:
        busy, memory = row["gpu_utilisation_percent"], row["gpu_memory_mib"]
        lines.append(
            f"| {row['model']}, {row['concurrency']} | {row['requests_per_s']:.0f} | {row['p50_ms']:.1f} |"
            f" {row['p99_ms']:.1f} | {row['mean_batch_rows']:.1f} | {'?' if busy is None else f'{busy:.0f} %'} |"
            f" {'?' if memory is None else f'{memory:.0f}'} |"
        )
    lines += [
        "",
        f"| rows/s of the graph alone | {' | '.join(f'{length} tokens' for length in LENGTHS)} |",
        f"| --- |{' --- |' * len(LENGTHS)}",
    ]
    found = {(row["model"], row["rows"], row["length"]): row["rows_per_s"] for row in result["engine"]}
    for model, rows in dict.fromkeys((row["model"], row["rows"]) for row in result["engine"]):
        cells = [found.get((model, rows, length)) for length in LENGTHS]
        lines.append(
            f"| {model}, {rows} rows | {' | '.join('' if each is None else f'{each:.0f}' for each in cells)} |"
        )
    if result["images"]:
        ways = [CAPTURED[captured] for captured in sorted({row["captured"] for row in result["images"]})]
        lines += ["", f"| rows/s of the graph alone | {' | '.join(ways)} |", f"| --- |{' --- |' * len(ways)}"]
        images = {(row["model"], row["rows"], CAPTURED[row["captured"]]): row["rows_per_s"] for row in result["images"]}
        for model, rows in dict.fromkeys((row["model"], row["rows"]) for row in result["images"]):
            cells = [images.get((model, rows, way)) for way in ways]
            lines.append(
                f"| {model}, {rows} images | {' | '.join('' if each is None else f'{each:.0f}' for each in cells)} |"
            )
    if result["left_out"]:
        lines += ["", f"Left out for want of time, or not served: {', '.join(result['left_out'])}."]
    return "\n".join(lines) + "\n"
