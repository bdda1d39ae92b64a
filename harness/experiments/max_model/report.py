"""What `harness experiment max-model` leaves beside fit.json: fit.csv, fit.md (a line a setting and number of workers)
and the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.colors import styles
from harness.common.formatting import DASH, mebibytes, plural
from harness.common.text_table import Table, csv_text, markdown
from harness.experiments.max_model.attempt import HOST_IS_FULL
from harness.records.record_files import write_text
from harness.report.plots import figure_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADERS = ("setting", "workers", "largest", "ran out", "shape", "peak memory", "predicted largest", "error", "tries")
_WORDS = {"open": "not tried to the end", "none": "nothing fits", "failed": "failed"}


def write_tables(record: Mapping[str, Any], folder: Path) -> None:
    """Writes fit.csv and fit.md into `folder`. record: fit.json's."""
    for name, text in (("fit.csv", csv_text(raw_table(record))), ("fit.md", page(record))):
        write_text(folder / name, text)


def raw_table(record: Mapping[str, Any]) -> Table:
    """Full figures: parameters, MiB, the error as a share."""
    headers: tuple[str, ...] = (
        "setting",
        "workers",
        "status",
        "parameters",
        "too_large_parameters",
        "peak_mib",
        "host_mib",
    )
    headers += ("predicted_parameters", "predicted_peak_mib", "error", "tries", "reason")
    rows = []
    for cell in record["cells"]:
        best, expected = cell["largest"] or {}, cell["predicted"]
        values: tuple[Any, ...] = (
            cell["setting"],
            cell["workers"],
            cell["status"],
            best.get("parameters"),
            cell["too_large"],
        )
        values += (best.get("peak_mib"), best.get("host_mib"), expected["parameters"], best.get("predicted_mib"))
        values += (cell["error"], len(cell["tries"]), cell["reason"])
        rows.append(tuple("" if value is None else str(value) for value in values))
    return Table(id="fit", title="", columns=headers, rows=tuple(rows))


def page(record: Mapping[str, Any]) -> str:
    """fit.md."""
    setup = record["setup"]
    rows = []
    for cell in record["cells"]:
        best, expected = cell["largest"], cell["predicted"]
        size = f"{millions(best['parameters'])}" if best else DASH
        if cell["status"] != "found":
            size = f"at least {size} ({_WORDS[cell['status']]})" if best else _WORDS[cell["status"]]
        rows.append(
            (
                cell["label"], str(cell["workers"]), size, ran_out(cell, setup), best["shape"] if best else DASH,
                mebibytes(best["peak_mib"]) if best else DASH, millions(expected["parameters"]),
                DASH if cell["error"] is None else f"{cell['error']:+.1%}", str(len(cell["tries"])),
            )
        )  # fmt: skip
    limit = "the device's own memory" if setup["memory_gib"] is None else f"{setup['memory_gib']:g} GiB a worker"
    table = markdown(Table(id="fit", title="Beside the prediction", columns=HEADERS, rows=tuple(rows)))
    lines = [
        (
            f"{headline(record)} Limit: {limit}; {setup['precision']} ({setup['precision_mode']}), "
            f"{setup['micro_batch']} x {setup['length']} tokens a worker and step, AdamW, {setup['steps']} steps "
            f"a try, {'with' if setup['activation_checkpointing'] else 'without'} activation checkpointing."
        ),
        "",
        markdown(overview(record)).rstrip(),
        "",
        table.rstrip(),
        "",
        (
            "largest: trained parameters of a LLaMA-type transformer (layers x width (MLP)) that took all steps, "
            f"while the next shape of the grid, {setup['resolution']:.1%} larger, ran out of memory; ran out: which. "
            "peak memory: on the device, of the worker that needed most, without what the process needs before there "
            "is a model. predicted: by the memory formula before the first try; error: predicted over found."
        ),
        "",
    ]
    lines += [f"- {cell['label']}, {cell['workers']}: {cell['reason']}" for cell in record["cells"] if cell["reason"]]
    crowded = sorted({cell["workers"] for cell in record["cells"] if cell["oversubscribed"]})
    lines += [f"- {count} workers: more than this machine has cores" for count in crowded]
    return "\n".join(lines).rstrip() + "\n"


