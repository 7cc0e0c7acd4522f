"""Facts of a folder of clips: the same pixels at the same ticks, whatever the files are like."""

import json
import os
import shlex
import shutil
import struct
import subprocess
import zlib

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import data
import metrics
import sample
import train
from support import digits, own_clips, video
import unet3d
import vae

DIGITS = data.load_digits("train", "drawn", None)  # as the commands call it: drawn once
ALL = np.arange(65)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of six clips, of which no test may change anything."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    data.export(folder, 6, captions="four", digits=DIGITS)
    return folder


def ramp(path, frames=8, size=(64, 64), colour=(1, 1, 1), fps=10):
    """A clip whose frame k is one colour of brightness 16 k all over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = torch.arange(frames).float() * 16
    x = grey[:, None, None, None] * torch.tensor(colour)[:, None, None]
    x = x.expand(frames, 3, *size).movedim(1, 0) / 127.5 - 1
    video.write_clip(x, path, fps=fps)
    return path


def captioned(path, text="a ramp", **options):
    ramp(path, **options).with_suffix(".txt").write_text(text, encoding="utf-8")


def levels(clips, which=0):
    """Brightness of the middle pixel at every tick."""
    return clips.frames[which, :, 0, 32, 32].astype(int)


def test_an_exported_folder_comes_back_with_the_same_pixels_at_the_same_ticks(exported, tmp_path):
    clips = own_clips.FolderClips(exported, tmp_path)
    truth = data.make_scenes(6, captions="four", digits=DIGITS)
    assert clips.captions == truth.captions and clips.channels == 1
    drawn = clips(9, seed=3)
    assert set(drawn.index) <= set(range(6)) and len(set(drawn.index)) > 2
    ticks = np.array([0, 4, 31, 64]) + np.zeros((9, 1), int)
    want = truth.render(ALL)[torch.from_numpy(drawn.index)][:, :, ticks[0]]
    assert (drawn.render(ticks) - want).abs().max() <= 1 / 255 + 1e-6
    assert (drawn.render(ticks[0]) - want).abs().max() <= 1 / 255 + 1e-6
    assert drawn.captions == [truth.captions[i] for i in drawn.index] == drawn.subjects


def test_draws_depend_on_seed_and_index_only(exported, tmp_path):
    clips = own_clips.FolderClips(exported, tmp_path)
    whole = clips(40, seed=1)
    assert whole.captions[30:] == clips(10, seed=1, start=30).captions
    assert whole.captions != clips(40, seed=2).captions
    assert not np.isin(whole.motion, train.STEADY).any() and whole.carry_on(None, None) is whole


@pytest.mark.parametrize("name,frames,fps", [("a.gif", 2, 5), ("a.gif", 8, 10), ("a.gif", 15, 50),
                                             ("a.mp4", 13, 30), ("a.gif", 1, 10)])
def test_a_clip_of_any_length_and_rate_is_one_action(tmp_path, name, frames, fps):
    captioned(tmp_path / "in" / name, frames=frames, fps=fps)
    clips = own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    want = 16 * np.minimum(ALL * frames // 64, frames - 1)
    assert abs(levels(clips) - want).max() <= (3 if name == "a.mp4" else 0)


def test_equal_frames_in_a_row_keep_their_time(tmp_path):
    """A GIF has them as one that is shown longer."""
    x = (torch.tensor([0, 0, 0, 255, 0, 0, 255, 255]) / 127.5 - 1)[None, :, None, None]
    (tmp_path / "a.txt").write_text("blinking")
    video.write_clip(x.expand(1, 8, 64, 64), tmp_path / "a.gif")
    assert len(imageio.imread(tmp_path / "a.gif", index=None)) == 4
    clips = own_clips.FolderClips(tmp_path, tmp_path / "out")
    assert (levels(clips)[:64:8] == [0, 0, 0, 255, 0, 0, 255, 255]).all()


def test_frames_are_fitted_as_pictures_are_and_all_is_said_once(tmp_path):
    captioned(tmp_path / "in" / "tall.gif", size=(90, 45))
    captioned(tmp_path / "in" / "wide.gif", size=(30, 60), frames=5)
    clips = own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    last = clips.frames[:, -1, 0]
    assert (last[0, :, 16:48] == 7 * 16).all() and not last[0, :, :16].any()
    assert (last[1, 16:48] == 4 * 16).all() and not last[1, :16].any()
    said = clips.note
    assert said.count("\n") == 0 and "2 grey clips of 5, 8 frames" in said and "45x90" in said


def test_one_colour_clip_makes_all_three_channels_and_grey_mp4_stays_grey(tmp_path):
    captioned(tmp_path / "in" / "a.mp4")
    assert own_clips.FolderClips(tmp_path / "in", tmp_path / "out").channels == 1
    captioned(tmp_path / "in" / "b.gif", colour=(1, .5, 0))
    clips = own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    assert clips.channels == 3 and clips(2).render(ALL).shape == (2, 3, 65, 64, 64)
    assert (clips.frames[1, -1, :, 32, 32] == [112, 56, 0]).all()
    assert np.ptp(clips.frames[0, -1, :, 32, 32]) == 0


def test_windows_that_begin_before_a_clip_are_moved_to_its_begin(exported, tmp_path):
    drawn = own_clips.FolderClips(exported, tmp_path)(2)
    ticks = np.stack([np.arange(17) * 4 - 12, np.arange(17) * 2])
    x = drawn.render(ticks)
    assert torch.equal(x[0], drawn.render(np.arange(17) * 4)[0])
    assert torch.equal(x[1], drawn.render(np.arange(17) * 2)[1])


# ---- captions and names --------------------------------------------------------------------------

NAMES = ("a b.gif", "ü 数 é.gif", "-i.gif", "sub/deeper/x;$(touch owned).GIF", "100%d {}.gif",
         "new\nline \x1b[31m.gif")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_captions_are_found_for_files_in_sub_folders_whatever_their_names(tmp_path, kind):
    root = tmp_path / "my clips.zip"
    for k, name in enumerate(NAMES):
        ramp(root / name, frames=k + 1)
    texts = {name: f"ramp {k}, “ü”" for k, name in enumerate(NAMES)}
    if kind == "txt":
        for name, text in texts.items():
            (root / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    elif kind == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(
            json.dumps({"file_name": name, "text": text}) for name, text in texts.items()))
    else:
        (root / "metadata.csv").write_text("text,file_name\n" + "".join(
            f'"{text}","{name}"\n' for name, text in texts.items()), encoding="utf-8-sig")
    clips = own_clips.FolderClips(root, tmp_path / "out")
    by_length = {levels(clips, k)[-1] // 16: caption for k, caption in enumerate(clips.captions)}
    assert by_length == {k: f"ramp {k}, “ü" for k in range(len(NAMES))}
    assert not list(tmp_path.rglob("owned"))


def test_metadata_in_a_sub_folder_names_files_from_there(tmp_path):
    ramp(tmp_path / "train" / "a.gif")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n../train/a.gif,a ramp\n")
    assert own_clips.FolderClips(tmp_path, tmp_path / "out").captions == ["a ramp"]


def test_captions_keep_printable_words_only_and_no_more_than_fit(tmp_path):
    captioned(tmp_path / "a.gif", "a \x1b[31mred\x07 3,\n moving! ")
    captioned(tmp_path / "b.gif", "so " * 100)
    clips = own_clips.FolderClips(tmp_path, tmp_path / "out")
    assert clips.captions == ["a [31mred 3, moving", " ".join(["so"] * 64)]


@pytest.mark.parametrize("name,text,line", [
    ("metadata.csv", "name,caption\na.gif,a ramp\n", 2),
    ("metadata.csv", "file_name,text\na.gif\n", 2),
    ("metadata.csv", 'file_name,text\na.gif,a\nb.gif,"open\n', 3),
    ("metadata.csv", b"file_name,text\na.gif,a\na.gif,\xff\xfe\n", 3),
    ("metadata.jsonl", '{"file_name": "a.gif", "text": "a"}\n{"file_name"\n', 2),
    ("metadata.jsonl", '{"file_name": "a.gif", "text": 3}\n', 1),
    ("metadata.jsonl", '{"file_name": ["a.gif"], "text": "a"}\n', 1),
    ("metadata.jsonl", "\n\n[]\n", 3), ("metadata.jsonl", "[" * 100000, 1),
    ("metadata.jsonl", "9" * 5000, 1), ("metadata.jsonl", b"\x00\xff", 1)])
def test_wrong_metadata_names_the_file_and_the_line(tmp_path, name, text, line):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(data.UserError, match=rf"{name}, line {line}: "):
        own_clips.FolderClips(tmp_path, tmp_path / "out")


# ---- what is left out ----------------------------------------------------------------------------

def test_nothing_outside_the_folder_is_read(tmp_path, monkeypatch):
    root = tmp_path / "in"
    captioned(root / "good.gif")
    captioned(tmp_path / "secret.gif", "a secret")
    (root / "link.gif").symlink_to(tmp_path / "secret.gif")
    (root / "good link.gif").symlink_to(root / "good.gif")
    (root / "good link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "folder").symlink_to(tmp_path)
    names = ["../secret.gif", str(tmp_path / "secret.gif"), "link.gif", "folder/secret.gif",
             "sub/../../secret.gif", "nul\0.gif", "long" * 2000, "/dev/zero", ""]
    (root / "metadata.jsonl").write_text("\n".join(
        json.dumps({"file_name": name, "text": "a secret"}) for name in names))
    opened = []
    read = own_clips.read_clip
    monkeypatch.setattr(own_clips, "read_clip", lambda path: opened.append(path) or read(path))
    clips = own_clips.FolderClips(root, tmp_path / "out")
    assert clips.captions == ["a ramp"] and opened == [root / "good.gif"]
    said = clips.note
    assert "'link.gif' " in said and "'../secret.gif' " in said and said.count("\n") == 1


def damage(root):
    """Files that are no clips, or not any more; none of them may stop or hang the rest."""
    for name in ("a.gif", "a.mp4"):
        good = ramp(root / name, frames=40, colour=(1, .9, .8)).read_bytes()
        (root / f"half {name}").write_bytes(good[:len(good) // 2])
        noise = np.random.default_rng(0).integers(0, 256, len(good) - 40, np.uint8).tobytes()
        (root / f"noise {name}").write_bytes(good[:40] + noise)
        (root / f"empty {name}").touch()
        (root / f"text {name}").write_text("hello " * 1000)
        (root / name).unlink()
    imageio.imwrite(root / "picture.png", np.zeros((9, 9), np.uint8))
    (root / "picture.png").rename(root / "picture.gif")
    (root / "program.gif").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    ramp(root.parent / "other.mp4")
    (root / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{root.parent / 'other.mp4'}\n")
    (root / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {root.parent / 'other.mp4'}\n")
    (root / "bomb.gif").write_bytes(b"GIF89a" + b"\x50\xc3" * 2 + b"\x00\x00\x00," + b"\0" * 9)
    return [path.name for path in root.iterdir()]


def test_files_that_cannot_be_read_are_listed_and_skipped(tmp_path, capfd):
    root = tmp_path / "in"
    root.mkdir()
    bad = damage(root)
    for name in bad:
        (root / name).with_suffix(".txt").write_text("broken")
    captioned(root / "x good.gif")
    (root / "directory.gif").mkdir()
    os.mkfifo(root / "pipe.gif")
    (root / "no caption.gif").write_bytes(b"")
    (root / "no clip.txt").write_text("a caption")
    (root / "no words.gif").write_bytes(b"")
    (root / "no words.txt").write_text(" ?! ")
    clips = own_clips.FolderClips(root, tmp_path / "out")
    assert clips.captions == ["a ramp"]
    said = clips.note
    assert said.count("\n") == 1 and "Traceback" not in said and " more" in said
    [info] = json.loads((tmp_path / "out" / "clips.json").read_text()).values()
    assert "no caption.gif" in info["note"].splitlines()[1]
    assert "no clip.txt" not in info["note"]                # a licence, say: none of our business
    assert len(bad) == 13


def test_no_program_is_started_for_a_picture_that_is_one(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "b.png").write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n")
    fields = (b"\x03\x3c", b"\1\0"), (b"\x03\x14", b"\0\x09"), (b"\x03\x1e", b"\0\x09"), (
        b"\x03\x78", b"\5"), (b"\x08\x0a", (tmp_path / "a.png").read_bytes())
    (tmp_path / "c.png").write_bytes(b"".join(  # IPTC, which holds a picture in any format
        b"\x1c" + tag + len(value).to_bytes(2, "big") + value for tag, value in fields) + bytes(5))
    for name in ("a.png", "b.png", "c.png"):
        with pytest.raises(data.UserError, match="cannot be read"):
            sample.read_picture(tmp_path / name, None)
    assert not started


def test_too_many_frames_or_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(own_clips, "MAX_FRAMES", 7)
    captioned(tmp_path / "in" / "a.gif")
    with pytest.raises(data.UserError, match="a.gif.*more than 7 frames"):
        own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    monkeypatch.setattr(own_clips, "MAX_FRAMES", 8)
    own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    for name in ("large.gif", "large.mp4"):
        monkeypatch.setattr(own_clips, "MAX_PIXELS", 64 * 64 - 1)
        with pytest.raises(Exception, match="pixel"):
            own_clips.read_clip(ramp(tmp_path / name))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    model = sample.load(device="cpu")
    for side in (64, 13_000):
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        rows = zlib.compress(bytes(side * (1 + -(-side // 8))))
        (tmp_path / f"{side}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
            for body in (b"IHDR" + header, b"IDAT" + rows, b"IEND")))
    assert sample.read_picture(tmp_path / "64.png", model)[0].max() == -1
    imageio.imwrite(tmp_path / "deep.png", np.zeros((9, 9), np.uint16))
    with pytest.raises(data.UserError, match="16-bit grey"):
        sample.read_picture(tmp_path / "deep.png", model)
    with pytest.raises(data.UserError, match="cannot be read"):
        sample.read_picture(tmp_path / "13000.png", model)


def test_a_frame_larger_than_the_header_says_is_refused(tmp_path, monkeypatch):
    captioned(tmp_path / "in" / "a.gif")
    content = bytearray((tmp_path / "in" / "a.gif").read_bytes())
    content[6:10] = struct.pack("<HH", 8, 8)
    (tmp_path / "in" / "a.gif").write_bytes(content)
    monkeypatch.setattr(own_clips, "MAX_PIXELS", 64)
    with pytest.raises(data.UserError, match="a.gif.*too many pixels"):
        own_clips.FolderClips(tmp_path / "in", tmp_path / "out")


def test_a_caption_beside_clips_serves_them_all_and_a_bad_one_leaves_its_clip_out(tmp_path):
    for name in ("a.gif", "a.mp4", "b.gif", "c.gif"):
        ramp(tmp_path / name)
    (tmp_path / "a.TXT").write_text("a ramp")
    (tmp_path / "b.txt").write_bytes("ein schöner".encode("latin-1"))
    (tmp_path / "c.txt").write_text("not this")
    (tmp_path / "metadata.csv").write_text("file_name,text\nc.gif,but this\n")
    clips = own_clips.FolderClips(tmp_path, tmp_path / "out")
    assert sorted(clips.captions) == ["a ramp", "a ramp", "but this"]
    assert "'b.gif' has a caption that cannot be read as UTF-8" in clips.note


def test_no_clip_at_all_is_an_error_that_lists_why(tmp_path):
    with pytest.raises(data.UserError, match="no GIF or MP4"):
        own_clips.FolderClips(tmp_path, tmp_path / "out")
    (tmp_path / "a.gif").write_text("broken")
    (tmp_path / "a.txt").write_text("a clip")
    with pytest.raises(data.UserError, match="'a.gif' cannot be read"):
        own_clips.FolderClips(tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


# ---- decoded once --------------------------------------------------------------------------------

def test_clips_are_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    captioned(tmp_path / "in" / "a.gif")
    first = own_clips.FolderClips(tmp_path / "in", tmp_path / "out").frames[:].copy()
    decode, calls = own_clips.decode, []
    monkeypatch.setattr(own_clips, "decode", lambda *a: calls.append(a) or decode(*a))
    again = own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    assert not calls and (again.frames == first).all() and "1 grey" in again.note
    captioned(tmp_path / "in" / "a.gif", frames=4)
    changed = own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    assert len(calls) == 1 and not (changed.frames == first).all()
    (tmp_path / "in" / "a.txt").write_text("another ramp")
    assert own_clips.FolderClips(tmp_path / "in", tmp_path / "out").captions == ["another ramp"]
    for damaged in ("clips.u8", "clips.json"):
        (tmp_path / "out" / damaged).write_bytes(b"{")
        assert (own_clips.FolderClips(tmp_path / "in", tmp_path / "out").frames == changed.frames).all()


@pytest.mark.parametrize("moment", range(5))
def test_killed_at_any_moment_the_next_start_is_right(tmp_path, monkeypatch, moment):
    """Killed while decoding, or before or after any of the last three steps on the disk."""
    captioned(tmp_path / "in" / "a.gif", frames=3)
    own_clips.FolderClips(tmp_path / "in", tmp_path / "out")      # an older state, to be replaced
    captioned(tmp_path / "in" / "a.gif", frames=4)
    captioned(tmp_path / "in" / "b.gif", frames=5)
    steps = iter(range(9))

    def killing(real):
        def do(*args, **kwargs):
            if next(steps) == moment:
                raise KeyboardInterrupt
            return real(*args, **kwargs)
        return do

    with monkeypatch.context() as patch:
        patch.setattr(own_clips, "read_clip", killing(own_clips.read_clip))
        for name in ("replace", "write_text"):
            patch.setattr(own_clips.Path, name, killing(getattr(own_clips.Path, name)))
        with pytest.raises(KeyboardInterrupt):
            own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    clips = own_clips.FolderClips(tmp_path / "in", tmp_path / "out")
    assert [levels(clips, k)[-1] for k in (0, 1)] == [3 * 16, 4 * 16]


def test_a_full_disk_is_said_before_decoding(tmp_path, monkeypatch, exported):
    usage = type("usage", (), {"free": 10**6})
    monkeypatch.setattr(own_clips.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(data.UserError, match="0.00 GB.*--out"):
        own_clips.FolderClips(exported, tmp_path)


# ---- the commands --------------------------------------------------------------------------------

FEW = ["--device", "cpu", "--vae-steps", "2", "--image-steps", "2", "--steps", "2", "--batch-size",
       "2"]


@pytest.fixture
def small(monkeypatch):
    """Small networks under the tiny preset's name, and every step logged."""
    monkeypatch.setitem(train.PRESETS, "tiny", train.PRESETS["tiny"] | dict(
        vae=vae.VAEConfig(widths=(8, 16, 16), blocks=1),
        unet=unet3d.UNetConfig(widths=(16, 32), head_dim=8, emb_width=32)))
    monkeypatch.setattr(train, "MEASURED", 1)
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    monkeypatch.setitem(sample.STEPS, "dpm", 2)


