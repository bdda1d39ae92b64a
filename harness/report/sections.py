"""The report's tables, from a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.analysis.comparison import Comparison
from harness.analysis.cost import Cost, Prices, cost_of, energy_of
from harness.analysis.intervals import ALIKE
from harness.analysis.run_figures import QUALITY_NAMES
from harness.common.formatting import (
    DASH,
    change,
    duration,
    fixed,
    is_number,
    mebibytes,
    milliseconds,
    number,
    percent,
    plural,
)
from harness.common.text_table import Table, without_empty_columns
from harness.records import step_metrics
from harness.records.run_record import RecordedRun
from harness.records.undefined_figures import undefined
from harness.report import published_figures
from harness.report.comparison_table import comparison_table
from harness.report.plots import largest_runs


def all_tables(comparison: Comparison, prices: Prices) -> list[Table]:
    """The tables of the report that have something to show, in its order."""
    made = [
        comparison_table(comparison),
        difference_table(comparison),
        variant_table(comparison),
        quality_table(comparison),
        category_table(comparison),
        kind_table(comparison),
        split_table(comparison),
        rank_table(comparison),
        profile_table(comparison),
        memory_table(comparison),
        resource_table(comparison),
        cost_table(comparison, prices),
    ]
    return [without_empty_columns(table) for table in made if table is not None]


def difference_table(comparison: Comparison) -> Table | None:
    """Every paired difference of speed with its interval."""
    rows = [
        [
            f"{pair.difference.b} against {pair.difference.a}",
            str(pair.workers),
            change(pair.difference.value),
            pair.difference.bounds(),
            str(pair.difference.pairs),
            pair.difference.word,
        ]
        for pair in comparison.speed
        if pair.group == 0
    ]
    if not rows:
        return None
    return Table(
        id="differences",
        title="Differences in speed",
        columns=["throughput of", "workers", "difference", "95 % interval", "pairs", "shown"],
        rows=rows,
        note="Paired by repeat; the engines ran interleaved, so a drift of the machine cancels. Three or more engines "
        "with repeats: one additive model of engine and repeat, intervals by Tukey and Kramer; each two by their own "
        "pairs where the engines scatter unequally. Two: Student's t over the pairs; one pair has no interval. The "
        "intervals of one number of workers hold all together. real: zero is outside; alike: zero is inside and all of "
        f"it within {ALIKE:.0%}; undecided: everything else.",
    )


def variant_table(comparison: Comparison) -> Table | None:
    """What a setting changes inside an engine (`harness.analysis.setting_effects`)."""
    several = len({found.nodes for found in comparison.variants}) > 1
    rows = [
        [
            f"{found.engine}: {found.title}",
            str(found.workers) + (f" on {plural(found.nodes, 'node')}" if several else ""),
            change(found.speed.value),
            found.speed.bounds(),
            DASH if found.memory is None else change(found.memory),
            DASH if found.loss is None else f"{found.loss:+.3f}",
            str(found.speed.pairs),
            found.speed.word,
        ]
        for found in comparison.variants
    ]
    if not rows:
        return None
    return Table(
        id="variants",
        title="What a setting changes",
        columns=["setting", "workers", "samples/s", "95 % interval", "peak memory", "final loss", "pairs", "shown"],
        rows=rows,
        note="Each setting of an engine against the plainer one that it differs least from (the engine's plainest "
        "where none is named), paired by repeat, intervals as above. Settings that must not share a curve stand here "
        "too: their arithmetic may differ, and the final loss says where that led.",
    )


def quality_table(comparison: Comparison) -> Table | None:
    """Mean and 95 % interval over the seeds of each quality figure, main group."""
    rows = []
    for cell in comparison.main.to_dict("records") if len(comparison.main) else ():
        if any(is_number(cell[name]) for name in QUALITY_NAMES):
            figures = [_with_half(cell[name], cell[f"{name}_half"]) for name in QUALITY_NAMES]
            unusable = f"{cell['unusable_answers']:.0f}" if is_number(cell["unusable_answers"]) else DASH
            rows.append([cell["label"], str(int(cell["workers"])), *figures, unusable])
    if not rows:
        return None
    return Table(
        id="quality",
        title="Quality on the test set",
        columns=["engine", "workers", *QUALITY_NAMES.values(), "unusable answers (worst run)"],
        rows=rows,
        note=" ".join(["Mean ± half of the 95 % interval over the seeds.", *_undefined(comparison)]),
    )


def _undefined(comparison: Comparison) -> list[str]:
    """A sentence for each reason why figures of quality stand nowhere, such as a data set without masks."""
    texts = dict.fromkeys(text for run in comparison.runs for text in undefined(run.evaluation, QUALITY_NAMES))
    return [f"{text[0].upper()}{text[1:]}." for text in texts]


def category_table(comparison: Comparison) -> Table | None:
    """Image and pixel AUROC and answer accuracy per category at the largest number of workers, beside the published
    figures where the category has any."""
    runs = largest_runs(comparison)
    runs = {
        label: members for label, members in runs.items() if any(run.evaluation.get("categories") for run in members)
    }
    if not runs:
        return None
    names = sorted(
        {name for members in runs.values() for run in members for name in run.evaluation.get("categories") or ()}
    )
    figures = ("image_auroc", "pixel_auroc", "answer_accuracy")
    known = [name for name in names if name in published_figures.ACCURACY]
    versions = published_figures.VERSIONS if known else ()
    columns = ["category", *(f"{QUALITY_NAMES[figure]}: {label}" for figure in figures for label in runs)]
    columns += [f"study {version}: answers" for version in versions]
    rows = []
    for name in names:
        row = [name]
        row += [_percent(_mean_of(own, name, figure)) for figure in figures for own in runs.values()]
        row += [
            fixed(value, 1) for value in published_figures.ACCURACY.get(name, (None,) * len(versions))[: len(versions)]
        ]
        rows.append(row)
    mean = ["mean", *(_percent(_mean_of(own, None, figure)) for figure in figures for own in runs.values())]
    rows.append(mean + [fixed(value, 1) for value in published_figures.MEAN["answer_accuracy"][: len(versions)]])
    return Table(
        id="categories",
        title="By category, per cent",
        columns=columns,
        rows=rows,
        note="Published for comparison (MVTec AD, whole training, other data here unless the categories match): the "
        f"study's versions reach image AUROC {_range(published_figures.MEAN['image_auroc'])}, pixel AUROC "
        f"{_range(published_figures.MEAN['pixel_auroc'])}, answers "
        f"{_range(published_figures.MEAN['answer_accuracy'])}; "
        f"the paper {published_figures.PAPER['image_auroc']}, {published_figures.PAPER['pixel_auroc']}, "
        f"{published_figures.PAPER['answer_accuracy']}." + "".join(f" {text}" for text in _undefined(comparison)),
    )


def kind_table(comparison: Comparison) -> Table | None:
    """Per kind of defect, over all categories, at the largest number of workers."""
    runs = largest_runs(comparison)
    kinds: dict[str, dict[str, list[list[float]]]] = {}
    for label, members in runs.items():
        for run in members:
            for category in (run.evaluation.get("categories") or {}).values():
                for kind, row in (category.get("kinds") or {}).items():
                    cells = kinds.setdefault(kind, {}).setdefault(label, [[], [], []])
                    figures = ("image_auroc", "pixel_auroc_defective", "answer_accuracy")
                    for values, figure in zip(cells, figures, strict=True):
                        if is_number(row.get(figure)):
                            values.append(row[figure])
    if not kinds:
        return None
    heads = ("image AUROC", "pixel AUROC in defective", "answers right")
    rows = []
    for kind, by_label in sorted(kinds.items()):
        cells = [by_label.get(label, [[], [], []])[part] for part in range(3) for label in runs]
        rows.append([kind, *(_percent(float(np.mean(values)) if values else None) for values in cells)])
    return Table(
        id="kinds",
        title="By kind of picture, per cent",
        columns=["kind", *(f"{head}: {label}" for head in heads for label in runs)],
        rows=rows,
        note="Image AUROC of each kind against the good pictures; pixel AUROC among pixels of defective pictures only.",
    )


SPLIT_PARTS = ("data", "forward", "backward", "exchange", "optimizer", "other")


def split_means(runs: Sequence[RecordedRun]) -> dict[str, float] | None:
    """Median milliseconds of each part of a step, over the sampled steps of rank 0..N of `runs`."""
    rows = [row for run in runs for row in run.split if not run.job.get("profile")]
    if not rows:
        return None
    return {part: 1000 * float(np.median([row.get(f"{part}_s") or 0.0 for row in rows])) for part in SPLIT_PARTS}


def split_table(comparison: Comparison) -> Table | None:
    """Where a step goes, engine by engine."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        parts = split_means(runs)
        if parts is not None:
            rows.append([label, str(workers), *(number(parts[part]) for part in SPLIT_PARTS)])
    if not rows:
        return None
    return Table(
        id="split",
        title="Where a step goes, ms",
        columns=["engine", "workers", "data", "forward", "backward", "exchange not hidden", "optimizer", "after it"],
        rows=rows,
        note="Medians over sampled steps of all ranks. Exchange: from the rank's last own gradient to the update, so "
        "waiting for slower ranks and gradient clipping are in it; what is hidden behind backward is not. After the "
        "update ZeRO 1 and 2 gather the new weights.",
    )


