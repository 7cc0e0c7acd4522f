"""Captioned Moving MNIST, made on the fly, with the truth behind every caption.

A clip is one 28-pixel digit, or two different 20-pixel digits, moving over a black 64x64 frame for
one action of 3.2 seconds = ticks 0 ... 64. A caption drawn from a closed grammar (printed by
`python data.py`) says what moves where. All choices are hashes of (seed, index, field), so clip i
is the same clip on every machine, whatever the batch size, and nothing has to be stored.

    x, captions, truth = captioned_clips(8)       x: (b=8 c=1 f=32 h=64 w=64) in [-1, 1]

The digits are MNIST's (LeCun et al. 1998), or, where there is no MNIST and no network, drawn from
pen strokes. Moving MNIST: Srivastava et al. 2015 (arXiv:1502.04681); its captions: Mittal et al.
2017, "Sync-DRAW" (arXiv:1611.10314). Ours bind motion to time, so that obedience can be measured.
`FolderClips` gives clips of the user's own in their place. Run `python data.py` for a contact sheet
and the grammar, `python data.py --export DIR` to write such a folder.
"""

import argparse
import copy
import csv
import fileinput
import functools
import gzip
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import sys
import urllib.request
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, permutations, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from tqdm import tqdm

SIZE = 64         # pixels: height and width of a frame
ACTION = 64       # ticks in the whole action, 20 a second
STRIDES = {16: 4, 17: 4, 32: 2, 33: 2, 64: 1, 65: 1}  # frames that show the whole action -> ticks

GRAMMAR = """\
CAP = S | S M | S M and S M | two digits
S   = a digit | (a | the | digit | the digit | the number) N          N = 0-9 | zero-nine
M   = V D | V ADV D | V D ADV | V C then C' (C' is not C)
    | bouncing (left and right | up and down) | standing still
V   = moving | going | sliding         C = left | right | up | down
D   = C | (up | down) and (left | right)         ADV = slowly | quickly"""

NUMBERS = "zero one two three four five six seven eight nine".split()
SUBJECTS = ("a", "the", "digit", "the digit", "the number")
VERBS = ("moving", "going", "sliding")
ADVERBS = ("", "slowly", "quickly")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (dy, dx)
DIAGONALS = {f"{v} and {h}": (DIRECTIONS[v][0], DIRECTIONS[h][1])
             for v, h in product(("up", "down"), ("left", "right"))}
STRAIGHT = DIRECTIONS | DIAGONALS
# every motion -> its direction in the first and in the second half of the action
MOTIONS = ({name: (d, d) for name, d in STRAIGHT.items()}
           | {f"{a} then {b}": (DIRECTIONS[a], DIRECTIONS[b])
              for a, b in permutations(DIRECTIONS, 2)}
           | {"bouncing left and right": ((0, 1), (0, 1)), "bouncing up and down": ((1, 0), (1, 0)),
              "standing still": ((0, 0), (0, 0))})
NAMES = list(MOTIONS)
BOUNCES = np.array([name.startswith("bouncing") for name in NAMES])
KINDS = ("straight", "turn", "bounce", "still", "subject only", "two digits", "two moving")
WORDS = {"full": [*NUMBERS, *"0123456789", *SUBJECTS, *VERBS, *ADVERBS, *NAMES, "two digits"],
         "four": ["a", *"0123456789", "moving", *DIRECTIONS]}
VOCABULARY = {captions: sorted({*" ".join(words).split()}) for captions, words in WORDS.items()}


class UserError(Exception):
    """Something the user can mend: commands print its one sentence and exit with status 2."""


def exit_status(work):
    """Do a command's work(); what the user can mend becomes one sentence and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a caption's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        work()
        return 0
    except KeyboardInterrupt:
        print("\nstopped at once; files written before are intact", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        sentence = error
    except (RuntimeError, MemoryError) as error:  # devices have no common exception for it
        full = isinstance(error, MemoryError) or re.search("out of memory|can't alloc", str(error))
        if not full:
            raise
        sentence = "out of memory: lower --batch-size, or --num where clips are made"
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def number(kind, low, high):
    """An argparse type: an int or float in low ... high, or one sentence that says so."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} ... {high}")
        return value
    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


