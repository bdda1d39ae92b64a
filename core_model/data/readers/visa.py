"""VisA's layout (Zou et al., 2022): pictures by object, and a csv that says which train and which test.

::

    DIR/split_csv/1cls.csv          object,split,label,image,mask  (paths relative to DIR; mask empty for normal)
    DIR/candle/Data/Images/Normal/0836.JPG
    DIR/candle/Data/Images/Anomaly/053.JPG
    DIR/candle/Data/Masks/Anomaly/053.png

DIR may also be one object's folder, beside which split_csv lies. The csv may come out of a spreadsheet: with a byte
order mark, semicolons or tabs between the columns, capitals in the heads. An object without any mask has none.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

from core_model.data.decode.pictures import GOOD, FilePicture, content_hash
from core_model.data.errors import DataError
from core_model.data.readers.layout import Layout, files_of, folder_of
from core_model.data.readers.listing import LeftOut, holds_pictures, plural
from core_model.data.readers.recognize import remedy

COLUMNS = ("object", "split", "label", "image", "mask")
SPLIT_FILE = "split_csv/1cls.csv"

Row = tuple[int, dict[str, str]]  # line of the csv, cells by column


def read(name: str) -> Layout:
    """The data set in folder `name`, by its one-class split. Only the csv is read. Raises DataError.

    Defective pictures that a two-class split would train on are left out: training here simulates its defects.
    """
    root, only = _root(folder_of(name))
    table = root / SPLIT_FILE
    if not table.is_file():
        raise DataError(f"{table}: no such split file (VisA's layout has it beside its object folders): {remedy(root)}")
    rows = [(line, row) for line, row in _rows(table) if not only or row["object"] == only]
    _refuse_repeats(table, rows)
    with_masks = {row["object"] for _, row in rows if row["label"] == "anomaly" and row["mask"]}
    train: list[FilePicture] = []
    test: list[FilePicture] = []
    unused: Counter[str] = Counter()
    for line, row in rows:
        picture = _picture(root, table, line, row, masks=row["object"] in with_masks)
        if row["split"] == "test":
            test.append(picture)
        elif picture.kind == GOOD:
            train.append(picture)
        else:
            unused[row["object"]] += 1
    if not train:
        wanted = f" of object '{only}'" if only else ""
        raise DataError(f"{table}: no normal train rows{wanted}: is it VisA's 1cls.csv?")
    left_out = LeftOut(root)
    if unused:
        left_out.say(
            f"{plural(unused.total(), 'anomaly', 'anomalies')} of the train split left out: defects are simulated"
        )
    named = {row["object"] for _, row in rows}
    for path in () if only else sorted(root.iterdir()):
        if (path / "Data" / "Images").is_dir() and path.name not in named and holds_pictures(path / "Data" / "Images"):
            left_out.say(f"{path.name}: left out, {SPLIT_FILE} does not name it")
    return Layout(
        name="visa",
        source=root.resolve().name,
        train=tuple(train),
        test=tuple(test),
        content=content_hash(root, [*files_of([*train, *test]), table]),
        notes=left_out.notes(),
    )


def _root(folder: Path) -> tuple[Path, str]:
    """(the data set's folder, the one object to read or "" for all). A linked object's folder may lie elsewhere than
    the csv that names it: beside the link, or beside what it points to."""
    if not (folder / "Data" / "Images").is_dir():
        return folder, ""
    given = Path(os.path.abspath(folder))
    found = given if (given.parent / SPLIT_FILE).is_file() else folder.resolve()
    return found.parent, found.name


def _rows(table: Path) -> list[Row]:
    """The csv's rows, checked: every column there, split and label as VisA writes them."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count))
            reader.fieldnames = [head.strip().lower() for head in reader.fieldnames or ()]
            missing = [column for column in COLUMNS if column not in reader.fieldnames]
            if missing:
                raise DataError(f"{table}: no column '{missing[0]}': VisA's split files have {','.join(COLUMNS)}")
            return [(reader.line_num, _checked(table, reader.line_num, row)) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable csv file ({error}): take VisA's own") from None


def _checked(table: Path, line: int, row: dict[str, str]) -> dict[str, str]:
    if None not in row and None not in row.values():
        cells = {column: row[column].strip() for column in COLUMNS}
        cells |= {column: cells[column].lower() for column in ("split", "label")}
        if cells["split"] in ("train", "test") and cells["label"] in ("normal", "anomaly"):
            return cells
    raise DataError(
        f"{table} line {line}: expected split train or test and label normal or anomaly, and {len(COLUMNS)} columns"
    )


def _refuse_repeats(table: Path, rows: list[Row]) -> None:
    """A picture, or a mask, in two rows counts twice, is trained on and tested, or is of two objects."""
    for column in ("image", "mask"):
        seen: dict[str, int] = {}
        for line, row in rows:
            name = row[column] if column == "image" or row["label"] == "anomaly" else ""
            if name and seen.setdefault(os.path.normpath(name.replace("\\", "/")), line) != line:
                before = seen[os.path.normpath(name.replace("\\", "/"))]
                raise DataError(f"{table} line {line}: {column} {name} stands in line {before} already: keep one row")


def _picture(root: Path, table: Path, line: int, row: dict[str, str], *, masks: bool) -> FilePicture:
    """masks: whether the object has any; then each anomaly needs its own."""
    where = f"{table} line {line}"
    path = _file(root, row["image"], where)
    defective = row["label"] == "anomaly"
    if defective and masks and not row["mask"]:
        raise DataError(f"{where}: no mask for the anomaly {row['image']}: fill in the mask column")
    mask = _file(root, row["mask"], where) if row["mask"] else None
    return FilePicture(
        id=row["image"],
        category=row["object"],
        kind="anomaly" if defective else GOOD,
        path=path,
        mask_paths=(mask,) if mask is not None and defective else (),
    )


def _file(root: Path, name: str, where: str) -> Path:
    """The file of a cell; Windows' backslashes are taken for slashes where there is no such file."""
    for path in (root / name, root / name.replace("\\", "/")):
        if path.is_file():
            return path
    raise DataError(f"{where}: no such file {root / name}: is the data set unpacked whole?")