def rank_table(comparison: Comparison, most: int = 32) -> Table | None:
    """Each rank's own work and waiting, of the first run of each cell with several workers."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        if workers < 2 or not runs[0].split or runs[0].job.get("profile"):
            continue
        hosts = {rank.get("rank"): rank.get("hostname") for rank in runs[0].environment.get("ranks") or ()}
        for rank in range(workers):
            own = [row for row in runs[0].split if row["rank"] == rank]
            if not own:
                continue
            work = np.array([step_metrics.own_work_s(row) for row in own])
            wait = np.array([row["exchange_s"] + row["other_s"] for row in own])
            busy = float(np.median([step_metrics.launching_s(row) for row in own]))
            rows.append(
                [
                    f"{label}, rank {rank}",
                    hosts.get(rank) or DASH,
                    milliseconds(float(np.median(work))),
                    milliseconds(float(np.percentile(work, 90))),
                    milliseconds(busy) if busy else DASH,
                    milliseconds(float(np.median(wait))),
                ]
            )
    if not rows:
        return None
    return Table(
        id="ranks",
        title="Own work and waiting by rank, ms a step",
        columns=[
            "rank",
            "host",
            "own work (median)",
            "own work (p90)",
            "of it processor",
            "exchange and waiting (median)",
        ],
        rows=rows[:most],
        note="First run of each cell. A rank whose own work is longer than the others' makes them all wait. Processor: "
        "what it worked for forward and backward; near the whole on a GPU, the GPU waits for its host or the host for "
        "a full queue.",
    )


def resource_table(comparison: Comparison) -> Table | None:
    """Load of rank 0's host while training: processor, network, GPUs."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        seen = [row for run in runs for row in run.resources]
        if not seen:
            continue
        gpus = [gpu for row in seen for gpu in row.get("gpus") or ()]
        rates = [_rate(run.resources, "net_sent_bytes") for run in runs]
        sent = [rate for rate in rates if rate is not None]
        rows.append(
            [
                label,
                str(workers),
                f"{np.mean([row['cpu_percent'] for row in seen]):.0f} %",
                number(float(np.median(sent))) if sent else DASH,
                _gpu_mean(gpus, "util_percent", "{:.0f} %"),
                _gpu_mean(gpus, "power_w", "{:.0f} W"),
                _gpu_mean(gpus, "temperature_c", "{:.0f} °C", highest=True),
            ]
        )
    if not rows:
        return None
    return Table(
        id="resources",
        title="Load while training",
        columns=["engine", "workers", "processor (rank 0)", "sent, MB/s", "GPU use", "GPU power", "GPU temperature"],
        rows=rows,
        note="Means over the sampler's rows; temperature: highest. Processor: of rank 0's process, 100 % = one core. "
        "Sent: all interfaces of rank 0's host, also within it.",
    )