# ---- digits: MNIST from disk, cache or net; else pen strokes ------------------------------------

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


# ---- choices: a counter hash of (seed, index, field) ---------------------------------------------

def _mix(h):
    """One step of SplitMix64 (Steele et al. 2014), on uint64 arrays, which wrap silently."""
    h = h + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


class Chooser:
    """Choices that depend on (seed, split, index, field) only: integers, or fractions of 2^-24."""

    def __init__(self, seed, split, index):
        self.index = np.asarray(index)
        key = _mix(np.array([seed % 2**63], np.uint64) ^ np.uint64(zlib.crc32(split.encode())))
        self.base = _mix(key + self.index.astype(np.uint64))

    def _hash(self, field):
        return _mix(self.base ^ np.uint64(zlib.crc32(field.encode()))) >> np.uint64(40)

    def below(self, field, n):
        """Integers 0 ... n-1; n may be an array."""
        return (self._hash(field) * np.asarray(n).astype(np.uint64) >> np.uint64(24)).astype(int)

    def between(self, field, low, high):
        """Floats in [low, high)."""
        return low + self._hash(field).astype(float) / 2**24 * (high - low)


# ---- scenes: what happens in each clip, and what its caption says --------------------------------

@dataclass
class Scenes:
    """The truth behind n clips; slot 1 is empty (digit and motion -1) where there is one digit.

    kind (n,) index into KINDS; digit (n 2); motion (n 2) index into NAMES; named (n 2) whether the
    caption names the digit; adverb (n 2) index into ADVERBS; size (n,) pixels of a digit's box;
    start (n 2 yx) its corner at tick 0; legs (n 2 leg yx) pixels moved in each half of the action.
    """
    captions: list
    subjects: list   # the captions of stills: who is there, without the motion
    kind: np.ndarray
    digit: np.ndarray
    motion: np.ndarray
    named: np.ndarray
    adverb: np.ndarray
    size: np.ndarray
    start: np.ndarray
    legs: np.ndarray
    bitmap: np.ndarray
    digits: Digits
    before: np.ndarray = 0  # (n 2 yx) pixels a tick at ticks < 0, where a clip continues another

    def positions(self, ticks):
        """Corner of each digit's box at `ticks` (f,) or (n f): (n 2 f yx) pixels, y down.

        After tick 64 a motion goes on as in its second half. A digit that reaches a wall stops
        there, unless it bounces.
        """
        free = path(self.start, self.legs, ticks, self.before)
        room = (SIZE - self.size)[:, None, None, None]
        bounces = BOUNCES[self.motion][:, :, None, None]
        return np.where(bounces, reflect(free, room), free.clip(0, room))

    def carry_on(self, pick, which):
        """These scenes, where `which` (n,) is True as if they continued an earlier clip: begun
        anywhere in the frame, in half of them by digits that came, at ticks < 0, from another
        motion. `pick`: a `Chooser` of these clips."""
        def draw(field, draw_one):  # (n 2 ...)
            return np.stack([draw_one(f"{field}{slot}") for slot in (0, 1)], 1)

        room = (SIZE - self.size)[:, None, None]
        u = np.stack([draw(axis, lambda f: pick.between(f"on {f}", 0, 1)) for axis in "yx"], -1)
        unit = np.array(list(STRAIGHT.values()))[draw("came", lambda f: pick.below(f, 8))]
        other = unit * draw("speed", lambda f: pick.between(f, 8, 36))[..., None] / ACTION
        turned = pick.below("turned", 2)[:, None, None] == 1
        # two digits keep the places where they are known to be apart
        moved = (which & (self.size == 28))[:, None, None]
        return replace(self, start=np.where(moved, u * room, self.start),
                       before=np.where(turned, other, self.legs[:, :, 0] * 2 / ACTION))

    def render(self, ticks, device="cpu", scale=1):
        """Clips (n c=1 f h w) in [-1, 1] at `ticks` (f,) or (n f), composed on `device`; scale = 2
        makes them 128x128 and sharp, the truth of super-resolution."""
        paths = scale * torch.from_numpy(self.positions(ticks)).float().to(device)
        side = scale * SIZE
        frames = torch.zeros(len(paths), paths.shape[2], side, side, device=device)
        for slot in (0, 1):  # the brighter pixel wins
            i = torch.from_numpy(np.flatnonzero(self.digit[:, slot] >= 0))
            bitmaps = self.digits.images[torch.from_numpy(self.bitmap[:, slot])[i]].to(device)
            bitmaps = bitmaps.float() / 255 if scale == 1 else sharpen(bitmaps, scale)
            size, i = scale * torch.from_numpy(self.size)[i].to(device), i.to(device)
            frames[i] = torch.maximum(frames[i], compose(bitmaps, paths[i, slot], size, side))
        return rearrange(frames.clamp(max=1), "n f h w -> n 1 f h w") * 2 - 1


