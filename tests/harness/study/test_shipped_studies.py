"""The shipped studies are named by their question, serve any number of workers, and are what the GPU scripts name."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from string import Template

import pytest

from harness.commands.compare import compare, study_from_options
from harness.common.paths import PROJECT
from harness.study import shipped
from harness.study.study_file import Study

SESSIONS = sorted((PROJECT / "scripts" / "gpu").glob("session_*.sh"))


@pytest.mark.parametrize("name", shipped.names())
def test_no_study_is_named_after_a_machine(name: str) -> None:
    assert not re.search(r"[a-z]?[hav]\d{2,3}|-x\d|gpu|gloo|nccl", name)
    assert Study.from_toml(shipped.find(name)).name == name


@pytest.mark.parametrize("name", [name for name in shipped.names() if name.startswith(("scaling", "bind", "precis"))])
def test_workers_on_the_command_line_replace_the_study_s(name: str) -> None:
    asked = study_from_options({"declared": name, "workers": [8, 4], "study": "card-x8"})
    assert {job.world_size for job in asked.jobs} == {8, 4}
    assert {job.study for job in asked.jobs} == {asked.name} == {"card-x8"}


def test_an_option_replaces_what_the_study_s_matrix_varies(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('backends = ["ddp"]\nrepeats = 1\n[job]\npreset = "tiny"\n[matrix]\nprecision = ["fp32", "bf16"]\n')
    assert {job.precision for job in Study.from_toml(path).jobs} == {"fp32", "bf16"}
    asked = Study.from_toml(path, job={"precision": "bf16", "steps": 20})
    assert [(job.precision, job.steps) for job in asked.jobs] == [("bf16", 20)]


def studies_in(script: Path) -> list[list[str]]:
    """What a session hands to session_speed.sh: studies, each with its options, the script's variables filled in."""
    text = script.read_text()
    variables = dict(re.findall(r'^(\w+)="([^"]*)"$', text, re.MULTILINE))
    lines = [line for line in text.splitlines() if re.search(r'session_speed\.sh \d|set -- \d|^ +\d+ "', line)]
    found = []
    for quoted, plain in re.findall(r'\b\d{2,3} (?:"([^"]+)"|([a-z0-9-]+))', "\n".join(lines)):
        words = shlex.split(Template(quoted or plain).substitute(variables))
        found += [] if words[0] in ("tests", "comm", "overhead") else [words]
    return found


def test_the_sessions_name_shipped_studies_with_options_of_compare() -> None:
    found = [words for script in SESSIONS for words in studies_in(script)]
    assert len(found) >= 12
    for words in found:
        asked = compare.make_context("compare", list(words)).params
        assert study_from_options({name: asked[name] for name in ("declared", "workers", "repeats", "scaling")}).jobs


FAKE = """#!/bin/bash
echo "${0##*/} $*" >>"$CALLS"
[ "${0##*/}" != nvidia-smi ] || printf 'NVIDIA H200 141GB\\nNVIDIA H200 141GB\\n'
"""


def test_a_session_names_results_after_the_card_that_came(tmp_path: Path) -> None:
    """session_speed.sh with stand-ins for the programs of a GPU machine, which show what they were called with."""
    bin_, calls = tmp_path / "bin", tmp_path / "calls"
    bin_.mkdir()
    for name in ("harness", "nvidia-smi"):
        (bin_ / name).write_text(FAKE)
        (bin_ / name).chmod(0o755)
    environ = {"PATH": f"{bin_}:/usr/bin:/bin", "CALLS": str(calls), "GPU_SITE": str(tmp_path)}
    environ |= {"OUT": str(tmp_path / "out"), "RESULTS": str(tmp_path / "results")}
    asked = ["20", "scaling-llama --workers 4,1,2", "20", "scaling-small --scaling strong --study small-strong"]
    script = PROJECT / "scripts" / "gpu" / "session_speed.sh"
    subprocess.run(["bash", str(script), *asked], env=environ, check=True, timeout=60, capture_output=True)
    said = [line for line in calls.read_text().splitlines() if line.startswith("harness compare")]
    rest = f"--results {tmp_path}/results --take-turns"
    assert said == [
        f"harness compare scaling-llama --workers 4,1,2 --study h200-x2-scaling-llama {rest}",
        f"harness compare scaling-small --scaling strong --study h200-x2-small-strong {rest}",
    ]


def test_jobs_of_a_scaling_study_keep_their_batch_rule() -> None:
    weak = study_from_options({"declared": "scaling-llama", "scaling": "weak", "workers": [4], "study": "s"})
    strong = study_from_options({"declared": "scaling-llama", "workers": [4], "study": "s"})
    assert {job.global_batch for job in weak.jobs} == {4 * 32}
    assert {job.global_batch for job in strong.jobs} == {32}
