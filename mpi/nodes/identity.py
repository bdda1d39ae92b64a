"""What makes a node a machine of its own: name service, keys, ssh, accounts. These are files of the set, which nodes
see in place of the host's; of the host's nothing is copied.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_LOGIN_SCRIPTS = (".bashrc", ".bash_profile", ".bash_login", ".profile", ".zshenv", ".zshrc")


def program(name: str) -> str:
    """Where the program is, the name itself where it is not."""
    return shutil.which(name, path=PATH) or name


def write_files(folder: Path, names: Sequence[str], addresses: Sequence[str]) -> None:
    """Keys, name service, ssh and sshd configuration, accounts: alike for all nodes, but for their host keys."""
    for key in ("id", *(f"{name}.hostkey" for name in names)):
        subprocess.run(
            [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
    hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in zip(names, addresses, strict=True))]
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    known = []
    for name, address in zip(names, addresses, strict=True):
        kind, key, *_ = (folder / f"{name}.hostkey.pub").read_text().split()
        known.append(f"{name},{address} {kind} {key}\n")
    (folder / "known_hosts").write_text("".join(known))
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/id\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  StrictHostKeyChecking yes\n  LogLevel ERROR\n"
        "  KexAlgorithms curve25519-sha256\n"  # the cheapest: 64 logins at once share this machine's cores
    )
    (folder / "empty").touch()
    for name in names:
        (folder / f"{name}.hostname").write_text(f"{name}\n")
        (folder / f"{name}.sshd_config").write_text(
            f"HostKey {folder}/{name}.hostkey\nAuthorizedKeysFile {folder}/id.pub\nPidFile none\nStrictModes no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            f"UseDNS no\nMaxStartups 1000\nMaxSessions 1000\nPrintMotd no\nPrintLastLog no\nLogLevel ERROR\n"
        )
    (folder / "shadow").touch(mode=0o600)
    (folder / "shadow").write_text(shadow(Path("/etc/passwd").read_text()))


def shadow(passwd: str) -> str:
    """A shadow file for the accounts of a passwd file in which no password opens any, and none has an age.

    Never a copy of the host's, whose password hashes are nobody's business here. ``*`` bars every password but not a
    key; sshd without PAM would refuse an account with ``!`` (locked), as root's is on many systems, whatever the key.
    """
    names = [line.partition(":")[0] for line in passwd.splitlines()]
    return "".join(f"{name}:*:::::::\n" for name in names if name and name[0] not in "#+-")


def mounts(folder: Path, name: str) -> list[tuple[str, str]]:
    """(source, target) of the files that node `name` sees over the host's."""
    pairs = [
        (f"{folder}/hosts", "/etc/hosts"),
        (f"{folder}/{name}.hostname", "/etc/hostname"),
        (f"{folder}/ssh_config", "/etc/ssh/ssh_config"),
        (f"{folder}/shadow", "/etc/shadow"),
        # The account's login scripts are not run: they may be slow, and write into the home that all nodes share.
        *((f"{folder}/empty", f"{pwd.getpwuid(0).pw_dir}/{script}") for script in _LOGIN_SCRIPTS),
    ]
    return [pair for pair in pairs if Path(pair[0]).exists()]
