"""Why did the job fail? One line out of what launchers and ranks printed."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

# What a line says, most telling first. Groups are put into the sentence.
_CAUSES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), sentence)
    for pattern, sentence in (
        (r"No space left on device", "no space left on device: free some, or give another --results folder"),
        (
            r"(?:CUDA|HIP) out of memory|DefaultCPUAllocator: can't allocate memory|MemoryError",
            "out of memory: lower --global-batch or raise --accumulation",
        ),
        (
            r"ssh: connect to host (\S+) port (\d+): (.+)",
            "node {0}: ssh port {1}: {2}: start sshd there, or mend the hostfile",
        ),
        (r"ssh: Could not resolve hostname (\S+?):", "node {0}: its name is not known: add it to DNS or /etc/hosts"),
        (
            r"Host key verification failed",
            "ssh does not trust a node's host key: log in once by hand, or add it to known_hosts",
        ),
        (
            r"(\S+@\S+): Permission denied \((\S+)\)",
            "{0}: ssh refused the key ({1}): add your public key to authorized_keys there",
        ),
        (
            r"Timeout, server (\S+) not responding",
            "node {0}: the connection was lost: check the machine and its network",
        ),
        (
            r"ModuleNotFoundError: No module named '([^']+)'",
            "Python module '{0}' is not installed on a node: run 'harness cluster doctor'",
        ),
    )
)
# Who failed first, in each launcher's own words: (pattern, rank group, code group); None = absent.
_RANKS: tuple[tuple[re.Pattern[str], int | None, int | None], ...] = (
    (re.compile(r"^Process (\d+) exit with status code (-?\d+)"), 1, 2),  # horovodrun
    (re.compile(r"rank (\d+) with PID \d+ on node \S+ exited on signal (\d+)"), 1, 2),  # Open MPI
    (re.compile(r"^\s*Process name: \[\[\d+,\d+\],(\d+)\]"), 1, None),  # Open MPI
    (re.compile(r"^\s*Exit code:\s+(\d+)"), None, 1),  # Open MPI, horovodrun
    (re.compile(r"^\s*rank\s*: (\d+) \(local_rank"), 1, None),  # torchrun
    (re.compile(r"^\s*exitcode\s*: (-?\d+) \(pid"), None, 1),  # torchrun
    (re.compile(r"exits with return code = (-?\d+)"), None, 1),  # deepspeed
    (re.compile(r"failed \(exitcode: (-?\d+)\)"), None, 1),  # torchrun's agent
    (re.compile(r"task (\d+): Exited with exit code (\d+)"), 1, 2),  # srun
)
_PREFIX = re.compile(r"^(?:\[(?:\d+,)?(\d+)\]<std(?:out|err)>:|\[rank(\d+)\]:\s?|(\w[\w.-]*): )")
# Open MPI and horovodrun tag output by rank, also in the middle of a line that two ranks were writing.
_TAG = re.compile(r"(?=\[(?:\d+,)?\d+\]<std(?:out|err)>:)")
_ERROR = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Failure|Exit)): ?(.*)$")
# Errors that only tell that somebody else failed.
_SECONDARY = re.compile(
    r"Connection (?:closed|reset|refused)|Broken pipe|peer|ChildFailedError|non-zero|thus causing the job|"
    r"HorovodInternalError|SignalException"
)


def explain(lines: Sequence[str], returncode: int) -> str:
    """One line: the cause if a line tells it, else the first failing rank's error, else the exit status in words."""
    parts = [part for line in lines for part in _TAG.split(line) if part]
    texts = [_strip(part) for part in parts]
    for text in parts:
        for pattern, sentence in _CAUSES:
            if match := pattern.search(text):
                return sentence.format(*match.groups())
    rank, code, node = _first_failure(texts)
    errors = [(who, match) for who, text in texts if (match := _ERROR.match(text))]
    primary = [item for item in errors if not _SECONDARY.search(item[1].group(0))]
    own = [item for item in primary if rank is not None and item[0] == str(rank)]
    who = f"rank {rank}" if rank is not None else f"a worker on node {node}" if node else "a worker"
    if code == 255:
        return f"{who} was killed, or the connection to its node was lost (ssh exit code 255)"
    if code is not None and (code < 0 or code >= 128):
        return f"{who} was ended by {_signal_name(code)}"
    if own or primary:
        name, message = (own or primary)[-1][1].groups()
        return f"{who} failed: {name.rsplit('.', 1)[-1]}: {message}".rstrip(": ")
    if returncode < 0:
        return f"the launcher was ended by {_signal_name(returncode)}"
    if errors:
        return f"{who} failed: {errors[0][1].group(0)}"
    return f"{who} failed with exit code {code if code is not None else returncode}: see log.txt"


def _strip(line: str) -> tuple[str, str]:
    """(rank or host that printed it, text)."""
    match = _PREFIX.match(line)
    if not match or (match.group(3) and _ERROR.match(line)):
        return "", line.rstrip()
    return next(filter(None, match.groups()), ""), line[match.end() :].rstrip()


def _first_failure(texts: Sequence[tuple[str, str]]) -> tuple[int | None, int | None, str]:
    """(rank, exit code, node) of who failed first, as far as the launcher says it."""
    rank: int | None = None
    code: int | None = None
    node = ""
    for prefix, text in texts:
        if text.startswith("Root Cause"):  # torchrun lists every failure first, in the order of ranks
            rank = code = None
        for pattern, rank_group, code_group in _RANKS:
            if match := pattern.search(text):
                if rank is None and rank_group is not None:
                    rank = int(match.group(rank_group))
                if code is None and code_group is not None:
                    code = int(match.group(code_group))
                    node = "" if prefix.isdigit() else prefix
                    if "exited on signal" in text:
                        code = -code
    return rank, code, node


def _signal_name(code: int) -> str:
    number = -code if code < 0 else (256 - code if code > 192 else code - 128)
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
