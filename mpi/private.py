"""Secrets of the environment: which variables are secrets, and how workers get them without a command line.

Every user of a machine can read every command line (``ps``), and launchers copy variables onto theirs: ``mpirun -x
NAME=VALUE``, horovodrun's and deepspeed's ssh lines, ``env A=B``. So no launcher gets a secret. The guard that stands
on each node of a job (`mpi.guard`) gets them by its standard input, which ssh encrypts, and keeps them in a file of
mode 600, in memory, as long as the job lasts; a worker takes them from there (`take`). Other nodes get those whose
names are carried there anyway (`mpi.launch.CARRIED`: HF_TOKEN is). Hosts that an elastic job takes in later have no
guard, and so none.

A variable is a secret by the words of its name (HF_TOKEN, WANDB_API_KEY; not TOKENIZERS_PARALLELISM, PYTHONHASHSEED),
or because its value is a token of a known form or an address with a password in it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, MutableMapping

from mpi.guard import VARIABLE, secrets_file

MASK = "***"
_SECRET_WORDS = (
    "TOKEN TOKENS KEY KEYS SECRET SECRETS PASSWORD PASSWORDS PASSWD PASSPHRASE PASS PWD CREDENTIAL CREDENTIALS AUTH "
    "BEARER COOKIE JWT PAT SSHPASS DBPASS"
)
_WORDS = frozenset(_SECRET_WORDS.split())
# Words that are often written without a '_' before them: APITOKEN, PGPASSWORD, OPENAI_APIKEY.
_ENDINGS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIALS", "APIKEY", "ACCESSKEY", "SECRETKEY")
# The name says that the value only tells where the secret is, or something about it.
_ABOUT_WORDS = "FILE PATH DIR SOCK SOCKET HOME TTL TIMEOUT COUNT SIZE LENGTH TYPE"
_ABOUT = frozenset(_ABOUT_WORDS.split())
_FOLDERS = ("PWD", "OLDPWD")  # the shell's
_SWITCHES = frozenset(("", "0", "1", "true", "false", "yes", "no", "on", "off"))  # HF_HUB_DISABLE_IMPLICIT_TOKEN=1
_VALUE = re.compile(
    r"\w://[^/\s:@]*:[^/\s@]+@"  # a password in an address
    r"|\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{15,}|sk-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_PAIR = re.compile(r"(?:^|[\s,;='\"])([A-Za-z_]\w*)=([^\s,;'\"]+)")
_SHORT = 8  # a shorter value is not looked for in texts: it would be found in innocent words


def is_secret(name: str, value: str = "x") -> bool:
    """Whether the variable must not be seen by others. value: where it is not given, the name decides."""
    if _VALUE.search(value):
        return True
    words = [word.rstrip("0123456789") for word in re.split(r"[^A-Z0-9]+", name.upper())]
    if value.strip().lower() in _SWITCHES or words[-1] in _ABOUT or name in _FOLDERS:
        return False
    if value.isdigit() and "TOKENS" in words:  # MAX_TOKENS=512
        return False
    return any(word in _WORDS or word.endswith(_ENDINGS) for word in words)


def secrets_in(environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets among the variables of `environ`."""
    return {name: value for name, value in environ.items() if is_secret(name, value)}


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The other ones."""
    return {name: value for name, value in environ.items() if not is_secret(name, value)}


def named_with_value(words: Iterable[str]) -> str:
    """The first secret that stands with its value in `words` of a command line (``-x HF_TOKEN=...``), or nothing."""
    pairs = (pair for word in words for pair in _PAIR.findall(word))
    return next((name for name, value in pairs if is_secret(name, value)), "")


def mask(text: str, secrets: Mapping[str, str] | None = None) -> str:
    """`text` with ``***`` for the values of `secrets` (default: those of this process's environment)."""
    return mask_bytes(os.fsencode(text), secrets).decode(errors="surrogateescape")


def mask_bytes(text: bytes, secrets: Mapping[str, str] | None = None) -> bytes:
    """As `mask`, for what a process has printed."""
    values = set((secrets_in(os.environ) if secrets is None else secrets).values())
    for value in sorted((value for value in values if len(value) >= _SHORT), key=len, reverse=True):
        text = text.replace(os.fsencode(value), MASK.encode())
    return text


def take(environ: MutableMapping[str, str] | None = None) -> list[str]:
    """Puts the job's secrets into `environ` (default: this process's) where it does not have them; returns the names.

    None outside a job that `mpi.process.supervise` runs. A file that others could have written or read is left alone.
    """
    environ = os.environ if environ is None else environ
    tag = environ.get(VARIABLE, "")
    if not tag:
        return []
    try:
        handle = os.open(secrets_file(tag), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            return []
        found: dict[str, str] = json.loads(file.read())
    taken = [name for name in found if name not in environ]
    environ.update({name: found[name] for name in taken})
    return taken
