"""The first process of a virtual node. Run by path, standard library only: ``init.py SPEC.json``.

It leaves the host's namespaces, starts a child that is process 1 of the node, writes the child's host-side id to
standard output and ends. The child mounts what differs from the host, says ``ready``, waits for the file ``NAME.go``
(the network is connected from outside) and starts sshd. From then on it only collects ended processes. When it ends,
the kernel ends every process of the node and takes the link away.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

_CLONE = {"mount": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "pid": 0x20000000, "net": 0x40000000}
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). Raises OSError naming the target."""
    encode = [None if text is None else text.encode() for text in (source, target, kind, data)]
    if _libc.mount(encode[0], encode[1], encode[2], ctypes.c_ulong(flags), encode[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", target)


def bind(source: str, target: str) -> None:
    """`source` is seen at `target`, which must exist. Where it does not, nothing is hidden and nothing is done."""
    if os.path.exists(target):
        mount(source, target, None, _MS_BIND)


def main() -> None:
    """Parent: new namespaces and the child's id. Child: the node."""
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    if _libc.unshare(sum(_CLONE.values())) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
    child = os.fork()
    if child:
        print(child, flush=True)
        return
    os.setsid()
    os.dup2(2, 1)  # the parent's reader waits for the end of its standard output
    try:
        _become(spec)
        _say(spec, "ready")
    except OSError as error:
        _say(spec, f"failed {error}")
        raise
    go = os.path.join(spec["folder"], f"{spec['name']}.go")
    deadline = time.monotonic() + 60
    while not os.path.exists(go):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
    if spec["sshd"]:
        subprocess.run([spec["sshd"], "-f", spec["sshd_config"]], check=True, stdin=subprocess.DEVNULL)
        wait_until_listening("/proc/net/tcp", 22)
    _say(spec, "up")
    _collect(tied=spec["tied"])


def wait_until_listening(table: str, port: int, limit: float = 20.0) -> None:
    """Until the network of `table` (a ``/proc/.../net/tcp``) has a listener at `port`: sshd leaves its starter before
    it has one. Raises OSError after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        with open(table) as file:
            rows = [line.split() for line in file][1:]
        # columns: number, local address:port, remote address:port, state (0A: LISTEN)
        if any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in rows):
            return
        if time.monotonic() > deadline:
            raise OSError(f"nothing listens at port {port} after {limit:g} s")
        time.sleep(0.05)


def _become(spec: dict) -> None:
    socket.sethostname(spec["name"])
    os.sched_setaffinity(0, spec["cores"])
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for kind in ("all", "default"):  # no IPv6 chatter on the counted links
        path = f"/proc/sys/net/ipv6/conf/{kind}/disable_ipv6"
        if os.path.exists(path):
            with open(path, "w") as file:
                file.write("1")
    with contextlib.suppress(OSError):  # not allowed everywhere; its /sys/class/net is the node's
        mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if os.path.isdir("/dev/shm"):
        mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV)
    # A /run of its own, in which only this set's folder is seen.
    folder = spec["folder"]
    held = os.open(folder, os.O_PATH)
    mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV)
    os.makedirs(folder)
    os.makedirs("/run/sshd", mode=0o755)
    mount(f"/proc/self/fd/{held}", folder, None, _MS_BIND)
    os.close(held)
    for source, target in spec["mounts"]:
        bind(source, target)
    for target in spec["empty"]:
        if os.path.isdir(target):
            mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0700")


def _collect(*, tied: bool) -> None:
    """Waits for ever, or until standard input, held open by the owner, ends."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watched = [read, 0] if tied else [read]
    while True:
        ready = select.select(watched, [], [])[0]
        if 0 in ready and not os.read(0, 4096):
            return
        if read in ready:
            os.read(read, 4096)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _say(spec: dict, text: str) -> None:
    path = os.path.join(spec["folder"], f"{spec['name']}.state")
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    main()