def profile_table(comparison: Comparison) -> Table | None:
    """Where a step's own device time goes by kind of operation, from the profiled runs: mean over their ranks."""
    columns: list[str] = []
    figures: list[dict[str, float]] = []
    for run in comparison.runs:
        ranks = run.profile.get("ranks") or []
        if ranks:
            columns.append(f"{run.label}, {plural(run.workers, 'worker')}")
            kinds = ranks[0]["kinds_ms"]
            figures.append({kind: float(np.mean([rank["kinds_ms"][kind] for rank in ranks])) for kind in kinds})
    if not columns:
        return None
    kinds = list(figures[0])
    rows = [[kind, *(number(own.get(kind)) for own in figures)] for kind in kinds]
    rows.append(["sum", *(number(sum(own.values())) for own in figures)])
    for name, told in (("span_ms", "first to last"), ("busy_ms", "at work"), ("computing_ms", "computing")):
        means = [_rank_mean(run, name) for run in comparison.runs if run.profile.get("ranks")]
        if any(mean is not None for mean in means):
            rows.append([f"device: {told}", *map(number, means)])
    return Table(
        id="profile",
        title="A profiled step by kind of operation, ms",
        columns=["kind", *columns],
        rows=rows,
        note="Own time of the operations on the device that computes, per step and rank, from runs with a profiler. "
        "What a GPU lacks from first to last to being at work, it waited for its host. "
        "Kinds may overlap in time (exchange beside backward), and the profiler slows a step: compare shares. "
        "Horovod exchanges on a CPU in a thread of its own, which the profiler does not see.",
    )