def ran_out(cell: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    """Which memory the smallest shape that did not fit ran out of."""
    short = [one for one in cell["tries"] if one["status"] == "oom"]
    if not short:
        return DASH
    if HOST_IS_FULL in min(short, key=lambda one: one["point"])["reason"]:
        return "host memory"
    return "GPU memory" if setup["on_gpu"] else "memory"


def overview(record: Mapping[str, Any]) -> Table:
    """The form of DeepSpeed-Chat's table of the largest model: a setting a row, a column for each number of workers."""
    counts = sorted({cell["workers"] for cell in record["cells"]})
    sizes: dict[str, dict[int, str]] = {}
    for cell in record["cells"]:
        best = cell["largest"]
        text = millions(best["parameters"]) if best else _WORDS[cell["status"]]
        if best and cell["status"] != "found":
            text = f"at least {text}"
        sizes.setdefault(cell["label"], {})[cell["workers"]] = text
    rows = [(label, *(own.get(count, DASH) for count in counts)) for label, own in sizes.items()]
    columns = ("setting", *(plural(count, "worker") for count in counts))
    return Table(id="largest", title="Largest model that trains", columns=columns, rows=tuple(rows))


def headline(record: Mapping[str, Any]) -> str:
    """One sentence: the largest of all, and how near the predictions are."""
    found = [cell for cell in record["cells"] if cell["status"] == "found"]
    if not found:
        return "No cell has been finished."
    best = max(found, key=lambda cell: cell["largest"]["parameters"])
    near = sum(abs(cell["error"]) <= 0.10 for cell in found)
    return (
        f"Largest: {best['label']} with {plural(best['workers'], 'worker')}, "
        f"{millions(best['largest']['parameters'])} parameters; {near} of {len(found)} predictions within 10 %"
        + (f"; {len(record['cells']) - len(found)} cells not found." if len(found) < len(record["cells"]) else ".")
    )


def millions(count: float) -> str:
    """``29.0 M``, ``1.31 B`` (billion), as sizes of language models are told."""
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def plot(record: Mapping[str, Any], stem: Path) -> None:
    """Writes STEM.png and STEM.svg: a row a setting, a filled mark for what was found, a hollow one for the prediction,
    an arrow where larger ones may fit."""
    labels = list(dict.fromkeys(cell["label"] for cell in record["cells"]))
    figure_files(stem.parent, stem.name, partial(_draw, record["cells"], labels), size=(8, 1.6 + 0.42 * len(labels)))


def _draw(cells: Sequence[Mapping[str, Any]], labels: Sequence[str], figure: Figure) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    counts = sorted({cell["workers"] for cell in cells})
    looks = styles([str(count) for count in counts])
    axis = figure.subplots()
    shift = 0.5 / max(1, len(counts))
    for index, count in enumerate(counts):
        look = looks[str(count)]
        own = [cell for cell in cells if cell["workers"] == count]
        places = [labels.index(cell["label"]) + (index - (len(counts) - 1) / 2) * shift for cell in own]
        axis.plot(
            [cell["predicted"]["parameters"] for cell in own], places, linestyle="none", marker=look.marker,
            markersize=7, markerfacecolor="none", color=look.light, label=f"{plural(count, 'worker')}, predicted",
        )  # fmt: skip
        solid = [(cell, place) for cell, place in zip(own, places, strict=True) if cell["largest"]]
        axis.plot(
            [cell["largest"]["parameters"] for cell, _ in solid], [place for _, place in solid], linestyle="none",
            marker=look.marker, markersize=5, color=look.light, label=f"{plural(count, 'worker')}, trained",
        )  # fmt: skip
        for cell, place in solid:
            if cell["status"] != "found":
                axis.annotate(
                    "not finished", (cell["largest"]["parameters"], place), xytext=(7, -3), textcoords="offset points",
                    fontsize=7, color="0.35",
                )  # fmt: skip
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: millions(value)))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axis.set_xlabel("largest trainable parameters")
    axis.grid(False, axis="y")
    axis.legend(fontsize=8, frameon=False, ncols=len(counts), loc="lower center", bbox_to_anchor=(0.5, 1.0))
