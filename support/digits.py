"""Digit bitmaps: MNIST (LeCun et al. 1998) from disk, cache or net; else drawn from pen strokes.

MNIST is looked up in --data-root, in the user's cache, then at two public mirrors, and checked by
sha256. With none of them digits are drawn, so that the main job runs anywhere.
"""

import functools
import gzip
import hashlib
import http.client
import os
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from support.console import UserError

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/",        # as in torchvision
           "https://storage.googleapis.com/cvdf-datasets/mnist/")   # as in TFDS
MNIST = {  # split -> images, labels; their sha256
    "train": (("train-images-idx3-ubyte.gz",
               "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
              ("train-labels-idx1-ubyte.gz",
               "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c")),
    "test": (("t10k-images-idx3-ubyte.gz",
              "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
             ("t10k-labels-idx1-ubyte.gz",
              "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"))}


@dataclass(frozen=True)
class Digits:
    """Bitmaps of one split, sorted by label: count[k] of label k, from images[first[k]] on."""
    images: torch.Tensor  # (n 28 28) uint8
    first: np.ndarray     # (10,)
    count: np.ndarray     # (10,)
    boxes: np.ndarray     # (n lo-hi yx) the ink's extent [lo, hi) in bitmap pixels
    source: str           # "MNIST" or "drawn"

    @classmethod
    def from_labels(cls, images, labels, source):
        """Sort images (n 28 28) uint8 by their labels (n,) and find where their ink is."""
        images, count = images[np.argsort(labels, kind="stable")], np.bincount(labels, minlength=10)
        rows, columns = images.any(2), images.any(1)                                 # n 28
        low = np.stack([rows.argmax(1), columns.argmax(1)], -1)                      # n yx
        high = 28 - np.stack([rows[:, ::-1].argmax(1), columns[:, ::-1].argmax(1)], -1)
        return cls(torch.from_numpy(images), np.cumsum(count) - count, count,
                   np.stack([low, high], 1), source)


def mnist_file(name, sha256, data_root=None):
    """One MNIST file's bytes: from `data_root`, the user's cache or a mirror; None if nowhere."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moving_mnist"
    for path in [Path(folder) / name for folder in (data_root, cache) if folder]:
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise UserError(f"{path} is damaged (its sha256 is not MNIST's): delete it")
            return content
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=5) as reply:
                content = reply.read()
        except (OSError, http.client.HTTPException):
            continue
        if hashlib.sha256(content).hexdigest() == sha256:
            part = cache / f"{name}.{os.getpid()}.part"
            try:  # renamed when whole: a killed download never leaves half a file behind
                cache.mkdir(parents=True, exist_ok=True)
                part.write_bytes(content)
                part.replace(cache / name)
            except OSError:
                pass  # a read-only home only costs the next download
            return content
    return None


@functools.lru_cache(maxsize=None)
def load_digits(split="train", digits="auto", data_root=None):
    """The `Digits` of `split`, "train" or "test", which never mix. digits: "auto" takes MNIST, or
    says in one line that there is none and draws; "mnist" insists on it; "drawn" never looks."""
    if data_root is not None and not os.path.isdir(data_root):
        raise UserError(f"--data-root {data_root} is no folder: name one with MNIST's .gz files")
    if digits == "drawn":
        return draw_digits(split)
    images = mnist_file(*MNIST[split][0], data_root)
    # without images there is no look for labels, which would only cost more time-outs
    labels = mnist_file(*MNIST[split][1], data_root) if images else None
    if labels:  # IDX format: a header of 16 bytes before the images, of 8 before the labels
        images = np.frombuffer(gzip.decompress(images), np.uint8)[16:].reshape(-1, 28, 28)
        labels = np.frombuffer(gzip.decompress(labels), np.uint8)[8:].astype(np.int64)
        return Digits.from_labels(images, labels, "MNIST")
    if digits == "mnist":
        raise UserError("MNIST was not found: name a folder with its .gz files by --data-root")
    print(f"note: no MNIST on disk and no network, so the {split} digits are drawn from pen "
          "strokes (--data-root DIR names a folder with MNIST)", file=sys.stderr)
    return draw_digits(split)


def _arc(cy, cx, ry, rx, start, stop, n=12):
    """n points of an ellipse's arc; angles in degrees, 0 = right, 90 = down."""
    a = np.radians(np.linspace(start, stop, n))
    return np.stack([cy + ry * np.sin(a), cx + rx * np.cos(a)], -1)


STROKES = (  # of each digit: pen strokes, each a list of points (y, x) in a unit box, y down
    [[*_arc(.5, .5, .5, .33, -90, 270, 24)]],
    [[(.15, .35), (0, .52), (1, .52)]],
    [[*_arc(.27, .5, .27, .32, -160, 40), (1, .15), (1, .88)]],
    [[*_arc(.25, .45, .25, .33, -150, 90), *_arc(.74, .45, .26, .37, -90, 150)]],
    [[(0, .6), (.65, .1), (.65, .9)], [(.3, .68), (1, .68)]],
    [[(0, .82), (0, .25), (.45, .2), *_arc(.69, .47, .31, .36, -110, 140)]],
    [[(0, .7), (.35, .25), *_arc(.7, .5, .3, .32, -180, 190, 20)]],
    [[(0, .12), (0, .85), (1, .4)]],
    [[*_arc(.25, .5, .25, .27, 90, 450, 20)], [*_arc(.75, .5, .25, .33, -90, 270, 20)]],
    [[*_arc(.3, .47, .3, .32, 0, 360, 20), (1, .68)]])


def draw_digit(rng, strokes):
    """One bitmap (28 28) uint8, its slant, turn, size, width and wobble drawn from rng."""
    pixels = np.stack(np.mgrid[:28, :28], -1)[:, :, None] + .5               # y x 1 yx: centres
    turn, slant = rng.normal(0, .08), rng.normal(-.15, .15)
    size = rng.uniform(.85, 1) * np.array([17, rng.uniform(12, 15)])
    warp = np.array([[1, turn], [slant - turn, 1]])
    width, ink = rng.uniform(1, 1.8), np.zeros((28, 28))
    for stroke in strokes:
        knots, along = rng.normal(0, .025, (4, 2)), np.linspace(0, 3, len(stroke))
        wobble = np.stack([np.interp(along, range(4), knot) for knot in knots.T], -1)
        p = ((np.array(stroke) - .5 + wobble) @ warp.T * size).clip(-8, 8) + 14
        a, d = p[:-1], np.diff(p, axis=0)                                    # segments a -> a + d
        share = ((pixels - a) * d).sum(-1) / np.maximum((d * d).sum(-1), 1e-9)
        nearest = a + share.clip(0, 1)[..., None] * d                        # y x segment yx
        distance = np.linalg.norm(pixels - nearest, axis=-1).min(-1)         # y x
        ink = np.maximum(ink, (width + .5 - distance).clip(0, 1))
    # centred by mass, as MNIST is; by whole pixels, which keep the strokes' edges
    mass = np.array([(ink.sum(1 - k) @ np.arange(28)) / ink.sum() for k in (0, 1)])
    shift = np.round(13.5 - mass.clip(10.5, 16.5)).astype(int)
    return (np.roll(ink, shift, (0, 1)) * 255).round().astype(np.uint8)


def draw_digits(split):
    """`Digits` drawn from pen strokes, each 200 times for "train", 50 times for "test"."""
    seed, times = (1, 200) if split == "train" else (2, 50)  # two seeds: the splits share no digit
    rng, labels = np.random.default_rng(seed), np.repeat(range(10), times)
    images = np.stack([draw_digit(rng, STROKES[label]) for label in labels])
    return Digits.from_labels(images, labels, "drawn")
