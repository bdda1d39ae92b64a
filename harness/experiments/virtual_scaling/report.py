"""What a scaling study on virtual nodes says: scaling.md, scaling.png and scaling.svg beside its scaling.json."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.intervals import mean_ratio, step_difference
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


def mean_step(row: Mapping[str, Any]) -> float:
    """All seconds of a row's steps over their number."""
    return statistics.fmean(row["step_s"])


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """A share of ideal scaling with its 95 % bounds over the steps of the two runs (None below eight steps)."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{percent(self.value)} (no interval)"
        return f"{percent(self.value)} ({self.low * 100:.0f} to {percent(self.high)})"


def efficiency(row: Mapping[str, Any], rows: Rows) -> Efficiency | None:
    """Total throughput of n nodes over n times that of one node, same engine, link rate and kind of scaling; 1 is
    ideal. None where the row or its one-node row failed. Bounds: `intervals.step_difference`, a moving-block bootstrap
    over the steps of both runs; what differs from run to run is not in them."""
    alike = ("engine", "rate", "scaling", "repeat", "width")
    one = next((r for r in rows if r["nodes"] == 1 and all(r[key] == row[key] for key in alike)), None)
    if one is None or "failed" in one or "failed" in row:
        return None
    scale = 1.0 if row["scaling"] == "weak" else 1.0 / row["nodes"]
    if one is row:  # a run has no efficiency against itself but 1
        return Efficiency(value=scale, low=scale, high=scale)
    found = step_difference("one node", "nodes", one["step_s"], row["step_s"])
    ends = [None if end is None else (1 + end) * scale for end in (found.low, found.high)]
    return Efficiency(value=(1 + found.value) * scale, low=ends[0], high=ends[1])


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
        low, high = np.percentile(np.array(row["step_s"]) * 1e3, (25, 75))
        middle = mean_step(row) * 1e3
        share = efficiency(row, record["rows"])
        ratio = (row["sent_bytes_per_step"] or 0.0) / row["ring_bytes"] if row["ring_bytes"] else None
        rows.append(
            [
                *start,
                f"{number(middle)} ({number(low)} to {number(high)})",
                DASH if share is None or row["nodes"] == 1 else str(share),
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
                "mean step ms (quartiles)",
                "efficiency",
                "not computing",
            ),
            *("ring theory, MB a step", "sent / theory"),
        ],
        rows=rows,
        note=caption(record)
        + " Efficiency: total samples / total seconds of the steps, against one node's, with its 95 % interval "
        "over the steps of the two runs (moving-block bootstrap; a row is one run, so what differs from run to run is "
        "not in it). Not computing: the part of the mean step beyond the wait. Sent: the most bytes of any node's link "
        "in a step.",
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
        rest = sorted((mean_step(row) - row["wait_s"]) * 1e3 for row in alone)
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
        told = [f"{name} {share}" for name, share in found if share is not None]
        if told:
            parts.append(f"{joined(told)} ({_RATES.get(rate, rate)})")
    text = f"Weak-scaling efficiency on {plural(most, 'node')}: {'; '.join(parts)}." if parts else "No efficiency yet."
    return f"{text} {caption(record)}"


def _over_repeats(shares: Sequence[Efficiency]) -> Efficiency:
    """Of several repeats the geometric mean with its interval over them; of one, what its steps give."""
    if len(shares) == 1:
        return shares[0]
    value, low, high = mean_ratio([share.value for share in shares])
    return Efficiency(value=value or 0.0, low=low, high=high)


def _draw_line(axes: Any, found: Mapping[int, Sequence[Efficiency]], name: str, look: colors.Style) -> None:
    """An engine's efficiency over nodes with its intervals."""
    xs = sorted(found)
    shares = [_over_repeats(found[x]) for x in xs]
    low = [max(0.0, share.value - share.low) if share.low is not None else 0.0 for share in shares]
    high = [max(0.0, share.high - share.value) if share.high is not None else 0.0 for share in shares]
    drawn = axes.errorbar(
        xs, [100 * share.value for share in shares], yerr=[[100 * end for end in ends] for ends in (low, high)],
        color=look.light, marker=look.marker, markersize=5, capsize=3, linewidth=1.5, label=name,
    )  # fmt: skip
    if (pattern := colors.dashes(look)) is not None:
        drawn.lines[0].set_dashes(pattern)


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
                found: dict[int, list[Efficiency]] = {}
                for row in rows:
                    if (row["scaling"], row["rate"], row["engine"], row["width"]) == (kind, rate, engine, widest):
                        share = efficiency(row, rows)
                        if share is not None:
                            found.setdefault(row["nodes"], []).append(share)
                _draw_line(axes, found, name_of(engine), looks[name_of(engine)])
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
