"""Launch commands as pure functions: what each launcher is told, and that nothing reaches a shell unquoted."""

from __future__ import annotations

import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from mpi import hostfile
from mpi.hostfile import Host
from mpi.launch import DEFAULT_LAUNCHER, LAUNCHERS, carried, command, default_launcher, missing_program, render
from mpi.launchers.base import JOB_TAG, Launch, LaunchError, remove_files, write_files
from mpi.launchers.deepspeed import _quote_for_pdsh
from mpi.network import Network

HOSTS = (Host("a", 2), Host("b", 2))
NETWORK = Network(interface="ens7", address="10.1.0.1", subnet="10.1.0.0/16", remote=("b",))
WORKER = ("/venv/bin/python", "harness/run.py", "--note", 'it\'s $HOME; "x" `id` \\ %h')
PYTHON = (sys.executable, "harness/run.py")
# Every character that means something to a shell, to printf-like expansion of pdsh, or to word splitting.
NASTY = [
    "a b",
    "$HOME",
    "`id`",
    "a;b",
    "x&y",
    "'",
    '"',
    "\\",
    "*",
    "%h %u",
    "100%",
    "%n",
    "#c",
    "~",
    "",
    "(x)",
    "a\tb",
    'm "q" $x\\n',
]


def launch(launcher: str, **changes: object) -> Launch:
    options: dict[str, object] = {
        "scratch": Path("/job"),
        "network": NETWORK,
        "master_port": 23456,
        "cwd": "/work",
        "environ": {
            "PATH": "/bin",
            "HOME": "/h",
            "NCCL_DEBUG": "INFO",
            "HOROVOD_RANK": "3",
            "CUDA_VISIBLE_DEVICES": "",
        },
        "env": {"HARNESS_NOTE": "two words"},
        "tag": "job-1",
        "root": False,
    }
    options |= changes
    return command(launcher, options.pop("worker", WORKER), options.pop("hosts", HOSTS), **options)


def pairs(argv: tuple[str, ...], option: str) -> list[str]:
    return [value for word, value in pairwise(argv) if word == option]


def test_every_backend_has_a_launcher():
    assert set(DEFAULT_LAUNCHER.values()) <= set(LAUNCHERS)
    assert {"single", "ddp", "fsdp2", "deepspeed", "horovod"} == set(DEFAULT_LAUNCHER)
    assert default_launcher("an engine of yours") in LAUNCHERS


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "local"])
def test_no_interface_is_assumed_and_the_job_tag_is_carried(launcher):
    found = launch(launcher)
    text = render(found)
    assert "eth0" not in text
    assert "ens7" in text or "10.1.0.0/16" in text
    assert found.env[JOB_TAG] == "job-1"
    assert found.env["OMP_NUM_THREADS"] == "1"
    assert found.remote == ("b",)


def test_carried_variables():
    found = carried(
        {
            "NCCL_DEBUG": "1",
            "HOROVOD_RANK": "1",
            "HOROVOD_CYCLE_TIME": "2",
            "HOME": "/h",
            "SECRET": "s",
            "OMP_X": "a\nb",
        }
    )
    assert found == {"NCCL_DEBUG": "1", "HOROVOD_CYCLE_TIME": "2"}


def test_deepspeed_over_pdsh():
    found = launch("deepspeed")
    argv = found.argv
    assert argv[0] == "deepspeed"
    assert pairs(argv, "--hostfile") == ["/job/hostfile"]
    assert pairs(argv, "--master_addr") == ["10.1.0.1"]
    assert pairs(argv, "--master_port") == ["23456"]
    assert {"--no_local_rank", "--no_ssh_check"} <= set(argv)
    assert "--num_nodes" not in argv
    assert found.files[Path("/job/hostfile")] == "a slots=2\nb slots=2\n"
    # What deepspeed does not forward by itself goes through the file that it reads.
    assert found.env["DS_ENV_FILE"] == "/job/deepspeed_env"
    lines = found.files[Path("/job/deepspeed_env")].splitlines()
    assert {"HARNESS_NOTE=two words", "NCCL_DEBUG=INFO", f"{JOB_TAG}=job-1", "OMP_NUM_THREADS=1"} <= set(lines)
    assert not any(line.startswith("HOROVOD_RANK") for line in lines)


def test_deepspeed_on_one_other_host_goes_there():
    network = Network(interface="ens7", address="10.1.0.2", subnet="10.1.0.0/16", remote=("b",))
    assert "--force_multi" in launch("deepspeed", hosts=(Host("b", 1),), network=network).argv


