"""Facts of a folder of the user's clips: their time, pixels and captions, and what is left out."""

import json
import os
import re
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from support import own_clips
from support.console import UserError
from support.own_clips import FolderClips
from text_encoder import words_of

ALL = np.arange(65)

@pytest.fixture(autouse=True)
def decodings(tmp_path, tmp_path_factory, monkeypatch):
    """An empty folder to work in, a cache, and the names of the files that were decoded into it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    calls, real = [], own_clips.decode_file
    monkeypatch.setattr(own_clips, "decode_file", lambda *a: calls.append(a[0].name) or real(*a))
    return calls

def clip(name, levels=(20, 40), fps=10, colour=1, caption="a ramp", durations=None):
    """Write a clip of frames with these brightnesses, plain or times a picture of one `colour` a
    pixel (64 64 3), and its caption beside it."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.ones((len(levels), 64, 64, 3)) * np.reshape(levels, (-1, 1, 1, 1)) * colour
    options = dict(fps=fps, plugin="FFMPEG", codec="libx264")
    if path.suffix == ".webm":
        options |= dict(codec="libvpx", output_params=["-crf", "4"])
    elif path.suffix.lower() == ".gif":
        options = dict(duration=durations or 1000 / fps, loop=0)
    imageio.imwrite(path, frames.astype(np.uint8), **options)
    path.with_suffix(".txt").write_text(caption)
    return path

def levels_of(draws, ticks=ALL):  # brightness of the middle pixels (n f), 0 ... 255
    return ((draws.render(ticks)[:, 0, :, 32, 32] + 1) * 127.5).round().int().numpy()

