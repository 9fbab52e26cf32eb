"""Paths on disks and in buckets; the buckets are emulated on this machine."""

import os

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import key, texts, write_jsonl, write_parquet, write_webdataset

from filip_jax import handles, storage, user_paths
from filip_jax.data.listed import read_listed
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import fingerprint, make_source
from filip_jax.errors import UserError

SHARDS = [range(0, 5), range(5, 9)]


def upload(folder, url):
    for file in folder.rglob("*"):
        if file.is_file():
            storage.write(f"{url}/{file.relative_to(folder)}", file.read_bytes())


@pytest.mark.filterwarnings("ignore::Warning")
def test_files_in_buckets(bucket):
    data = bytes(range(250)) * 12  # an emulator forgets a line break at the end
    for name in ("a/1.tar", "a/2.tar", "a/3.txt"):
        storage.write(f"{bucket}/{name}", data)
    tars = [(f"{bucket}/a/{n}.tar", 3000) for n in (1, 2)]
    assert [file[:2] for file in storage.find(f"{bucket}/a", (".tar",), "path")] == tars
    assert [file[:2] for file in storage.find(f"{bucket}/a/*.txt", (), "path")] == [(f"{bucket}/a/3.txt", 3000)]
    assert [file[:2] for file in storage.find(f"{bucket}/a/{{2,1}}.tar", (), "path")] == tars
    with pytest.raises(UserError, match="1 of 3 files are missing: .*a/4.tar"):
        storage.find(f"{bucket}/a/{{1,2,4}}.tar", (), "path")
    with pytest.raises(UserError, match="there is no such file"):
        storage.find(f"{bucket}/b", (".tar",), "path")
    assert storage.read(f"{bucket}/a/1.tar") == data and storage.read(f"{bucket}/a/1.tar", 100, 50) == data[100:150]
    assert storage.exists(f"{bucket}/a/1.tar") and not storage.exists(f"{bucket}/a/9.tar")
    with storage.open_stream(f"{bucket}/a/1.tar") as stream:
        stream.seek(2000)
        assert stream.read(10) == data[2000:2010]
    before = storage.find(f"{bucket}/a/3.txt", (), "path")
    storage.write(f"{bucket}/a/3.txt", data[::-1])
    (after,) = storage.find(f"{bucket}/a/3.txt", (), "path")
    assert after.size == before[0].size and after.stamp != before[0].stamp


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_file_that_another_process_writes_is_seen(bucket):
    folder = f"{bucket}/seen"
    system = fsspec.filesystem(bucket.split(":")[0])
    storage.write(f"{folder}/1", b"x")
    assert len(system.ls(folder)) == 1
    fsspec.filesystem(bucket.split(":")[0], skip_instance_cache=True).pipe_file(f"{folder}/2", b"x")
    assert len(system.ls(folder)) == 2 and storage.exists(f"{folder}/2")


@pytest.mark.filterwarnings("ignore::Warning")
def test_all_files_of_a_folder(bucket, tmp_path):
    for root in (f"{bucket}/all", str(tmp_path / "all")):
        assert storage.find_all(root) == []
        for name in ("run/b", "run/a/c", "run2/d"):
            storage.write(f"{root}/{name}", b"12")
        assert [file[:2] for file in storage.find_all(f"{root}/run")] == [(f"{root}/run/{n}", 2) for n in ("a/c", "b")]


@pytest.mark.smoke
@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("write", [write_webdataset, write_parquet, write_jsonl], ids=lambda write: write.__name__)
def test_sources_in_buckets(write, bucket, tmp_path):
    (tmp_path / "data").mkdir()
    section = write(tmp_path / "data", SHARDS)
    upload(tmp_path / "data", f"{bucket}/{write.__name__}")
    far = section | {"path": f"{bucket}/{write.__name__}"}
    if section["name"] == "jsonl":
        with pytest.raises(UserError, match="set `index` to a local folder"):
            make_source(far)
        far |= {"index": str(tmp_path / "index")}
    near, source = make_source(section), make_source(far)
    assert [source[n] for n in (8, 0, 4)] == [near[n] for n in (8, 0, 4)]
    assert source.captions(6)[0].text == texts(6)["txt"] and source.where(6)[1] == key(6)
    assert source.image_head(2) == near.image_head(2)
    if section["name"] != "jsonl":
        assert fingerprint(make_source(far)) == fingerprint(source)
    if section["name"] == "webdataset":
        assert storage.exists(f"{bucket}/{write.__name__}/.filip_index/index.json")


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing(scheme):
        raise ImportError(scheme)

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match="the package gcsfs is missing: pip install 'gcsfs>="):
        storage.exists("gs://bucket/x")
    with pytest.raises(UserError, match="https://example.org/x: paths are local, gs:// or s3://"):
        storage.exists("https://example.org/x")


@given(first=st.integers(0, 20), count=st.integers(1, 12), width=st.integers(1, 5))
def test_braces_are_a_shells(first, count, width):
    last = first + count - 1
    padded = f"{first:0{width}d}"
    names = user_paths.expand_braces(f"a{{{padded}..{last}}}.{{x,y}}")
    fill = len(padded) if padded.startswith("0") else 0
    assert names == [f"a{number:0{fill}d}.{end}" for number in range(first, last + 1) for end in "xy"]


def test_many_files_are_read_with_few_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(handles, "OPEN_FILES", 8)
    for n in range(50):
        (tmp_path / str(n)).write_bytes(bytes([n]) * 20)
    before = len(os.listdir("/proc/self/fd"))
    for n in [*range(50), *range(50)]:
        assert storage.read(str(tmp_path / str(n)), 5, 3) == bytes([n]) * 3
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    storage.write(str(tmp_path / "3"), b"new")
    assert storage.read(str(tmp_path / "3")) == b"new"


def test_what_a_list_names_must_be_there_and_not_on_the_web(tmp_path):
    for name in ("none.png", ".", "http://example.org/x.png"):
        with pytest.raises(BadRecord, match="no such file|not downloaded"):
            read_listed(str(tmp_path), name, 10)


@pytest.mark.parametrize(
    "paths, folder",
    [
        (["/a/b/1.tar", "/a/bc/1.tar"], "/a"),
        (["/a/b/1.tar"], "/a/b"),
        (["gs://x/a/1.tar", "gs://x/b/c/2.tar"], "gs://x"),
        (["a.tar", "./b.tar"], "."),
    ],
)
def test_the_folder_that_files_share(paths, folder):
    assert os.path.normpath(storage.common_folder(paths)) == os.path.normpath(folder)
