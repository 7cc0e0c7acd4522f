"""A folder of the user's clips as a source of clips, in the place of captioned Moving MNIST.

    clips = FolderClips("holidays")          # with captions in metadata.csv or .jsonl, or in .txt
    draws = clips(8, seed=0)                 # which clips, which captions, where windows begin
    x = draws.render(np.arange(0, 65, 4))    # (n c f 64 64) in [-1, 1], 20 ticks a second

A window of 3.2 s begins anywhere in a longer clip; a shorter clip is stretched. Each is decoded
once into a file of the user's cache, which all runs share; a killed one goes on with what is there.
"""

import csv
import fileinput
import hashlib
import json
import os
import re
import subprocess
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from tqdm import tqdm

from support.console import UserError, printable

SIZE, ACTION, PAST = 64, 64, 12  # pixels a side; ticks of an action, and before a continuation
SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
MAX_SECONDS, MAX_PIXELS = 600, 2 ** 34  # of a clip, in all its frames: ffmpeg takes two minutes
MAX_WORDS, MAX_VOCABULARY = 64, 65_536  # of a caption, the rest is cut; of all captions
GREY = 16        # largest difference of a pixel's channels in a grey clip (MP4 is lossy)
# important: ffmpeg goes by the content, whatever the name, and would follow play lists elsewhere
SAFE = ["-nostdin", "-protocol_whitelist", "file", "-format_whitelist", "mov,matroska,avi,gif",
        "-max_pixels", str(4096 ** 2), "-t", str(MAX_SECONDS)]


def decode_file(path, crop):
    """A file -> frames (n c 64 64) uint8, 20 a second, c = 1 if all are grey, else 3: with black
    around, or the middle square. Of a damaged file what is left; ValueError if that is nothing."""
    import imageio_ffmpeg  # only here: training on a machine without it still works
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *SAFE, "-i", path]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).stderr
    # the largest of what it says: a title that reads like a size makes no clip look smaller
    pixels = max((int(w) * int(h) for w, h in re.findall(rb"Video: .*?, (\d+)x(\d+)", said)),
                 default=0)
    if not pixels:
        raise ValueError("ffmpeg finds no clip in it")
    rate = max(map(float, re.findall(rb"([\d.]+) fps", said)), default=0)
    for h, m, s in re.findall(rb"Duration: (\d+):(\d+):([\d.]+)", said):
        seconds = 3600 * int(h) + 60 * int(m) + float(s)
        if seconds > MAX_SECONDS or seconds * rate * pixels > MAX_PIXELS:
            raise ValueError(f"over {MAX_SECONDS} s, or {MAX_PIXELS:,} pixels in all its frames")
    # pictures may begin later than their sound: setpts has them begin at 0
    fit = "increase,crop={0}:{0}" if crop else "decrease,format=rgba,pad={0}:{0}:-1:-1"
    filters = (f"trim=end_frame={MAX_PIXELS // pixels},"  # files may lie about their length
               f"setpts=PTS-STARTPTS,fps=20,scale={SIZE}:{SIZE}:flags=bilinear:"
               f"force_original_aspect_ratio={fit.format(SIZE)}")
    command += ["-v", "error", "-map", "0:v:0", "-vf", filters, "-pix_fmt", "rgba"]
    done = subprocess.run([*command, "-f", "rawvideo", "-"], stdin=subprocess.DEVNULL,
                          capture_output=True)
    if done.returncode or not done.stdout:
        raise ValueError("ffmpeg: " + done.stderr.decode(errors="replace").split("\n")[0])
    rgba = np.frombuffer(done.stdout, np.uint8).reshape(-1, SIZE, SIZE, 4)
    x = rgba[..., :3] * (rgba[..., 3:] > 127)  # what is transparent is black
    if (x.max(-1) - x.min(-1)).max() <= GREY:
        x = ((x.sum(-1, dtype=np.uint16) + 1) // 3).astype(np.uint8)[..., None]  # mean, rounded
    return rearrange(x, "n h w c -> n c h w")


def decoded(path, crop):
    """The file of the cache that holds a clip's frames, made now unless it is there, and their
    shape (n c 64 64). ValueError as `decode_file`; UserError where it cannot be written."""
    about = path.stat()
    name = repr((str(path.resolve()), about.st_size, about.st_mtime_ns, crop, SIZE, GREY))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "own_clips"
    file = cache / (hashlib.sha256(name.encode()).hexdigest() + ".npy")
    try:
        return file, np.load(file, mmap_mode="r").shape
    except (OSError, ValueError):  # none yet, or damaged
        frames = decode_file(path, crop)
    part = file.with_suffix(f".{uuid.uuid4().hex}.part")  # another run may be at the same clip
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as out:
            np.save(out, frames)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"decoded clips cannot be kept in {cache} ({error.strerror or error}): "
                        "make room, or set XDG_CACHE_HOME to a folder on another disk") from None
    return file, frames.shape


