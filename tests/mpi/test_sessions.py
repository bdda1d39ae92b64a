"""A node's probe, here on this machine: answers belong to what was asked, its clock is read without its other work."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from mpi import probe
from mpi.sessions import Session

PORTS = list(range(20011, 32000, 7))


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(None, sys.executable)
    assert made.ready(20) == ""
    yield made
    made.close()


def test_a_late_answer_is_not_taken_for_that_of_the_next_question(session: Session) -> None:
    assert session.ask({"do": "listen", "ports": PORTS}, 10)["port"] in PORTS
    given_up = session.ask({"do": "receive", "timeout": 1.0}, 0.2)
    assert given_up == {"error": "no answer within 0.2 s"}
    assert session.ask({"do": "listen", "ports": PORTS}, 10)["port"] in PORTS


def test_an_unknown_question_is_answered_with_an_error(session: Session) -> None:
    assert "KeyError" in session.ask({"do": "dance"}, 10)["error"]


def test_the_clock_is_read_after_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_leftovers", lambda variable: time.sleep(0.2) or 0)
    request = {"cwd": "/", "data": "", "hosts": [], "packages": [], "ports": [], "folders": [], "tag_variable": "X"}
    monkeypatch.setattr(probe, "_hash_code", lambda root: "")
    began = time.time()
    assert probe.facts(request)["time"] >= began + 0.2
