"""What every page shares: templates, style, script, glossary."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common import colors
from harness.report.page.glossary import TERMS, linked

_TEMPLATES = Path(__file__).parent.with_name("templates")


def fill(template: str, context: Mapping[str, Any], *, without: Sequence[str] = ()) -> str:
    """The page as text. context: what `template` names beyond what all pages share. without: ids of terms that the page
    does not use."""
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["terms"] = linked
    shared = {
        "css": _css(),
        "js": (_TEMPLATES / "report.js").read_text(),
        "version": _version(),
        "glossary": [term for term in TERMS if term.id not in without],
    }
    return environment.get_template(template).render(**shared, **context)


def _css() -> str:
    text = (_TEMPLATES / "report.css").read_text()
    return text.replace("@@LIGHT@@", colors.css("light")).replace("@@DARK@@", colors.css("dark"))


def _version() -> str:
    try:
        return importlib.metadata.version("anomaly-distbench")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