def path(start, legs, ticks, before=0):
    """Positions (n 2 f yx) of boxes that start at `start` and move by `legs`, as if no walls were
    there; at ticks < 0 they come with `before` (n 2 yx) pixels a tick."""
    t = np.broadcast_to(ticks, (len(start), np.shape(ticks)[-1]))[:, None, :, None]
    before = np.broadcast_to(before, start.shape)[:, :, None] * t.clip(max=0)
    t = t / (ACTION / 2)
    return (start[:, :, None] + before + legs[:, :, None, 0] * t.clip(0, 1)
            + legs[:, :, None, 1] * (t - 1).clip(min=0))                             # n 2 f yx


def reflect(where, room):
    """Fold positions on an endless line back into 0 ... room, as walls that bounce do."""
    return room - abs(where % (2 * room) - room)


def draw_motion(pick, attempt, motion, adverb, size):
    """Start (n yx) and legs (n leg yx) of one slot's motion; size is that of the digit's box."""
    room = (SIZE - size).astype(float)
    unit = np.array(list(MOTIONS.values()), float)[motion]                           # n leg yx
    turn = np.array([" then " in m for m in NAMES])[motion]
    bounce = BOUNCES[motion]
    low, high = np.array([(8, 36), (8, 13), (26, 36)], float).T
    travel = np.minimum(pick.between(f"travel{attempt}", low[adverb], high[adverb]), room - .5)
    travel = np.where(bounce, pick.between(f"path{attempt}", 54, 108)
                      * (1 - 2 * pick.below(f"sense{attempt}", 2)), travel)
    legs = unit * (travel / 2)[:, None, None]
    both = np.stack([pick.between(f"leg{k}{attempt}", 12, 28) for k in (0, 1)], -1)
    legs = np.where(turn[:, None, None], unit * both[..., None], legs)
    # the place at half time, such that straight paths stay off the walls and turns 4 px off them
    gap, off = np.where(turn, 4, .25)[:, None], .25
    first, second = legs[:, 0], legs[:, 1]
    free = bounce[:, None]
    low = np.where(free, 0, np.maximum(gap, np.maximum(off + first, off - second)))
    high = np.where(free, 0, np.maximum(gap, np.maximum(off - first, off + second)))
    high = room[:, None] - high
    u = np.stack([pick.between(f"{axis}{attempt}", 0, 1) for axis in "yx"], -1)
    return low + u * (high - low) - first, legs


def too_close(start, legs, size, box):
    """True (n,) where two digits' ink boxes touch in the first frame or in over a quarter of all.

    box (n 2 lo-hi yx): the bitmaps' ink boxes in bitmap pixels. One pixel of interpolation is added
    to each side, and in the first frame there must be 2 pixels between.
    """
    where = path(start, legs, np.arange(0, ACTION + 1, 2))                           # n 2 f yx
    where = reflect(where, (SIZE - size)[:, None, None, None])[:, :, :, None]        # n 2 f 1 yx
    ink = where + box[:, :, None] * (size / 28)[:, None, None, None, None]           # n 2 f lohi yx
    gap = np.maximum(ink[:, 0, :, 0] - ink[:, 1, :, 1], ink[:, 1, :, 0] - ink[:, 0, :, 1])
    gap = gap.max(-1) - 2                                                            # n f
    return (gap[:, 0] < 2) | ((gap < 0).sum(-1) > 8)


