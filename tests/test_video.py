"""Facts of pictures and clips as files: what is written, what is read, and what is refused."""

import errno
import os
import re
import subprocess
from unittest.mock import Mock

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from support import console, video
from support.console import UserError

PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
FIELDS = ((b"\x03\x3c", b"\1\0"), (b"\x03\x14", b"\0\x09"), (b"\x03\x1e", b"\0\x09"),
          (b"\x03\x78", b"\5"), (b"\x08\x0a", PROGRAM))
IPTC = b"".join(b"\x1c" + tag + len(value).to_bytes(2, "big") + value for tag, value in FIELDS)
IPTC += bytes(5)                                                # it holds a picture in any format
DEEP = imageio.imwrite("<bytes>", np.zeros((9, 9), np.uint16), extension=".png")

@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.png"

def greys(*shape, repeat=1):
    """Random clips in [-1, 1], squares of `repeat` pixels, and the same in 0 ... 255."""
    grey = np.random.default_rng(0).integers(256, size=shape).repeat(repeat, -1).repeat(repeat, -2)
    return torch.from_numpy(grey) / 127.5 - 1, grey

@pytest.mark.parametrize("channels,fps", [(1, 10), (3, 5), (1, 12), (1, 30), (1, 100)])
def test_a_gif_keeps_greys_and_frames_loops_and_lasts_as_its_rate_says(tmp_path, channels, fps):
    x, grey = greys(1, 16, 32, 40)
    video.write_clip(x.expand(channels, -1, -1, -1), tmp_path / "a.gif", fps)
    back = imageio.imread(tmp_path / "a.gif", index=None)
    assert (back.reshape(16, 32, 40, -1) == grey[0, ..., None]).all()
    meta = [imageio.immeta(tmp_path / "a.gif", index=k) for k in range(16)]
    assert meta[0]["loop"] == 0 and abs(sum(m["duration"] for m in meta) - 16_000 / fps) <= 5

def test_mp4_keeps_frames_and_rate(tmp_path):
    x, grey = greys(1, 32, 8, 8, repeat=8)
    video.write_clip(x, tmp_path / "a.mp4", fps=10)
    back = imageio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    rate = imageio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")["fps"]
    assert rate == 10 and back.shape == (32, 64, 64, 3)
    assert abs(back[..., 0] - grey[0]).mean() < 3

def test_png_is_a_strip_and_several_clips_are_a_grid(path):
    x, grey = greys(3, 1, 16, 64, 64)
    video.write_clip(x, path)
    strip = imageio.imread(path)
    assert strip.shape == (3 * 66 - 2, 16 * 66 - 2)              # a line of 2 between neighbours
    assert (strip[66:130, 132:196] == grey[1, 0, 2]).all()
    assert (strip[64:66] == 64).all() and (strip[:, 130:132] == 64).all()
    video.write_clip(x, path.with_suffix(".gif"), fps=5)
    assert imageio.imread(path.with_suffix(".gif"), index=None).shape[:3] == (16, 130, 130)

@pytest.mark.parametrize("kind", ["gif", "png"])
def test_scale_shows_every_pixel_as_a_square(tmp_path, kind):
    x, grey = greys(2, 1, 4, 16, 24)
    video.write_clip(x, tmp_path / f"a.{kind}", scale=3)
    back = imageio.imread(tmp_path / f"a.{kind}", index=None)
    first = back[:48, :72] if kind == "png" else back[0, :48, :72, 0]
    assert (first == grey[0, 0, 0].repeat(3, 0).repeat(3, 1)).all()
    assert (first[::3, ::3] == grey[0, 0, 0]).all()              # and is read back by every third
    assert back.shape[:3] == ((2 * 50 - 2, 4 * 74 - 2) if kind == "png" else (4, 48, 2 * 74 - 2))

def test_a_scaled_mp4_keeps_frames(tmp_path):
    x, grey = greys(1, 8, 8, 8, repeat=8)
    video.write_clip(x, tmp_path / "a.mp4", scale=4)
    back = imageio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert back.shape == (8, 256, 256, 3) and abs(back[:, 1::4, 1::4, 0] - grey[0]).mean() < 3

@pytest.mark.parametrize("name", ["a.txt", "a", "nowhere/a.gif", ".", "pipe.gif", "folder.gif", ""])
def test_names_that_are_no_file_to_write_or_read_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.gif")
    os.mkdir("folder.gif")
    with pytest.raises(UserError, match=name or "--out names no file"):
        video.check_clip_path(name)
    with pytest.raises(UserError, match=name or "--image names no file"):
        video.read_picture(name, 64, 1)

@pytest.mark.parametrize("kind", ["gif", "mp4", "png"])
def test_a_full_disk_is_said_in_words_and_keeps_the_old_clip(tmp_path, monkeypatch, kind):
    (tmp_path / f"a.{kind}").write_text("old")
    full = OSError(errno.ENOSPC, "No space left on device")      # as write() says it: nameless
    monkeypatch.setattr("os.fsync", Mock(side_effect=full))
    with pytest.raises(OSError) as caught:
        video.write_clip(torch.zeros(1, 4, 64, 64), tmp_path / f"a.{kind}")
    assert re.search(f"disk is full .*a.{kind}", console.in_words(caught.value))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

def test_a_broken_mp4_of_a_full_disk_is_not_kept(tmp_path, monkeypatch):
    """ffmpeg writes it elsewhere first, and says nothing."""
    monkeypatch.setattr("imageio.v3.imwrite", lambda *arguments, **options: b"ftyp, and no more")
    with pytest.raises(OSError, match="No space left"):
        video.write_clip(torch.zeros(1, 4, 64, 64), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize("channels,inside", [(1, 2 / 3 - 1), (3, 1)])   # a third of white; red
def test_a_picture_is_fitted_in_the_networks_channels_and_clear_is_black(path, channels, inside):
    picture = np.full((90, 45, 4), (255, 0, 0, 255), np.uint8)
    picture[45:, :, 3] = 0                                       # its lower half is transparent
    imageio.imwrite(path, picture)
    x, note = video.read_picture(path, 64, channels)
    assert x.shape == (channels, 1, 64, 64) and "45x90" in note and (x[1:] == -1).all()
    assert abs(x[0, 0, :31, 16:48] - inside).max() < .01
    assert (x[0, 0, :, :16] == -1).all() and (x[0, 0, :, 48:] == -1).all()
    assert (x[0, 0, 33:] == -1).all()

def test_a_picture_of_too_many_pixels_is_refused(path, monkeypatch):
    """Also up to twice as many, of which Pillow only warns."""
    imageio.imwrite(path, np.zeros((20, 40), np.uint8))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 800)
    assert video.read_picture(path, 64, 1)[0].max() == -1
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 799)
    with pytest.raises(UserError, match="cannot be read"):
        video.read_picture(path, 64, 1)

@pytest.mark.parametrize("content,why", [
    (PROGRAM, "another format"), (b"#EXTM3U\n#EXTINF:1,\nother.mp4\n", "another format"),
    (IPTC, "another format"), (DEEP, "16-bit grey")])            # Pillow would turn that white
def test_what_is_no_picture_is_refused_in_words_and_starts_no_program(path, monkeypatch, content,
                                                                      why):
    started = Mock()
    monkeypatch.setattr(subprocess, "Popen", started)
    path.write_bytes(content)
    with pytest.raises(UserError, match=why):
        video.read_picture(path, 64, 1)
    assert not started.called
