"""Tars as other tools write them, and the messages about those that cannot be read in place."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest
from pairs import members, picture, tar

from filip_jax import storage
from filip_jax.data import tar_store
from filip_jax.data.record import BadRecord
from filip_jax.data.sources import make_source
from filip_jax.data.tar_index import JOINED, LINK, SPARSE
from filip_jax.errors import UserError

ONE = [("1.png", picture(1)), ("1.txt", b"one"), ("2.png", picture(2)), ("2.txt", b"two")]


def opened(folder, **options):
    return make_source(dict(name="webdataset", path=str(folder), **options))


def pairs(source):
    return {source[n].key: (source[n].image, source[n].caption) for n in range(len(source))}


EXPECTED = {"1": (picture(1), "one"), "2": (picture(2), "two")}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("before", ["", "./", "a" * 90 + "/" + "b" * 60 + "/", "/abs/", "café/"])
def test_tars_of_every_format_and_prefix(tmp_path, format, before):
    """GNU tar, bsdtar (and 7z, star), Python: prefixes of ustar, long names, extended headers, folders as members."""
    with tarfile.open(tmp_path / "0.tar", "w", format=format, pax_headers={"comment": "x"}) as out:
        folder = tarfile.TarInfo(before or "folder")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        for name, data in ONE:
            own = tarfile.TarInfo(before + name)
            own.size, own.mtime = len(data), 1.5
            own.pax_headers = {"LIBARCHIVE.creationtime": "1.25", "SCHILY.xattr.user.x": "ü"}
            out.addfile(own, io.BytesIO(data))
    key = before if before != "./" else ""
    source = opened(tmp_path)
    assert pairs(source) == {key + name: pair for name, pair in EXPECTED.items()} and not source.left_out


JSON_TEXTS = [
    ('["a dog", "a cat"]', ["a dog", "a cat"]),
    ('"a dog"', ["a dog"]),
    ('{"raw": "a dog"}', ["a dog"]),
    ('[{"caption": "a dog"}, {"caption": "a cat"}]', ["a dog", "a cat"]),
    ("[]", []),
]


@pytest.mark.parametrize("content, texts", JSON_TEXTS)
@pytest.mark.parametrize("kind", ["json", "captions.json"])
def test_a_json_member_is_never_a_text_itself(tmp_path, kind, content, texts):
    """As the package webdataset writes lists and objects under such names."""
    tar(tmp_path / "0.tar", [("1.png", picture(1)), (f"1.{kind}", content.encode())])
    source = opened(tmp_path, caption_keys=(kind,), lines=True)
    assert [caption.text for caption in source.captions(0)] == texts
    tar(tmp_path / "0.tar", [("1.png", picture(1)), (f"1.{kind}", content.encode() + b"]")])
    with pytest.raises(BadRecord, match=f"the JSON cannot be read: {kind}: Extra data"):
        opened(tmp_path, caption_keys=(kind,)).captions(0)


def test_what_macos_and_others_leave_in_tars_is_counted(tmp_path):
    leavings = [("._1.png", b"x"), ("__MACOSX/._1.png", b"x"), (".DS_Store", b"x"), ("@eaDir/3.png", b"x")]
    tar(tmp_path / "0.tar", [*leavings, *ONE, ("3.TXT", b"three"), ("3.JPG", picture(3, "JPEG"))])
    source = opened(tmp_path)
    assert pairs(source) == EXPECTED | {"3": (picture(3, "JPEG"), "three")}
    assert source.left_out == {"hidden": 2, "of a system or tool": 2}


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize(
    "pack, kind",
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd"),
        (lambda data: b"PK\x03\x04" + data, "zip"),
    ],
)
def test_what_is_packed_is_refused_with_what_to_do(tmp_path, ending, pack, kind):
    tar(tmp_path / "plain", ONE)
    file = tmp_path / f"0{ending}"
    file.write_bytes(pack((tmp_path / "plain").read_bytes()))
    with pytest.raises(UserError, match=f"0{ending} is (a )?{'' if kind == 'zip' else 'compressed with '}{kind}"):
        opened(file)
    message = "in place" if kind != "zip" or ending != ".tar" else "unpack it"
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_a_real_zip_is_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "0.tar", "w") as out:
        out.writestr("1.txt", "x")
    with pytest.raises(UserError, match="0.tar is a zip archive, no tar"):
        opened(tmp_path)


def test_tars_with_nothing_in_them_are_counted(tmp_path):
    tar(tmp_path / "0.tar", ONE)
    tar(tmp_path / "1.tar", [])
    (tmp_path / "2.tar").write_bytes(b"")
    source = opened(tmp_path)
    assert pairs(source) == EXPECTED and source.left_out == {"tar without a member": 1, "empty file": 1}
    (tmp_path / "0.tar").unlink()
    with pytest.raises(
        UserError, match=r"caption_keys='txt'; 1 tar with nothing; left out: empty file \(1\), tar without"
    ):
        opened(tmp_path)


def test_tars_that_were_joined_by_cat_are_read_to_the_first_end_and_the_rest_is_counted(tmp_path):
    for n in range(2):
        tar(tmp_path / f"{n}", [(f"{n}.png", picture(n)), (f"{n}.txt", b"x")])
    one, two = (tmp_path / "0").read_bytes(), (tmp_path / "1").read_bytes()
    for name, data in {
        "joined": one + two,
        "short": one.rstrip(b"\0") + bytes(2048 - len(one.rstrip(b"\0")) % 512) + two,
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        source = opened(tmp_path / f"{name}.tar")
        assert len(source) == 1 and source.left_out == {JOINED: 1}
    for name, data in {
        "noise": one + b"x" * 700,
        "zeros": one + bytes(1 << 21),
        "far": one + bytes(1 << 21) + two,
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        assert not opened(tmp_path / f"{name}.tar").left_out


def test_links_and_what_else_has_no_content_is_counted_by_its_kind(tmp_path):
    """Two names of one file on a disk are a file and a link in a tar, and so are the links of a farm."""
    members = [("c/0.png", picture(0)), ("c/0.txt", b"x")]
    for n, kind in enumerate(
        (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE, tarfile.FIFOTYPE, b"V", b"D"), 1
    ):
        info = tarfile.TarInfo(f"c/{n}.png")
        info.type, info.linkname = kind, "c/0.png"
        members += [(info, None), (f"c/{n}.txt", b"x")]
    tar(tmp_path / "0.tar", members)
    source = opened(tmp_path / "0.tar")
    assert list(pairs(source)) == ["c/0"] and source.left_out == {LINK: 2, SPARSE: 1, "not a file": 1, "no image": 6}


def test_what_is_no_tar_from_its_beginning_is_called_so(tmp_path):
    for data in (b'{"__kind__": "wids-shard-index-v1"}', b"<html>404</html>" * 99, b"070701" + bytes(600)):
        (tmp_path / "0.tar").write_bytes(data)
        with pytest.raises(UserError, match=r"left out: no tar \(1\)|0.tar is a web page, not the file itself"):
            opened(tmp_path / "0.tar")


def test_a_folder_that_was_packed_with_its_hidden_name_is_wanted(tmp_path):
    names = ["home/u/.cache/@eaDir/a/0", "home/u/.cache/@eaDir/b/1", "home/u/.cache/@eaDir/.git/2"]
    tar(
        tmp_path / "0.tar",
        [(f"/{name}.{kind}", data) for name in names for kind, data in (("png", picture(1)), ("txt", b"x"))],
    )
    source = opened(tmp_path / "0.tar")
    assert list(pairs(source)) == [f"/{name}" for name in names[:2]] and source.left_out == {"hidden": 2}
    tar(tmp_path / "1.tar", [(f"{name}.png", picture(1)) for name in (".git/0", ".idea/1")])
    with pytest.raises(UserError, match=r"left out: hidden \(2\)"):
        opened(tmp_path / "1.tar")


def test_keys_with_dots_need_to_be_asked_for(tmp_path):
    names = [f"a.b/photo.2021.{n}" for n in range(3)]
    tar(
        tmp_path / "0.tar",
        [(f"{name}.{kind}", data) for name in names for kind, data in (("PNG", picture(1)), ("txt", b"x"))],
    )
    with pytest.raises(UserError, match=r"no image, but one with dots in its name: keys=last_dot reads it \(1\)"):
        opened(tmp_path)
    source = opened(tmp_path, keys="last_dot")
    assert list(pairs(source)) == names and not source.left_out
    with pytest.raises(UserError, match="keys='dots' is not one of first_dot, last_dot, folder"):
        opened(tmp_path, keys="dots")
    with pytest.raises(UserError, match="keys=last_dot reads it"):  # each way has an index of its own
        opened(tmp_path)


def test_a_folder_may_be_a_sample(tmp_path):
    content = {
        "image.jpg": picture(1, "JPEG"),
        "caption.txt": b"one",
        "other.txt": b"two",
        "meta.json": b'{"a": "three"}',
    }
    tar(tmp_path / "0.tar", [(f"./{n}/{name}", data) for n in range(3) for name, data in content.items()])
    with pytest.raises(UserError, match=r"no image, but one in its folder: keys=folder reads them \(9\)"):
        opened(tmp_path)
    source = opened(tmp_path, keys="folder", caption_keys=("caption.txt", "other.txt", "json.a"))
    assert [source[n].key for n in range(3)] == ["0", "1", "2"] and source[2].image == picture(1, "JPEG")
    assert [caption.text for caption in source.captions(2)] == ["one", "two", "three"]


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_as_editors_of_other_systems_save_them(tmp_path, code):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/1.png").write_bytes(picture(1))
    (tmp_path / "folder/1.txt").write_bytes("Größe\r\nzwei\r\n".encode(code))
    tar(tmp_path / "0.tar", [("1.png", picture(1)), ("1.txt", "Größe\r\nzwei\r\n".encode(code))])
    sources = [opened(tmp_path), make_source(dict(name="folder", path=str(tmp_path / "folder")))]
    assert [source[0].caption for source in sources] == ["Größe\nzwei"] * 2


@pytest.mark.parametrize(
    "path, hint",
    [
        ("a/0.tar::a/1.tar", r"a mixture in a config, .*a=dict\(name=…, path='a/0.tar'\), b=dict"),
        ("a/{0..1}.tar,a/2.tar", r"a mixture in a config, .*path='a/\{0..1\}.tar'"),
        ("a/0.tar::gs://b/1.tar", "a mixture in a config"),
        ("pipe:cat a/0.tar", "no program is started"),
        ("https://example.org/0.tar", "nothing is downloaded"),
    ],
)
def test_paths_of_other_tools_are_answered_with_what_stands_for_them(path, hint):
    for name in ("webdataset", "parquet", "csv"):
        with pytest.raises(UserError, match=hint):
            make_source(dict(name=name, path=path))


@pytest.mark.filterwarnings("ignore::Warning")
def test_several_patterns_in_buckets_are_none_either(bucket):
    with pytest.raises(UserError, match="a mixture in a config"):
        opened(f"{bucket}/0.tar::{bucket}/1.tar")


def test_names_with_commas_are_names(tmp_path):
    (tmp_path / "a,b").mkdir()
    tar(tmp_path / "a,b/0::1.tar", ONE)
    for path in (tmp_path / "a,b", tmp_path / "a,b/0::1.tar", tmp_path / "a,b/*.tar"):
        assert pairs(opened(path)) == EXPECTED


def test_an_index_of_an_older_version_is_made_anew(tmp_path):
    tar(tmp_path / "0.tar", members([0]))
    opened(tmp_path)
    file = tmp_path / ".filip_index/index.json"
    content = json.loads(file.read_text())
    for shard in content["shards"]:
        del shard["texts"]
    file.write_text(json.dumps(content | {"version": tar_store.VERSION - 1}))
    assert len(opened(tmp_path)) == 1 and json.loads(file.read_text())["version"] == tar_store.VERSION
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="index.json is damaged .*remove it, the index is then made again"):
        opened(tmp_path)
    assert storage.exists(str(file))
