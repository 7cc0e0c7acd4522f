"""Clips and pictures as files: GIF, MP4 and PNG, in and out."""

import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from support.console import UserError


@contextmanager
def no_bombs():
    """Pillow warns of pictures with over 89 million pixels; here it raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*decompression bomb")
        yield


def fit(picture, size=64):
    """A picture (h w c) uint8 -> (c size size) float in 0 ... 255, c = 1 or 3: its longer side fits
    the frame, black fills the rest."""
    rgb = rearrange(torch.as_tensor(picture).float(), "h w c -> 1 c h w")
    rgb = rgb[:, :3 if rgb.shape[1] > 2 else 1]
    h, w = (max(1, round(side * size / max(rgb.shape[2:]))) for side in rgb.shape[2:])
    top, left = (size - h) // 2, (size - w) // 2
    small = F.interpolate(rgb, (h, w), mode="bilinear", antialias=True)[0]
    return F.pad(small, (left, size - w - left, top, size - h - top))


def check_clip_path(path):
    """Raise `UserError` unless `write_clip` can write to `path`: to be asked before long work."""
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".mp4", ".png"):
        raise UserError(f"{path} has no known type: name a file that ends in .gif, .mp4 or .png")
    if path.is_dir() or not path.parent.is_dir() or not os.access(
            path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: name a file in an existing folder of yours")


def write_clip(x, path, fps=10):
    """Write x (c f h w) or (b c f h w) in [-1, 1], c = 1 or 3, as .gif (loops), .mp4 or .png.

    Several clips make one grid; a .png is a strip, frames side by side and a row per clip.
    """
    import imageio.v3 as imageio  # only here: training on a machine without it still works
    check_clip_path(path)
    x = x[None] if x.ndim == 4 else x
    x = ((x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    x = x if x.shape[1] == 3 else x.expand(-1, 1, -1, -1, -1)
    suffix = Path(path).suffix.lower()
    if suffix == ".png":
        frames, options = rearrange(x, "b c f h w -> (b h) (f w) c").numpy(), {}
        frames = frames.squeeze(-1) if frames.shape[-1] == 1 else frames
    else:
        columns = int(np.ceil(len(x) ** .5))
        blank = torch.zeros(-len(x) % columns, *x.shape[1:], dtype=x.dtype)
        if len(x) > 1:  # a grey line between neighbours
            x = F.pad(torch.cat([x, blank]), (0, 2, 0, 2), value=64)
        frames = rearrange(x, "(r k) c f h w -> f (r h) (k w) c", k=columns).numpy()
        frames = frames.repeat(3 // frames.shape[-1], -1)  # some readers fail on GIFs of pure greys
        times = np.round(np.arange(len(frames) + 1) * 100 / fps)  # GIFs count in 1/100 s
        times = (10 * np.diff(times)).tolist()
        options = (dict(fps=fps, codec="libx264", quality=9, macro_block_size=2) if suffix == ".mp4"
                   else dict(duration=times if len(times) > 1 else times[0], loop=0))
    # in memory first: ffmpeg would not tell of a full disk, nor Pillow close its file there
    Path(path).write_bytes(imageio.imwrite("<bytes>", frames, extension=suffix, **options))