def captions_of(table, left_out):
    """(clip, caption) pairs of a metadata.csv or .jsonl; bad rows are named in `left_out`."""
    with fileinput.FileInput(table, encoding="utf-8-sig", errors="replace") as file:
        rows = (csv.DictReader(file, strict=True) if table.suffix == ".csv"
                else map(json.loads, filter(str.strip, file)))
        while True:  # both go on after a row that cannot be read
            try:
                row = next(rows)
                if "file_name" not in row.keys() or not {"text", "caption"} & row.keys():
                    left_out[table] = f"lacks file_name or text (or caption), has {', '.join(row)}"
                    continue
                texts = row.get("text", row.get("caption"))
                texts = texts if isinstance(texts, list) else [texts]
                # a row with too many cells has them under None; \ufffd stands for what is no UTF-8
                if None in row or "\ufffd" in "".join([row["file_name"], *texts]):
                    raise ValueError
            except StopIteration:
                return
            except (csv.Error, ValueError, TypeError, AttributeError, RecursionError):
                left_out[f"{table}, line {file.lineno()}"] = "is no file_name and text in UTF-8"
                continue
            clip = Path(os.path.normpath(table.parent / row["file_name"]))
            yield from ((clip, text) for text in texts)


def find_captions(root, left_out):
    """The clips in a folder and its sub-folders, {path: [caption, ...]}; `left_out` gets {what:
    why}. Opens only what lies there, whatever rows name and links point to."""
    def readable(path):
        may = os.access(path, os.R_OK)
        if not may:
            left_out[path] = "cannot be read: you have no permission to"
        return may

    # Hugging Face's cache has folders of links to files in another one, called blobs
    blobs = next((path / "blobs" for path in root.parents if (path / "blobs").is_dir()), root)
    clips, beside, tables, others = {}, {}, [], Counter()
    for path in sorted(root.rglob("*")):
        kind = path.suffix.lower()
        if not path.is_file() or not {root, blobs} & {*path.resolve().parents}:
            if kind in SUFFIXES or path.is_file():
                left_out[path] = "is no file, or a link that leads out of the folder"
        elif kind in SUFFIXES:
            clips[path] = []
        elif kind == ".txt":
            beside[path.with_suffix("")] = path
        elif path.name in ("metadata.csv", "metadata.jsonl"):
            tables.append(path)
        else:
            others[kind or path.name] += 1
    for table in filter(readable, tables):
        for path, text in captions_of(table, left_out):
            if path in clips:
                clips[path].append(text)
            else:
                left_out[path] = "has a caption, and is no clip in the folder"
    for path, texts in clips.items():
        text = beside.get(path.with_suffix(""))
        if text and not texts and readable(text):
            with open(text, encoding="utf-8-sig", errors="replace") as file:
                texts = [file.read(10_000)]
        texts = [printable(text).lower() for text in texts if "\ufffd" not in text]
        texts = [" ".join(text.split()) for text in texts]
        texts = [re.match(rf"(\W*\w+){{0,{MAX_WORDS}}}", text)[0] for text in texts]
        clips[path] = [text for text in texts if text]
    if others:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(10))
        left_out["(files of other kinds)"] = kinds  # of all, "(" is sorted to the front
    return clips


def paint(outline, device="cpu"):
    """What an outline stands for: windows (n c f h w) in [-1, 1] on `device`."""
    files, frame, channels = outline
    x = np.empty((*frame.shape, channels, SIZE, SIZE), np.uint8)                     # n f c h w
    for i, file in enumerate(files):  # a grey clip fills all channels of a colour set
        x[i] = np.load(file, mmap_mode="r")[frame[i]]
    return rearrange(torch.from_numpy(x).to(device), "n f c h w -> n c f h w").float() / 127.5 - 1


