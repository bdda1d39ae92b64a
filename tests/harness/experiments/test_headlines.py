"""Each experiment's record says in its own key what came out; the index reads it and knows no experiment."""

import json
import shutil
from pathlib import Path

import pytest

from harness.experiments.headlines import _SENTENCES, render
from harness.publish.experiment_headlines import _KINDS, headline_of
from harness.records.record_files import RecordError, read_json

ROOT = Path(__file__).resolve().parents[3]


def test_committed_records_say_what_their_figures_say(tmp_path: Path) -> None:
    records = [path for path in (ROOT / "results").glob("*/*.json") if path.name in _SENTENCES]
    assert len(records) > 20
    for path in records:
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    assert render(tmp_path) == []


def test_record_without_its_sentence_is_refused_and_mended(tmp_path: Path) -> None:
    folder = tmp_path / "faults"
    folder.mkdir()
    rows = [{"fault": "f", "engine": "e", "seconds": 3.0}, {"fault": "g", "engine": "e", "seconds": None}]
    (folder / "faults.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    with pytest.raises(RecordError, match=r"has no headline: python -m harness\.experiments\.headlines"):
        headline_of(folder)
    assert render(tmp_path) == [folder / "faults.json"]
    assert read_json(folder / "faults.json")["headline"].startswith("2 faults planted: 1 jobs ended")
    found = headline_of(folder)
    assert found is not None
    assert found.sentence == read_json(folder / "faults.json")["headline"]


def test_every_record_of_the_index_has_a_sentence_and_publish_imports_no_experiment() -> None:
    named = {name for name, (_, more, _) in _KINDS.items() for name in (name, *more)}
    assert named == set(_SENTENCES)
    text = (ROOT / "harness" / "publish" / "experiment_headlines.py").read_text()
    assert "import harness.experiments" not in text
    assert "from harness.experiments" not in text
