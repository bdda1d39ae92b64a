#!/usr/bin/env python3
"""Carry out the Dockerfile's very steps without a container engine, in a folder that debootstrap fills.

For machines where no engine may run, and to test the Dockerfile there: `FROM debian:SUITE` becomes `debootstrap
SUITE`, `RUN` a command in a chroot with mounts of its own, `COPY` a copy. What the image would record (environment,
entry point) is written to ROOT/image.json, which `enter` reads. Needs root and the packages debootstrap and
util-linux. Only the standard library is used.

    sudo python3 scripts/rootfs.py build ROOT [--bind PATH]... [--mirror URL]
    sudo python3 scripts/rootfs.py enter ROOT [--bind PATH]... [-- COMMAND...]

`--bind PATH` shows a folder or file of this machine at the same place inside (read-only), such as a local package
index or pip's configuration, while a step runs; nothing of it stays in ROOT. Variables named PIP_* and *_proxy are
passed on, as `docker build` passes its proxy settings.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

PASSED_ON = ("PIP_*", "*_proxy", "*_PROXY", "SSL_CERT_FILE")
FILESYSTEM_MOUNTS = """
mount --make-rprivate /
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
mount -t sysfs -o ro sysfs "$ROOT/sys" 2>/dev/null || true
touch "$ROOT/etc/resolv.conf"; mount --bind /etc/resolv.conf "$ROOT/etc/resolv.conf" 2>/dev/null || true
"""


class RootfsError(Exception):
    """Something the caller can mend; its text is one line."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a Dockerfile: its name in capitals and the text after it, continuation lines joined."""

    name: str
    text: str
    line: int


@dataclass(kw_only=True)
class Image:
    """What the steps have set so far; the part of an image that is not files."""

    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)


def parse(dockerfile: str) -> list[Instruction]:
    """Split a Dockerfile's text into instructions, without comments, continuation lines joined (no heredocs)."""
    instructions: list[Instruction] = []
    joined, start = "", 0
    for number, raw in enumerate(dockerfile.splitlines(), start=1):
        line = raw.strip()
        if line.startswith("#") or (not line and not joined):
            continue
        start = start or number
        if line.endswith("\\"):
            joined += line[:-1].rstrip() + " "
            continue
        name, _, text = (joined + line).partition(" ")
        instructions.append(Instruction(name=name.upper(), text=text.strip(), line=start))
        joined, start = "", 0
    return instructions


def substitute(text: str, variables: dict[str, str]) -> str:
    """Replace $NAME and ${NAME} as Docker does outside RUN; an unknown name becomes nothing."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether the .dockerignore patterns keep `path` (relative, with /) out of the build context."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for pattern in patterns:
        if pattern.startswith("**/"):
            if any(fnmatch.fnmatchcase(part, pattern[3:]) for part in parts):
                return True
        elif any(
            prefix.count("/") == pattern.count("/") and fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes
        ):
            return True
    return False


def read_patterns(context: Path) -> list[str]:
    """The patterns of CONTEXT/.dockerignore. Exceptions (`!`) are refused, for this file has none."""
    file = context / ".dockerignore"
    lines = [line.strip().rstrip("/") for line in file.read_text().splitlines()] if file.exists() else []
    patterns = [line for line in lines if line and not line.startswith("#")]
    if any(line.startswith("!") for line in patterns):
        raise RootfsError(".dockerignore: exceptions (!) are not supported here; list what to leave out instead")
    return patterns


def copy(context: Path, root: Path, image: Image, text: str) -> None:
    """COPY SRC... DST. A source folder's content goes into DST, as Docker does it."""
    *sources, destination = shlex.split(text)
    patterns = read_patterns(context)
    target = root / os.path.join(image.workdir, destination).lstrip("/")
    for source in sources:
        path = (context / source).resolve()
        if not path.exists():
            raise RootfsError(f"COPY: {source} is not in {context}")
        if path.is_file():
            to = target / path.name if destination.endswith("/") or len(sources) > 1 else target
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
            continue
        for folder, folders, files in os.walk(path):
            inside = os.path.relpath(folder, context)
            folders[:] = [name for name in folders if not ignored(os.path.normpath(f"{inside}/{name}"), patterns)]
            to = target / os.path.relpath(folder, path)
            to.mkdir(parents=True, exist_ok=True)
            for name in files:
                if not ignored(os.path.normpath(f"{inside}/{name}"), patterns):
                    shutil.copy2(Path(folder) / name, to / name, follow_symlinks=False)