class FolderClips:
    """The source. `notes` are sentences for the user; folders with one `fingerprint` hold the same
    clips, so that a run may be resumed on any of them."""
    paint = staticmethod(paint)

    def __init__(self, folder, crop=False):
        root, left_out, known = Path(folder).resolve(), {}, [crop]
        self.clips, self.channels = [], 1  # a clip: its file in the cache, frames, captions
        for path, texts in tqdm(find_captions(root, left_out).items(), "decoding", disable=None):
            try:
                if not texts:
                    raise ValueError("no caption in words and UTF-8")
                file, (frames, channels, *_) = decoded(path, crop)
            except (ValueError, OSError) as error:
                left_out[path] = f"cannot be used ({error})"
                continue
            self.clips.append((file, frames, texts))
            self.channels = max(self.channels, channels)
            known.append((path.relative_to(root).as_posix(), texts, path.stat().st_size, frames))
        why = sorted(f"{os.path.relpath(path, root)!r} {why}" for path, why in left_out.items())
        more = f"; and {len(why) - 10:,} more" if len(why) > 10 else ""
        why = printable("; ".join(line[:200] for line in why[:10]) + more).replace("\n", " ")
        if not self.clips:
            raise UserError(f"{root} has no clip to train on: {why or 'it is empty'}")
        self.fingerprint = hashlib.sha256(repr(known).encode()).hexdigest()
        words = [re.findall(r"\w+", text) for *_, texts in self.clips for text in texts]
        self.words, self.length = sorted(set().union(*words)), max(20, *map(len, words))
        if max(len(self.words), self.length) > MAX_VOCABULARY:
            raise UserError(f"{root} has captions of {len(self.words):,} different words, and at "
                            f"most {MAX_VOCABULARY:,} can be learned: use simpler captions")
        seconds = [frames / 20 for _, frames, _ in self.clips]
        self.notes = [f"{len(seconds):,} {'grey' if self.channels == 1 else 'colour'} clips of "
                      f"{min(seconds)} to {max(seconds)} s with {len(words):,} captions; "
                      f"{sum(s < 3.2 for s in seconds):,} are stretched to 3.2 s"]
        if why:
            self.notes.append(f"left out: {why}")

    def __call__(self, n, *, seed=0, start=0):
        """Draws start ... start + n - 1, each a function of (seed, its number) alone."""
        rows = []
        for number in range(start, start + n):
            draw = np.random.default_rng((seed, number))
            file, frames, texts = self.clips[draw.integers(len(self.clips))]
            begin = draw.integers(max(1, frames - ACTION))
            rows.append((file, frames, begin, texts[draw.integers(len(texts))]))
        files, frames, begin, captions = zip(*rows)
        return Draws(files, np.array(frames), np.array(begin), self.channels, list(captions),
                     list(captions), np.zeros(n, bool))


@dataclass
class Draws:
    """n windows of clips."""
    files: list             # where their clips' frames are
    frames: np.ndarray      # how many
    begin: np.ndarray       # the window's first one
    channels: int
    captions: list
    subjects: list          # the captions: nothing tells who is there
    steady: np.ndarray      # False: nothing tells whether all parts of a clip show the caption

    def carry_on(self, pick, which):
        """Draws where those of `which` (n,) begin late enough to have a past, if clips are long."""
        latest = np.maximum(0, self.frames - ACTION - 1)
        late = np.maximum(self.begin, np.minimum(PAST, latest))
        return replace(self, begin=np.where(which, late, self.begin))

    def render(self, ticks, device="cpu"):
        """Windows (n c f 64 64) in [-1, 1] at `ticks` (f,) or (n f), 20 a second."""
        return paint(self.outline(ticks), device)

    def outline(self, ticks):
        """Which frames of which files they are, at `ticks` 0 ... 64 and before, and how many
        channels. What would begin before its clip is moved to begin with the clip."""
        ticks = np.broadcast_to(ticks, (len(self.files), np.shape(ticks)[-1]))
        ticks = ticks + np.maximum(0, -self.begin - ticks.min(1))[:, None]
        # important: a clip shorter than the action is slowed down to last as long
        frame = self.begin[:, None] + ticks * self.frames.clip(max=ACTION)[:, None] // ACTION
        frame = np.minimum(frame, self.frames[:, None] - 1)                          # n f
        return self.files, torch.from_numpy(frame), self.channels
