"""The hostfile parser, and each launcher's dialect read back by that launcher's own parser where it has one."""

from __future__ import annotations

import os

import pytest

from mpi import hostfile
from mpi.hostfile import Host, HostfileError


def test_comments_blanks_defaults_and_both_spellings_of_max_slots():
    text = "# cluster\n\n  a slots=2  # front\nb\tmax_slots=4\nc slots=1 max-slots=3\nd\n"
    assert hostfile.parse_text(text) == (Host("a", 2), Host("b", 4, 4), Host("c", 1, 3), Host("d", 1))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a slots=2 gpus=1", "'gpus=1' is not understood"),
        ("a slots = 2", "'slots' is not understood"),
        ("a slots=0", "slots=0 is not a whole number from 1"),
        ("a slots=-1", "slots=-1 is not a whole number"),
        ("a slots=two", "slots=two is not a whole number"),
        ("a slots=1 slots=2", "'slots' is given twice"),
        ("a slots=4 max_slots=2", "max_slots=2 is below slots=4"),
        ("fe80::1 slots=1", "IPv6"),
        ("[2001:db8::7]:22 slots=1", "IPv6"),
        ("a slots=2,", "slots=2, has more than a number: write slots=2"),
        ("a slots='2'", "write slots=2"),
        ("a slots=2.5", "slots=2.5 is not a whole number from 1: write slots=N"),
        ("a slots=", "slots=(nothing) is not a whole number"),
        ("a slots=0", "leave such a machine out"),
        ("a slots=99999999", "slots=99999999 is more than 100000"),
        ("a port=2222", "put 'Host a' and 'Port 2222' into ~/.ssh/config"),
        ("a slots=2 user=me", "'User me' into ~/.ssh/config"),
        ("a gpus=4", "'gpus=4' is not understood: write 'slots=4'"),
        ("a slot=4", "write 'slots=4'"),
        ("a 4", "'4' is not understood: write 'slots=4'"),
        ("a slots:4", "write 'slots=4'"),
        ("a b c", "one host a line"),
        ("a,b slots=2", "write one host a line"),
        ("slots=2", "begin the line with it"),
        ("n[04-01]", "'04-01' in 'n[04-01]' is not a range: write it like node[01-04,7]"),
        ("n[1-4:2]", "is not a range"),
        ("n[]", "is not a range"),
        ("n[1-", "is not a host name"),
        ("n[1-4]]", "is not a host name"),
        ("n[0-999999999]", "is more than 100000 hosts"),
        ("n[0-999]m[0-999]", "is more than 100000 hosts"),
        ("n[1-2]@x", "names a user"),
        ("X slots=1", "host 'X' is already on line 1"),
        ("n[1-3,2]", "host 'n2' is already on line 3"),
        ("a:2", "not a host name: write 'slots=N'"),
        ("me@a slots=1", "names a user"),
        ("-oProxyCommand=x slots=1", "not a host name"),
        ("a;reboot slots=1", "not a host name"),
        ("$(reboot)", "not a host name"),
        ("ä slots=1", "not a host name"),
    ],
)
def test_each_mistake_is_one_line_with_its_line_number(line, says):
    with pytest.raises(HostfileError) as caught:
        hostfile.parse_text(f"x slots=1\n# comment\n{line}\n", where="hosts")
    message = str(caught.value)
    assert message.startswith("hosts:3: ")
    assert says in message
    assert "\n" not in message


def test_a_host_named_twice_names_both_lines():
    with pytest.raises(HostfileError, match=r"hosts:4: host 'a' is already on line 2"):
        hostfile.parse_text("\na slots=1\nb\na slots=3\n", where="hosts")