@pytest.mark.parametrize("kind", ["avi", "webm", "mp4", "mkv", "mov", "gif"])
def test_every_container_shows_its_frames_at_the_right_ticks(kind):
    clip(f"a.{kind}", np.arange(33) * 7)                                          # 3.3 s
    Path("metadata.csv").write_text(f"file_name,text\na.{kind},a ramp\na.{kind},a dawn\n")
    draws = FolderClips(".")(20)
    assert set(draws.captions) == {"a ramp", "a dawn"} and set(draws.begin) == {0, 1}
    assert draws.subjects == draws.captions and not draws.steady.any()
    want = 7 * ((ALL + draws.begin[:, None]) // 2)
    assert abs(levels_of(draws) - want).max() <= 5                                # video is lossy

def test_windows_begin_anywhere_in_a_longer_clip_and_keep_its_time():
    clip("a.gif", np.arange(50) * 5, fps=5)                                       # 10 s
    draws, ticks = FolderClips(".")(200), ALL[::7]
    assert draws.begin.min() < 10 and 125 < draws.begin.max() <= 200 - 65
    assert (levels_of(draws, ticks) == 5 * ((ticks + draws.begin[:, None]) // 4)).all()

@pytest.mark.parametrize("frames,fps", [(8, 10), (2, 5), (15, 20), (1, 10)])
def test_a_shorter_clip_is_stretched_to_the_action_and_that_is_said(frames, fps):
    clip("a.gif", np.arange(frames) * 16, fps=fps)
    clips = FolderClips(".")
    want = 16 * np.minimum(ALL * frames // 64, frames - 1)
    assert (levels_of(clips(1)) == want).all() and "1 are stretched to 3.2 s" in clips.notes[0]

def test_frames_of_a_gif_last_as_long_as_it_says():
    """Equal frames in a row are one frame, shown longer."""
    clip("a.gif", [0, 50, 50, 100, 200], durations=[100, 100, 1400, 400, 1200])
    times = np.bincount(levels_of(FolderClips(".")(1))[0])
    assert times[[0, 50, 100, 200]].tolist() == [2, 30, 8, 25]

def test_a_continuation_shows_its_real_past_where_there_is_one():
    clip("long/a.gif", np.arange(50) * 5, fps=5)
    clip("short/a.gif", np.arange(10) * 20, fps=5)
    ticks, which = np.arange(-12, 53), np.arange(50) % 2 == 0
    draws = FolderClips("long")(50, seed=3)
    late = draws.carry_on(None, which)
    assert (late.begin[which] >= 12).all() and (late.begin == draws.begin)[~which].all()
    assert (levels_of(late, ticks)[which] == 5 * ((ticks + late.begin[which, None]) // 4)).all()
    short = FolderClips("short")(1).carry_on(None, np.array([True]))
    assert (levels_of(short, ticks[None]) == levels_of(short)).all()  # no past: the first frames

def test_draws_depend_on_seed_and_index_only():
    for name in "abcde":
        clip(f"{name}.gif", range(0, 240, 6), caption=f"clip {name}")
    clips = FolderClips(".")
    whole, part = clips(40, seed=1), clips(10, seed=1, start=30)
    assert whole.captions[30:] == part.captions and len(set(whole.captions)) == 5
    assert (whole.begin[30:] == part.begin).all() and clips(40, seed=2).captions != whole.captions

def test_the_longer_side_fits_or_the_middle_square_is_cut_and_clear_is_black():
    frame = np.zeros((60, 120, 4), np.uint8)
    frame[:, 30:90] = 200, 200, 200, 255
    frame[:, :30] = 200, 200, 200, 0                                              # transparent
    imageio.imwrite("a.gif", [frame, frame], mode="RGBA", plugin="pillow")
    Path("a.txt").write_text("a pillar")
    x = (FolderClips(".")(1).render([0])[0, 0, 0] + 1) * 127.5
    assert not x[:16].any() and not x[48:].any() and x[32, 32] == 200 and not x[:, :14].any()
    assert ((FolderClips(".", crop=True)(1).render(ALL) + 1) * 127.5 > 190).all()

def test_lossy_grey_clips_are_grey_and_one_colour_clip_makes_three_channels():
    """And every pixel of it keeps its place and its colour."""
    clip("a.mp4", np.arange(33) * 7)
    assert FolderClips(".").channels == 1
    picture = np.random.default_rng(0).integers(3, size=(64, 64, 3)) / 2
    clip("b.gif", [224] * 33, colour=picture, caption="colours")
    clips = FolderClips(".")
    draws = clips(9)
    x = ((draws.render(ALL) + 1) * 127.5).round()
    assert clips.channels == 3 and x.shape == (9, 3, 65, 64, 64) and "colour" in clips.notes[0]
    for frames, caption in zip(x.permute(0, 2, 3, 4, 1).numpy(), draws.captions):
        want = 224 * picture if caption == "colours" else frames[..., :1]         # or any grey
        assert (frames == want).all()

def test_captions_come_from_rows_lists_columns_and_texts_in_sub_folders():
    names = ["ü 数.gif", "sub/-i.GIF", "sub/new\nline \x1b[31m.gif", "100%d {}.gif"]
    for k, name in enumerate(names):
        clip(name, caption=f"text {k}")
    Path("metadata.jsonl").write_text("\n".join(map(json.dumps, [
        {"file_name": names[0], "text": ["one", "two"]}, {"file_name": names[0], "caption": "3!"},
        {"file_name": "sub/../" + names[1], "text": "a \x1b[31mred\u202e 3,\n moving! " * 30}])))
    Path("sub/metadata.csv").write_text(
        f'caption,file_name\n"so, a row","{names[2][4:]}"\n', encoding="utf-8-sig")
    clips = FolderClips(".")
    found = sorted(texts for *_, texts in clips.clips)
    assert found[1:] == [["one", "two", "3"], ["so, a row"], ["text 3"]]
    assert found[0][0].isprintable() and len(words_of(found[0][0])) == 64 == clips.length
    assert clips.words == sorted({word for texts in found for word in words_of(" ".join(texts))})

@pytest.mark.parametrize("name,text,said", [
    ("metadata.csv", b"name,description\na.gif,bad\n", "has name, description"),
    *(("metadata.csv", b"file_name,text\na.gif" + bad, said) for bad, said in (
        (b"\na.gif,good\n", "csv, line 2"), (b",not, quoted\na.gif,good\n", "csv, line 2"),
        (b',good\na.gif,"open\n', "csv, line 3"), (b",\xff\xfe\na.gif,good\n", "csv, line 2"))),
    *(("metadata.jsonl", b'{"file_name": "a.gif", "text": "good"}\n\n' + bad, "jsonl, line 3")
      for bad in (b'{"file_name"', b'{"file_name": "a.gif", "text": 3}', b"[" * 100000, b"9" * 5000,
                  b'{"file_name": ["a.gif"], "text": "a"}', b"\x00\xff", b"[]"))])
def test_bad_rows_and_missing_columns_are_skipped_and_named(name, text, said):
    clip("a.gif", caption="good")
    Path(name).write_bytes(text)
    clips = FolderClips(".")
    assert set(clips(9).captions) == {"good"} and said in clips.notes[1]

def test_links_lead_to_a_datasets_own_blobs_and_nowhere_else(tmp_path, decodings):
    root, secret = Path("data--x/snapshots/rev"), clip("secret.gif", caption="a secret").resolve()
    clip("data--x/blobs/0a.gif").rename("data--x/blobs/0a")
    clip(root / "good.gif", caption="good")
    for name, target in (("own.gif", "../../blobs/0a"), ("link.gif", secret), ("gone.gif", "gone"),
                         ("link.txt", secret.with_suffix(".txt")), ("folder", tmp_path)):
        (root / name).symlink_to(target)
    names = ["own.gif", "../secret.gif", "link.gif", str(secret), "folder/secret.gif", "nul\0.gif",
             "../../../secret.gif", "long" * 2000, "/dev/zero", ""]
    (root / "metadata.jsonl").write_text("\n".join(
        json.dumps({"file_name": name, "text": "said"}) for name in names))
    clips = FolderClips(root)
    assert decodings == ["good.gif", "own.gif"] and clips.words == ["good", "said"]
    assert "'link.gif' " in clips.notes[1] and "'../secret.gif' " in clips.notes[1]

@pytest.mark.parametrize("name,content", [
    ("empty.gif", b""), ("text.gif", b"hello " * 1000), ("program.gif", b"%!PS-Adobe-3.0 EPSF-3.0"),
    ("wide.gif", b"GIF89aPPPP\0\0\0," + bytes(9)), ("half.mp4", None),
    ("concat.mkv", b"ffconcat version 1.0\nfile other"),
    ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nother\n"), ("folder.gif", None), ("pipe.gif", None)])
def test_a_file_that_is_no_clip_is_named_and_opens_no_other(name, content):
    clip("x.gif")
    other = clip("other.mp4", np.arange(33) * 7).rename("other")
    bad = Path(name)
    bad.with_suffix(".txt").write_text("broken")
    if name == "folder.gif":
        bad.mkdir()
    elif name == "pipe.gif":
        os.mkfifo(bad)
    else:
        bad.write_bytes(other.read_bytes()[:1000] if content is None else content)
    clips = FolderClips(".")
    assert len(clips.clips) == 1 and f"'{name}' " in clips.notes[1]

def test_a_bomb_is_refused_or_cut_where_it_hides_its_length(monkeypatch):
    path = clip("a.gif", [0])
    imageio.imwrite(path, np.zeros((4096, 4096), np.uint8), plugin="pillow", mode="P")
    head, comma, frame = path.read_bytes().partition(b"," + bytes(4) + b"\0\x10\0\x10")
    frame = b"\x21\xf9\x04\0\2\0\0\0" + comma + frame[:-1]                      # 0.02 s
    path.write_bytes(head + frame * 1999 + b";")
    with pytest.raises(UserError, match="pixels in all its frames"):
        FolderClips(".")
    monkeypatch.setattr(own_clips, "MAX_PIXELS", 4096 ** 2 * 5)
    real = re.findall
    monkeypatch.setattr(re, "findall", lambda p, text: [] if b"Dur" in p else real(p, text))
    assert len(own_clips.decode_file(path, False)) == 2                           # 0.1 s

def test_no_clip_at_all_is_an_error_that_lists_why():
    with pytest.raises(UserError, match="it is empty"):
        FolderClips(".")
    for name in ("a.png", "b.png", "c.wmv", "a.gif"):
        Path(name).write_text("no clip and no caption")
    with pytest.raises(UserError, match="files of other kinds.* 2 .png, 1 .wmv; 'a.gif' cannot be"):
        FolderClips(".")

def test_a_clip_is_decoded_once_and_again_when_its_file_changes(decodings):
    clip("a.gif")
    clip("b.gif")
    first, again = FolderClips("."), FolderClips(".")
    assert decodings == ["a.gif", "b.gif"] and again.fingerprint == first.fingerprint
    clip("a.gif", [60, 80, 90])
    changed = FolderClips(".")
    assert decodings[2:] == ["a.gif"] and changed.fingerprint != first.fingerprint
    Path("a.txt").write_text("another caption")
    assert FolderClips(".").fingerprint != changed.fingerprint and len(decodings) == 3
    changed.clips[0][0].write_bytes(b"damaged")
    assert levels_of(FolderClips(".")(1)).max() > 0 and len(decodings) == 4

def test_killed_while_decoding_the_next_start_goes_on(decodings, monkeypatch):
    def save(file, frames, whole=np.save):
        if len(decodings) == 2:
            file.write(b"half")
            raise KeyboardInterrupt
        whole(file, frames)

    for name in "abc":
        clip(f"{name}.gif")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", save)
        FolderClips(".")
    assert len(FolderClips(".").clips) == 3
    assert decodings == ["a.gif", "b.gif", "b.gif", "c.gif"]

def test_a_full_disk_is_said_with_the_way_out(monkeypatch):
    clip("a.gif")
    monkeypatch.setattr(np, "save", lambda file, frames: os.write(os.open("/dev/full", 1), b"-"))
    with pytest.raises(UserError, match="No space left.*XDG_CACHE_HOME"):
        FolderClips(".")
    assert not os.listdir(os.environ["XDG_CACHE_HOME"] + "/own_clips")
