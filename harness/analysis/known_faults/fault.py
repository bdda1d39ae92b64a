"""One fault of a record, and the rules' names: what each means for the figures and what mends it."""

from __future__ import annotations

from dataclasses import dataclass

SPEED, ENERGY, MFU, EFFICIENCY, TAILS, EQUIVALENCE, VERDICT = (
    "speed",
    "energy",
    "MFU",
    "scaling efficiency",
    "tail times",
    "equivalence",
    "verdict",
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """figures: which figures of the record cannot be used. remedy: what to do, an imperative without a full stop.
    again: whether only measuring again mends it; otherwise the written file is made anew from the records."""

    name: str
    figures: tuple[str, ...]
    remedy: str
    again: bool


_MEASURE = "measure again with this version, or have the study marked by `harness results check --mark`"
_WRITE = "write it again with `harness report`"

RULES = {
    rule.name: rule
    for rule in (
        Rule(name="median-of-rates", figures=(SPEED,), remedy=_WRITE, again=False),
        Rule(name="tail-of-few-steps", figures=(TAILS,), remedy=_WRITE, again=False),
        Rule(name="unlike-baseline", figures=(EFFICIENCY,), remedy=_WRITE, again=False),
        Rule(
            name="best-without-tuning",
            figures=(VERDICT,),
            remedy="put the record of `harness tune` into the study's folder, or take the statement out",
            again=False,
        ),
        Rule(name="mfu-of-longest-sample", figures=(MFU,), remedy=_WRITE, again=False),
        Rule(name="one-pair-verdict", figures=(VERDICT,), remedy=_WRITE, again=False),
        Rule(name="equal-without-margin", figures=(VERDICT,), remedy=_WRITE, again=False),
        Rule(name="batch-too-many", figures=(SPEED, EFFICIENCY, TAILS), remedy=_MEASURE, again=True),
        Rule(name="graphs-captured-while-timed", figures=(SPEED, EFFICIENCY, TAILS), remedy=_MEASURE, again=True),
        Rule(name="energy-of-other-devices", figures=(ENERGY,), remedy=_MEASURE, again=True),
        Rule(name="energy-of-one-host", figures=(ENERGY,), remedy=_MEASURE, again=True),
        Rule(name="energy-counter-fault", figures=(ENERGY,), remedy=_MEASURE, again=True),
        Rule(name="fp16-host-waits", figures=(SPEED, EFFICIENCY), remedy=_MEASURE, again=True),
        Rule(name="settings-of-first-horovod", figures=(SPEED, EQUIVALENCE), remedy=_MEASURE, again=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A rule that a record breaks. where: study, run or file. text: what shows it, one line without a full stop."""

    rule: str
    where: str
    text: str

    @property
    def figures(self) -> tuple[str, ...]:
        return RULES[self.rule].figures

    @property
    def again(self) -> bool:
        """Whether only measuring again mends it."""
        return RULES[self.rule].again

    @property
    def line(self) -> str:
        """What is wrong, the rule's name and the remedy."""
        return f"{self.text} [{self.rule}]: {RULES[self.rule].remedy}"
