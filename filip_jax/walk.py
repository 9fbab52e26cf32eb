"""The one walk through a folder of data: which files count, and why the others are left out.

Links to folders and files are followed. Each folder is read once, whatever names lead to it, and its own name counts
before a link's, so that loops end and the work is that of the folders that are there.
"""

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

HIDDEN, SYSTEM, PARTIAL, EMPTY = "hidden", "of a system or tool", "unfinished", "empty file"
BROKEN, AGAIN, CLOSED, SPECIAL = "broken link", "link to a folder that counts already", "may not be read", "no file"
MAX_ENDING = 12  # characters that a reason quotes of a file's name
MAX_SHOWN = 12  # reasons
INDEX = ".filip_index"  # the folder of an index beside the data, our own

# Names, in lower case, that systems and tools leave beside data: macOS, Windows, NAS boxes, Linux, Nextcloud,
# FrontPage, Spark, img2dataset. None of them is a word that could name a class, as "recycled" would be.
SYSTEM_NAMES = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
    "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot", "~snapshot", "lost+found",
    "@__thumb", "network trash folder", "temporary items", "files_trashbin", "_vti_cnf", "_temporary", "_delta_log",
    "_spark_metadata", "_tmp", "__pycache__",
})  # fmt: skip
READ_BY = {  # which source reads files of an ending
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow", ".parquet": "parquet", ".pq": "parquet", ".parq": "parquet", ".tar": "webdataset", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl",
    ".array_record": "array_record", ".arrayrecord": "array_record", ".jpg": "folder", ".jpeg": "folder", ".png": "folder",
}  # fmt: skip
PARTIAL_ENDINGS = (
    ".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download", ".opdownload", ".aria2", ".incomplete",
    ".!ut", ".!qb", ".bc!", ".swp", ".lock", "~",
)  # fmt: skip
UNREADABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class File(NamedTuple):
    """A file of a folder: its name below it with "/" between the parts, its bytes, and its times as of `stamp_of`."""

    name: str
    size: int
    stamp: str


def walk(root: str, endings: tuple[str, ...], left_out: Counter[str]) -> list[File]:
    """Return the files below a folder that count, ordered by the bytes of their names, folder by folder.

    Args:
        endings: of names that count, in lower case: ".jpg"; a name's own case does not matter.
        left_out: receives {reason: files and folders that do not count}.

    Raises:
        OSError: the root cannot be read, or the disk fails.
    """
    files: list[File] = []
    top = os.path.realpath(root)
    entered: set[str] = set()
    plain, linked = deque([("", top)]), deque[tuple[str, str]]()
    while plain or linked:
        name, real = plain.pop() if plain else linked.popleft()
        if real in entered or (name and f"{top}/".startswith(f"{real.rstrip('/')}/")):
            left_out[AGAIN] += 1
            continue
        entered.add(real)
        for entry in _entries(os.path.join(root, name), left_out, name != ""):
            below = f"{name}/{entry.name}" if name else entry.name
            if reason := why_left_out(entry.name):
                _count(reason, entry.name, left_out)
            elif not _is_folder(entry):
                files += _file(entry, below, endings, left_out)
            elif entry.is_symlink():
                linked.append((below, os.path.realpath(entry.path)))
            else:
                plain.append((below, f"{real.rstrip('/')}/{entry.name}"))
    return sorted(files, key=lambda file: order_of(file.name))


def sift(files: Mapping[str, tuple[str, int]], endings: tuple[str, ...], left_out: Counter[str]) -> list[str]:
    """Return those of a bucket's files that count, by the same rules.

    Args:
        files: of each its path below the folder and its bytes.
    """
    kept = []
    for file, (path, size) in files.items():
        parts = path.strip("/").split("/")
        reason = next(filter(None, map(why_left_out, parts)), "")
        if not reason and not path.lower().endswith(endings):
            reason = other_ending(path)
        reason = reason or ("" if size else EMPTY)
        if reason:
            _count(reason, INDEX if INDEX in parts else path, left_out)
        else:
            kept.append(file)
    return kept


def stamp_of(status: os.stat_result) -> str:
    """Return a text that differs when a file was written anew; ctime does even where a tool sets the old mtime again."""
    return f"{status.st_mtime_ns} {status.st_ctime_ns}"


def order_of(name: str) -> bytes:
    """Return the key by which names are sorted: bytes, folder by folder, whatever the file system and the locale."""
    return os.fsencode(name).replace(b"/", b"\0")


def why_left_out(name: str) -> str:
    """Return the reason why files and folders of this name never count, "" if they may."""
    small = name.lower()
    if small in SYSTEM_NAMES:
        return SYSTEM
    if name.startswith("."):
        return HIDDEN
    return PARTIAL if small.endswith(PARTIAL_ENDINGS) else ""


def other_ending(name: str) -> str:
    """Return the reason for a file that is of no kind that is looked for: its ending."""
    return ending_as_reason(os.path.splitext(name)[1].lower())


def ending_as_reason(ending: str) -> str:
    """Return an ending as the reason why files are left out; odd ones stand together."""
    return ending if 1 < len(ending) <= MAX_ENDING and ending.isprintable() else "other files"


def say_left_out(left_out: Mapping[str, int]) -> str:
    """Return the counts in words, to stand behind what is there; "" if nothing was left out."""
    reasons = [f"{reason} ({count})" for reason, count in Counter(left_out).most_common(MAX_SHOWN)]
    return f"; left out: {', '.join(reasons)}{' …' if len(left_out) > MAX_SHOWN else ''}" if reasons else ""


def say_other_sources(left_out: Mapping[str, int]) -> str:
    """Return which sources read what was left out, to stand behind a refusal."""
    return "".join(f"; the source {name} reads {ending}" for ending, name in READ_BY.items() if ending in left_out)


def _count(reason: str, name: str, left_out: Counter[str]) -> None:
    if name != INDEX:
        left_out[reason] += 1


def _entries(folder: str, left_out: Counter[str], is_inner: bool) -> Iterable[os.DirEntry]:
    """The folder's entries by name; none of an inner one that is closed to us or gone."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        if not is_inner or error.errno not in UNREADABLE + GONE:
            raise
        left_out[CLOSED if error.errno in UNREADABLE else BROKEN] += 1
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # of a link in a loop, or to what is closed to us
        if error.errno not in UNREADABLE + GONE:
            raise
        return False


def _file(entry: os.DirEntry, name: str, endings: tuple[str, ...], left_out: Counter[str]) -> list[File]:
    """The entry as a file that counts, in a list, or why it is none; only links and what may count are looked up."""
    reason = "" if entry.name.lower().endswith(endings) else other_ending(entry.name)
    if not reason or entry.is_symlink():
        try:
            status = entry.stat()
            regular = stat.S_ISREG(status.st_mode)
            reason = reason or (SPECIAL if not regular else "" if status.st_size else EMPTY)
        except OSError as error:
            if error.errno not in UNREADABLE + GONE:
                raise
            reason = CLOSED if error.errno in UNREADABLE else BROKEN
    if reason:
        left_out[reason] += 1
        return []
    return [File(name, status.st_size, stamp_of(status))]
