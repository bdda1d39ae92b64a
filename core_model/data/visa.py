"""VisA's layout (Zou et al., 2022): pictures by object, and a csv that says which train and which test.

::

    DIR/split_csv/1cls.csv          object,split,label,image,mask  (paths relative to DIR; mask empty for normal)
    DIR/candle/Data/Images/Normal/0836.JPG
    DIR/candle/Data/Images/Anomaly/053.JPG
    DIR/candle/Data/Masks/Anomaly/053.png

DIR may also be one object's folder, beside which split_csv lies.
"""

from __future__ import annotations

import csv
from pathlib import Path

from core_model.data.errors import DataError
from core_model.data.layout import Layout, files_of, folder_of
from core_model.data.pictures import FilePicture, content_hash

COLUMNS = ("object", "split", "label", "image", "mask")
SPLIT_FILE = "split_csv/1cls.csv"


def read(name: str) -> Layout:
    """The data set in folder `name`, by its one-class split. Only the csv is read. Raises DataError.

    Defective pictures that a two-class split would train on are left out: training here simulates its defects.
    """
    root = folder_of(name)
    only = ""
    if (root / "Data" / "Images").is_dir():
        root, only = root.resolve().parent, root.resolve().name
    table = root / SPLIT_FILE
    if not table.is_file():
        hint = f"; for the folder that VisA's prepare_data.py writes, use mvtec:{name}" if _is_mvtec(root) else ""
        raise DataError(f"{table}: no such split file: VisA's layout has it beside its object folders{hint}")
    train: list[FilePicture] = []
    test: list[FilePicture] = []
    for line, row in _rows(table):
        if only and row["object"] != only:
            continue
        picture = _picture(root, table, line, row)
        if row["split"] == "test":
            test.append(picture)
        elif picture.kind == "good":
            train.append(picture)
    if not train:
        wanted = f" of object '{only}'" if only else ""
        raise DataError(f"{table}: no normal train rows{wanted}: is it VisA's 1cls.csv?")
    return Layout(
        name="visa",
        source=root.resolve().name,
        train=tuple(train),
        test=tuple(test),
        content=content_hash(root, [*files_of([*train, *test]), table]),
    )


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of each row of the csv."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table}: no column '{missing[0]}': VisA's split files have {','.join(COLUMNS)}")
            return [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable csv file ({error}): take VisA's own") from None


def _picture(root: Path, table: Path, line: int, row: dict[str, str]) -> FilePicture:
    where = f"{table} line {line}"
    if None in row.values() or row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
        raise DataError(
            f"{where}: expected split train or test and label normal or anomaly, and {len(COLUMNS)} columns"
        )
    path = root / row["image"]
    mask = root / row["mask"] if row["mask"] else None
    if row["label"] == "anomaly" and mask is None:
        raise DataError(f"{where}: no mask for the anomaly {row['image']}: fill in the mask column")
    for file in (path, mask):
        if file is not None and not file.is_file():
            raise DataError(f"{where}: no such file {file}: is the data set unpacked whole?")
    return FilePicture(
        id=row["image"],
        category=row["object"],
        kind="good" if row["label"] == "normal" else "anomaly",
        path=path,
        mask_path=mask if row["label"] == "anomaly" else None,
    )


def _is_mvtec(root: Path) -> bool:
    return (root / "train").is_dir() or any((path / "train").is_dir() for path in root.iterdir())
