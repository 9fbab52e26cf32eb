"""Headers of tars: read as tarfile reads them, and with work in proportion to the bytes."""

import io
import struct
import tarfile

import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from filip_jax.data import tar_headers
from filip_jax.data.tar_headers import BLOCK, DamagedTar, read_members

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=120)
KINDS = (tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"Z")


def of_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [(m.name, m.isreg(), m.isdir(), m.offset_data, m.size) for m in tar]


def ours(data):
    return [(m.name, m.isreg(), m.isdir(), m.offset_data, m.size) for m in read_members(io.BytesIO(data), len(data))]


@given(
    st.lists(
        st.tuples(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(KINDS), st.binary(max_size=1100)), min_size=1
    ),
    st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    st.booleans(),
)
@examples(150)
def test_members_are_those_that_tarfile_finds(found, form, shared):
    out = io.BytesIO()
    headers = {"comment": "of all", "mtime": "1.5"} if shared and form == tarfile.PAX_FORMAT else {}
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=headers) as tar:
        for parts, kind, data in found:
            info = tarfile.TarInfo("/".join(parts))
            info.type, info.linkname = kind, "a" * 150
            info.size = 0 if kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE) else len(data)
            tar.addfile(info, io.BytesIO(data))
    assert ours(out.getvalue()) == of_tarfile(out.getvalue())


def header(kind, size=0, name=b"a.png", octal=True, goes_on=False):
    coded = b"%011o\0" % size if octal else bytes([0x80]) + size.to_bytes(11, "big")
    block = (name.ljust(124, b"\0") + coded + b"00000000000\0" + b" " * 8 + kind).ljust(482, b"\0")
    block = (block + bytes([goes_on])).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data):
    return data + bytes(-len(data) % BLOCK)


def record(key, text):
    length = next(n for n in range(4, 1 << 20) if n == len(b"%d %s=%s\n" % (n, key, text)))
    return b"%d %s=%s\n" % (length, key, text)


def pax(kind, *records):
    data = b"".join(records)
    return header(kind, len(data)) + padded(data)


FILE = header(b"0", 3) + padded(b"abc")
GLOBALS = pax(b"g", *(record(b"%x" % n, b"") for n in range(500)))


@pytest.mark.parametrize("before, each", [
    (GLOBALS, b""), (b"", GLOBALS), (b"", pax(b"x", record(b"comment", b"1" * 60_000))), (b"", header(b"L", 6) + padded(b"b.png\0")),
    (b"", header(b"S", 3, goes_on=True) + (bytes(504) + b"\1" + bytes(7)) * 9 + bytes(BLOCK) + padded(b"abc")), (header(b"L", 0) * 3000, b""),
], ids=["globals of all", "globals of each", "a long comment", "long names", "sparse maps", "names upon names"])  # fmt: skip
@pytest.mark.parametrize("count", [1, 40])
def test_a_byte_of_a_tar_is_read_once_however_its_headers_are_nested(before, each, count):
    """Counted are the bytes that leave the stream, and the fields that are kept of them."""
    data = before + (each + FILE) * count

    class Counted(io.BytesIO):
        total = 0

        def read(self, size):
            self.total += size
            return super().read(size)

    stream = Counted(data)
    assert sum(not member.sparse for member in read_members(stream, len(data))) == count
    assert stream.total <= len(data)


def test_of_global_headers_only_what_an_index_needs_is_kept(monkeypatch):
    merged = []

    def kept(data):
        merged.append(found := real(data))
        return found

    real = tar_headers._records
    monkeypatch.setattr(tar_headers, "_records", kept)
    data = pax(b"g", record(b"path", b"b.png"), *(record(b"%x" % n, b"1") for n in range(1000)))
    assert next(read_members(io.BytesIO(data + FILE), len(data + FILE))).name == "b.png" and merged == [
        {b"path": b"b.png"}
    ]


@pytest.mark.parametrize("length", [512, 513, 60_000])
def test_a_name_of_all_members_is_no_longer_than_the_least_that_a_member_has(length):
    """Else a few bytes would make each header of 512 bytes one with a name of thousands."""
    data = pax(b"g", record(b"path", b"a/" * (length // 2) + b"b" * (length % 2))) + FILE * 2
    if length <= BLOCK:
        assert len(ours(data)) == 2
    else:
        with pytest.raises(DamagedTar, match="for all members"):
            ours(data)


@pytest.mark.parametrize("damage", [
    b"", header(b"x", 1 << 17) + bytes(1 << 17), header(b"0", 1 << 80, octal=False), header(b"0", 3).replace(b"00003\0", b"0000x\0", 1),
    pax(b"x", b"3 path=b\n"), pax(b"x", b" path=b\n"), pax(b"x", b"9" * 5000 + b" path=b\n"), pax(b"x", record(b"size", b"-1")) + FILE,
    pax(b"x", b"1 " * 500 + b" path=b\n"),
    header(b"L", 6), header(b"S", 3)[:-1], struct.pack("512B", *[7] * 512),
], ids=range(12))  # fmt: skip
def test_damage_is_one_kind_of_error(damage):
    with pytest.raises(DamagedTar):
        list(read_members(io.BytesIO(damage), len(damage)))


def test_a_folder_of_old_tars_is_a_file_whose_name_ends_in_a_slash():
    data = header(b"\0", 0, b"photos/") + header(b"\0", 3) + padded(b"abc")
    assert ours(data) == [("photos", False, True, 512, 0), ("a.png", True, False, 1024, 3)] == of_tarfile(data)
