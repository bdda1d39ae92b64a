"""What a scaling study on virtual nodes says: scaling.md, scaling.png and scaling.svg beside its scaling.json."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common import colors
from harness.common.formatting import DASH, joined, number, percent, plural
from harness.common.text_table import Table, markdown
from harness.records.record_files import write_text
from harness.records.run_record import label_of
from harness.report.plots import figure_files

Rows = Sequence[Mapping[str, Any]]
_RATES = {"unlimited": "unlimited links", "1gbit": "1 Gbit/s links", "100mbit": "100 Mbit/s links"}


def median_step(row: Mapping[str, Any]) -> float:
    """Median step time of a row, seconds."""
    return statistics.median(row["step_s"])


def write(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the table and the figure of `record` (the content of scaling.json); returns their paths."""
    path = folder / "scaling.md"
    write_text(path, markdown(table(record)))
    efficient = [row for row in record["rows"] if efficiency(row, record["rows"]) is not None and row["nodes"] > 1]
    if not efficient:
        return [path]
    return [path, *figure_files(folder, "scaling", lambda figure: _draw(record, figure), size=(9.6, 6.4))]


def name_of(engine: str) -> str:
    """``deepspeed-z2`` -> ``DeepSpeed ZeRO-2``."""
    backend, _, stage = engine.partition("-z")
    return label_of({"backend": backend, "engine": {"zero_stage": int(stage)} if stage else {}})


def efficiency(row: Mapping[str, Any], rows: Rows) -> float | None:
    """Throughput of n nodes over n times that of one node, medians, same engine, link rate and kind of scaling; 1 is
    ideal. None where the row or its one-node row failed."""
    alike = ("engine", "rate", "scaling", "repeat", "width")
    one = next((r for r in rows if r["nodes"] == 1 and all(r[key] == row[key] for key in alike)), None)
    if one is None or "failed" in one or "failed" in row:
        return None
    ratio = median_step(one) / median_step(row)
    return ratio if row["scaling"] == "weak" else ratio / row["nodes"]


def table(record: Mapping[str, Any]) -> Table:
    """One line a run: step, efficiency, share of the step that is not computing, bytes on the wire against theory."""
    import numpy as np

    rows = []
    for row in record["rows"]:
        size = f"{row['parameter_bytes'] / 4e6:.2g} M" if "parameter_bytes" in row else DASH
        start = [name_of(row["engine"]), size, str(row["nodes"]), row["rate"], row["scaling"]]
        if "failed" in row:
            rows.append([*start, f"failed: {row['failed']}", *[DASH] * 4])
            continue
        low, middle, high = np.percentile(np.array(row["step_s"]) * 1e3, (25, 50, 75))
        share = efficiency(row, record["rows"])
        ratio = (row["sent_bytes_per_step"] or 0.0) / row["ring_bytes"] if row["ring_bytes"] else None
        rows.append(
            [
                *start,
                f"{number(middle)} ({number(low)} to {number(high)})",
                percent(share) if share is not None else DASH,
                percent(max(0.0, 1 - row["wait_s"] * 1e3 / middle)),
                number(row["ring_bytes"] / 1e6 if row["ring_bytes"] else None),
                f"{ratio:.2f}" if ratio else DASH,
            ]
        )
    return Table(
        id="nodes-scaling",
        title="Scaling on virtual nodes",
        columns=[
            *(
                "engine",
                "parameters",
                "nodes",
                "links",
                "scaling",
                "step ms (quartiles)",
                "efficiency",
                "not computing",
            ),
            *("ring theory, MB a step", "sent / theory"),
        ],
        rows=rows,
        note=caption(record)
        + " Not computing: the part of the median step beyond the wait. Sent: the most bytes of any "
        "node's link in a step.",
    )


