"""Clips and pictures as files: GIF, MP4 and PNG out; PNG, JPEG and GIF pictures in."""

import csv
import errno
import os
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from tqdm import tqdm

from support.console import UserError, write_whole

LINE = 2  # pixels of grey between neighbours


@contextmanager
def no_bombs():
    """Pillow only warns of pictures with over 89 million pixels; here it raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*decompression bomb")
        yield


def fit(picture, size=64):
    """A picture (h w c) in 0 ... 255 -> (c=1|3 size size), its longer side fitted, black around."""
    rgb = rearrange(torch.as_tensor(picture).float(), "h w c -> 1 c h w")
    rgb = rgb[:, :3] if rgb.shape[1] > 2 else rgb[:, :1]
    h, w = (max(1, round(side * size / max(rgb.shape[2:]))) for side in rgb.shape[2:])
    top, left = (size - h) // 2, (size - w) // 2
    small = F.interpolate(rgb, (h, w), mode="bilinear", antialias=True)[0]
    return F.pad(small, (left, size - w - left, top, size - h - top))


def read_picture(path, size, channels):
    """A PNG, JPEG or GIF file -> x (c 1 h w) in [-1, 1], c = `channels` (1 or 3), h = w = `size`,
    and a note on what was done to fit it. What is transparent becomes black."""
    import imageio.v3 as imageio
    if not os.fspath(path):
        raise UserError("--image names no file")
    try:
        if not os.path.isfile(path):
            raise UserError("no such file")  # nor wait for ever for what a pipe will say
        with open(path, "rb") as file:
            head = file.read(26)
        # important: judged by its first bytes. Pillow would run PostScript, which is a program, and
        # find it inside of other formats; and it would turn 16-bit grey white.
        if not head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")):
            raise UserError("another format")
        if head[1:4] == b"PNG" and head[24:] == b"\x10\0":
            raise UserError("16-bit grey")
        with no_bombs():
            picture = imageio.imread(path, plugin="pillow", index=0, mode="RGBA", rotate=True)
    except Exception as error:  # imageio raises what its plug-ins raise
        why = error if isinstance(error, UserError) else type(error).__name__
        raise UserError(f"{path} cannot be read as a PNG, JPEG or GIF picture: {why}") from None
    x = fit(picture[..., :3] * (picture[..., 3:] / np.float32(255)), size)
    x, kind = (x.mean(0, keepdim=True), "grey") if channels == 1 else (x, "colour")
    was = f"{picture.shape[1]}x{picture.shape[0]}"
    note = f"{path}: {was} pixels fitted to {size}x{size} in {kind}, black around"
    return rearrange(x, "c h w -> c 1 h w") / 127.5 - 1, note


def check_clip_path(path):
    """Raise `UserError` unless `write_clip` can write to `path`: to be asked before long work."""
    if not os.fspath(path):
        raise UserError("--out names no file")
    there, folder = os.path.exists(path), Path(path).parent
    if there and not os.path.isfile(path):  # a pipe would let us wait for ever
        raise UserError(f"{path} is no regular file: name another one")
    if Path(path).suffix.lower() not in (".gif", ".mp4", ".png"):
        raise UserError(f"{path} has no known type: name a file that ends in .gif, .mp4 or .png")
    if not folder.is_dir() or not os.access(path if there else folder, os.W_OK):
        raise UserError(f"{path} cannot be written: name a file in an existing folder of yours")


def enlarge(x, scale):
    """Frames x (... h w) with every pixel as a square of scale x scale: nothing is invented."""
    return repeat(x, "... h w -> ... (h p) (w q)", p=scale, q=scale)


def grid(x, columns):
    """Frames x (n c h w) in rows of `columns` -> one picture (h' w' c), a grey line between."""
    lined = F.pad(x, (0, LINE, 0, LINE), value=64)
    rows = rearrange(lined, "(r k) c h w -> (r h) (k w) c", k=columns)
    return rows[:-LINE, :-LINE]


def write_clip(x, path, fps=10, scale=1):
    """Write x (c f h w) or (b c f h w) in [-1, 1], c = 1 or 3, as .gif (loops), .mp4 or .png:
    several clips as one grid; in a .png frames lie side by side, a row for each clip. scale:
    pixels a side that show one of x, for viewing."""
    import imageio.v3 as imageio  # only here: training on a machine without it still works
    check_clip_path(path)
    x = x[None] if x.ndim == 4 else x
    x = ((x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    x, suffix = enlarge(x, scale), Path(path).suffix.lower()
    if suffix == ".png":
        frames = grid(rearrange(x, "b c f h w -> (b f) c h w"), columns=x.shape[2]).numpy()
        frames, options = frames.squeeze(-1) if frames.shape[-1] == 1 else frames, {}
    else:
        columns = int(np.ceil(len(x) ** .5))
        blank = torch.zeros(-len(x) % columns, *x.shape[1:], dtype=x.dtype)
        x = rearrange(torch.cat([x, blank]), "b c f h w -> f b c h w")
        frames = torch.stack([grid(frame, columns) for frame in x]).numpy()
        frames = frames.repeat(3 // frames.shape[-1], -1)  # some readers fail on GIFs of pure greys
        if suffix == ".mp4":
            options = dict(fps=fps, codec="libx264", quality=9, macro_block_size=2)
        else:  # GIFs count in 1/100 s: frames of unequal length, that sum up as fps says
            times = 10 * np.diff(np.round(np.arange(len(frames) + 1) * 100 / fps))
            options = dict(duration=times.tolist() if len(times) > 1 else times[0], loop=0)
    # in memory first: ffmpeg would not tell of a full disk, nor Pillow close its file there
    content = imageio.imwrite("<bytes>", frames, extension=suffix, **options)
    if suffix == ".mp4" and b"moov" not in content:  # ffmpeg wrote to a full disk and was silent
        raise OSError(errno.ENOSPC, "No space left on device", tempfile.gettempdir())
    write_whole(path, content)


def write_folder(folder, n, make):
    """Write clips make(0) ... make(n - 1) -> x, [caption] as GIFs at 20 fps and metadata.csv."""
    if not os.fspath(folder) or (os.path.isdir(folder) and os.listdir(folder)):
        raise UserError(f"--export '{folder}' is no new or empty folder: name another one")
    os.makedirs(folder, exist_ok=True)
    with open(Path(folder) / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "text"))
        for i in tqdm(range(n), desc="writing", disable=None):
            x, captions = make(i)
            write_clip(x, Path(folder) / f"{i:06d}.gif", fps=20)
            rows.writerow((f"{i:06d}.gif", *captions))
