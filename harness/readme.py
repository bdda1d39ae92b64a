"""The measured part of README.md: filled by `harness index` from the records, never typed by hand.

README.md holds a pair of comment lines a study, ``<!-- study NAME -->`` and ``<!-- end -->``; what stands between them
is replaced by the study's setting, verdict and table.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness import records
from harness.compare import summarize_study
from harness.findings import findings
from harness.tables import comparison_table, markdown
from harness.verdict import setting, verdict

_BLOCK = re.compile(r"(<!-- study (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(readme: Path, results: Path) -> bool:
    """Replaces the blocks of `readme` whose study is in `results`; True where its text changed."""
    text = readme.read_text()

    def block(match: re.Match[str]) -> str:
        study = results / match["name"]
        body = _body(study, readme.parent) if records.runs_of(study) else f"(not run yet: results/{match['name']})\n"
        return f"{match[1]}{body}{match[3]}"

    filled = _BLOCK.sub(block, text)
    if filled != text:
        readme.write_text(filled)
    return filled != text


def _body(study: Path, root: Path) -> str:
    comparison = summarize_study(study)
    where = study.relative_to(root) if study.is_relative_to(root) else study
    lines = [f"*{setting(comparison)}*", ""]
    lines += [f"- {sentence}" for sentence in verdict(comparison, findings(comparison))]
    links = f"[report]({where}/report.html), [records]({where})"
    if (study / "quality.md").is_file():
        links += f", [every branch and number of shots]({where}/quality.md)"
    lines += ["", markdown(comparison_table(comparison)).strip(), "", links, ""]
    return "\n".join(lines)
