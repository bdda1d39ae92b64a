"""What `harness experiment collectives` measured, as comm.json and comm.md, and what it says in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common.formatting import DASH, binary, milliseconds, number, plural
from harness.common.text_table import Table, markdown
from harness.job.declaration import JobError
from harness.records.record_files import read_json, write_json, write_text
from mpi import hostfile

NAME = "comm.json"
_TYPICAL = 64 << 20  # bytes: an engine's full bucket of gradients


def made(measured: Sequence[Mapping[str, Any]], hosts: Sequence[hostfile.Host], line_rate: float) -> dict[str, Any]:
    """The record of what was measured on this machine. line_rate: bytes a second of the link, 0 = not given."""
    from harness.records.step_metrics import environment

    return {
        "hosts": _named(hosts),
        "link_bytes_per_s": line_rate or None,
        "definition": "S = bytes of the larger buffer, algbw = S / t, busbw = algbw x factor (nccl-tests)",
        "environment": environment(),
        "libraries": list(measured),
    }


def write(record: Mapping[str, Any], out: Path) -> None:
    """OUT/comm.json, comm.md and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / NAME, {**record, "headline": headline(record)})
    write_text(out / "comm.md", page(record))
    if any(result["rows"] for result in record["libraries"]):
        from harness.experiments.collectives.plot import plot

        plot(record, out / "comm")


def others(out: Path, names: Iterable[str], hosts: Sequence[hostfile.Host], device: str) -> list[dict[str, Any]]:
    """What OUT/comm.json holds of libraries that are not in `names`. Raises JobError where it is of other hosts, other
    hardware or another device: such figures do not stand side by side."""
    from harness.records.environment import environment, hardware

    if not (out / NAME).exists():
        return []
    record = read_json(out / NAME)
    kept = [result for result in record["libraries"] if result["via"] not in set(names)]
    devices = {result["transport"].get("device", device) for result in kept}
    there = record.get("environment") or {}
    if there and hardware(there) != hardware(environment()):
        raise JobError(f"{out / NAME} was measured on {hardware(there)}: choose another --study")
    if record["hosts"] != _named(hosts) or devices - {device}:
        raise JobError(f"{out / NAME} is of other workers or of another device: choose another --study")
    return kept


def rate_of(out: Path) -> float:
    """The link's rate in bytes/s that OUT/comm.json says, 0 where it says none."""
    return float(read_json(out / NAME).get("link_bytes_per_s") or 0.0) if (out / NAME).exists() else 0.0


def page(record: Mapping[str, Any]) -> str:
    """Markdown: an operation a table, its sizes down, the libraries across."""
    workers = sum(host["slots"] for host in record["hosts"])
    text = [f"# Collectives on {plural(workers, 'worker')}\n"]
    libraries = [result for result in record["libraries"] if result["rows"]]
    operations = list(dict.fromkeys(row["operation"] for result in libraries for row in result["rows"]))
    for operation in operations:
        text.append(markdown(_table(operation, libraries)))
    for result in record["libraries"]:
        about = ", ".join(str(value) for value in result["transport"].values()) or "did not start"
        text.append(f"- {result['via']}: {about}{'; ' + result['reason'] if result['reason'] else ''}")
    return "\n".join(text) + "\n"


def _table(operation: str, libraries: Sequence[Mapping[str, Any]]) -> Table:
    found = {
        (result["via"], row["bytes"]): row
        for result in libraries
        for row in result["rows"]
        if row["operation"] == operation and "seconds" in row
    }
    names = [result["via"] for result in libraries]
    rows = []
    for size in sorted({size for _, size in found}):
        cells = [found.get((name, size)) for name in names]
        rows.append([binary(size), *map(_time, cells), *map(_bandwidth, cells)])
    return Table(
        id=operation,
        title=operation.replace("_", "-"),
        columns=["size", *(f"{name}, us" for name in names), *(f"{name}, Gbit/s" for name in names)],
        rows=rows,
        note="us: median of the repetitions of the slowest rank (quartiles); Gbit/s: bus bandwidth by the mean.",
    )


def _time(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    low, middle, high = (row[name] * 1e6 for name in ("seconds_q1", "seconds_median", "seconds_q3"))
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f}){'' if row['correct'] else ' WRONG'}"


def _bandwidth(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    gigabits = row["busbw"] * 8e-9
    return f"{gigabits:,.0f}" if gigabits >= 100 else number(gigabits)


def headline(record: Mapping[str, Any]) -> str:
    """All-reduce of the smallest size, of a full bucket and of the largest, by library."""
    libraries = [result for result in record["libraries"] if result["rows"]]
    sizes = {row["bytes"] for result in libraries for row in result["rows"] if "seconds" in row}
    if not sizes:
        return "Nothing was measured: the record says why."
    parts = []
    for size in dict.fromkeys((min(sizes), min(sizes, key=lambda size: abs(size - _TYPICAL)), max(sizes))):
        times = [
            f"{result['via']} {milliseconds(row['seconds_median'])}"
            for result in libraries
            for row in result["rows"]
            if row["operation"] == "all_reduce" and row["bytes"] == size and "seconds" in row
        ]
        if times:
            parts.append(f"of {binary(size)}: {', '.join(times)} ms")
    workers = sum(host["slots"] for host in record["hosts"])
    return f"An all-reduce on {plural(workers, 'worker')} {'; '.join(parts)}." if parts else "No all-reduce."


def _named(hosts: Sequence[hostfile.Host]) -> list[dict[str, Any]]:
    return [{"name": host.name, "slots": host.slots} for host in hosts]
