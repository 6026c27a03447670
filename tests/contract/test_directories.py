"""A directory for output is made, or refused at once with what is in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pico_contract.codec import publish, write_text
from pico_contract.directories import check_directory, make_directory
from pico_contract.errors import UserError
from pico_contract.lock import RunLock, read_lock


def dangling(folder: Path) -> Path:
    (folder / "link").symlink_to("/nowhere/at/all")
    return folder / "link"


def below_dangling(folder: Path) -> Path:
    return dangling(folder) / "runs" / "t"


def circular(folder: Path) -> Path:
    (folder / "link").symlink_to("link")
    return folder / "link" / "t"


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "runs" / "t"


def a_link_to_a_file(folder: Path) -> Path:
    (folder / "link").symlink_to(a_file(folder))
    return folder / "link" / "t"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def too_long(folder: Path) -> Path:
    return folder / ("é" * 120)


def much_too_long(folder: Path) -> Path:
    return folder / ("x" * 5000) / "t"


def a_nul(folder: Path) -> Path:
    return folder / "a\0b"


def a_device(folder: Path) -> Path:
    return Path("/dev/null/t")


def where_nothing_can_be_made(folder: Path) -> Path:
    return Path("/proc/1/t")


OBSTACLES = {
    dangling: "is a link to /nowhere/at/all, which does not exist: make it, or remove the link",
    below_dangling: "is a link to /nowhere/at/all, which does not exist: make it, or remove the link",
    circular: "is a link to link, which cannot be followed (Too many levels of symbolic links): remove the link",
    a_file: "is not a directory: choose another place, or remove what lies there",
    below_a_file: "file is not a directory: choose another place",
    a_link_to_a_file: "link is not a directory: choose another place",
    a_pipe: "pipe is not a directory: choose another place",
    too_long: "has 240 bytes; use 228 at most",
    much_too_long: "cannot be a directory: File name too long",
    a_nul: "cannot be a directory: embedded null byte",
    a_device: "/dev/null is not a directory",
    where_nothing_can_be_made: "cannot be made: ",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.__name__)
def test_what_is_in_the_way_is_named_at_once(tmp_path: Path, obstacle: object) -> None:
    path = obstacle(tmp_path)  # type: ignore[operator]
    for make in (make_directory, lambda path: RunLock(path / "run.lock").acquire()):
        with pytest.raises(UserError) as caught:
            make(path)
        assert OBSTACLES[obstacle] in str(caught.value)  # type: ignore[index]
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("obstacle", [below_dangling, below_a_file, circular], ids=lambda o: o.__name__)
def test_writing_whole_directories_and_files_meets_the_same_refusal(tmp_path: Path, obstacle: object) -> None:
    path = obstacle(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError), publish(path):
        pass
    with pytest.raises(UserError):
        write_text(path / "file.txt", "x")


def test_a_directory_is_made_with_its_parents_or_found(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    check_directory(path)
    assert not path.exists()
    assert make_directory(path)
    assert not make_directory(path)
    (tmp_path / "link").symlink_to(path)
    assert not make_directory(tmp_path / "link")
    assert make_directory(tmp_path / "link" / "c")


@pytest.mark.timeout(30)
def test_what_is_no_file_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/nowhere")
    for name in ("directory", "pipe", "link"):
        with pytest.raises(UserError, match=f"{name} is not a file, as a lock is: remove what lies there"):
            read_lock(tmp_path / name)
        with pytest.raises(UserError, match="is not a file, as a lock is"):
            RunLock(tmp_path / name).acquire()
