"""Which hosts and slots a job takes: what stays idle is said, hosts need not be known for a dry run, and options of the
launchers themselves get what does the same here."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness.cli import main
from mpi import network


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts: str, *more: str) -> tuple[str, list[str]]:
    """(standard output, lines of standard error) of a dry run."""
    (tmp_path / "hosts").write_text(hosts)
    main(["run", "--backend", "deepspeed", "--preset", "tiny", "--device", "cpu", "--dry-run", *more])
    said = capsys.readouterr()
    return said.out, said.err.splitlines()


def test_a_dry_run_needs_no_known_hosts(tmp_path, capsys):
    hosts = "".join(f"no-such-host-{n}.invalid slots=2\n" for n in (1, 2))
    for backend, launcher in (("deepspeed", "deepspeed"), ("horovod", "mpirun"), ("ddp", "torchrun")):
        out, errors = run(
            tmp_path,
            capsys,
            hosts,
            *("--backend", backend, "--launcher", launcher, "--nodes", "2", "--hostfile", str(tmp_path / "hosts")),
        )
        assert out.splitlines()[0] == (
            "# not known here: no-such-host-1.invalid, no-such-host-2.invalid: "
            "INTERFACE and SUBNET stand for what is found at the start"
        )
        assert "no-such-host-2.invalid" in out.split("\n", 1)[1]
        assert errors == []


def test_a_run_itself_does_need_them(tmp_path, capsys):
    (tmp_path / "hosts").write_text("no-such-host.invalid slots=2\n")
    argv = ["run", "--backend", "ddp", "--preset", "tiny", "--slots", "2", "--hostfile", str(tmp_path / "hosts")]
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--results", str(tmp_path / "results")])
    assert stop.value.code == 2
    assert "host 'no-such-host.invalid' is not known here" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_only_the_first_slow_question_to_the_name_server_is_waited_for(monkeypatch):
    asked: list[str] = []

    def slow(name: str, *_: object) -> None:
        asked.append(name)
        raise socket.gaierror("no answer")

    times = iter(range(0, 1000, 5))
    monkeypatch.setattr(network.socket, "getaddrinfo", slow)
    monkeypatch.setattr(network.time, "monotonic", lambda: float(next(times)))
    found = network.expected(["a", "b", "c"])
    assert asked == ["a"]
    assert found.remote == ("a", "b", "c")
    assert "not known here: a, b, c" in found.note


def test_known_hosts_are_looked_up_as_for_a_run():
    assert network.expected(["localhost"]) == network.find(["localhost"])


@pytest.mark.parametrize(
    ("hosts", "more", "says"),
    [
        ("a slots=4\nb slots=2\n", ("--nodes", "2"), "2 slots stay idle (a 2): every host runs 2 (the hosts differ"),
        ("a slots=2\nb slots=2\n", ("--nodes", "2"), ""),
        ("a slots=4\nb slots=2\n", ("--nodes", "2", "--slots", "2"), ""),
        ("localhost slots=2\nb\nc\n", (), "2 more hosts of {file} can be used: add --nodes 3"),
        ("localhost slots=2\n", (), "1 of 2 slots of localhost is used: add --slots 2"),
        ("localhost slots=2\nb slots=2\n", ("--nodes", "1", "--slots", "2"), ""),
    ],
)
def test_what_stays_idle_is_said_in_one_line(hosts, more, says, tmp_path, capsys):
    file = str(tmp_path / "hosts")
    hosts = hosts.replace("a ", "a.invalid ").replace("b ", "b.invalid ")
    says = says.replace("(a 2)", "(a.invalid 2)").format(file=file)
    _, errors = run(tmp_path, capsys, hosts, "--hostfile", file, *more)
    assert len(errors) == (1 if says else 0), errors
    if says:
        assert errors[0].startswith(f"note: {says}")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--include", "a@b", "CUDA_VISIBLE_DEVICES"),
        ("--exclude", "a", "the hosts are the first --nodes of the --hostfile"),
        ("--num_gpus", "2", "--slots N"),
        ("--num-gpus", "2", "--slots N"),
        ("--num_nodes", "2", "--nodes N"),
        ("--nproc-per-node", "2", "--slots N"),
        ("-np", "2", "--slots N, times --nodes N hosts"),
        ("-H", "a:2", "--hostfile FILE"),
        ("--master_port", "29500", "leave it out"),
        ("-x", "A=b", "after --"),
    ],
)
def test_options_of_the_launchers_get_what_does_the_same(option, value, says, capsys):
    for command in ("run", "compare"):
        with pytest.raises(SystemExit) as stop:
            main([command, option, value])
        assert stop.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        of_many = command == "compare" and "--slots" in says
        assert ("--workers LIST" if of_many else says) in last
        assert "Did you mean" not in last


def test_other_unknown_options_are_told_as_before(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--include", "x"])
    assert "--hostfile" not in capsys.readouterr().err
