"""A virtual node's files are its own: no secret of the host is in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpi.nodes.identity import mounts, shadow, write_files

PASSWD = "root:x:0:0:root:/root:/bin/bash\n# a comment\n+@netgroup\nann:x:1000:1000::/home/ann:/bin/sh\n\n"


def test_no_password_opens_an_account_and_no_key_is_barred() -> None:
    # "!" would be a locked account, which sshd without PAM refuses whatever the key
    assert shadow(PASSWD) == "root:*:::::::\nann:*:::::::\n"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_nothing_of_the_hosts_shadow_file_is_in_a_sets_folder(tmp_path: Path) -> None:
    write_files(tmp_path, ["a"], ["10.77.0.1"])
    try:
        secrets = set(Path("/etc/shadow").read_text().splitlines())
    except OSError:
        secrets = set()
    for path in tmp_path.iterdir():
        assert not secrets & set(path.read_text().splitlines()), path.name
    assert dict(mounts(tmp_path, "a"))[f"{tmp_path}/shadow"] == "/etc/shadow"
    assert (tmp_path / "shadow").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "id").stat().st_mode & 0o777 == 0o600