def test_ranges_are_hosts_as_slurm_writes_them():
    found = hostfile.parse_text("node[01-03,7,10-11] slots=4\nrack[1-2]n[8-9].lan\n")
    names = ["node01", "node02", "node03", "node7", "node10", "node11"]
    names += ["rack1n8.lan", "rack1n9.lan", "rack2n8.lan", "rack2n9.lan"]
    assert [host.name for host in found] == names
    assert [host.slots for host in found] == [4] * 6 + [1] * 4
    assert hostfile.parse_list("n[1-2,4]:8,m") == (Host("n1", 8), Host("n2", 8), Host("n4", 8), Host("m"))


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfa slots=2\r\nb slots=2\r\n",
        "a slots=2\nb slots=2\n".encode("utf-16"),
        "\ufeffa\tslots=2 # front\rb Slots=2".encode(),
        b"a SLOTS=2\n\n\t# none\nb MAX-SLOTS=4 slots=2#x",
    ],
)
def test_files_of_other_systems_and_spellings(data, tmp_path):
    (tmp_path / "hosts").write_bytes(data)
    assert [(host.name, host.slots) for host in hostfile.parse_file(tmp_path / "hosts")] == [("a", 2), ("b", 2)]


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes("ä slots=1".encode("latin-1"))
    (tmp_path / "empty").write_bytes(b"\xef\xbb\xbf")
    for name, says in (
        ("", "a folder, not a hostfile"),
        ("pipe", "write it to a plain file"),
        ("latin", "save it as plain text"),
        ("empty", "names no host"),
    ):
        with pytest.raises(HostfileError, match=says):
            hostfile.parse_file(tmp_path / name)


def test_idle_slots_are_counted():
    hosts = (Host("a", 4), Host("b", 2), Host("c", 8), Host("d", 8))
    assert hostfile.idle(hosts, 3, 2) == (
        "8 slots stay idle (a 2, c 6): every host runs 2 (the hosts differ, the smallest has 2)"
    )
    assert hostfile.idle(hosts[2:], 2, 8) == ""


def test_empty_and_missing_files(tmp_path):
    with pytest.raises(HostfileError, match="names no host"):
        hostfile.parse_text("# nothing\n")
    with pytest.raises(HostfileError, match="no such hostfile"):
        hostfile.parse_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HostfileError, match="cannot read"):
        hostfile.parse_file(tmp_path / "binary")


def test_list():
    assert hostfile.parse_list("a:1, b:12,c") == (Host("a", 1), Host("b", 12), Host("c", 1))
    for text, says in (
        ("a:1,a:2", "twice"),
        ("::1", "IPv6"),
        ("[::1]:2", "IPv6"),
        ("a:x", "whole number"),
        ("a,,b", "not a host"),
    ):
        with pytest.raises(HostfileError, match=says):
            hostfile.parse_list(text)


def test_take():
    hosts = (Host("a", 2), Host("b", 1, 4), Host("c", 1))
    assert hostfile.take(hosts, 2, 2) == (Host("a", 2), Host("b", 2))
    with pytest.raises(HostfileError, match=r"4 nodes .* 3 given \(a, b, c\)"):
        hostfile.take(hosts, 4, 1)
    with pytest.raises(HostfileError, match="host 'c' has 1"):
        hostfile.take(hosts, 3, 2)


HOSTS = (Host("node-1.example.org", 2), Host("b", 1))


def test_deepspeed_reads_what_is_written_for_it():
    runner = pytest.importorskip("deepspeed.launcher.runner")
    assert dict(runner._parse_hostfile(hostfile.as_deepspeed(HOSTS).splitlines())) == {"node-1.example.org": 2, "b": 1}


def test_horovodrun_reads_what_is_written_for_it():
    hosts = pytest.importorskip("horovod.runner.common.util.hosts")
    assert hosts.parse_hosts_and_slots(hostfile.as_list(HOSTS))[1] == {"node-1.example.org": 2, "b": 1}


def test_the_written_files_are_read_back_alike():
    assert hostfile.parse_text(hostfile.as_openmpi(HOSTS)) == tuple(Host(h.name, h.slots, h.slots) for h in HOSTS)
    assert hostfile.parse_text(hostfile.as_deepspeed(HOSTS)) == HOSTS
    assert hostfile.parse_list(hostfile.as_list(HOSTS)) == HOSTS
    assert hostfile.as_mpich(HOSTS) == "node-1.example.org:2\nb:1\n"
    assert hostfile.as_names(HOSTS) == "node-1.example.org,b"
