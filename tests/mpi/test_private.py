"""Secrets: which variables are, that no launch shows one, and that workers get them by a file of their user alone."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpi import hostfile, private
from mpi.guard import VARIABLE, secrets_file
from mpi.hostfile import Host
from mpi.launch import LAUNCHERS, command, render, unread
from mpi.launchers.base import LaunchError
from mpi.network import Network
from mpi.process import supervise

VALUE = "hf_not4realNot4realNot4real"
SECRETS = {
    "HF_TOKEN": VALUE,
    "WANDB_API_KEY": "w4ndb-not-real",
    "MLFLOW_TRACKING_PASSWORD": "mlfl0w-not-real",
    "NCCL_PROXY": "http://me:pr0xy-not-real@proxy:3128",
    "PYTHON_KEYRING_SECRET": "pyth0n-not-real",
}
NETWORK = Network(interface="ens7", address="10.1.0.1", subnet="10.1.0.0/16", remote=("b",))
HOSTS = (Host("a", 2), Host("b", 2))


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "hf_token", "HF_TOKEN2", "GITHUBTOKEN", "GITHUB_PAT", "SLURM_JWT"),
        *("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "OPENAI_APIKEY", "PGPASSWORD", "MYSQL_PWD", "DB_PASS", "SSHPASS"),
        *("NEXUS_PASSWD", "MY_CREDENTIALS", "DOCKER_AUTH", "DS_SECRET", "OMPI_MCA_my-key"),
    ],
)
def test_names_of_secrets(name):
    assert private.is_secret(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PYTHONHASHSEED", "0"), ("KEYBOARD", "de"), ("TOKENIZERS_PARALLELISM", "false"), ("MAX_TOKENS", "512")),
        *(("PWD", "/work"), ("OLDPWD", "/"), ("SSH_AUTH_SOCK", "/run/agent"), ("HF_TOKEN_PATH", "/h/token")),
        *(("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("XAUTHORITY", "/h/.X"), ("COMPASS", "n"), ("MONKEY", "x")),
        *(("HF_ENDPOINT", "https://hub.example:8443/a@b"), ("HTTPS_PROXY", "http://proxy:3128"), ("HF_HOME", "/h")),
    ],
)
def test_names_that_only_look_like_it(name, value):
    assert not private.is_secret(name, value)


@pytest.mark.parametrize(
    "value", ["https://me:hunter22@hub.example", VALUE, "Bearer ghp_" + "a" * 30, "x -----BEGIN OPENSSH PRIVATE KEY"]
)
def test_values_that_are_secrets_whatever_the_name(value):
    assert private.is_secret("HF_ENDPOINT", value)


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "local"])
@pytest.mark.parametrize("network", [NETWORK, Network()], ids=["nodes", "here"])
def test_no_command_line_file_or_dry_run_shows_one(launcher, network):
    hosts = HOSTS if network.remote else hostfile.local(2)
    found = command(
        launcher,
        ("/venv/bin/python", "harness/run.py"),
        hosts,
        scratch=Path("/job"),
        network=network,
        environ={"PATH": "/bin", "NCCL_DEBUG": "INFO", **SECRETS},
        env={"HF_OTHER_TOKEN": "0ther-not-real", "HARNESS_NOTE": "seen"},
    )
    shown = json.dumps([found.commands, dict(found.env), {str(k): v for k, v in found.files.items()}])
    text = render(found)
    for value in (*SECRETS.values(), "0ther-not-real"):
        assert value not in shown + text + repr(found)
    assert found.env["HARNESS_NOTE"] == "seen"
    assert dict(found.secrets) == {**SECRETS, "HF_OTHER_TOKEN": "0ther-not-real"}
    if launcher != "srun":  # which hands its whole environment on, and shows it nowhere
        assert "HF_TOKEN=***" in text
        done = subprocess.run(
            ["sh", "-ec", "\n".join(line for line in text.splitlines() if line.startswith("unset ")) + "\nenv"],
            env={"PATH": os.environ["PATH"], **SECRETS},
            capture_output=True,
            text=True,
            check=True,
        )
        assert VALUE not in done.stdout, "a launcher started by the text would put it onto command lines"


def test_the_users_own_deepspeed_env_goes_onto_no_command_line(tmp_path):
    """deepspeed's MPI and Slurm launchers would read ~/.deepspeed_env and write it into arguments of mpirun or srun."""
    for launcher in ("deepspeed", "deepspeed-openmpi", "deepspeed-mpich", "deepspeed-slurm"):
        named = command(launcher, ("python", "x"), HOSTS, scratch=Path("/job"), network=NETWORK, environ={})
        assert named.env["DS_ENV_FILE"] in ("/job/deepspeed_env", os.devnull)
        (tmp_path / ".deepspeed_env").unlink(missing_ok=True)
        assert unread(named, home=tmp_path) == ""
        (tmp_path / ".deepspeed_env").write_text("MY_TOKEN=x\n")
        assert unread(named, home=tmp_path).startswith(f"{tmp_path}/.deepspeed_env is not read: export what")
    assert unread(command("torchrun", ("python", "x"), HOSTS, scratch=Path("/job"), environ={}), home=tmp_path) == ""