def chroot(root: Path, image: Image, command: list[str], binds: list[str], *, extra_env: dict[str, str]) -> int:
    """Run `command` inside `root` with mounts that end with it; return its exit code."""
    lines = [FILESYSTEM_MOUNTS]
    made: list[Path] = []
    for bind in binds:
        if not os.path.isabs(bind) or os.path.normpath(bind) != bind or bind == "/":
            raise RootfsError(f"--bind {bind}: name it by its whole path, without '..' or a '/' at its end")
        inside = root / bind.lstrip("/")
        if not inside.exists():
            # The outermost thing made, to be removed again: binds leave no trace in the image.
            made.append(next(p for p in [*reversed(inside.parents), inside] if not p.exists()))
            if os.path.isdir(bind):
                inside.mkdir(parents=True)
            else:
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()
        lines.append(f'mount --bind -o ro {shlex.quote(bind)} "$ROOT"{shlex.quote(bind)}')
    lines.append(
        'exec chroot "$ROOT" /usr/bin/env -C ' + shlex.quote(image.workdir) + " " + " ".join(map(shlex.quote, command))
    )
    base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    passed = {k: v for k, v in os.environ.items() if any(fnmatch.fnmatchcase(k, pattern) for pattern in PASSED_ON)}
    environment = {**base, **passed, **image.env, **extra_env, "ROOT": str(root)}
    try:
        argv = ["unshare", "--mount", "sh", "-ec", "\n".join(lines)]
        return subprocess.run(argv, env=environment, check=False).returncode
    finally:
        for path in made:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def bootstrap(root: Path, base: str, mirror: str | None) -> None:
    """FROM debian:SUITE: fill `root` with that Debian release."""
    name, _, suite = base.partition(":")
    if name != "debian" or not suite:
        raise RootfsError(f"FROM {base}: only debian:SUITE can be made without a container engine")
    if shutil.which("debootstrap") is None:
        raise RootfsError("debootstrap is missing; install it as root: apt-get install debootstrap")
    argv = ["debootstrap", "--variant=minbase", suite, str(root), *([mirror] if mirror else [])]
    if subprocess.run(argv, check=False).returncode != 0:
        raise RootfsError(f"debootstrap {suite} failed; see its last lines above")


def build(root: Path, context: Path, binds: list[str], mirror: str | None, build_args: dict[str, str]) -> Image:
    """Carry out every instruction of CONTEXT/Dockerfile in the empty folder `root`."""
    if root.exists() and any(root.iterdir()):
        raise RootfsError(f"{root} is not empty: name a new folder")
    image = Image()
    for step in parse((context / "Dockerfile").read_text()):
        print(f"--- {step.name} {step.text}", file=sys.stderr, flush=True)
        plain = substitute(step.text, {**image.args, **image.env})
        match step.name:
            case "FROM":
                bootstrap(root, plain, mirror)
                image.args = {}
            case "ARG":
                name, _, default = plain.partition("=")
                image.args[name] = build_args.get(name, default)
            case "ENV":
                image.env.update(pair.split("=", 1) for pair in shlex.split(plain))
            case "WORKDIR":
                image.workdir = os.path.join(image.workdir, plain)
                (root / image.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                copy(context, root, image, plain)
            case "RUN":
                code = chroot(root, image, ["/bin/sh", "-c", step.text], binds, extra_env=image.args)
                if code != 0:
                    raise RootfsError(f"Dockerfile line {step.line}: RUN ended with exit code {code}")
            case "ENTRYPOINT" | "CMD":
                image.entrypoint = json.loads(step.text)
            case "EXPOSE" | "LABEL":
                pass
            case _:
                raise RootfsError(f"Dockerfile line {step.line}: {step.name} is not supported here")
    record = {"env": image.env, "workdir": image.workdir, "entrypoint": image.entrypoint}
    with tempfile.NamedTemporaryFile("w", dir=root, delete=False) as file:
        json.dump(record, file, indent=1)
    os.replace(file.name, root / "image.json")
    return image


def enter(root: Path, binds: list[str], command: list[str]) -> int:
    """Run a command in a built root, as `docker run` would with that command in place of the entry point."""
    try:
        record = json.loads((root / "image.json").read_text())
    except FileNotFoundError:
        raise RootfsError(f"{root} has no image.json: it was not built to its end; build it again") from None
    image = Image(env=record["env"], workdir=record["workdir"], entrypoint=record["entrypoint"])
    return chroot(root, image, command or image.entrypoint, binds, extra_env={})


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and act; user errors are one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="rootfs.py", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "enter"):
        sub = commands.add_parser(name)
        sub.add_argument("root", type=Path)
        sub.add_argument("--bind", action="append", default=[], metavar="PATH", help="show PATH of this machine inside")
    commands.choices["build"].add_argument("--mirror", help="Debian mirror, where debootstrap's default does not serve")
    commands.choices["build"].add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    options, command = parser.parse_args(words[:split]), words[split + 1 :]
    try:
        if os.geteuid() != 0:
            raise RootfsError("this needs root (chroot and mounts): run it with sudo")
        root = options.root.resolve()
        if options.command == "build":
            context = Path(__file__).resolve().parent.parent
            build(root, context, options.bind, options.mirror, dict(a.split("=", 1) for a in options.build_arg))
            return 0
        return enter(root, options.bind, command)
    except RootfsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