def phrase(motion, verb, adverb, adverb_first):
    """The words M of the grammar for a motion's name."""
    if motion.startswith(("bouncing", "standing")):
        return motion
    words = [ADVERBS[adverb], motion] if adverb_first else [motion, ADVERBS[adverb]]
    return " ".join(w for w in (VERBS[verb], *words) if w)


def make_scenes(n, *, seed=0, start=0, split="train", captions="full", digits=None):
    """`Scenes` of clips start ... start + n - 1. Even clips show one digit in straight motion.

    captions: "full", the whole grammar, or "four", only "a 3 moving left" with four directions.
    digits: a `Digits`, or None for `load_digits(split)`.
    """
    digits = digits or load_digits(split)
    index = np.arange(start, start + n)
    pick = Chooser(seed, split, index)
    # odd clips, of 16: turns 3, bounces 2, still 1, subject only 2, two digits 1, two moving 7
    odd = np.repeat([1, 2, 3, 4, 5, 6], [3, 2, 1, 2, 1, 7])[pick.below("kind", 16)]
    kind = np.where((index % 2 == 0) | (captions == "four"), 0, odd)
    two = kind >= KINDS.index("two digits")
    size = np.where(two, 20, 28)
    first = pick.below("digit0", 10)
    digit = np.stack([first, np.where(two, (first + 1 + pick.below("digit1", 9)) % 10, -1)], -1)
    bitmap = np.stack([digits.first[d] + pick.below(f"bitmap{k}", digits.count[d])
                       for k, d in enumerate(digit.T)], -1)
    named = np.stack([(pick.below(f"named{k}", 8) > 0) | (captions == "four") for k in (0, 1)], -1)
    motion, adverb = np.full((n, 2), -1), np.zeros((n, 2), int)
    begin, legs = np.zeros((n, 2, 2)), np.zeros((n, 2, 2, 2))
    box = digits.boxes[bitmap]

    # "two digits" are redrawn, motion and all, until they keep apart; the rest passes at once
    left, attempt = np.arange(n), 0
    while len(left):
        again = Chooser(seed, split, index[left])
        for k in (0, 1):
            m, a = draw_kind(again, f"{k}.{attempt}", kind[left], captions)
            motion[left, k], adverb[left, k] = m, a
            begin[left, k], legs[left, k] = draw_motion(again, f"{k}.{attempt}", m, a, size[left])
        bad = two[left] & too_close(begin[left], legs[left], size[left], box[left])
        left, attempt = left[bad], attempt + 1
    motion[~two, 1], adverb[~two, 1] = -1, 0
    return Scenes(*caption_all(pick, kind, digit, motion, named, adverb, captions), kind, digit,
                  motion, named, adverb, size, begin, legs, bitmap, digits)


def draw_kind(pick, attempt, kind, captions):
    """One slot's motion (index into NAMES) and adverb: as `kind` asks, free where it is silent."""
    four = captions == "four"
    group = np.repeat([0, 1, 2, 3], [8, 4, 3, 1])[pick.below(f"group{attempt}", 16)]
    group = np.where(kind < 4, kind, group)  # straight, turn, bounce, still
    straight = np.where(pick.below(f"diagonal{attempt}", 3 * (not four) + 1) == 3, 4, 0)
    straight = straight + pick.below(f"straight{attempt}", 4)
    motion = np.choose(group, [straight, 8 + pick.below(f"turn{attempt}", 12),
                               20 + pick.below(f"bounce{attempt}", 2), 22])
    says = (group == 0) & (not four) & ((kind == 0) | (kind == KINDS.index("two moving")))
    adverb = np.array([0, 0, 1, 2])[pick.below(f"adverb{attempt}", 4)] * says
    return motion, adverb


