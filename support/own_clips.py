"""A folder of the user's clips as a source of clips, in the place of captioned Moving MNIST."""

import copy
import csv
import fileinput
import hashlib
import json
import os
import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from tqdm import tqdm

from data import ACTION, SIZE, Chooser
from support.console import UserError
from support.video import fit, no_bombs

MAX_FRAMES = 2000           # of a clip
MAX_PIXELS = 4096 * 4096    # of a frame; more would rather be an attack on memory
MAX_WORDS = 64              # of a caption; the rest is cut
GREY = 16                   # largest difference of a pixel's channels in a grey clip (MP4 is lossy)


def read_clip(path):
    """A GIF or MP4 file -> what it shows at ticks 0 ... 64 (65 c=3 h w) uint8, its number of frames
    and size "WxH". It is one action, whatever its length and rate: frame k of n equally long ones
    stands from tick 64 k/n on. Raises `UserError`, and for damaged files whatever imageio does."""
    import imageio.v3 as imageio
    gif, frames, shown = path.suffix.lower() == ".gif", [], []
    with open(path, "rb") as file:
        head = file.read(10)
    # important: no other formats; Pillow runs PostScript, ffmpeg follows play lists to other files
    if gif and head[:6] not in (b"GIF87a", b"GIF89a"):
        raise UserError("no GIF")
    if gif and np.frombuffer(head[6:], "<u2").prod(dtype=int) > MAX_PIXELS:
        raise UserError("too many pixels")
    mp4 = ["-f", "mov", "-max_pixels", str(MAX_PIXELS)]
    with no_bombs(), imageio.imopen(path, "r", plugin="pillow" if gif else "FFMPEG") as file:
        for frame in file.iter(mode="RGB") if gif else file.iter(input_params=mp4):
            if len(frames) == MAX_FRAMES:
                raise UserError(f"more than {MAX_FRAMES} frames")
            if frame[..., 0].size > MAX_PIXELS:  # a GIF's frame may be larger than its header says
                raise UserError("too many pixels")
            # a GIF has equal frames in a row as one, shown longer; browsers take 0 ms as 100
            shown.append(gif and file.metadata(index=len(frames)).get("duration") or 100)
            frames.append(fit(frame).round().byte())
    end = np.cumsum(shown)                                                           # n
    now = np.searchsorted(ACTION * end, np.arange(ACTION + 1) * end[-1], side="right")
    frames = torch.stack(frames)[now.clip(max=len(end) - 1)]
    return frames, len(end), f"{frame.shape[1]}x{frame.shape[0]}"


def caption_rows(path):
    """(clip, caption) pairs of a metadata.csv or metadata.jsonl (the Hugging Face folder
    convention); `UserError` for a wrong one."""
    with fileinput.FileInput(path, encoding="utf-8-sig", errors="replace") as lines:
        try:
            for row in (csv.DictReader(lines, strict=True) if path.suffix == ".csv" else
                        map(json.loads, filter(str.strip, lines))):
                if "\ufffd" in row["text"] + "":  # must be a string, and UTF-8
                    raise ValueError
                yield Path(os.path.normpath(path.parent / row["file_name"])), row["text"]
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error):
            raise UserError(f"{path}, line {lines.lineno()}: this is no file_name and text in "
                            "UTF-8") from None


def find_captions(root):
    """The clips in a folder and its sub-folders, {path: caption}, and {path: why} it is left out.

    Only files that lie in the folder are clips, or are opened at all, whatever captions name.
    """
    files = sorted(path for path in root.rglob("*")
                   if path.is_file() and path.resolve().is_relative_to(root))
    captions = {path: "" for path in files if path.suffix.lower() in (".gif", ".mp4")}
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    rows = [caption_rows(path) for path in files if path.name in ("metadata.csv", "metadata.jsonl")]
    left_out = {}
    for path, text in chain(*rows, ((path, texts.get(path.with_suffix(""))) for path in captions)):
        if path not in captions:
            left_out[path] = "is no GIF or MP4 file in the folder"
        elif not captions[path] and text:  # metadata first, then what stands beside the clip
            try:
                text = text if isinstance(text, str) else text.read_text("utf-8-sig")
            except (OSError, UnicodeError):
                left_out[path] = "has a caption that cannot be read as UTF-8"
                continue
            text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
            captions[path] = re.match(rf"(\W*\w+){{0,{MAX_WORDS}}}", text)[0]
    for path, text in captions.items():
        if not text:
            left_out.setdefault(path, "has no caption in words")
    return {path: text for path, text in captions.items() if text}, left_out


def few(items):
    """The first of some items, sorted, in words, and how many more there are."""
    more = f" and {len(items) - 10:,} more" if len(items) > 10 else ""
    return ", ".join(str(item)[:150] for item in sorted(items)[:10]) + more