def _rank_mean(run: RecordedRun, name: str) -> float | None:
    found = [rank[name] for rank in run.profile["ranks"] if rank.get(name) is not None]
    return float(np.mean(found)) if found else None


def memory_table(comparison: Comparison) -> Table | None:
    """Peak memory, and by kind beside theory where the run measured it."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        memory = runs[0].memory
        kinds = memory.get("kinds") or {}
        theory = memory.get("theory") or {}
        row = [
            label,
            str(workers),
            mebibytes(_highest(runs, "peak_rss_mib")),
            mebibytes(_highest(runs, "peak_device_mib")),
        ]
        for kind in ("weights", "gradients", "optimizer", "activations"):
            text = mebibytes(kinds.get(kind))
            if is_number(theory.get(kind)):
                text += f" ({mebibytes(theory[kind])})"
            row.append(text)
        rows.append(row)
    if not rows:
        return None
    return Table(
        id="memory",
        title="Peak memory of a worker",
        columns=["engine", "workers", "process", "GPU", "weights", "gradients", "optimizer", "activations and rest"],
        rows=rows,
        note="Highest worker. By kind: measured in the first timed step (theory for the ZeRO stage in brackets, "
        "Rajbhandari et al., arXiv:1910.02054).",
    )


def cost_table(comparison: Comparison, prices: Prices) -> Table | None:
    """Time and cost beside each other, in the form of DeepSpeed-Chat's tables."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        costs = [cost_of(run, prices) for run in runs]
        train, money = _middle(costs, "train_s"), _middle(costs, "money")
        epoch = _middle(costs, "per_epoch_s")
        per_epoch = _middle(costs, "money_per_epoch")
        samples = [
            1000 * money / (int(run.job.get("steps", 0)) * int(run.job.get("global_batch", 0)) or 1)
            for run in runs[:1]
            if money is not None
        ]
        rows.append(
            [
                label,
                str(workers),
                _time_and_money(train, money, prices.currency),
                _time_and_money(epoch, per_epoch, prices.currency),
                _energy_text(costs),
                f"{prices.currency}{number(samples[0])}" if samples else DASH,
            ]
        )
    if not rows:
        return None
    return Table(
        id="cost",
        title="Time and cost",
        columns=["engine", "workers", "training", "per epoch", "energy of training", "cost of 1000 samples"],
        rows=rows,
        note="Training only, without set-up and evaluation. Money: by your own prices (--prices FILE). Energy: of the "
        "GPUs that the run used, and of its machines' processors where their counters may be read, which hold what "
        f"every program there used. {_unmeasured(comparison)}".strip(),
    )


def _energy_text(costs: Sequence[Cost]) -> str:
    """The median of runs whose energy was measured of the same parts; why it was not, else."""
    measured = [cost.energy for cost in costs if cost.energy.kwh is not None]
    if len(measured) < len(costs) or len({energy.of for energy in measured}) > 1:
        return "not measured"
    middle = float(np.median([energy.kwh for energy in measured if energy.kwh is not None]))
    beside = ", beside other work" if any(energy.shared for energy in measured) else ""
    return f"{number(middle * 1000)} Wh ({measured[0].of}{beside})"