def saved(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def test_training_on_a_folder_resumes_bit_exactly(small, exported, tmp_path, monkeypatch, capsys):
    class Stop(Exception):
        pass

    real = train.save

    def save(path, content):
        real(path, content)
        if content.get("progress") == (2, 1):
            raise Stop

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "write_samples", lambda *a: None)     # the next test has strips
    assert train.main(["--data", str(exported), *FEW]) == 0
    whole, broken = tmp_path / "runs" / "clips", tmp_path / "broken"
    out, err = capsys.readouterr()
    assert "a 5 moving" in out                              # a prompt of its own in the last line
    assert err.count("are each fitted to one action") == 1
    monkeypatch.setattr(train, "save", save)
    with pytest.raises(Stop):
        train.main(["--data", str(exported), *FEW, "--out", str(broken)])
    monkeypatch.setattr(train, "save", real)
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    resume = ["--resume", "--out", str(broken), "--device", "cpu", "--data"]
    assert train.main([*resume, train.MADE]) == 2
    assert "the run began with --data" in capsys.readouterr().err
    assert train.main([*resume, str(moved)]) == 0
    a, b = saved(whole), saved(broken)
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert b["settings"] == a["settings"] | {"data": str(moved)} and len(
        a["settings"]["prompts"]) <= 8
    assert "clips have changed" not in capsys.readouterr().err
    (moved / "metadata.csv").write_text("file_name,text\n000000.gif,a dog\n")
    assert train.main([*resume, str(exported)]) == 0
    shutil.copytree(moved, tmp_path / "others")
    assert train.main([*resume, str(tmp_path / "others")]) == 2
    assert "does not hold the clips that the run began with" in capsys.readouterr().err


