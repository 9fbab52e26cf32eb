"""Paths as users write them: what is named literally wins over patterns, ~ is the home, nothing is taken for a URL."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import key, write_jsonl, write_webdataset

from filip_jax import storage, user_paths
from filip_jax.checkpoint import Checkpoints, find_checkpoint
from filip_jax.cli import main
from filip_jax.config import load_config
from filip_jax.data.emoji_scenes import EmojiScenes
from filip_jax.data.sources import fingerprint, make_source
from filip_jax.data.text_lists import file_of, read_texts
from filip_jax.data.tokenizer import make_tokenizer
from filip_jax.errors import UserError
from filip_jax.evals.choice import find_workdirs
from filip_jax.workdir import Workdir, cache_folder

ODD = ["d[1]", "my {a}", "{a,b}", "{1..3}", "a*b", "what?", "[!x]", "**", "a{b", "b}", "x[", "~", "-x", "a#b", "a%41",
       "a:b", "é ü", "漢字", "😀", "e\u0301", "$HOME", "it's", 'say "x"', "a\nb", "a\\b", "@", "a,b", "a;b", "&", "!"]  # fmt: skip


def found(path, suffixes=(".tar",)):
    return [file.path for file in storage.find(str(path), suffixes, "path")]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_any_name_is_read_as_such_and_so_are_the_patterns_below_it(name, tmp_path):
    folder = tmp_path / name / "in"
    folder.mkdir(parents=True)
    files = [folder / f"{n:02d}.tar" for n in range(4)]
    for file in files:
        file.write_bytes(b"1")
    (folder / f"z{name}.tar").write_bytes(b"1")
    every = sorted(map(str, [*files, folder / f"z{name}.tar"]))
    assert found(folder) == found(f"{folder}/") == every
    assert found(folder / f"z{name}.tar") == every[4:]
    assert found(folder / "0[0-3].tar") == found(folder / "{00..03}.tar") == found(folder / "0?.tar") == every[:4]
    assert found(folder / "{00,03}*") == [every[0], every[3]]
    assert found(f"{tmp_path}/*/in/00.tar") == [str(files[0])] and found(f"{tmp_path}//{name}/./in//00.tar") == [
        str(files[0])
    ]
    assert storage.matches(str(folder), "01*") == [str(files[1])]


def test_what_is_there_wins_over_what_its_name_would_match(tmp_path):
    for name in ("d[1]/0.tar", "d1/1.tar", "e{1,2}/2.tar", "e1/3.tar", "[a]/[b]/4.tar", "[a]/b/5.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    names = {
        "d[1]": "d[1]/0",
        "d[1]/*": "d[1]/0",
        "d[12]/*": "d1/1",
        "e{1,2}/*": "e{1,2}/2",
        "e{1,3}/3.tar": None,
        "{e1,d[1]}": "d[1]/0 e1/3",
        "{e1,d[1]}/?.tar": "d[1]/0 e1/3",
        "[a]/[b]/*": "[a]/[b]/4",
        "[a]/[bc]/*": "[a]/b/5",
        "[ad]*/*": "d1/1",
    }
    for path, expected in names.items():
        if expected is None:
            with pytest.raises(UserError, match="1 of 2 files are missing"):
                found(tmp_path / path)
        else:
            there = [os.path.relpath(file, tmp_path).removesuffix(".tar") for file in found(tmp_path / path)]
            assert set(expected.split()) <= set(there), path
            assert len(there) == len(expected.split()) or path == "[ad]*/*", path


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("name", ["d[1]", "my {a}", "{a,b}", "a*b", "what", "a%41", "é", "~", "a:b"])
def test_so_it_is_in_buckets(name, bucket):
    files = [f"{bucket}/odd/{name}/{n:02d}.tar" for n in range(3)]
    for file in (*files, f"{bucket}/odd/d1/00.tar"):
        storage.write(file, b"12")
    assert found(f"{bucket}/odd/{name}") == found(f"{bucket}/odd/{name}/") == files
    assert found(files[0]) == files[:1] and found(f"{bucket}/odd/{name}/0[12].tar") == files[1:]
    assert found(f"{bucket}/odd/{name}/{{00..02}}.tar") == files
    assert storage.matches(f"{bucket}/odd/{name}", "*1.tar") == files[1:2]
    assert storage.matches(f"{bucket}/odd", f"{name[0]}*/00.tar") != []
    assert storage.find_all(f"{bucket}/odd/{name}") == storage.find(f"{bucket}/odd/{name}", ("",), "path")


@pytest.mark.parametrize("path", ["a/b://c", "x ://y", "./gs://b", "://c", "1s3://b"])
def test_a_local_path_is_no_url(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    storage.write(path, b"x")
    assert not storage.is_remote(path) and storage.read(path) == b"x"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_only_a_tilde_at_the_beginning_is_a_home(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "/home/me")
        assert user_paths.from_user(f"~/{text}") == f"/home/me/{text}" and user_paths.from_user("~") == "/home/me"
        for path in (f"./~/{text}", f"/{text}", f"gs://~/{text}", f"x~{text}"):
            assert user_paths.from_user(path) == path


def test_a_home_that_is_not_there_is_named_and_a_nul_refused():
    assert user_paths.from_user("~root/x") == "/root/x" or os.path.expanduser("~root") == "~root"
    with pytest.raises(UserError, match=r"there is no home folder of ~nobody-of-this-name; write \./~nobody"):
        user_paths.from_user("~nobody-of-this-name/x")
    with pytest.raises(UserError, match="NUL"):
        user_paths.from_user("a\0b")


def test_an_absolute_path_is_the_disks(tmp_path, monkeypatch):
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/deep")
    monkeypatch.chdir(tmp_path)
    assert user_paths.absolute("link/../x") == f"{os.path.realpath(tmp_path)}/far/x"
    assert user_paths.absolute("link/x/") == f"{tmp_path}/link/x" and user_paths.absolute(f"/{tmp_path}") == str(
        tmp_path
    )
    assert user_paths.absolute("gs://b/../x") == "gs://b/../x"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another current one in which no ~ may appear."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert os.listdir(tmp_path / "here") == []


def test_a_tilde_is_the_home_in_every_option_of_a_source(home):
    (home / "data").mkdir()
    section = write_jsonl(home / "data", [range(3)])
    (home / "side.jsonl").write_text(json.dumps({"key": key(0), "origin": "de", "caption": "ein Hund"}) + "\n")
    (home / "names.txt").write_text("cat\ndog\n")
    plain = make_source(section)
    tilde = section | {"path": "~/data", "index": "~/index", "side_captions": "~/side.jsonl"}
    if section.get("images"):
        tilde["images"] = section["images"].replace(str(home), "~")
    assert fingerprint(make_source(section | {"path": "~/data"})) == fingerprint(plain)
    make_source(tilde | {"caption_keys": (*section.get("caption_keys", ("caption",)), "de")})
    assert os.listdir(home / "index")
    assert read_texts("~/names.txt", "class_names") == ["cat", "dog"] and file_of("~/x.json:a") == f"{home}/x.json"
    with pytest.raises(UserError, match=f"keep='{home}/kept': the folder holds no kept.npy"):
        make_source(section | {"keep": "~/kept"})
    with pytest.raises(UserError, match=f"{home}/none"):
        make_source({"name": "folder", "path": "~/none"})


def test_a_tilde_is_the_home_for_every_command(home, capsys, monkeypatch):
    (home / "data").mkdir()
    write_webdataset(home / "data", [range(4)])
    (home / "words.txt").write_text("forbidden\n")

    def said(*words):
        code = main(list(words))
        output = capsys.readouterr()
        return code, output.out + output.err

    assert said("data", "inspect", "webdataset", "path=~/data", "--output=~/out/sheet.png")[0] == 0
    assert said("data", "convert", "webdataset", "path=~/data", "--output=~/converted")[0] == 0
    assert (home / "out/sheet.png").is_file() and (home / "converted/convert.json").is_file()
    missing = {
        ("train", "--config=~/no.py:x", "--workdir=~/w"): "no.py",
        ("eval", "--workdir=~/none"): "none",
        ("inspect", "~/none"): "none",
        ("report", "--workdir=~/none"): "none",
        ("plan", "--config=~/no.py", "--topology=h200:8"): "no.py",
        ("align", "--workdir=~/w", "--image=~/no.png", "--text=x", "--output=~/a.png"): "no.png",
        ("data", "filter", "webdataset", "path=~/data", "--output=~/f", "--sensitive_words=~/no.txt"): "no.txt",
        ("sweep", "--config=~/no.py", "--workdir=~/w"): "no.py",
    }
    for words, name in missing.items():
        code, line = said(*words)
        assert code == 2 and f"{home}/{name}" in line, (words, line)


def test_a_tilde_is_the_home_in_configs_and_caches(home, monkeypatch):
    (home / "co:nf.py").write_text(
        "from ml_collections import ConfigDict\nVARIANTS = ('a',)\n"
        "def get_config(variant=''):\n  return ConfigDict(dict(variant=variant))\n"
    )
    assert load_config("~/co:nf.py:a") == {"variant": "a"} and load_config("~/co:nf.py") == {"variant": ""}
    with pytest.raises(UserError, match="no such variant"):
        load_config("~/co:nf.py:b")
    with pytest.raises(UserError, match=f"{home}/none"):
        find_checkpoint("~/none")
    assert Checkpoints("~/run").directory == f"{home}/run/checkpoints" and Workdir("~/run").name == f"{home}/run"
    assert (
        Checkpoints("./~/run").directory == Checkpoints(Path("~/run")).directory == f"{os.getcwd()}/~/run/checkpoints"
    )
    assert Workdir(Path("~/run")).name == Workdir("./~/run").name == "./~/run"
    for value, folder in [("~/cache", f"{home}/cache"), ("", f"{home}/.cache")]:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path(folder, "filip_jax")
    with pytest.raises(UserError, match="no such file"):
        make_tokenizer(
            source=EmojiScenes(split="val", scenes=1, seed=0),
            name="sentencepiece",
            path="~/none.model",
            vocab_size=9,
            captions=1,
        )
    (home / "some.model").write_bytes(b"any")
    assert (
        make_tokenizer(
            source=EmojiScenes(split="val", scenes=1, seed=0),
            name="sentencepiece",
            path="~/some.model",
            vocab_size=9,
            captions=1,
        )
        == b"any"
    )


def test_what_a_pattern_finds_in_a_folder_named_tilde_is_not_the_home(home):
    for name in ("a", "b"):
        storage.write(f"./~/runs/{name}/config.json", b"{}")
    assert find_workdirs("./~/runs/*") == ["./~/runs/a", "./~/runs/b"]
    shutil.rmtree("./~")