def caption(record: Mapping[str, Any]) -> str:
    """What was real and what was emulated."""
    most = max((row["nodes"] for row in record["rows"]), default=0)
    waits = [row["wait_s"] for row in record["rows"] if row["scaling"] == "weak"]
    wait = f" of {max(waits) * 1e3:.0f} ms a step" if waits else ""
    shared = (
        f"{most} nodes share {plural(record['cores'], 'core')}, so computing is emulated by a wait{wait} (strong "
        "scaling: divided by the nodes)"
    )
    text = f"{shared}; the exchange through the engines and the limited links is real."
    alone = [row for row in record["rows"] if row["nodes"] == 1 and row["scaling"] == "weak" and "failed" not in row]
    if alone:
        rest = sorted((median_step(row) - row["wait_s"]) * 1e3 for row in alone)
        text += (
            f" The rest of a step, {rest[0]:.0f} to {rest[-1]:.0f} ms on one node, is real work on the shared cores."
        )
    return text


def headline(record: Mapping[str, Any]) -> str:
    """Efficiencies of the engines at the most nodes, weak scaling, fastest and slowest links, in a sentence or two."""
    rows = record["rows"]
    most, widest = max(row["nodes"] for row in rows), max(row["width"] for row in rows)
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    parts = []
    for rate in dict.fromkeys([rates[0], rates[-1]]):
        wanted = (most, rate, "weak", widest)
        here = [row for row in rows if (row["nodes"], row["rate"], row["scaling"], row["width"]) == wanted]
        found = [(name_of(row["engine"]), efficiency(row, rows)) for row in here]
        told = [f"{name} {percent(share)}" for name, share in found if share is not None]
        if told:
            parts.append(f"{joined(told)} ({_RATES.get(rate, rate)})")
    text = f"Weak-scaling efficiency on {plural(most, 'node')}: {'; '.join(parts)}." if parts else "No efficiency yet."
    return f"{text} {caption(record)}"


def _draw(record: Mapping[str, Any], figure: Any) -> None:
    """A panel for every link rate (columns) and kind of scaling (rows): efficiency over nodes, log2."""
    rows = record["rows"]
    kinds, rates, engines = (list(dict.fromkeys(row[key] for row in rows)) for key in ("scaling", "rate", "engine"))
    looks = colors.styles([name_of(engine) for engine in engines])
    panels = figure.subplots(len(kinds), len(rates), sharex=True, sharey=True, squeeze=False)
    counts, widest = sorted({row["nodes"] for row in rows}), max(row["width"] for row in rows)
    for line, kind in zip(panels, kinds, strict=True):
        for axes, rate in zip(line, rates, strict=True):
            axes.axhline(100, color="#444444", linewidth=1, linestyle=":")
            for engine in engines:
                found: dict[int, list[float]] = {}
                for row in rows:
                    if (row["scaling"], row["rate"], row["engine"], row["width"]) == (kind, rate, engine, widest):
                        share = efficiency(row, rows)
                        if share is not None:
                            found.setdefault(row["nodes"], []).append(100 * share)
                look = looks[name_of(engine)]
                xs = sorted(found)
                middle = [sorted(found[x])[len(found[x]) // 2] for x in xs]
                ends = [
                    [value - min(found[x]) for x, value in zip(xs, middle, strict=True)],
                    [max(found[x]) - value for x, value in zip(xs, middle, strict=True)],
                ]
                drawn = axes.errorbar(
                    xs, middle, yerr=ends, color=look.light, marker=look.marker, markersize=5, capsize=3, linewidth=1.5,
                    label=name_of(engine),
                )  # fmt: skip
                if (pattern := colors.dashes(look)) is not None:
                    drawn.lines[0].set_dashes(pattern)
            axes.set_title(f"{kind} scaling, {_RATES.get(rate, rate)}", fontsize=9)
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
            axes.grid(True, alpha=0.3)
    panels[0][0].set_ylim(0, 115)
    for line in panels:
        line[0].set_ylabel("efficiency, %")
    for axes in panels[-1]:
        axes.set_xlabel("nodes, one worker each")
    panels[0][0].legend(fontsize=8, loc="lower left")
    figure.suptitle(textwrap.fill(caption(record), 150), fontsize=8)
