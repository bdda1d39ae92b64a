"""What a node says about itself. Runs there as ``python -I -c TEXT``, over ssh, standard library only.

It prints ``PROBE-READY``, then answers requests, one JSON object a line on standard input and output:
``{"do": "facts", ...}``, ``{"do": "listen"}``, ``{"do": "receive"}``,
``{"do": "send", "address": A, "port": P}``. An answer has its request's ``number``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata

READY = "PROBE-READY"
_BLOCK = 1 << 18
_PINGS = 20
_CODE = (".py", ".toml", ".json", ".sh")


def facts(request: dict) -> dict:
    """Everything a launch depends on. `request`: cwd, data, hosts, packages, ports, folders, tag_variable."""
    user = pwd.getpwuid(os.getuid())
    return {
        "hostname": socket.gethostname(),
        "user": user.pw_name,
        "uid": user.pw_uid,
        "home": user.pw_dir,
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "packages": {name: _version(name) for name in request["packages"]},
        "nccl": _nccl(),
        "mpi": _first_line(["mpirun", "--version"]),
        "cwd": os.path.isdir(request["cwd"]),
        "code": _hash_code(request["cwd"]),
        "data": _hash_tree(request["data"]) if request["data"] else None,
        "folders": {path: _folder(path) for path in request["folders"]},
        "shared_memory": _folder("/dev/shm"),
        "memory_mib": _available_mib(),
        "cores": len(os.sched_getaffinity(0)),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "gpus": _gpus(),
        "addresses": {name: _address(name) for name in request["hosts"]},
        "interface": _interface(request["hosts"]),
        "ports": {str(port): _port_is_free(port) for port in request["ports"]},
        "ssh_modes": _ssh_modes(user.pw_dir),
        "leftovers": _leftovers(request["tag_variable"]),
        "time": time.time(),  # last: what the rest took is no uncertainty of this clock
    }


# -- parts of the facts -----------------------------------------------------------------------------------------------
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nccl() -> str | None:
    for name in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        if version := _version(name):
            return version
    return None


def _first_line(argv: list[str]) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def _hash_code(root: str) -> str | None:
    """Of the names and contents of the source files under `root`; results, caches and environments left out."""
    if not os.path.isdir(root):
        return None
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in ("results", "__pycache__", "node_modules", "data", "build")
        )
        for name in sorted(files):
            if name.endswith(_CODE):
                path = os.path.join(folder, name)
                digest.update(os.path.relpath(path, root).encode() + b"\0")
                try:
                    with open(path, "rb") as file:
                        digest.update(file.read())
                except OSError as error:
                    digest.update(str(error.errno).encode())
    return digest.hexdigest()[:16]


def _hash_tree(root: str) -> dict | None:
    """Of the names and sizes of all files under `root` (contents would take too long), and how many there are."""
    if not os.path.isdir(root):
        return None
    digest, count = hashlib.sha256(), 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            try:
                size = os.stat(path).st_size
            except OSError:
                size = -1
            digest.update(f"{os.path.relpath(path, root)}\0{size}\n".encode())
            count += 1
    return {"hash": digest.hexdigest()[:16], "files": count}


def _folder(path: str) -> dict:
    """Free MiB and whether a file can be written, of the nearest folder that exists at or above `path`."""
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path) or "/"
    found = os.statvfs(path)
    facts = {
        "path": path,
        "free_mib": found.f_bavail * found.f_frsize // 2**20,
        "free_files": found.f_favail,
        "error": "",
    }
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".harness-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        facts["error"] = error.strerror or str(error)
    return facts


def _available_mib() -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    return -1


def _gpus() -> list[dict] | None:
    """None without a driver; else each GPU. A driver that does not answer gives one entry with ``error``."""
    if shutil.which("nvidia-smi") is None:
        return None
    names = ("index", "name", "driver_version", "ecc.errors.uncorrected.volatile.total", "memory.used", "memory.total")
    argv = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=8, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return [{"error": f"nvidia-smi: {error}"}]
    if done.returncode:
        return [{"error": (done.stdout + done.stderr).strip().splitlines()[-1:] or "nvidia-smi failed"}]
    return [
        dict(
            zip(
                ("index", "name", "driver", "ecc", "used_mib", "total_mib"),
                (w.strip() for w in line.split(",")),
                strict=True,
            )
        )
        for line in done.stdout.splitlines()
        if line.strip()
    ]


def _address(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def _interface(hosts: list[str]) -> dict:
    """Name and own address of the interface whose route leads to the first host that is not this one."""
    for name in hosts:
        address = _address(name)
        if address is None or address.startswith("127."):
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, 9))
                own = probe.getsockname()[0]
            except OSError:
                continue
        if own == address:
            continue  # that is this node
        return {"name": _name_of(own), "address": own}
    return {"name": "", "address": ""}


def _name_of(address: str) -> str:
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))[20:24]
            except OSError:
                continue
            if socket.inet_ntoa(found) == address:
                return name
    return ""


def _port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _ssh_modes(home: str) -> dict:
    """Octal modes of what sshd (StrictModes) and ssh insist on, where it exists."""
    found = {}
    ssh = os.path.join(home, ".ssh")
    names = [home, ssh, os.path.join(ssh, "authorized_keys"), os.path.join(ssh, "config")]
    if os.path.isdir(ssh):
        names += [
            os.path.join(ssh, n) for n in sorted(os.listdir(ssh)) if n.startswith("id") and not n.endswith(".pub")
        ]
    for path in names:
        try:
            found[path] = oct(os.stat(path).st_mode & 0o777)
        except OSError:
            continue
    return found


def _leftovers(variable: str) -> int:
    """Processes of this user that carry a job's tag: rests of a job, or one that runs now."""
    needle, count = f"{variable}=".encode(), 0
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    count += any(item.startswith(needle) for item in file.read().split(b"\0"))
            except OSError:
                continue
    return count