def decode(root, captions, left_out, part, channels):
    """Write each clip's frames (65 c h w) uint8 into the file `part`, holding one clip at a time.

    Adds to `left_out`. Returns what clips.json says; None if a clip has colours and channels = 1.
    """
    kept = []
    with open(part, "wb") as file:
        size = len(captions) * (ACTION + 1) * channels * SIZE ** 2
        if size > (free := shutil.disk_usage(part.parent).free):
            raise UserError(f"the clips take {size / 1e9:.2f} GB, and {part.parent} has "
                            f"{free / 1e9:.2f} left: name another disk's folder with --out")
        for path, caption in tqdm(captions.items(), desc="decoding", disable=None):
            try:
                frames, *shape = read_clip(path)
            except Exception as error:  # imageio and its plug-ins raise anything for damaged files
                why = error if isinstance(error, UserError) else type(error).__name__
                left_out[path] = f"cannot be read ({why})"
                continue
            if channels == 1:
                if (frames.amax(1) - frames.amin(1)).max() > GREY:
                    return None
                frames = frames.float().mean(1).round().byte()
            file.write(frames.numpy().tobytes())
            kept.append((caption, *shape))
    why = few([f"{os.path.relpath(path, root)!r} {why}" for path, why in left_out.items()])
    if not kept:
        raise UserError(f"{root} has no clip to train on: {why or 'there is no GIF or MP4 file'}")
    captions, lengths, sizes = zip(*kept)
    note = (f"note: {len(kept):,} {'grey' if channels == 1 else 'colour'} clips of "
            f"{few({*lengths})} frames and {few({*sizes})} pixels are each fitted to one action of "
            f"3.2 seconds and to {SIZE}x{SIZE} pixels, black around"
            + f"\nnote: left out: {why}" * bool(why))
    return dict(captions=captions, channels=channels, note=note)


class FolderClips:
    """A folder's GIF and MP4 clips as a source of clips; a draw has what training asks of `Scenes`.

    Decoded once into `out`/clips.u8 (n 65 c h w) uint8, which is mapped, so that there may be more
    clips than memory; `out`/clips.json holds what else is known.
    """

    def __init__(self, folder, out):
        root, out = Path(folder).resolve(), Path(out)
        captions, left_out = find_captions(root)
        clips = [(str(path.relative_to(root)), text, path.stat().st_size, path.stat().st_mtime_ns)
                 for path, text in captions.items()]  # the folder itself may be moved
        out_of_it = sorted((os.path.relpath(path, root), why) for path, why in left_out.items())
        self.fingerprint = hashlib.sha256(
            repr((clips, out_of_it, SIZE, ACTION)).encode()).hexdigest()
        try:
            self.open(out)
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or others, or damaged
            out.mkdir(parents=True, exist_ok=True)
            part = out / "clips.part"
            try:
                info = (decode(root, captions, left_out, part, 1)  # grey as long as it can be
                        or decode(root, captions, left_out, part, 3))
            except BaseException:  # room is given back, also where there was too little
                part.unlink(missing_ok=True)
                raise
            (out / "clips.json").unlink(missing_ok=True)  # so that the two never disagree
            part.replace(out / "clips.u8")
            part.write_text(json.dumps({self.fingerprint: info}))
            part.replace(out / "clips.json")
            self.open(out)

    def open(self, out):
        """Map what was decoded from the same files; `note` says what it is."""
        info = json.loads((out / "clips.json").read_text())[self.fingerprint]
        self.captions, self.channels = info["captions"], info["channels"]
        self.frames = np.memmap(out / "clips.u8", np.uint8, "r", shape=(
            len(self.captions), ACTION + 1, self.channels, SIZE, SIZE))
        self.note = info["note"]

    def __call__(self, n, *, seed=0, start=0):
        """Draws start ... start + n - 1, each a clip that a hash of (seed, draw) chooses."""
        drawn, pick = copy.copy(self), Chooser(seed, "own clips", range(start, start + n))
        drawn.index = pick.below("clip", len(self.captions))                         # n
        drawn.captions = drawn.subjects = [self.captions[i] for i in drawn.index]
        drawn.motion = np.full((n, 1), -2)                                           # unknown
        return drawn

    def carry_on(self, pick, which):
        """Nothing is known of what came before: a continuation begins with the first frames."""
        return self

    def render(self, ticks, device="cpu"):
        """Clips (n c f h w) in [-1, 1] at `ticks` (f,) or (n f); windows that would begin before
        tick 0 are moved to begin there."""
        ticks = ticks - np.min(ticks, -1, keepdims=True).clip(max=0)
        x = torch.from_numpy(self.frames[self.index[:, None], ticks.astype(int)]).to(device)
        return rearrange(x, "n f c h w -> n c f h w").float() / 127.5 - 1
