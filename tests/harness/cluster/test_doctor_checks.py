"""The doctor's judgement on made-up answers: what the virtual nodes cannot have (GPUs), and limits from both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.cluster import doctor
from harness.cluster.doctor import surely_slow
from harness.cluster.doctor_checks import CHECKS, MAX_SKEW_S, PACKAGES, Diagnosis, Report, Wanted, bits, judge

GPU = {"index": "0", "name": "H100", "driver": "580.1", "ecc": "0", "used_mib": "4", "total_mib": "81559"}


def facts(**changes: Any) -> dict[str, Any]:
    found = {
        "hostname": "a",
        "user": "me",
        "uid": 1000,
        "python": "3.11.7",
        "packages": dict.fromkeys(PACKAGES, "1.0"),
        "nccl": "2.27",
        "mpi": "mpirun (Open MPI) 4.1.6",
        "cwd": True,
        "code": "c0de",
        "data": None,
        "folders": {"/r": {"path": "/r", "free_mib": 9999, "free_files": 9999, "error": ""}},
        "shared_memory": {"free_mib": 999},
        "memory_mib": 4096,
        "cores": 2,
        "open_files": 65536,
        "gpus": None,
        "addresses": {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"},
        "interface": {"name": "ens7", "address": "10.0.0.1"},
        "ports": {},
        "ssh_modes": {"/home/me": "0o755", "/home/me/.ssh/id_rsa": "0o600"},
        "leftovers": 0,
    }
    return {**found, **changes}


def report(host: str, **changes: Any) -> Report:
    own = {key: changes.pop(key) for key in ("slots", "skew_s", "skew_error_s", "trouble", "noise") if key in changes}
    if "trouble" in own:
        return Report(host=host, slots=1, trouble=own["trouble"])
    return Report(host=host, facts=facts(hostname=host, **changes), **{"slots": 1, **own})


WANTED = Wanted(here=facts(), python="/p", cwd="/w", data="")


def judged(*reports: Report, links: list[dict[str, Any]] | None = None, wanted: Wanted = WANTED) -> list[Diagnosis]:
    return judge(reports, links or [], wanted)


def test_nodes_that_are_alike_are_ready():
    assert judged(report("a"), report("b"), report("c")) == []


@pytest.mark.parametrize(
    ("changes", "check", "level", "words"),
    [
        ({"gpus": [{**GPU, "ecc": "3"}]}, "gpu", "fail", "3 uncorrected memory errors"),
        ({"gpus": [{"error": "nvidia-smi: timed out"}]}, "gpu", "fail", "timed out"),
        ({"gpus": [{**GPU, "used_mib": "70000"}]}, "gpu", "warn", "70000 MiB are in use"),
        ({"gpus": [GPU, GPU]}, "gpu", "fail", "2 x H100, driver 580.1 where most have no GPU"),
        ({"python": "3.12.1"}, "python", "fail", "3.12.1, on this machine 3.11.7"),
        ({"nccl": None}, "packages", "fail", "NCCL missing, on this machine 2.27"),
        ({"mpi": "mpirun (Open MPI) 5.0.3"}, "packages", "fail", "MPI mpirun (Open MPI) 5.0.3, on this"),
        ({"user": "you"}, "user", "fail", "user you"),
        ({"uid": 1001}, "user", "warn", "(1001)"),
        ({"cwd": False}, "user", "fail", "/w is not there"),
        ({"slots": 3}, "slots", "warn", "slots=3, 2 cores"),
        ({"open_files": 256}, "memory", "warn", "256 open files"),
        ({"memory_mib": 100}, "memory", "warn", "100 MiB of memory"),
        ({"ssh_modes": {"/home/me": "0o777"}}, "key modes", "fail", "/home/me has mode 777"),
        ({"ssh_modes": {"/home/me/.ssh/id_rsa": "0o640"}}, "key modes", "fail", "id_rsa has mode 640"),
        ({"interface": {"name": "eth1", "address": "10.0.0.2"}}, "network", "warn", "by 'eth1', most by 'ens7'"),
        ({"addresses": {"a": "10.0.0.1", "b": "10.0.0.2", "c": None}}, "network", "fail", "does not know the name 'c'"),
    ],
)
def test_one_node_that_differs_is_named(changes, check, level, words):
    usual = {"gpus": [GPU]} if len(changes.get("gpus", ())) == 1 else {}
    found = judged(report("a", **usual), report("b", **changes), report("c", **usual))
    assert [(one.node, one.check, one.level) for one in found] == [("b", check, level)]
    assert words in found[0].problem
    assert found[0].remedy
    assert check in CHECKS


def test_clock_limit_allows_for_the_time_of_asking():
    assert judged(report("a", skew_s=MAX_SKEW_S + 0.5, skew_error_s=1.0)) == []
    (found,) = judged(report("a", skew_s=-(MAX_SKEW_S + 1.5), skew_error_s=1.0))
    assert "3.5 s behind" in found.problem


def test_a_missing_engine_matters_only_where_it_is_wanted():
    none = {**facts()["packages"], "horovod": None}
    here = Wanted(here=facts(packages=none), python="/p", cwd="/w", data="")
    assert judged(report("a", packages=none), wanted=here) == []
    wants = Wanted(here=facts(packages=none), python="/p", cwd="/w", data="", engines=("horovod",))
    (found,) = judged(report("a", packages=none), wanted=wants)
    assert found.problem == "horovod is not installed"


def link(one: int, other: int, rate: float) -> dict[str, Any]:
    return {"from": one, "to": other, "bytes_per_s": rate, "round_trip_s": 1e-4, "port": 20011}


def test_a_link_that_seemed_slow_is_measured_again_alone_and_the_best_counts(monkeypatch: pytest.MonkeyPatch):
    wanted = replace(WANTED, expect_bytes_per_s=100e6)
    links = [
        link(0, 1, 50e6),
        link(1, 2, 60e6),
        link(2, 0, 95e6),
        {"from": 0, "to": 2, "error": "timed out", "port": 0},
    ]
    asked, now = [], [0.0]
    monkeypatch.setattr(doctor.time, "monotonic", lambda: now[0])

    def again(sender: int, receiver: int) -> dict[str, Any]:
        asked.append((sender, receiver))
        now[0] += doctor.AGAIN_S
        return {"bytes_per_s": 90e6} if sender == 0 else {"error": "timed out"}

    found = surely_slow(links, wanted, again)
    assert asked == [(0, 2), (1, 2), (0, 1), (1, 2), (1, 2)], "the failed once, the nearest to passing first"
    assert [one.get("bytes_per_s") for one in found] == [90e6, 60e6, 95e6, 90e6]
    assert "error" not in found[3]
    many = [link(0, 1, 1e6)] * 100
    asked.clear()
    surely_slow(many, wanted, lambda *pair: {**again(*pair), "bytes_per_s": 1e6})
    assert len(asked) == doctor.AGAIN_TOTAL_S / doctor.AGAIN_S + 1, "where many seem slow it is no accident"


def test_two_slow_links_do_not_use_up_the_time_of_the_sound_ones(monkeypatch: pytest.MonkeyPatch):
    """Seen on a busy machine: sound links at half their rate beside two that were slow in truth."""
    truth = [20e6, 20e6] + [190e6] * 6
    links = [link(n, n + 1, min(rate, 100e6 + n * 1e6)) for n, rate in enumerate(truth)]
    now, tries = [0.0], [0] * len(truth)
    monkeypatch.setattr(doctor.time, "monotonic", lambda: now[0])

    def again(sender: int, _: int) -> dict[str, Any]:
        now[0] += doctor.AGAIN_S
        tries[sender] += 1
        return {"bytes_per_s": truth[sender] * (1.0 if tries[sender] == 2 or sender % 2 else 0.6)}

    found = surely_slow(links, replace(WANTED, expect_bytes_per_s=200e6), again)
    assert [one["bytes_per_s"] > 140e6 for one in found] == [False, False] + [True] * 6


def test_a_slow_node_is_told_from_a_slow_link():
    nodes = [report(name) for name in ("a", "b", "c")]
    for one in nodes:
        assert one.facts
    both = [link(0, 1, 10e6), link(1, 2, 10e6), link(2, 0, 100e6), link(0, 1, 100e6), link(2, 0, 100e6)]
    assert {one.node for one in judged(*nodes, links=both)} == {"b"}
    single = [link(0, 1, 10e6), link(1, 2, 100e6), link(2, 0, 100e6)]
    assert [one.node for one in judged(*nodes, links=single)] == ["a, b"]
    assert judged(*nodes, links=[link(0, 1, 60e6), link(1, 2, 100e6), link(2, 0, 100e6)]) == []


def test_two_nodes_have_no_median_but_an_expected_rate():
    slow = [link(0, 1, 50e6)]
    assert judged(report("a"), report("b"), links=slow) == []
    wanted = Wanted(here=facts(), python="/p", cwd="/w", data="", expect_bytes_per_s=125e6)
    (found,) = judged(report("a"), report("b"), links=slow, wanted=wanted)
    assert found.problem == "a -> b: 400 Mbit/s, 1.00 Gbit/s expected"


@pytest.mark.parametrize(
    ("trouble", "check", "words"),
    [
        (
            "x\nPermissions 0644 for '/k' are too open.\nWARNING: UNPROTECTED PRIVATE KEY FILE!\ndenied",
            "key modes",
            "UNPROTECTED",
        ),
        ("WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", "ssh", "HAS CHANGED"),
        ("ssh: Could not resolve hostname b: Name or service not known", "ssh", "resolve"),
        ("bash: line 1: exec: /p: cannot execute: No such file or directory", "python", "/p: No such file"),
        ("Segmentation fault", "ssh", "Segmentation fault"),
        ("no answer", "ssh", "no answer"),
    ],
)
def test_what_ssh_says_is_sorted(trouble, check, words):
    (found,) = judged(report("a"), report("b", trouble=trouble))
    assert (found.node, found.check, found.level) == ("b", check, "fail")
    assert words in found.problem


def test_rates_in_words():
    assert bits(125e6) == "1.00 Gbit/s"
    assert bits(12.5e6) == "100 Mbit/s"
