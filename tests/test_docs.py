"""The documents are true: links lead somewhere, commands exist with these options, pages are found from the README."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from harness.cli import cli
from harness.commands.tree import all_commands, load
from harness.publish.readme_blocks import fill

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#([^)\s]+))?\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def calls() -> list[tuple[str, str]]:
    """(page, call) of every `harness ...` line in a block without a language, and between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for language, block in _FENCE.findall(text) if not language for line in block.splitlines()]
        lines += re.findall(r"`(harness [^`\n]+)`", _FENCE.sub("", text))
        found += [(page.name, re.split(r" {2,}", line)[0]) for line in lines if line.startswith("harness ")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in _LINK.findall(page.read_text()):
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
            assert heading in slugs, f"{page.name}: {target}#{heading}"


@pytest.mark.parametrize(("page", "call"), calls())
def test_commands_exist_with_these_options(page: str, call: str) -> None:
    command: click.Command | None = cli
    words = shlex.split(call)[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(click.Context(command), words.pop(0))
        assert command is not None, f"{page}: {call}"
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word == "--":
            break
        if word.startswith("--"):
            assert word in known, f"{page}: {call}: {word}"


def test_every_page_is_found_from_the_readme() -> None:
    linked = {target for page in PAGES for target, _ in _LINK.findall(page.read_text())}
    names = {Path(target).name for target in linked}
    for page in PAGES[1:]:
        assert page.name in names, f"no page links to docs/{page.name}"


def _texts() -> list[str]:
    """Every text in the sources, what an f-string fills in left out."""
    found = []
    for path in [*(p for name in ("backends", "core_model", "harness", "mpi") for p in (ROOT / name).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [*found, *(path.read_text() for path in (ROOT / "scripts").glob("*.sh"))]


def test_messages_of_the_troubleshooting_page_are_the_programs() -> None:
    """Each message in its first column stands in the sources but for what is filled in: words in capitals, figures."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(messages) > 20
    texts = _texts()
    for message in messages:
        parts = [part.strip(" '.:") for part in re.split(r"\b[A-Z]+\b|\.\.\.|\d[\d.]*|'", message)]
        parts = [part for part in parts if len(part) > 3]
        there = any(all(part in text for part in parts) for text in texts)
        assert there, f"no such message: {message} (looked for {parts})"


def test_every_command_can_be_loaded() -> None:
    for name in all_commands():
        assert isinstance(load(name), click.Command), name


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in ("compare", "test"):
        assert f"\nmake {target} " in readme
        assert target in targets
    assert "make " in (ROOT / ".ci" / "run").read_text()


def test_the_engine_to_copy_is_short() -> None:
    lines = (ROOT / "tests" / "backends" / "flat_engine.py").read_text().splitlines()
    assert 30 <= len([line for line in lines if line.strip()]) <= 60


def _changed_results() -> bool:
    """Whether results/ differs from what is committed: then it is the user's own, and the pages are not about it."""
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "results"]
    done = subprocess.run(status, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode != 0 or bool(done.stdout.strip())


@pytest.mark.skipif(_changed_results(), reason="results/ holds studies that are not committed")
@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_measured_blocks_are_what_the_program_writes(tmp_path: Path, name: str) -> None:
    (copy := tmp_path / name).parent.mkdir(exist_ok=True)
    copy.write_text((ROOT / name).read_text())
    (tmp_path / "results").mkdir()
    for study in (ROOT / "results").iterdir():
        if study.is_dir():
            (tmp_path / "results" / study.name).symlink_to(study)
    fill(copy, tmp_path / "results")
    assert copy.read_text() == (ROOT / name).read_text(), f"run `harness results index`: {name} is older than results/"