# -- links ------------------------------------------------------------------------------------------------------------
_listener: socket.socket | None = None


def listen(request: dict) -> dict:
    """Opens a port for one `receive`; the number that is wanted or a free one of the range that jobs use."""
    global _listener
    if _listener is not None:
        _listener.close()
    for port in request.get("ports", ()):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("", port))
        except OSError:
            made.close()
            continue
        made.listen(1)
        _listener = made
        return {"port": port}
    return {"port": 0}


def receive(request: dict) -> dict:
    """Echoes the pings, then counts: bytes per second from the first block to the last."""
    assert _listener is not None
    _listener.settimeout(request["timeout"])
    try:
        link, _ = _listener.accept()
    except OSError as error:
        return {"error": str(error)}
    finally:
        _listener.close()
    with link:
        link.settimeout(request["timeout"])
        try:
            for _ in range(_PINGS):
                link.sendall(link.recv(1))
            buffer = bytearray(_BLOCK)
            count, began, last = 0, 0.0, 0.0
            while size := link.recv_into(buffer):
                last = time.monotonic()
                if not began:
                    began = last  # the first block fills the path
                else:
                    count += size
        except OSError as error:
            return {"error": str(error)}
    return {"bytes_per_s": count / (last - began) if last > began else 0.0}


def send(request: dict) -> dict:
    """Pings, then sends for `seconds`. Returns the median round trip in seconds."""
    try:
        link = socket.create_connection((request["address"], request["port"]), timeout=request["timeout"])
    except OSError as error:
        return {"error": error.strerror or str(error)}
    with link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            trips = []
            for _ in range(_PINGS):
                began = time.monotonic()
                link.sendall(b"p")
                link.recv(1)
                trips.append(time.monotonic() - began)
            block = bytes(_BLOCK)
            end = time.monotonic() + request["seconds"]
            while time.monotonic() < end:
                link.sendall(block)
        except OSError as error:
            return {"error": error.strerror or str(error)}
    return {"round_trip_s": sorted(trips)[len(trips) // 2]}


def main() -> None:
    """Answers until standard input ends. A request that fails is answered with ``error``, never with silence."""
    print(READY, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.time()
        try:
            answer = {"facts": facts, "listen": listen, "receive": receive, "send": send}[request["do"]](request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"number": request.get("number"), "asked": began, **answer}), flush=True)


if __name__ == "__main__":
    main()