def test_deepspeed_does_not_start_fewer_workers_than_asked_for():
    with pytest.raises(LaunchError, match="names 2 devices for 4 workers"):
        launch("deepspeed", network=Network(), hosts=hostfile.local(4), environ={"CUDA_VISIBLE_DEVICES": "0,1"})


def test_deepspeed_here_says_its_slots_and_devices():
    here = launch("deepspeed", network=Network(), hosts=hostfile.local(2))
    assert here.files[Path("/job/hostfile")] == "localhost slots=2\n"
    chosen = launch("deepspeed", network=Network(), hosts=hostfile.local(2), environ={"CUDA_VISIBLE_DEVICES": "2,5,6"})
    assert pairs(chosen.argv, "--include") == ["localhost:2,5"]
    assert chosen.files[Path("/job/hostfile")] == "localhost slots=6\n"


@pytest.mark.parametrize("argument", NASTY)
def test_arguments_survive_deepspeed_and_the_remote_shell(argument):
    """deepspeed's own quoting is run, then pdsh's %-expansion, then a real shell."""
    pytest.importorskip("deepspeed")
    from argparse import Namespace

    from deepspeed.launcher.multinode_runner import PDSHRunner

    runner = PDSHRunner(Namespace(user_args=[_quote_for_pdsh(argument)], user_script="x"), "")
    text = " ".join(runner.user_arguments)
    text = text.replace("%%", "\0").replace("%h", "HOST").replace("%u", "USER").replace("%n", "0").replace("\0", "%")
    out = subprocess.run(["sh", "-c", f"printf '%s|' {text}"], capture_output=True, text=True, check=True).stdout
    assert out == f"{argument}|"


@pytest.mark.parametrize("value", [value for value in NASTY if value == value.strip()])
def test_variables_survive_deepspeed_and_the_remote_shell(value):
    pytest.importorskip("deepspeed")
    from argparse import Namespace

    from deepspeed.launcher.multinode_runner import PDSHRunner

    lines = launch("deepspeed", env={"X": value}).files[Path("/job/deepspeed_env")].splitlines()
    runner = PDSHRunner(Namespace(user_args=[], user_script="x"), "")
    for line in lines:
        runner.add_export(*line.split("=", maxsplit=1))
    text = (
        f"export X={runner.exports['X']}; ".replace("%%", "\0")
        .replace("%h", "HOST")
        .replace("%n", "0")
        .replace("\0", "%")
    )
    out = subprocess.run(["sh", "-c", text + "printf '%s|' \"$X\""], capture_output=True, text=True, check=True).stdout
    assert out == f"{value}|"


def test_deepspeed_over_openmpi_exports_exactly_and_names_the_interface():
    argv = launch("deepspeed-openmpi").argv
    assert pairs(argv, "--launcher") == ["openmpi"]
    inner = shlex.split(pairs(argv, "--launcher_args")[0])
    assert "HARNESS_NOTE=two words" in pairs(tuple(inner), "-x")
    assert ("btl_tcp_if_include", "10.1.0.0/16") in pairwise(inner)
    assert not {"--num_nodes", "--num_gpus", "--include"} & set(argv)


def test_deepspeed_over_mpich_and_slurm_need_even_slots():
    for name in ("deepspeed-mpich", "deepspeed-slurm", "srun"):
        with pytest.raises(LaunchError, match="needs the same slots on every node"):
            launch(name, hosts=(Host("a", 2), Host("b", 1)))
    assert "-genv HARNESS_NOTE 'two words'" in pairs(launch("deepspeed-mpich").argv, "--launcher_args")[0]


def test_horovodrun_with_either_controller():
    gloo, mpi = launch("horovodrun").argv, launch("horovodrun-mpi").argv
    for argv in (gloo, mpi):
        assert "--disable-cache" in argv
        assert pairs(argv, "-np") == ["4"]
        assert pairs(argv, "-H") == ["a:2,b:2"]
        assert pairs(argv, "--network-interfaces") == ["ens7"]
        assert argv[-len(WORKER) :] == WORKER
    assert "--gloo" in gloo
    assert "--mpi" in mpi
    assert "--binding-args=--bind-to none --map-by slot" in mpi
    assert any(word.startswith("--mpi-args=") and "mpi_yield_when_idle 1" in word for word in mpi)