def test_a_colour_set_is_written_trains_and_is_sampled_in_colour(small, tmp_path, capsys):
    folder, out = tmp_path / "colours", tmp_path / "run"
    assert data.main(["--export", str(folder), "--num", "6", "--colour", "--digits", "drawn"]) == 0
    assert shlex.quote(str(folder)) in capsys.readouterr().out
    x, captions, _ = data.captioned_clips(6, num_frames=65, captions="four", digits=DIGITS,
                                          colour=True)
    clips = own_clips.FolderClips(folder, out)
    assert clips.captions == captions and {c.split()[1] for c in captions} <= {*data.COLOURS}
    off = clips.frames - ((x + 1) * 127.5).numpy().swapaxes(1, 2)
    assert abs(off).max() <= 2
    assert train.main(["--data", str(folder), *FEW, "--out", str(out)]) == 0
    made = saved(out)["config"]
    assert made["vae"]["channels"] == 3 and made["text"]["length"] == 20
    assert made["vocabulary"] == sorted({word for c in captions for word in c.split()})
    assert sample.main([captions[0], "--checkpoint", str(out / "weights.pt"), "--steps", "1",
                        "--out", str(tmp_path / "a.png"), "--device", "cpu"]) == 0
    assert imageio.imread(tmp_path / "a.png").shape == (64, 32 * 64, 3)
    assert metrics.main(["--checkpoint", str(out / "weights.pt"), "--num", "2", "--digits", "drawn",
                         "--device", "cpu"]) == 2
    assert "clips of another kind" in capsys.readouterr().err


