"""The hostfile parser, and each launcher's dialect read back by that launcher's own parser where it has one."""

from __future__ import annotations

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
