"""A running job in the terminal: progress, throughput, loss, each rank's lag, processor and GPUs.

It reads the records that the run writes anyway, so watching costs the run nothing and may begin at any time.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.common.formatting import is_number, mebibytes, milliseconds, number, plural
from harness.protocol.console import clock
from harness.records.run_record import label_of
from harness.records.step_metrics import window_rate
from harness.records.tail import Follower

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_BARS = "▁▂▃▄▅▆▇█"
_WINDOW = 50  # steps of which median and lag are shown


class LiveView:
    """What is known of a running job, and how it looks. Feed it rows; `render` at any time."""

    def __init__(self, job: dict[str, Any], name: str) -> None:
        self.job, self.name = job, name
        self.total = int(job.get("steps", 1))
        self.rows: deque[dict[str, Any]] = deque(maxlen=_WINDOW)
        self.losses: list[float] = []
        self.resource: dict[str, Any] = {}
        self.status = "running"
        self.reason = ""

    def add(self, rows: list[dict[str, Any]], resources: list[dict[str, Any]] | None = None) -> None:
        """New rows of steps.jsonl and resources.jsonl."""
        self.rows.extend(rows)
        self.losses += [row["loss"] for row in rows if is_number(row.get("loss"))]
        if resources:
            self.resource = resources[-1]

    @property
    def done(self) -> int:
        return int(self.rows[-1]["step"]) + 1 if self.rows else 0

    def step_s(self) -> float | None:
        """Typical (median) step of the window, s."""
        return float(np.median([row["step_s"] for row in self.rows])) if self.rows else None

    def rate(self) -> float | None:
        """Samples/s of the window."""
        return window_rate(self.rows)

    def left_s(self) -> float | None:
        step = self.step_s()
        return None if step is None else step * (self.total - self.done)

    def lags(self) -> list[float]:
        """By rank: median share by which its whole step is longer than the shortest; [] for a single rank."""
        times = [row["rank_step_s"] for row in self.rows if len(row.get("rank_step_s") or ()) > 1]
        if not times:
            return []
        array = np.array(times)
        return [float(value) for value in np.median(array / array.min(axis=1, keepdims=True) - 1, axis=0)]

    def render(self) -> RenderableType:
        """A panel of at most ten lines."""
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold")
        grid.add_column()
        left = self.left_s()
        text = f"{self.done}/{self.total} steps" + (f", {clock(left)} left" if left is not None and left > 0 else "")
        grid.add_row("progress", ProgressBar(total=self.total, completed=self.done, width=40))
        grid.add_row("", text)
        step = self.step_s()
        if step:
            rate = self.rate()
            wait = float(np.median([row.get("data_s") or 0.0 for row in self.rows])) / step
            grid.add_row("speed", f"{number(rate)} samples/s, {milliseconds(step)} ms a step, data {wait:.0%}")
        if self.losses:
            grid.add_row("loss", f"{number(self.losses[-1], 4)}  {sparkline(self.losses)}")
        last = self.rows[-1] if self.rows else {}
        if last.get("loss_scale") not in (None, 1, 1.0):
            skipped = sum(bool(row.get("skipped")) for row in self.rows)
            grid.add_row(
                "loss scale", f"{last['loss_scale']:.0f}, {skipped} of the last {len(self.rows)} steps skipped"
            )
        lags = self.lags()
        if lags:
            shown = "  ".join(f"rank {rank} +{lag:.1%}" for rank, lag in enumerate(lags[:8]))
            grid.add_row("lag", shown + (f"  and {len(lags) - 8} more" if len(lags) > 8 else ""))
        if self.resource:
            grid.add_row("rank 0", _resource_text(self.resource))
        for gpu in self.resource.get("gpus") or ():
            grid.add_row(f"GPU {gpu['index']}", _gpu_text(gpu))
        if self.status != "running":
            grid.add_row("ended", f"{self.status} {self.reason}".strip())
        workers = int(self.job.get("nodes", 1)) * int(self.job.get("slots", 1))
        title = f"{self.name}: {label_of(self.job)}, {plural(workers, 'worker')}"
        return Panel(grid, title=title, title_align="left")


def sparkline(values: list[float], width: int = 40) -> str:
    """The course of `values` in `width` characters, lowest to highest."""
    if len(values) > width:
        edges = np.linspace(0, len(values), width + 1).astype(int)
        values = [float(np.mean(values[a:b])) for a, b in itertools.pairwise(edges) if b > a]
    low, high = min(values), max(values)
    if high - low < 1e-12:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, int(8 * (value - low) / (high - low)))] for value in values)


def watch(
    folder: Path,
    *,
    console: Console | None = None,
    poll_s: float = 0.5,
    limit_s: float = float("inf"),
) -> dict[str, Any]:
    """Shows the run in `folder` until it ends, or the process that records it is gone (or `limit_s` has passed), and
    returns its result. Ctrl-C ends watching, not the run. Where the output is no terminal: a line every ten seconds."""
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    follower = Follower(folder)
    view = LiveView(follower.job, folder.name)
    began, spoken = time.monotonic(), float("-inf")
    shown = Live(view.render(), console=console, auto_refresh=False) if console.is_terminal else nullcontext()
    with shown as live:
        while True:
            result = follower.result()
            rows = follower.rows()
            view.add(rows, follower.resources())
            view.status, view.reason = result.get("status", "running"), result.get("reason", "")
            if live is not None:
                live.update(view.render(), refresh=True)
            elif time.monotonic() - spoken > 10 or view.status != "running":
                spoken = time.monotonic()
                found = view.rate()
                rate = "" if found is None else f", {number(found)} samples/s"
                why = f": {view.reason}" if view.reason else ""
                line = f"{view.status}: {view.done}/{view.total} steps{rate}{why}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            if view.status != "running" or time.monotonic() - began > limit_s:
                return result
            time.sleep(poll_s)


def _resource_text(row: dict[str, Any]) -> str:
    return f"processor {row['cpu_percent']:.0f} %, {mebibytes(row['rss_mib'])} on {row['host']}"


def _gpu_text(gpu: dict[str, Any]) -> str:
    parts = [
        (gpu.get("util_percent"), "{:.0f} % busy"),
        (gpu.get("mem_mib"), "{:.0f} MiB"),
        (gpu.get("power_w"), "{:.0f} W"),
        (gpu.get("temperature_c"), "{:.0f} °C"),
    ]
    return ", ".join(form.format(value) for value, form in parts if is_number(value))