BAD = [["train", "--data", "nowhere"], ["train", "--data", "file.gif"], ["train", "--data", ""],
       ["train", "--data", "empty"], ["train", "--data", "broken"], ["train", "--data", "wrong"],
       *(["train", "--data", "good", *flags] for flags in (
           ["--captions", "four"], ["--digits", "drawn"], ["--data-root", "."],
           ["--upscale-steps", "2"], ["--out", "file.gif"])),
       ["data", "--export", "good"], ["data", "--export", "file.gif"],
       ["data", "--export", "new", "--num", "0"], ["data", "--export", "new", "--seed", "-1"],
       ["data", "--export", "new", "--colour", "--captions", "full"], ["data", "--num", "many"],
       ["data", "--export", "new", "--data-root", "nowhere"],
       ["data", "--export", "damaged", "--data-root", "damaged"]]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_folders_get_one_sentence_and_status_2(arguments, exported, tmp_path, monkeypatch,
                                                   capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "wrong", "damaged"):
        (tmp_path / name).mkdir()
    shutil.copytree(exported, "good")
    (tmp_path / "file.gif").write_text("no folder")
    (tmp_path / "broken" / "a.gif").write_text("broken")
    (tmp_path / "broken" / "metadata.csv").write_text("file_name,text\na.gif,a clip\n")
    (tmp_path / "wrong" / "metadata.jsonl").write_text("{")
    (tmp_path / "damaged" / digits.MNIST["train"][0][0]).write_bytes(b"\x1f\x8b broken")
    drawn = ["--digits", "drawn"] * (arguments[0] == "data" and "--data-root" not in arguments)
    try:
        status = {"train": train.main, "data": data.main}[arguments[0]](arguments[1:] + drawn)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and "Traceback" not in error
    assert len([line for line in error.splitlines() if "error: " in line]) == 1
    assert not (tmp_path / "new").exists()


def test_every_flag_of_the_data_command_changes_something(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen = set()
    for flags in ([], ["--seed", "1"], ["--num", "3"], ["--captions", "four"], ["--colour"]):
        assert data.main(["--digits", "drawn", *flags]) == 0
        seen.add(((tmp_path / "data.png").read_bytes(), capsys.readouterr().out))
    assert len(seen) == 5