def test_an_elastic_job_follows_its_hostfile(tmp_path):
    hosts = tmp_path / "my hosts"
    hosts.write_text("# the cluster\na slots=2   # first\n\nb slots=8\nc\n")
    launch = command(
        "horovodrun-elastic", PYTHON, HOSTS, network=NETWORK, scratch=tmp_path, elastic=(1, 6), watched=hosts
    )
    pairs = dict(pairwise(launch.argv))
    assert (pairs["-np"], pairs["--min-np"], pairs["--max-np"]) == ("4", "1", "6")
    assert launch.elastic
    script = tmp_path / "discover.sh"
    assert pairs["--host-discovery-script"] == str(script)
    write_files(launch)

    def found():
        return subprocess.run([str(script)], capture_output=True, text=True, check=True, cwd="/").stdout.split()

    assert found() == ["a:2", "b:2", "c:1"]  # never more slots than the job takes of a host
    assert found() == ["a:2", "b:2", "c:1"]  # from what was read before
    hosts.write_text("b slots=2\n")
    assert found() == ["b:2"]
    # A file of Windows', ranges, a line that is being written, a host named twice: as far as the start would read it.
    hosts.write_bytes(b"\xef\xbb\xbfa SLOTS=1\r\nn[08-10] slots=9\r\nd slots=\r\nb slots=1\r\nb slots=2")
    assert found() == ["a:1", "n08:2", "n09:2", "n10:2", "b:2"]
    remove_files(launch)
    assert list(tmp_path.iterdir()) == [hosts]


def test_an_elastic_job_without_a_hostfile_has_its_hosts(tmp_path):
    launch = command("horovodrun-elastic", WORKER, HOSTS, network=NETWORK, scratch=tmp_path)
    ((_, text),) = launch.files.items()
    assert subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout == "a:2\nb:2\n"


def test_folders_that_a_launcher_cannot_quote_are_refused():
    for name in ("deepspeed", "horovodrun"):
        with pytest.raises(LaunchError, match="use one without spaces"):
            launch(name, cwd="/my work")
    assert shlex.split(launch("torchrun", cwd="/my work").others[0][-1])[:2] == ["cd", "/my work"]


def test_mpirun_says_root_only_as_root():
    argv = launch("mpirun").argv
    assert pairs(argv, "-H") == ["a:2,b:2"]
    assert pairs(argv, "--bind-to") == ["none"]
    assert "--allow-run-as-root" not in argv
    assert "--allow-run-as-root" in launch("mpirun", root=True).argv
    assert {"MASTER_ADDR=10.1.0.1", "MASTER_PORT=23456"} <= set(pairs(argv, "-x"))


def test_torchrun_has_one_command_a_node():
    found = launch("torchrun", hosts=(Host("a", 2), Host("b", 1)))
    assert found.argv[0] == "torchrun"
    remote = found.others[0]
    assert remote[0] == "ssh"
    assert "BatchMode=yes" in remote
    assert remote[-2] == "b"
    words = shlex.split(remote[-1])
    assert words[:3] == ["cd", "/work", "&&"]
    assert {"HARNESS_NOTE=two words", f"{JOB_TAG}=job-1"} <= set(words)
    assert pairs(tuple(words), "--nproc-per-node") == ["1"]
    assert pairs(tuple(words), "--node-rank") == ["1"]
    assert words[-2:] == list(WORKER[-2:])


def test_remote_argument_reaches_the_remote_shell_whole():
    remote = launch("torchrun", worker=("python", "x.py", *NASTY)).others[0][-1]
    assert shlex.split(remote)[-len(NASTY) :] == NASTY


def test_srun_carries_everything():
    found = launch("srun")
    assert {"--export=ALL", "--kill-on-bad-exit=1"} <= set(found.argv)
    assert pairs(found.argv, "--ntasks-per-node") == ["2"]
    assert found.env["MASTER_PORT"] == "23456"


def test_modules_and_plain_programs_as_workers():
    assert launch("torchrun", worker=("python", "-m", "pkg.mod", "x")).argv[-3:] == ("--module", "pkg.mod", "x")
    assert "--module" in launch("deepspeed", worker=("python", "-m", "pkg.mod")).argv
    assert "--no_python" in launch("deepspeed", worker=("/bin/true",)).argv


def test_local_takes_one_worker():
    assert launch("local", hosts=hostfile.local(1), network=Network()).argv == WORKER
    with pytest.raises(LaunchError, match="one worker"):
        launch("local", hosts=hostfile.local(2), network=Network())
    with pytest.raises(LaunchError, match="unknown launcher 'x'"):
        launch("x")


def test_rendered_text_is_shell_that_means_the_same(tmp_path):
    """The dry run's text, run by a shell, writes the files and starts exactly the argv."""
    show = tmp_path / "mpirun"
    show.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    show.chmod(0o755)
    found = launch("mpirun", cwd=str(tmp_path), worker=("python", *(word for word in NASTY if word)), environ={})
    text = render(found).replace("\nmpirun ", f"\n{show} ")
    out = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout
    assert out == "".join(f"{word}\n" for word in found.argv[1:])


def test_missing_program_is_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "apt install openmpi-bin" in missing_program(launch("mpirun"))