def caption_all(pick, kind, digit, motion, named, adverb, captions):
    """Captions and subjects (lists of str): the hashed choices put into the grammar's words."""
    word = {field: pick.below(field, n) for slot in "01" for field, n in
            ((f"subject{slot}", 10), (f"verb{slot}", 3), (f"first{slot}", 2))}
    out = []
    for i, k in enumerate(kind):
        who, does = [], []
        for slot in range(2 if digit[i, 1] >= 0 else 1):
            style, d = word[f"subject{slot}"][i], digit[i, slot]
            number = str(d) if captions == "four" or style < 5 else NUMBERS[d]
            name = "a" if captions == "four" else SUBJECTS[style % 5]
            who.append(f"{name} {number}" if named[i, slot] else "a digit")
            verb = 0 if captions == "four" else word[f"verb{slot}"][i]
            does.append(phrase(NAMES[motion[i, slot]], verb, adverb[i, slot],
                               word[f"first{slot}"][i]))
        full = " and ".join(f"{w} {d}" for w, d in zip(who, does))
        subject = " and ".join(who)
        out.append({"two digits": ("two digits",) * 2, "subject only": (subject,) * 2}.get(
            KINDS[k], (full, subject)))
    return [list(column) for column in zip(*out)]


# ---- pixels --------------------------------------------------------------------------------------

def compose(bitmaps, paths, size, side=SIZE):
    """Draw bitmaps (n s s) in [0, 1], one a clip, corners at paths (n f yx), boxes of `size` (n,).

    Returns frames (n f side side) in [0, 1]. Bilinear placing is a separable sum of hat functions,
    frame = Wy . bitmap . Wx^T, so that sub-pixel places and smaller boxes are one formula.
    """
    s = bitmaps.shape[-1]
    r = rearrange(s / size, "n -> n 1 1 1")                          # bitmap pixels per frame pixel
    pixel = torch.arange(side, device=paths.device) + .5
    u = (pixel - paths[..., None]) * r - .5                          # n f yx side, bitmap pixels
    taps = torch.arange(-2, s + 2, device=paths.device)
    w = (1 - (u[..., None] - taps).abs() / r[..., None]).relu()      # n f yx side s+4
    wy, wx = (w / w.sum(-1, keepdim=True).clamp(min=.5)).unbind(2)
    ink = F.pad(bitmaps, (2, 2, 2, 2))
    return wy @ rearrange(ink, "n i j -> n 1 i j") @ wx.mT


