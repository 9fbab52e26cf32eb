"""Files of another kind than is looked for: compressed ones, archives, and what other sources read."""

from filip_jax.errors import UserError

PACKED_BYTES = 24  # of a file's beginning, which tell what it is
PACKED = {  # the beginning of a file: its kind, and the program that unpacks it
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"\x1f\x9d": ("compress", "uncompress"),
}
READ_BY = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}  # the beginning of a file: its source
STRANGERS = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar"}
INSTEAD = {  # the beginning of what lies in the place of a file: how to say it
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: git lfs pull",
    b"<!DOCTYPE ": "is a web page, not the file itself",
    b"FEA1": "is of Feather's first version: write it anew, as pyarrow.feather.write_feather(read_table(…), …) does",
    b"<!doctype ": "is a web page, not the file itself",
    b"<html": "is a web page, not the file itself",
}
ENDINGS = (".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4")


def refuse_packed(beginning: bytes, path: str) -> None:
    """Raise a UserError if a file begins as a compressed one or another kind of archive does."""
    for magic, (kind, program) in PACKED.items():
        if beginning.startswith(magic):
            raise UserError(
                f"{path} is compressed with {kind}; members of tars are read in place, which needs them plain: "
                f"{program} < {path} > PLAIN.tar"
            )
    for magic, kind in STRANGERS.items():
        if beginning.startswith(magic):
            raise UserError(f"{path} is a {kind} archive, no tar: unpack it, then read it as a `folder`, or pack a tar")
    refuse_other(beginning, path)


def refuse_other(beginning: bytes, path: str, source: str = "") -> None:
    """Raise a UserError if a file begins as one that another source than this reads, or none does before it is unpacked."""
    for magic, what in INSTEAD.items():
        if beginning.startswith(magic):
            raise UserError(f"{path} {what}")
    for magic, name in READ_BY.items():
        if beginning.startswith(magic) and name != source:
            raise UserError(f"{path} is a file of {name}: read it with the source {name}")
    for magic, (kind, program) in PACKED.items():
        if beginning.startswith(magic):
            raise UserError(f"{path} is compressed with {kind}: unpack it, with {program}")
    for magic, kind in STRANGERS.items():
        if beginning.startswith(magic):
            raise UserError(f"{path} is a {kind} archive or a spreadsheet: unpack it, or save it as CSV")
