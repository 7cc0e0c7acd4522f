"""Digit bitmaps: MNIST from disk, cache or net; else drawn from pen strokes.

MNIST: LeCun et al. 1998. It is looked up in --data-root, then in the user's cache, then fetched from
two public mirrors and checked by sha256. With none of them the digits are drawn, so that the main
job runs anywhere. Train and test digits never mix.
"""

import functools
import gzip
import hashlib
import http.client
import os
import sys
import urllib.request
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from support.console import UserError

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/",        # as in torchvision
           "https://storage.googleapis.com/cvdf-datasets/mnist/")   # as in TFDS
MNIST = {
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
    """Bitmaps of one split, sorted by label: images (n 28 28) uint8, first and count (10,), and
    boxes (n lo-hi yx), the ink's extent [lo, hi) in bitmap pixels."""
    images: torch.Tensor
    first: np.ndarray
    count: np.ndarray
    boxes: np.ndarray
    source: str

    @classmethod
    def from_labels(cls, images, labels, source):
        """Sort images (n 28 28) uint8 by their labels (n,) and find where their ink is."""
        images, count = images[np.argsort(labels, kind="stable")], np.bincount(labels, minlength=10)
        sides = [images.any(2), images.any(1)]                                       # n 28 each
        low = np.stack([side.argmax(-1) for side in sides], -1)
        high = np.stack([28 - side[:, ::-1].argmax(-1) for side in sides], -1)
        return cls(torch.from_numpy(images), np.cumsum(count) - count, count,
                   np.stack([low, high], 1), source)


def mnist_file(name, sha256, data_root=None):
    """One MNIST file's bytes: from `data_root`, the user's cache or a mirror; None if nowhere."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moving_mnist"
    for path in (Path(folder) / name for folder in (data_root, cache) if folder):
        if path.is_file():
            raw = path.read_bytes()
            if hashlib.sha256(raw).hexdigest() != sha256:
                raise UserError(f"{path} is damaged (its sha256 is not MNIST's): delete it or name "
                                "another folder with --data-root")
            return raw
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=5) as reply:
                raw = reply.read()
        except (OSError, http.client.HTTPException):
            continue
        if hashlib.sha256(raw).hexdigest() == sha256:
            try:  # atomic, so that a killed download never leaves half a file behind
                cache.mkdir(parents=True, exist_ok=True)
                part = cache / f"{name}.{os.getpid()}.part"
                part.write_bytes(raw)
                part.replace(cache / name)
            except OSError:
                pass  # a read-only home only costs the next download
            return raw
    return None


@functools.lru_cache(maxsize=None)
def load_digits(split="train", digits="auto", data_root=None):
    """The `Digits` of `split`, "train" or "test", which never mix.

    digits: "auto" takes MNIST and falls back to drawn digits with a one-line notice; "mnist" makes
    a missing MNIST a `UserError`; "drawn" never looks for it.
    """
    if data_root and not Path(data_root).is_dir():
        raise UserError(f"--data-root {data_root} is no folder: name the folder that holds the "
                        "MNIST .gz files, or leave the flag out")
    if digits != "drawn":
        raws = []
        for name, sha256 in MNIST[split]:  # a missing first file saves the second its time-outs
            raws.append(mnist_file(name, sha256, data_root))
            if raws[-1] is None:
                break
        else:
            # IDX: 16 bytes of header before the images, 8 before the labels
            images, labels = (np.frombuffer(gzip.decompress(raw), np.uint8) for raw in raws)
            images = rearrange(images[16:], "(n h w) -> n h w", h=28, w=28)
            return Digits.from_labels(images, labels[8:].astype(np.int64), "MNIST")
        if digits == "mnist":
            raise UserError("MNIST was not found and could not be fetched: put its four .gz files "
                            "into a folder and name it with --data-root, or use --digits drawn")
        print(f"note: no MNIST on disk and no network, so the {split} digits are drawn from pen "
              "strokes (--data-root DIR names a folder with MNIST)", file=sys.stderr)
    return draw_digits(split)


def _arc(cy, cx, ry, rx, start, stop, n=12):
    """n points of an ellipse's arc; angles in degrees, 0 = right, 90 = down."""
    a = np.radians(np.linspace(start, stop, n))
    return np.stack([cy + ry * np.sin(a), cx + rx * np.cos(a)], -1)


def _line(*points):
    return np.array(points, float)


STROKES = {  # pen strokes as (y, x) in a unit box, y down
    0: [_arc(.5, .5, .5, .33, -90, 270, 24)],
    1: [_line((.15, .35), (0, .52), (1, .52))],
    2: [np.concatenate([_arc(.27, .5, .27, .32, -160, 40), _line((1, .15), (1, .88))])],
    3: [np.concatenate([_arc(.25, .45, .25, .33, -150, 90), _arc(.74, .45, .26, .37, -90, 150)])],
    4: [_line((0, .6), (.65, .1), (.65, .9)), _line((.3, .68), (1, .68))],
    5: [np.concatenate([_line((0, .82), (0, .25), (.45, .2)),
                        _arc(.69, .47, .31, .36, -110, 140)])],
    6: [np.concatenate([_line((0, .7), (.35, .25)), _arc(.7, .5, .3, .32, -180, 190, 20)])],
    7: [_line((0, .12), (0, .85), (1, .4))],
    8: [_arc(.25, .5, .25, .27, 90, 450, 20), _arc(.75, .5, .25, .33, -90, 270, 20)],
    9: [np.concatenate([_arc(.3, .47, .3, .32, 0, 360, 20), _line((1, .68))])]}


def draw_digits(split, train=200, test=50):
    """`Digits` drawn from pen strokes with random slant, width, size, turn and wobble."""
    rng = np.random.default_rng({"train": 1, "test": 2}[split])
    pixels = np.stack(np.meshgrid(np.arange(28), np.arange(28), indexing="ij"), -1) + .5  # y x yx
    images, labels = [], []
    for label, _ in product(range(10), range({"train": train, "test": test}[split])):
        turn, slant = rng.normal(0, .08), rng.normal(-.15, .15)
        size = rng.uniform(.85, 1) * np.array([17, rng.uniform(12, 15)])
        warp = np.array([[1, turn], [slant - turn, 1]])
        width, ink = rng.uniform(1, 1.8), np.zeros((28, 28))
        for stroke in STROKES[label]:
            wobble = rng.normal(0, .025, (4, 2))
            smooth = np.linspace(0, 3, len(stroke))
            wobble = np.stack([np.interp(smooth, range(4), wobble[:, k]) for k in (0, 1)], -1)
            p = ((stroke - .5 + wobble) @ warp.T * size).clip(-8, 8) + 14
            a, d = p[:-1], np.diff(p, axis=0)                                # segments a -> a + d
            rel = pixels[:, :, None] - a                                     # y x segment yx
            along = ((rel * d).sum(-1) / np.maximum((d * d).sum(-1), 1e-9)).clip(0, 1)
            distance = np.linalg.norm(rel - along[..., None] * d, axis=-1).min(-1)
            ink = np.maximum(ink, (width + .5 - distance).clip(0, 1))
        # centred by mass, as MNIST is; whole pixels keep the strokes' edges
        mass = [(ink.sum(1 - k) @ np.arange(28)) / ink.sum() for k in (0, 1)]
        images.append(np.roll(ink, np.round(13.5 - np.clip(mass, 10.5, 16.5)).astype(int), (0, 1)))
        labels.append(label)
    images = (np.stack(images) * 255).round().astype(np.uint8)
    return Digits.from_labels(images, np.array(labels), "drawn")
