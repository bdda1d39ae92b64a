"""What `harness model quality` judges: branches, numbers of good pictures, kinds of memory, figures of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.inference.load_model import BRANCHES
from harness.job.declaration import JobError

ALL = 1_000_000  # shots: every good picture
PASS = 0.9  # share of the held-out good pictures that pass the threshold
CALIBRATED = "calibrated"  # decoder and memory, each in units of what it says of held-out good pictures
JUDGED = (*BRANCHES, CALIBRATED)
# option of a memory on the command line -> what its value is
_WRITTEN = {
    "blocks": "integers", "rotations": "integers", "weight": "number", "limit": "integer", "coreset": "number",
    "neighbourhood": "integer", "joined": "switch", "balanced": "switch", "smooth": "number", "score": "name",
}  # fmt: skip
FIGURES = {
    "image_auroc": "image AUROC",
    "image_auroc_median": "median alone*",
    "pixel_auroc": "pixel AUROC",
    "pixel_auroc_defective": "within defective*",
    "aupro": "AUPRO",
    "held_out_auroc": "AUROC on held-out, simulated defects",
    "held_out_accuracy": "right at held-out threshold",
    "answer_accuracy": "answers right",
    "answer_auroc": "answers' AUROC",
    "answer_held_out_accuracy": "answers right at held-out threshold",
    "place_accuracy": "place right",
    "grounded_accuracy": "grounded answers right",
    "grounded_place_accuracy": "grounded place right",
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is judged. memories: keyword arguments of MemoryOptions, each with a ``label``."""

    branches: tuple[str, ...]
    shots: tuple[int, ...]
    memories: tuple[Mapping[str, Any], ...]
    answers: bool = True

    def __post_init__(self) -> None:
        if CALIBRATED in self.branches and not {"decoder", "memory"} <= set(self.branches):
            raise JobError(f"branch {CALIBRATED} is made of the maps of decoder and memory: name these two as well")

    def variants(self) -> list[tuple[str, int, Mapping[str, Any]]]:
        """(branch, shots, memory) of every row; the decoder needs no memory."""
        rows: list[tuple[str, int, Mapping[str, Any]]] = []
        if "decoder" in self.branches:
            rows.append(("decoder", 0, {}))
        for branch in ("memory", "both", CALIBRATED):
            if branch in self.branches:
                rows += [(branch, count, memory) for memory in self.memories for count in self.shots]
        return rows


def shots_in(text: str) -> tuple[int, ...]:
    """``1,4,all`` as numbers of good pictures. Raises JobError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part != "all" and not (part.isdigit() and int(part)):
            raise JobError(f"--shots '{part}': write numbers from 1 on, or all, with commas between them")
        found.append(ALL if part == "all" else int(part))
    return tuple(found)


def memory_in(text: str) -> dict[str, Any]:
    """``l2:blocks=1,2:rotations=0`` as keyword arguments of `core_model.anomalygpt.memory_bank.MemoryOptions`, with a
    ``label``. A published detector's name (``patchcore``, ``anomalydino``) stands for its options, which others may
    follow. Raises JobError."""
    first, *parts = text.split(":")
    made: dict[str, Any] = {"label": text, **_peer(first)}
    for part in parts:
        key, separator, value = part.partition("=")
        if not separator or key not in _WRITTEN:
            raise JobError(f"--memory '{text}': '{part}' must be one of {'=, '.join(_WRITTEN)}=")
        made[key] = _read(text, _WRITTEN[key], value)
    return made


def _peer(name: str) -> dict[str, Any]:
    from core_model.anomalygpt.memory_bank import PEERS

    if name not in PEERS:
        return {"distance": name}
    return {key: value for key, value in asdict(PEERS[name]).items() if key != "combination"}


def _read(text: str, kind: str, value: str) -> Any:
    if kind == "name":
        return value
    if kind == "switch":
        if value not in ("on", "off"):
            raise JobError(f"--memory '{text}': '{value}' must be on or off")
        return value == "on"
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        raise JobError(f"--memory '{text}': '{value}' is no list of numbers") from None
    if kind == "integers":
        return tuple(map(int, numbers))
    return int(numbers[0]) if kind == "integer" else numbers[0]
