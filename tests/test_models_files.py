import os
import subprocess
import sys
from pathlib import Path

import pytest

from two_tower.models.files import (
    is_alive,
    new_file,
    new_folder,
    put_in_place,
    write_bytes,
    write_json,
)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "Zürich"})
    assert path.read_text(encoding="utf-8") == '{\n  "name": "Zürich"\n}\n'
    with pytest.raises(TypeError):
        write_bytes(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8") == '{\n  "name": "Zürich"\n}\n'


def fail_within(target: Path) -> None:
    with new_file(target) as file:
        file.write(b"half")
        raise OSError("disk is full")


def test_a_long_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with new_file(target) as file:
        file.write(b"first")
        assert not target.exists()
    assert target.read_bytes() == b"first"
    with pytest.raises(OSError, match="disk is full"):
        fail_within(target)
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as work:
        (work / "a").write_text("first")
        assert not path.exists()
    with pytest.raises(TypeError), new_folder(path) as work:
        write_bytes(work / "a", "no bytes")  # type: ignore[arg-type]
    assert (path / "a").read_text() == "first"
    with new_folder(path) as work:
        (work / "b").write_text("third")
    assert [entry.name for entry in path.iterdir()] == ["b"]
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"]


def test_what_a_killed_exchange_left_goes_with_the_next(tmp_path: Path) -> None:
    for name in (".folder.old", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    put_in_place(tmp_path / "work", tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "a").read_text() == "work"


def test_a_process_is_alive_until_it_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(child.pid)
    child.communicate(b"\n")
    assert not is_alive(child.pid)
    assert is_alive(os.getpid())
    assert is_alive(1)  # of another user, often
