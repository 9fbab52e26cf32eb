"""Folders of pictures as people and their systems keep them, with captions or as classes."""

import os
import unicodedata

import pytest
from pairs import picture
from PIL import Image

from filip_jax.data.decode import ENDINGS, FORMATS, decode
from filip_jax.data.sources import fingerprint, make_source
from filip_jax.errors import UserError
from filip_jax.tools.inspect import inspect


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(7))


def write(root, **texts):
    for name, text in texts.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def folder(root, **options):
    return make_source(dict(name="folder", path=str(root), **options))


def classes(root):
    return make_source(dict(name="class_folder", path=str(root)))


def captions(source):
    return {source[n].key: [caption.text for caption in source[n].captions] for n in range(len(source))}


def test_the_endings_are_those_of_what_is_decoded():
    Image.init()
    of_formats = {ending for ending, format in Image.EXTENSION.items() if format in FORMATS}
    assert set(ENDINGS) == of_formats


@pytest.mark.parametrize("ending", [*ENDINGS, ".JPG", ".Png", ".JpEg"])
def test_every_source_of_files_reads_every_ending(tmp_path, ending):
    make(tmp_path, f"cat/1{ending}")
    write(tmp_path, **{"cat/1.txt": "a cat"})
    pairs = folder(tmp_path)
    assert captions(pairs) == {f"cat/1{ending}": ["a cat"]} and decode(pairs[0].image).size == (16, 12)
    assert captions(classes(tmp_path)) == {f"cat/1{ending}": ["cat"]}


def test_names_with_dots_endings_in_other_cases_and_pictures_of_one_name(tmp_path):
    make(tmp_path, "photo.2021.0.jpg", "photo.2021.1.jpg", "a.jpg", "a.png", "b.jpg", "c.jpg", "bare.jpg")
    texts = {
        "photo.2021.0.txt": "0",
        "photo.2021.1.TXT": "1",
        "a.txt": "one of both",
        "b.Txt": "not this",
        "b.txt": "this",
        "c.De.TXT": "c",
        "photo.2021.txt": "nobody's",
        "photo.txt": "nobody's",
        "A.txt": "nobody's",
    }
    write(tmp_path, **texts)
    with pytest.warns(UserWarning, match="1 of 7 images under"):
        source = folder(tmp_path, caption_keys=("txt", "de.txt"))
    assert captions(source) == {
        "a.jpg": ["one of both"],
        "a.png": ["one of both"],
        "b.jpg": ["this"],
        "c.jpg": ["c"],
        "photo.2021.0.jpg": ["0"],
        "photo.2021.1.jpg": ["1"],
    }
    assert source.left_out == {"image without caption": 1, "caption without image": 4}
    assert "left out: caption without image (4), image without caption (1)" in source.seen


def test_captions_that_are_not_asked_for_are_no_orphans(tmp_path):
    make(tmp_path, "a/dog.jpg", "cat.1.jpg")
    write(tmp_path, **{f"{name}.{key}": "x" for name in ("a/dog", "cat.1") for key in ("txt", "de.txt", "zh-CN.txt")})
    write(tmp_path, **{"dog.de.txt": "x"})
    assert folder(tmp_path).left_out == {".de.txt": 2, ".zh-cn.txt": 2, "caption without image": 1}


