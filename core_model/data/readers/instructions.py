"""General visual instructions, which keep a language model that learns to judge defects from forgetting to converse.

Two json forms: PandaGPT's ``[{"image_name": ..., "conversation": [{"from": "human", "value": ...}, {"from": "gpt",
"value": ...}, ...]}, ...]`` and LLaVA's, which says ``image`` and ``conversations`` instead. Pictures are looked for in
the folder of the file and in its folder ``images``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_model.data.decode.pictures import FilePicture
from core_model.data.errors import DataError

KIND = "instruction"  # core_model.language.dialogue_format gives samples of this kind no map loss
CATEGORY = "object"
_IMAGE_MARKS = ("<image>\n", "\n<image>", "<image>")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A picture and the (question, answer) turns about it."""

    picture: FilePicture
    turns: tuple[tuple[str, str], ...]


def read(name: str) -> tuple[Instruction, ...]:
    """The conversations in the json file `name`. Raises DataError naming the entry."""
    path = Path(name).expanduser()
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{name}: no such instruction file: check the data option instructions") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{name}: not a json file of instructions ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{name}: expected a list of conversations, each with a picture")
    return tuple(_instruction(path, number, entry) for number, entry in enumerate(entries))


def _instruction(file: Path, number: int, entry: Any) -> Instruction:
    where = f"{file} entry {number}"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with image_name and conversation")
    name = entry.get("image_name", entry.get("image"))
    said = entry.get("conversation", entry.get("conversations"))
    if not isinstance(name, str) or not name or not isinstance(said, list):
        raise DataError(f"{where}: expected image_name and conversation (or LLaVA's image and conversations)")
    picture = FilePicture(
        id=f"instruction/{number}/{name}", category=CATEGORY, kind=KIND, path=_find(file.parent, name, where)
    )
    return Instruction(picture=picture, turns=_turns(said, where))


def _turns(said: Sequence[Any], where: str) -> tuple[tuple[str, str], ...]:
    if len(said) < 2 or len(said) % 2:
        raise DataError(f"{where}: a conversation is questions and answers in turn, at least one of each")
    texts = []
    for position, part in enumerate(said):
        speaker = ("human", "gpt")[position % 2]
        if not isinstance(part, dict) or part.get("from") != speaker or not isinstance(part.get("value"), str):
            raise DataError(f"{where}: part {position} must be {{'from': '{speaker}', 'value': text}}")
        text = part["value"]
        for mark in _IMAGE_MARKS:
            text = text.replace(mark, "")
        texts.append(text.strip())
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _find(folder: Path, name: str, where: str) -> Path:
    for base in (folder, folder / "images"):
        for candidate in (base / name, base / f"{name}.jpg"):
            if candidate.is_file():
                return candidate
    raise DataError(f"{where}: no picture {name} in {folder} or {folder / 'images'}")
