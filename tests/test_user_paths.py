"""Paths as users write them: what is named literally wins over patterns, ~ is the home, nothing is taken for a URL."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filip_jax import storage, user_paths
from filip_jax.errors import UserError

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
        file.touch()
    (folder / f"z{name}.tar").touch()
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
        (tmp_path / name).touch()
    names = {
        "d[1]": "d[1]/0", "d[1]/*": "d[1]/0", "d[12]/*": "d1/1", "e{1,2}/*": "e{1,2}/2", "e{1,3}/3.tar": None,
        "{e1,d[1]}": "d[1]/0 e1/3", "{e1,d[1]}/?.tar": "d[1]/0 e1/3", "[a]/[b]/*": "[a]/[b]/4", "[a]/[bc]/*": "[a]/b/5",
        "[ad]*/*": "d1/1",
    }  # fmt: skip
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
    assert user_paths.absolute("link/x/") == f"{tmp_path}/link/x" and user_paths.absolute(f"/{tmp_path}") == str(tmp_path)
    assert user_paths.absolute("gs://b/../x") == "gs://b/../x"