def test_links_and_leavings(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    make(
        root,
        "cat/0.jpg",
        "cat/._0.jpg",
        "cat/.ipynb_checkpoints/0-checkpoint.jpg",
        "__MACOSX/cat/0.jpg",
        "@eaDir/a/1.jpg",
    )
    make(other, "dog/1.jpg", "2.jpg", "deep/3.jpg")
    write(root, **{"cat/0.txt": "0", "cat/._0.txt": "no", "cat/Thumbs.db": "x", ".DS_Store": "x", "cat/4.jpg": b""})
    write(other, **{"dog/1.txt": "1", "2.txt": "2", "deep/3.txt": "3"})
    (root / "dog").symlink_to("../other/dog")
    (root / "cat/more").symlink_to(other / "deep")
    (root / "cat/2.jpg").symlink_to(other / "2.jpg")
    (root / "cat/2.txt").symlink_to(other / "2.txt")
    (root / "cat/loop").symlink_to("..")
    (root / "cat/gone.jpg").symlink_to("nowhere")
    found = {"cat/0.jpg": "0", "cat/2.jpg": "2", "cat/more/3.jpg": "3", "dog/1.jpg": "1"}
    pairs, sorts = folder(root), classes(root)
    assert captions(pairs) == {name: [text] for name, text in found.items()}
    assert captions(sorts) == {name: [name[:3]] for name in found} and sorts.class_names == ["cat", "dog"]
    assert sorts.labels == [0, 0, 0, 1] and sorts.shard_sizes.tolist() == [3, 1]
    expected = {"hidden": 4, "of a system or tool": 3, "empty file": 1, "broken link": 1}
    expected |= {"link to a folder that counts already": 1}
    assert pairs.left_out == expected and sorts.left_out == {**expected, ".txt": 4}


def test_what_is_left_out_is_shown(tmp_path):
    make(tmp_path, "cat/0.jpg", "0.jpg", "cat/.1.jpg")
    (tmp_path / "cat/x.heic").write_bytes(b"x")
    source = classes(tmp_path)
    reasons = {".heic": 1, "hidden": 1, "image in no class's directory": 1}
    assert source.left_out == reasons
    augment = dict(min_area=1.0, flip=False, colour_jitter=0.0, auto_augment=False)
    first, *_ = inspect(source, records=1, image_size=8, augment=augment, output=tmp_path / "x.png")
    assert all(f"{reason} (1)" in first for reason in reasons)
    (tmp_path / "cat/0.jpg").unlink()
    with pytest.raises(UserError, match=r"no directory in .* holds images .*; left out: .*\.heic \(1\)"):
        classes(tmp_path)


def test_classes_that_people_cannot_tell_apart_are_named(tmp_path):
    for names in (("cat", "Cat"), ("café", unicodedata.normalize("NFD", "café")), ("red_apple", "red apple")):
        root = tmp_path / names[0]
        make(root, f"{names[0]}/0.jpg", f"{names[1]}/1.jpg")
        if len(os.listdir(root)) < 2:  # this file system cannot tell them apart either
            continue
        with pytest.warns(UserWarning, match="1 names stand for several classes"):
            assert len(classes(root).class_names) == 2
    make(tmp_path / "one", unicodedata.normalize("NFD", "café") + "/0.jpg")
    assert classes(tmp_path / "one").class_names == ["café"]


def test_splits_are_hardly_classes(tmp_path):
    """As of the folder above torchvision's train and val, fastai's train and valid, Hugging Face's imagefolder."""
    make(tmp_path, "train/cat/0.jpg", "Val/cat/1.jpg")
    (tmp_path / "models").mkdir()
    with pytest.warns(UserWarning) as warned:
        classes(tmp_path)
    assert f"if these are splits of the data, name one, path={tmp_path}/Val" in " ".join(
        str(each.message) for each in warned
    )
    make(tmp_path, "bus/0.jpg", "models/0.jpg")
    classes(tmp_path)  # a train is a thing, too


def test_a_class_without_images_that_is_a_link_says_where_to(tmp_path):
    make(tmp_path, "cat/0.jpg")
    (tmp_path / "kitty").symlink_to("cat")
    with pytest.warns(UserWarning, match=f"1 classes of .* have no image: kitty \\(a link to {tmp_path}/cat\\)"):
        assert classes(tmp_path).left_out == {"link to a folder that counts already": 1}


def test_a_directory_of_images_whose_name_excludes_it_is_named(tmp_path):
    """Another reader counts it as a class, and all labels behind it are one higher."""
    make(tmp_path, "cat/0.jpg", "cat.tmp/1.jpg", ".dog/2.jpg")
    make(tmp_path, "__MACOSX/cat/3.jpg", "cat/deep.tmp/4.jpg", ".git/._5.jpg", ".6.jpg")  # of these nothing is said
    with pytest.warns(
        UserWarning, match=r"exclude them from the classes: '\.dog', 'cat\.tmp'; if they are classes, rename"
    ):
        assert classes(tmp_path).class_names == ["cat"]


def test_json_beside_images_is_no_caption(tmp_path):
    """As img2dataset's files have it, and Google's Takeout."""
    make(tmp_path, "0.jpg")
    write(tmp_path, **{"0.json": '{"caption": "a cat"}', "0.jpg.json": "{}"})
    for key in ("json", "json.caption", "jpg.JSON"):
        with pytest.raises(UserError, match="fields of JSON are read in tars"):
            folder(tmp_path, caption_keys=(key,))


def test_the_form_of_a_caption_file_is_not_the_data(tmp_path):
    """Marks, line ends and blank lines, as editors and git change them on other systems."""
    make(tmp_path, "0.jpg")
    found = set()
    for data in (b"a\nb", b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb\n", "a\nb".encode("utf-16")):
        write(tmp_path, **{"0.txt": data})
        found.add(fingerprint(folder(tmp_path)))
    write(tmp_path, **{"0.txt": "a b"})
    assert len(found) == 1 and fingerprint(folder(tmp_path)) not in found


def test_the_identity_of_classes_is_of_names_and_sizes(tmp_path):
    make(tmp_path, "cat/0.jpg", "dog/1.jpg")
    before = fingerprint(classes(tmp_path))
    (tmp_path / "cat/0.jpg").touch()
    assert fingerprint(classes(tmp_path)) == before
    (tmp_path / "cat/0.jpg").write_bytes(picture(200) + b"x")
    assert fingerprint(classes(tmp_path)) != before


def test_a_hundred_thousand_files_are_looked_up_once_each_and_hidden_ones_never(tmp_path, monkeypatch):
    """Where each look takes a millisecond, as on a network, that is what counts."""
    make(tmp_path, *(f"{n}/{m}.jpg" for n in range(3) for m in range(20)), ".cache/9.jpg")
    for n in range(3):
        write(tmp_path, **{f"{n}/{m}.txt": "a" for m in range(20)})
        write(tmp_path, **{f"{n}/{m}.json": "a" for m in range(20)})
    looks, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(path) or real(path))
    assert len(folder(tmp_path)) == 60 and len(looks) == 4