@pytest.mark.parametrize(
    "extra", [("-x", f"HF_TOKEN={VALUE}"), (f"--export=ALL,MY_KEY={VALUE}",), ("-genv A_PASSWORD=x1",)]
)
def test_arguments_for_the_launcher_that_hold_one_are_refused(extra):
    with pytest.raises(LaunchError, match="every user of the machine could read") as caught:
        command("mpirun", ("python", "x"), HOSTS, scratch=Path("/job"), network=NETWORK, environ={}, extra=extra)
    assert VALUE not in str(caught.value)
    command("mpirun", ("python", "x"), HOSTS, scratch=Path("/job"), network=NETWORK, extra=("-x", "HF_TOKEN"))


def test_a_worker_takes_it_from_a_file_of_its_user_alone_and_the_log_is_masked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", VALUE)
    monkeypatch.setenv("MY_PASSWORD", "hunter2-hunter2")
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, stat, sys\n"
        f"sys.path.insert(0, {str(Path(private.__file__).parent.parent)!r})\n"
        "from mpi import private\nfrom mpi.guard import secrets_file\n"
        "before = {k for k in os.environ if private.is_secret(k)}\n"
        "mode = stat.S_IMODE(os.stat(secrets_file(os.environ['HARNESS_JOB_TAG'])).st_mode)\n"
        "names = private.take()\n"
        "print('before', before & {'HF_TOKEN', 'MY_PASSWORD'}, oct(mode), 'MY_PASSWORD' in names)\n"
        f"print('right' if os.environ['HF_TOKEN'] == {VALUE!r} else 'wrong', os.environ['MY_PASSWORD'])\n"
    )
    job = command("local", (sys.executable, str(script)), hostfile.local(1), scratch=tmp_path / "job")
    outcome = supervise(job, log_path=tmp_path / "log.txt", timeout=60)
    log = (tmp_path / "log.txt").read_text()
    assert outcome.ok, log
    assert "before set() 0o600 True" in log
    assert "right ***" in log
    assert VALUE not in log
    assert "hunter2" not in log + str(outcome)
    assert not Path(secrets_file(job.tag)).exists(), "it lasts as long as the job"


def test_files_of_others_are_not_believed():
    tag = f"test-{os.getpid()}-{time.monotonic_ns()}"
    path = Path(secrets_file(tag))
    path.write_text(json.dumps({"HF_TOKEN": VALUE}))
    try:
        path.chmod(0o644)
        assert private.take({VARIABLE: tag}) == []
        path.chmod(0o600)
        environ = {VARIABLE: tag, "HF_HOME": "/h"}
        assert private.take(environ) == ["HF_TOKEN"]
        assert environ["HF_TOKEN"] == VALUE
        assert private.take(environ) == [], "what is there already wins"
        link = Path(secrets_file(tag + "x"))
        link.symlink_to(path)
        try:
            assert private.take({VARIABLE: tag + "x"}) == []
        finally:
            link.unlink()
    finally:
        path.unlink()


def test_files_of_a_launch_are_for_its_user_alone(tmp_path):
    from mpi.launchers.base import write_files

    old = os.umask(0o022)
    try:
        job = command("deepspeed", ("python", "x"), HOSTS, scratch=tmp_path / "job", network=NETWORK)
        write_files(job)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "job").iterdir()} == {0o600}


def test_masked_text():
    secrets = {"A_KEY": "long-long-value", "B_KEY": "short"}
    assert private.mask("x long-long-value y short", secrets) == "x *** y short"
    assert private.mask(shlex.quote("a b"), {}) == "'a b'"
