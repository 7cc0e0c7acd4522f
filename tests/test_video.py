"""Facts of pictures and clips as files: what is read as a picture, and what is not."""

import struct
import subprocess
import zlib

import imageio.v3 as imageio
import numpy as np
import pytest

from support import video
from support.console import UserError


def png(path, side):
    """A black picture of one bit a pixel, which is a small file however many pixels it has."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (1 + -(-side // 8))))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (b"IHDR" + header, b"IDAT" + rows, b"IEND")))
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_fitted_into_the_frame_in_the_networks_channels(tmp_path, channels):
    imageio.imwrite(tmp_path / "a.png", np.full((90, 45, 3), (255, 0, 0), np.uint8))
    x, note = video.read_picture(tmp_path / "a.png", 64, channels)
    assert x.shape == (channels, 1, 64, 64) and "45x90" in note
    inside = 2 / 3 - 1 if channels == 1 else 1                     # a third of white; red itself
    assert abs(x[0, 0, :, 16:48] - inside).max() < .01
    assert (x[0, 0, :, :16] == -1).all() and (x[1:] == -1).all()


def test_what_is_transparent_in_a_picture_is_black(tmp_path):
    picture = np.full((64, 64, 4), 255, np.uint8)
    picture[:, 32:, 3] = 0
    imageio.imwrite(tmp_path / "a.png", picture)
    x, _ = video.read_picture(tmp_path / "a.png", 64, 1)
    assert (x[..., :32] == 1).all() and (x[..., 32:] == -1).all()


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    assert video.read_picture(png(tmp_path / "small.png", 64), 64, 1)[0].max() == -1
    with pytest.raises(UserError, match="cannot be read"):
        video.read_picture(png(tmp_path / "large.png", 13_000), 64, 1)


def test_a_16_bit_grey_picture_is_refused_in_words(tmp_path):
    """Pillow would turn it white."""
    imageio.imwrite(tmp_path / "deep.png", np.zeros((9, 9), np.uint16))
    with pytest.raises(UserError, match="16-bit grey"):
        video.read_picture(tmp_path / "deep.png", 64, 1)


def test_no_program_is_started_for_a_picture_that_is_one(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(args))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    fields = (b"\x03\x3c", b"\1\0"), (b"\x03\x14", b"\0\x09"), (b"\x03\x1e", b"\0\x09"), (
        b"\x03\x78", b"\5"), (b"\x08\x0a", program)
    iptc = b"".join(b"\x1c" + tag + len(value).to_bytes(2, "big") + value for tag, value in fields)
    for content in (program, b"#EXTM3U\n#EXTINF:1,\nother.mp4\n",
                    iptc + bytes(5)):                   # IPTC holds a picture in any format
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            video.read_picture(tmp_path / "a.png", 64, 1)
    assert not started
