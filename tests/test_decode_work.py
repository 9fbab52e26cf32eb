"""What few bytes can ask of a decoder is bounded by counts: beyond them no decoder is called."""

import sys

import pytest
import simplejpeg
from conftest import ROOT
from PIL import Image

from filip_jax.data.decode import decode, decode_regions
from filip_jax.data.decode_work import check_work

sys.path.insert(0, str(ROOT / "benchmarks"))
import fuzz_slow
from fuzz_slow import FREE, SIDE, _bmp, scans

# As many pixels in all scans as theirs, of a picture that takes a sixteenth of the memory.
PICTURES = fuzz_slow.PICTURES | {"jpeg scans": (lambda count: scans(16 * count, SIDE // 4), 5, 25)}


def region(image):
    return decode_regions(image, 8, lambda width, height: [(0, 0, width, height)])[0]


@pytest.mark.parametrize("name", PICTURES)
def test_beyond_a_limit_no_decoder_is_called(name, monkeypatch):
    """Nor Pillow's readers of headers, but where the limit is one of what they found: EXIF."""
    make, _, refused = PICTURES[name]
    data = make(refused)

    def never(*given, **named):
        raise AssertionError("a decoder was called")

    if "exif" not in name or name == "jpeg exif":
        monkeypatch.setattr(Image, "open", never)
    else:
        monkeypatch.setattr(Image.Exif, "load", never)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    for read in (decode, region):
        with pytest.raises(ValueError, match="at most"):
            read(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of a tag with too many values
@pytest.mark.parametrize("name", [name for name, (_, read, _) in PICTURES.items() if read])
def test_below_it_all_is_read(name):
    make, read, _ = PICTURES[name]
    data = make(read)
    assert decode(data).mode == "RGB" and region(data).shape == (8, 8, 3)


@pytest.mark.parametrize("name", FREE)
def test_what_a_decoder_passes_over_in_c_is_read_at_any_number(name):
    make, _ = FREE[name]
    assert decode(make(300)).size == (16, 16)


def test_a_photo_of_a_4k_screen_in_run_lengths_is_within_the_limit():
    """A photo in 256 colours hardly has runs, so that some writers make more than a byte of each pixel."""
    header = _bmp(3840, 2160, 8, b"")
    check_work(header.ljust(3840 * 2160 * 3 // 2, b"\1"))