def _unmeasured(comparison: Comparison) -> str:
    reasons = [energy_of(run).why for _, _, runs in cell_runs(comparison) for run in runs]
    told = list(dict.fromkeys(reason for reason in reasons if reason))
    return f"Not measured: {'; '.join(told[:3])}." if told else ""


def runs_table(comparison: Comparison) -> Table:
    """Every run, also the failed ones."""
    rows = []
    for row in comparison.frame.to_dict("records"):
        rows.append(
            [
                row["run"],
                "ok" if row["group"] >= 0 else "failed",
                DASH if row["group"] < 0 else str(row["group"] + 1),
                str(row["seed"]),
                number(row["samples_per_s"]),
                milliseconds(row["typical_step_s"]),
                number(row["final_loss"]),
                fixed(row["image_auroc"], 3),
                fixed(row["pixel_auroc"], 3),
                percent(row["answer_accuracy"], 1),
                duration(row["wall_s"]),
                row["reason"],
            ]
        )
    columns = (
        "run status group seed samples/s typical_step_ms loss image_AUROC pixel_AUROC answers_right wall_time reason"
    )
    return Table(
        id="runs",
        title="All runs",
        columns=[name.replace("_", " ") for name in columns.split()],
        rows=rows,
        strong=[index for index, row in enumerate(rows) if row[1] == "failed"],
    )


def cell_runs(comparison: Comparison) -> list[tuple[str, int, list[RecordedRun]]]:
    """(label, workers, ok runs by repeat) of the main group's cells."""
    found = []
    members = comparison.members(0)
    for cell in comparison.main.to_dict("records") if len(comparison.main) else ():
        runs = [run for run in members if run.label == cell["label"] and run.workers == cell["workers"]]
        if runs:
            found.append((cell["label"], int(cell["workers"]), sorted(runs, key=lambda run: (run.repeat, run.name))))
    return found


def _mean_of(runs: Sequence[RecordedRun], category: str | None, figure: str) -> float | None:
    values = []
    for run in runs:
        evaluation = run.evaluation
        row = evaluation.get("mean") if category is None else (evaluation.get("categories") or {}).get(category)
        if row and is_number(row.get(figure)):
            values.append(row[figure])
    return float(np.mean(values)) if values else None


def _highest(runs: Sequence[RecordedRun], name: str) -> float | None:
    values = [value for run in runs for value in run.memory.get(name) or () if is_number(value)]
    return max(values, default=None)


def _middle(costs: Sequence[Cost], name: str) -> float | None:
    values: list[Any] = [getattr(cost, name) for cost in costs]
    values = [value for value in values if is_number(value)]
    return float(np.median(values)) if values else None


def _rate(rows: Sequence[dict[str, Any]], counter: str) -> float | None:
    """MB/s between the first and the last row, None where the counter or the time stands still."""
    known = [row for row in rows if is_number(row.get(counter))]
    if len(known) < 2 or known[-1]["t"] <= known[0]["t"]:
        return None
    return (known[-1][counter] - known[0][counter]) / (known[-1]["t"] - known[0]["t"]) / 1e6


def _gpu_mean(gpus: Sequence[dict[str, Any]], name: str, form: str, *, highest: bool = False) -> str:
    values = [gpu[name] for gpu in gpus if is_number(gpu.get(name))]
    if not values:
        return DASH
    return form.format(max(values) if highest else float(np.mean(values)))


def _time_and_money(seconds: float | None, money: float | None, currency: str) -> str:
    """``5.7 h ($132)``, as DeepSpeed-Chat writes it."""
    text = duration(seconds)
    return f"{text} ({currency}{number(money)})" if money is not None else text


def _with_half(value: float | None, half: float | None) -> str:
    text = fixed(value, 3)
    return f"{text} ±{half:.3f}" if is_number(value) and is_number(half) else text


def _percent(value: float | None) -> str:
    return fixed(None if value is None else 100 * value, 1)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"
