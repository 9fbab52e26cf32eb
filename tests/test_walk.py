"""The one walk through folders of data: which files count, under which names, in which order, and why others do not."""

import os
import socket
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filip_jax import storage, walk
from filip_jax.errors import UserError


def make(root, *names, data=b"x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def walked(root, *endings):
    left_out = Counter()
    return [file.name for file in walk.walk(str(root), endings or (".jpg",), left_out)], dict(left_out)


# What systems and tools leave beside data, and the reason that counts it.
LEAVINGS = {
    ".git/objects/0.jpg": walk.HIDDEN, ".ipynb_checkpoints/0-checkpoint.jpg": walk.HIDDEN, "._0.jpg": walk.HIDDEN,
    ".DS_Store": walk.HIDDEN, ".Trash-1000/files/0.jpg": walk.HIDDEN, ".AppleDouble/0.jpg": walk.HIDDEN,
    ".nfs000012.jpg": walk.HIDDEN, ".0.jpg.Xq3w": walk.HIDDEN, "__MACOSX/cat/0.jpg": walk.SYSTEM, "@eaDir/0.jpg": walk.SYSTEM,
    "#recycle/0.jpg": walk.SYSTEM, "lost+found/0.jpg": walk.SYSTEM, "Thumbs.db": walk.SYSTEM, "desktop.ini": walk.SYSTEM,
    "$RECYCLE.BIN/0.jpg": walk.SYSTEM, "System Volume Information/0.jpg": walk.SYSTEM, "_temporary/0.jpg": walk.SYSTEM,
    "Network Trash Folder/0.jpg": walk.SYSTEM, "files_trashbin/files/0.jpg": walk.SYSTEM,
    "a.jpg.part": walk.PARTIAL, "a.jpg.crdownload": walk.PARTIAL, "a.jpg.1234.tmp": walk.PARTIAL, "a.jpg~": walk.PARTIAL,
    "notes.md": ".md", "README": "other files", "x.heic": ".heic",
}  # fmt: skip


@pytest.mark.parametrize("name, reason", LEAVINGS.items(), ids=lambda value: str(value).replace("/", "|"))
def test_what_systems_and_tools_leave_is_counted_and_does_not_count(tmp_path, name, reason):
    make(tmp_path, "cat/1.jpg", f"cat/{name}", name)
    assert walked(tmp_path) == (["cat/1.jpg"], {reason: 2})
    sifted = Counter()
    names = {file.as_posix(): (file.relative_to(tmp_path).as_posix(), 1) for file in tmp_path.rglob("*.*")}
    names = {file: pair for file, pair in names.items() if not Path(file).is_dir()}
    assert walk.sift(names, (".jpg",), sifted) == [f"{tmp_path}/cat/1.jpg"]  # the same in a bucket
    assert set(sifted) <= {reason}


def test_words_that_may_name_a_class_count(tmp_path):
    names = ["LOST.DIR/0.jpg", "Recycled/0.jpg", "recycler/0.jpg", "tmp/0.jpg"]
    make(tmp_path, *names)
    assert walked(tmp_path) == (names, {})


def test_what_is_no_file_is_counted(tmp_path):
    make(tmp_path, "0.jpg", ".filip_index/1.jpg")
    make(tmp_path, "1.jpg", data=b"")
    os.mkfifo(tmp_path / "2.jpg")
    (tmp_path / "3.jpg").symlink_to("nowhere")
    (tmp_path / "4.jpg").symlink_to("4.jpg")
    (tmp_path / "broken").symlink_to("/nowhere/at/all")
    (tmp_path / "5.jpg").symlink_to("/dev/zero")
    (tmp_path / "6.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory() as folder:
        listener.bind(f"{folder}/s")
        (tmp_path / "7.jpg").symlink_to(f"{folder}/s")
        assert walked(tmp_path) == (["0.jpg"], {walk.EMPTY: 1, walk.SPECIAL: 3, walk.BROKEN: 3})


def test_links_are_entered_and_loops_end(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    make(root, "a/0.jpg", "z/1.jpg", ".hidden/2.jpg")
    make(other, "3.jpg", "deep/4.jpg")
    (root / "link").symlink_to("../other")  # from the folder that holds it
    (root / "file.jpg").symlink_to(other / "3.jpg")
    (root / "b").symlink_to("a")  # counts under its own name only
    (root / "visible").symlink_to(".hidden")  # whoever links to it wants it
    (other / "back").symlink_to(root)
    (other / "self").symlink_to(".")
    (root / "a/up").symlink_to("..")
    (root / "all").symlink_to("/")  # a folder above
    names = ["a/0.jpg", "file.jpg", "link/3.jpg", "link/deep/4.jpg", "visible/2.jpg", "z/1.jpg"]
    assert walked(root) == (names, {walk.HIDDEN: 1, walk.AGAIN: 5})
    (tmp_path / "door").symlink_to("root")
    assert walked(tmp_path / "door")[0] == names


def test_folders_that_link_to_each_other_are_read_once_each(tmp_path):
    for n in range(12):  # 12! paths
        make(tmp_path, f"{n:02}/{n}.jpg")
        for other in range(12):
            (tmp_path / f"{n:02}/to{other}").symlink_to(f"../{other:02}")
    assert walked(tmp_path) == ([f"{n:02}/{n}.jpg" for n in range(12)], {walk.AGAIN: 144})


def test_folders_that_may_not_be_read_are_counted(tmp_path, monkeypatch):
    make(tmp_path, "0.jpg", "closed/1.jpg", "failing/1.jpg")
    real = os.scandir
    errors = {"closed": PermissionError(13, "closed"), "failing": FileNotFoundError(2, "gone")}

    def scandir(folder):
        if name := errors.get(Path(folder).name):
            raise name
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert walked(tmp_path) == (["0.jpg"], {walk.CLOSED: 1, walk.BROKEN: 1})
    errors["failing"] = OSError(5, "the disk fails")
    with pytest.raises(OSError, match="the disk fails"):
        walked(tmp_path)


NAMES = st.text(st.sampled_from("aB-é.\udcff💡 "), min_size=1, max_size=4).map(lambda text: f"x{text}")


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=8))
def test_the_order_is_that_of_the_names_alone(paths):
    with tempfile.TemporaryDirectory() as folder:
        for first, second in paths:
            os.makedirs(f"{folder}/{first}", exist_ok=True)
            with open(f"{folder}/{first}/{second}.jPg", "wb") as file:
                file.write(b"x")
        files, left_out = walked(folder)
    by_folder = sorted({(os.fsencode(first), os.fsencode(f"{second}.jPg")) for first, second in paths})
    assert [tuple(map(os.fsencode, name.split("/"))) for name in files] == by_folder and not left_out


def test_sources_of_shards_take_the_same_walk(tmp_path):
    make(tmp_path, "data/0.tar", "data/._1.tar", "data/.ipynb_checkpoints/2.tar", "data/3.tar.part", "out/4.TAR")
    (tmp_path / "data/link").symlink_to("../out")
    left_out = Counter()
    found = storage.find(str(tmp_path / "data"), (".tar",), "path", left_out)
    assert [file.path for file in found] == [f"{tmp_path}/data/0.tar", f"{tmp_path}/data/link/4.TAR"]
    assert left_out == {walk.HIDDEN: 2, walk.PARTIAL: 1}
    with pytest.raises(UserError, match=r"no .csv lies in it; left out: .*hidden \(2\)"):
        storage.find(str(tmp_path / "data"), (".csv",), "path")
    assert len(storage.find(str(tmp_path / "data"), ("",), "checkpoint")) == 4  # all that lies there, no links
