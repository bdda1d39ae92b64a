"""Names that become folders: what is a name, and that a removal never leaves its root."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi import names
from mpi.errors import UserError
from mpi.nodes import cluster, state

BAD = ("", ".", "..", "../x", "/etc", "a/b", "a/../..", "a b", "-x", ".hidden", "a\n", "ä", "x" * 300, None, 5)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name_is_said_in_one_line(name: object, tmp_path: Path) -> None:
    assert names.fault("study", name).startswith("study name ")
    assert "\n" not in names.fault("study", name)
    with pytest.raises(UserError, match="study name"):
        names.remove_folder(tmp_path, name, kind="study")  # type: ignore[arg-type]
    assert tmp_path.is_dir()


@pytest.mark.parametrize("name", ["a", "h100-x2-7b", "DDP.w2_fp32-s0-r1", "0"])
def test_names(name: str) -> None:
    assert names.check_name("study", name) == name


def test_only_the_named_folder_is_removed(tmp_path: Path) -> None:
    for part in ("root/a/deep", "root/b", "outside"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "kept.txt").touch()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    names.remove_folder(tmp_path / "root", "a")
    names.remove_folder(tmp_path / "root", "none")
    with pytest.raises(UserError, match=r"link: a link"):
        names.remove_folder(tmp_path / "root", "link")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")) == [
        "outside/kept.txt",
        "root/b/kept.txt",
    ]


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sets with two in it, beside something that is nobody's business."""
    for name in ("mine", "other"):
        (tmp_path / "sets" / name).mkdir(parents=True)
        (tmp_path / "sets" / name / "set.json").touch()
    (tmp_path / "precious").mkdir()
    monkeypatch.setattr(state, "STATE", tmp_path / "sets")
    return tmp_path


@pytest.mark.parametrize("name", ["", ".", "..", "../precious", "PRECIOUS", "a b", "x" * 40])
def test_no_command_on_nodes_takes_what_is_no_name_of_a_set(name: str, sets: Path) -> None:
    name = str(sets / "precious") if name == "PRECIOUS" else name
    for command in (cluster.down, cluster.load, cluster.up):
        with pytest.raises(cluster.NodesError, match="cannot name a node set"):
            command(name)
    assert (sets / "precious").is_dir()
    assert cluster.names() == ["mine", "other"]


def test_down_takes_away_the_set_that_is_named(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert cluster.down("mine") == 0
    assert cluster.names() == ["other"]
    assert cluster.down("mine") == 0  # nothing to do is no error
    (sets / "sets" / "Not-a-set").mkdir()
    assert cluster.names() == ["other"]


def test_a_set_that_another_process_is_making_is_left_alone(sets: Path) -> None:
    state.claim("third")
    assert state.being_made("third") > 0
    with pytest.raises(cluster.NodesError, match="being made"):
        state.claim("third")
    (sets / "sets" / "third" / state.SET).touch()
    assert state.being_made("third") == 0
    assert sorted(path.name for path in (sets / "sets").iterdir()) == ["mine", "other", "third"]
