"""The table of versions in docs/install.md, between ``<!-- versions -->`` and ``<!-- end -->``: what is supported by
pyproject.toml, what `make setup` installs, and with what the records in results/ were really made."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.common.formatting import DASH
from harness.common.text_table import Table, markdown
from harness.publish import marked_text
from harness.records.record_files import RecordError, read_json, runs_of

_OPENING = re.compile(r"<!-- versions -->[ \t]*")
# How a package is called here -> its name in pyproject.toml, constraints.txt and the records.
_PACKAGES = {
    "Python": "python",
    "torch": "torch",
    "DeepSpeed": "deepspeed",
    "Horovod": "horovod",
    "transformers": "transformers",
    "mpi4py": "mpi4py",
    "NumPy": "numpy",
}
_COLUMNS = ("package", "supported", "`make setup` installs", "in records on processors", "in records on GPUs")


def table(project: Path, results: Path) -> Table:
    """The table. project: the repository's root. results: its records."""
    supported, installed = _declared(project), _installed(project)
    seen: dict[bool, dict[str, set[str]]] = {False: {}, True: {}}
    for environment in _environments(results):
        on_gpu = bool((environment.get("gpus") or {}).get("devices"))
        versions = {**(environment.get("versions") or {}), "python": environment.get("python")}
        for package, version in versions.items():
            if version:
                seen[on_gpu].setdefault(package, set()).add(str(version).partition("+")[0])
    rows = []
    for name, package in _PACKAGES.items():
        recorded = [_all(seen[on_gpu].get(package)) for on_gpu in (False, True)]
        rows.append([name, supported.get(package, DASH), installed.get(package, DASH), *recorded])
    return Table(id="versions", title="", columns=_COLUMNS, rows=rows, numeric=False)


def fill(page: Path, project: Path, results: Path) -> bool:
    """Writes the table into `page`; True where its text changed. Nothing where `project` is no clone of this one."""
    if not all((project / name).is_file() for name in ("pyproject.toml", "constraints.txt", "scripts/versions.sh")):
        return False
    text = marked_text.read(page)
    filled = marked_text.replace_parts(page, text, _OPENING, lambda _match, _old: markdown(table(project, results)))
    if filled != text:
        marked_text.write(page, filled)
    return filled != text


def _declared(project: Path) -> dict[str, str]:
    """Package -> the versions that pyproject.toml allows, as it writes them."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    found = {"python": _spaced(declared["requires-python"])}
    for line in declared["dependencies"]:
        name, rule = re.match(r"([\w.-]+)(.*)", line.strip()).groups()  # type: ignore[union-attr]
        found[name] = _spaced(rule) or "any"
    found["horovod"] = _shell(project)["HOROVOD_VERSION"]  # no wheel, so no dependency: a script builds it
    return found


def _installed(project: Path) -> dict[str, str]:
    """Package -> the version that constraints.txt and scripts/versions.sh pin."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (project / "constraints.txt").read_text(), re.MULTILINE)
    shell = _shell(project)
    own = {"torch": f"{shell['TORCH_VERSION']}, or a CUDA build that is there", "horovod": shell["HOROVOD_VERSION"]}
    return {name.lower(): version for name, version in pins} | own | {"python": "the machine's own"}


def _shell(project: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(\S+)", (project / "scripts" / "versions.sh").read_text(), re.MULTILINE))


def _environments(results: Path) -> Iterator[Mapping[str, Any]]:
    """The environment of every run and of every experiment's record."""
    for study in sorted(results.iterdir()) if results.is_dir() else []:
        if not study.is_dir():
            continue
        files = [folder / "environment.json" for folder in runs_of(study)]
        for path in [*files, *sorted(study.glob("*.json"))]:
            try:
                value = read_json(path) if path.is_file() else {}
            except (RecordError, json.JSONDecodeError):
                continue
            yield value if path.name == "environment.json" else value.get("environment") or {}


def _all(versions: set[str] | None) -> str:
    if not versions:
        return DASH
    return ", ".join(sorted(versions, key=lambda text: [int(part) for part in re.findall(r"\d+", text)]))


def _spaced(rule: str) -> str:
    """``>=5.17,<6`` as ``>=5.17, <6``."""
    return rule.strip().replace(",", ", ")