def sharpen(bitmaps, scale):
    """Bitmaps (n 28 28) uint8 -> (n 28*scale 28*scale) in [0, 1] with sharp edges: enlarged 8 times
    (bicubic), soft-thresholded at one half, averaged over areas."""
    large = F.interpolate(bitmaps[:, None].float() / 255, scale_factor=8, mode="bicubic")
    return F.avg_pool2d(((large - .5) * 4 + .5).clamp(0, 1), 8 // scale)[:, 0]


COLOURS = {"red": (255, 60, 60), "green": (60, 220, 60), "blue": (80, 120, 255),
           "yellow": (255, 230, 60), "pink": (255, 100, 220), "white": (255, 255, 255)}


def captioned_clips(n, *, seed=0, start=0, split="train", num_frames=32, device="cpu",
                    captions="full", digits=None, colour=False):
    """Clips start ... start + n - 1: x (n c=1 f h=64 w=64) in [-1, 1], captions, truth (`Scenes`).

    num_frames: 16 or 17, 32 or 33, 64 or 65: the whole action at 5, 10 or 20 frames a second.
    colour: c = 3 and "a red 3 moving left", for captions="four".
    The same (seed, split, index) gives the same clip on every machine (pixels within 1/255).
    """
    if num_frames not in STRIDES:
        raise UserError(f"num_frames is {num_frames}, but must be one of {list(STRIDES)}")
    scenes = make_scenes(n, seed=seed, start=start, split=split, captions=captions, digits=digits)
    x, texts = scenes.render(np.arange(num_frames) * STRIDES[num_frames], device), scenes.captions
    if colour:
        pick = Chooser(seed, "colour", range(start, start + n)).below("colour", len(COLOURS))
        ink = torch.tensor(list(COLOURS.values()), device=device)[pick] / 255
        x = (x + 1) * rearrange(ink, "n c -> n c 1 1 1") - 1
        texts = [f"a {list(COLOURS)[k]}{text.removeprefix('a')}" for k, text in zip(pick, texts)]
    return x, texts, scenes


# ---- own clips: a folder of GIF and MP4 files ----------------------------------------------------

MAX_FRAMES = 2000           # of a clip
MAX_PIXELS = 4096 * 4096    # of a frame; more would rather be an attack on memory
MAX_WORDS = 64              # of a caption; the rest is cut
GREY = 16                   # largest difference of a pixel's channels in a grey clip (MP4 is lossy)


@contextmanager
def no_bombs():
    """Pillow warns of pictures with over 89 million pixels; here it raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*decompression bomb")
        yield


def fit(picture, size=SIZE):
    """A picture (h w c) uint8 -> (c size size) float in 0 ... 255, c = 1 or 3: its longer side fits
    the frame, black fills the rest."""
    rgb = rearrange(torch.as_tensor(picture).float(), "h w c -> 1 c h w")
    rgb = rgb[:, :3 if rgb.shape[1] > 2 else 1]
    h, w = (max(1, round(side * size / max(rgb.shape[2:]))) for side in rgb.shape[2:])
    top, left = (size - h) // 2, (size - w) // 2
    small = F.interpolate(rgb, (h, w), mode="bilinear", antialias=True)[0]
    return F.pad(small, (left, size - w - left, top, size - h - top))


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


# ---- writing files -------------------------------------------------------------------------------

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


def export(folder, n, **options):
    """Write training clips 0 ... n - 1 into an empty folder, as --data takes them: GIFs of all 65
    ticks at 20 frames a second, and metadata.csv. options: those of `captioned_clips`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder with --export")
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "text"))
        for i in tqdm(range(n), desc="writing", disable=None):
            x, captions, _ = captioned_clips(1, start=i, num_frames=65, **options)
            write_clip(x, folder / f"{i:06d}.gif", fps=20)
            rows.writerow((f"{i:06d}.gif", *captions))


def main(argv=None):
    """Runs the command; returns its exit status."""
    p = argparse.ArgumentParser(description="Shows the grammar and, in data.png, some clips of "
                                "captioned Moving MNIST; or writes clips as files.")
    p.add_argument("--export", metavar="DIR", help="write a folder of GIFs for train.py --data")
    p.add_argument("--num", type=number(int, 1, 10**6), metavar="N",
                   help="clips (default: 2000 files, or 12 rows)")
    p.add_argument("--captions", choices=tuple(WORDS), help="default: full where only shown")
    p.add_argument("--colour", action="store_true", help='paint digits: "a red 3 moving left"')
    p.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N")
    p.add_argument("--digits", default="auto", choices=("auto", "mnist", "drawn"))
    p.add_argument("--data-root", metavar="DIR", help="folder with MNIST's .gz files")
    args = p.parse_args(argv)
    captions = args.captions or ("four" if args.export or args.colour else "full")
    n = args.num or (2000 if args.export else 12)

    def work():
        if args.colour and captions == "full":
            raise UserError("--colour goes with --captions four only")
        options = dict(seed=args.seed, captions=captions, colour=args.colour,
                       digits=load_digits("train", args.digits, args.data_root))
        if args.export:
            export(args.export, n, **options)
            print(f"{n} clips: python train.py --data {shlex.quote(args.export)}")
        else:
            x, texts, _ = captioned_clips(n, num_frames=16, **options)
            write_clip(x, "data.png", fps=5)
            print(GRAMMAR, "\ndata.png: 16 key frames of each clip, a row per caption", *texts,
                  sep="\n")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
