"""What `harness model eval` shows: the table, the alarms above it and the remarks below. Figures come from
`core_model.metrics.evaluate`; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from core_model.metrics.answers import UNUSABLE, judge

NARROWEST = 100  # columns of text below which the table's heads would be cut
ALARM_SHARE = 0.5  # of the answers that are unusable, above which the run's answers are called unusable

# figure -> (head, how many decimals; 0 = a count). A star marks a control.
COLUMNS: dict[str, tuple[str, int]] = {
    "image_auroc": ("image\nAUROC", 3),
    "image_auroc_median": ("median\nalone*", 3),
    "pixel_auroc": ("pixel\nAUROC", 3),
    "pixel_auroc_defective": ("within\ndefect.*", 3),
    "aupro": ("AUPRO\n30 %", 3),
    "f1_max": ("F1\nmax", 3),
    "answer_accuracy": ("Yes/No\nright", 3),
    "unusable_answers": ("un-\nusable", 0),
    "place_accuracy": ("place\nright", 3),
    "place_chance": ("place\nchance*", 3),
}
CONTROLS = (
    "* controls. median alone: image AUROC of each map's median, which a small defect cannot move; where it is high, "
    "good and defective pictures differ by something else. within defect.: pixel AUROC over defective pictures only, "
    "which telling pictures apart cannot raise. place chance: always naming the most frequent place."
)


def alarms(figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences to shout: what makes a figure of this evaluation worthless (the study's V3 reported 0 % accuracy in
    every category, which was a run that could not answer)."""
    answers = [sample["answer"] for sample in samples if sample.get("answer") is not None]
    bad = [answer for answer in answers if judge(answer) == UNUSABLE]
    found = []
    if answers and len(bad) / len(answers) > ALARM_SHARE:
        example = " ".join(bad[0].split())[:60] or "(empty)"
        found.append(
            f"UNUSABLE ANSWERS: {len(bad)} of {len(answers)} say neither Yes nor No, for example '{example}'. The "
            f"accuracy of {figures['mean']['answer_accuracy']:.3f} is no figure of merit: the language part did not "
            "learn to answer. The AUROCs do not show this."
        )
    return found


def remarks(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What two evaluations have in common that two trainings cannot: the study's AUROCs of baseline, V2 and V3 are
    equal, those of V5 and V6 too."""
    found = []
    for second, b in enumerate(evaluations):
        for a in evaluations[:second]:
            names = f"{a['source']} and {b['source']}"
            first, other = a["weights"], b["weights"]
            if a["branch"] == b["branch"] == "memory" and (first or other):
                found.append(f"{names}: the memory branch uses no trained weight, its maps cannot tell them apart")
            elif first and first.get("all") == other.get("all"):
                found.append(
                    f"SAME WEIGHTS: {names} are the same weights (sha256 {first['all'][:12]}): equal figures here are "
                    "one result, not two"
                )
            elif first and first.get("decoder") and first.get("decoder") == other.get("decoder"):
                found.append(f"SAME DECODER: {names} differ in other parts only: their maps and AUROCs cannot differ")
            elif _same_scores(a, b):
                found.append(f"SAME SCORES: {names} give every sample the same score, to the last digit")
    return found


def _same_scores(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    scores, others = ({sample["id"]: sample["score"] for sample in each["samples"]} for each in (a, b))
    return bool(scores) and scores == others


def show(evaluations: Sequence[Mapping[str, Any]], notes: Sequence[str], console: Console) -> None:
    """Prints every evaluation, then the remarks."""
    if console.width < NARROWEST:
        console = Console(file=console.file, width=NARROWEST, force_terminal=console.is_terminal)
    for evaluation in evaluations:
        console.print(_one(evaluation))
    console.print(Text(CONTROLS, style="dim"))
    for note in notes:
        shout = note.startswith("SAME")
        console.print(Panel(note, style="bold red") if shout else Text(f"note: {note}"))


def _one(evaluation: Mapping[str, Any]) -> Group:
    figures = evaluation["figures"]
    parts: list[Any] = [Text(_title(evaluation), style="bold")]
    parts += [Panel(alarm, style="bold red") for alarm in evaluation["alarms"]]
    parts.append(_table(figures))
    parts += [Text(f"warning: {text}", style="yellow") for text in evaluation["warnings"]]
    parts += [Text(f"undefined: {name}: {reason}", style="dim") for name, reason in _reasons(figures).items()]
    return Group(*parts)


def _title(evaluation: Mapping[str, Any]) -> str:
    shots = f", {evaluation['shots']}-shot" if evaluation["shots"] else ""
    trained = f"weights {evaluation['weights']['all'][:12]}" if evaluation["weights"] else "no trained weights"
    return (
        f"{evaluation['source']}: {evaluation['preset']} on {evaluation['data']} ({evaluation['split']}, "
        f"{evaluation['figures']['count']} pictures), {evaluation['branch']} branch{shots}, score '"
        f"{evaluation['scoring']}', {trained}"
    )


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("\ncategory", no_wrap=True)
    table.add_column("good/\ndefect.", justify="right", no_wrap=True)
    for head, _ in COLUMNS.values():
        control = head.endswith("*")
        table.add_column(head, justify="right", no_wrap=True, style="dim" if control else "")
    for name, row in figures["categories"].items():
        table.add_row(name, f"{row['good']}/{row['defective']}", *_cells(row))
    mean = figures["mean"]
    table.add_section()
    table.add_row("mean", "", *_cells(mean), style="bold")
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    return ["-" if row.get(name) is None else f"{row[name]:.{digits}f}" for name, (_, digits) in COLUMNS.items()]


def _reasons(figures: Mapping[str, Any]) -> dict[str, str]:
    """Why figures of the table are missing, once where the reason is the same in all categories."""
    shown = {name: reason for name, reason in figures["undefined"].items() if name.rsplit(": ", 1)[-1] in COLUMNS}
    by_reason: dict[str, list[str]] = {}
    for name, reason in shown.items():
        by_reason.setdefault(reason, []).append(name)
    return {names[0] if len(names) == 1 else f"{len(names)} figures": reason for reason, names in by_reason.items()}
