"""Captioned Moving MNIST, made on the fly, with the truth behind every caption.

A clip is one 28-pixel digit, or two different 20-pixel digits, moving over a black 64x64 frame for
one action of 3.2 seconds = ticks 0 ... 64. A caption drawn from a closed grammar (printed by
`python data.py`) says what moves where. All choices are hashes of (seed, index, field), so clip i
is the same clip on every machine, whatever the batch size, and nothing has to be stored.

    x, captions, truth = captioned_clips(8)       x: (b=8 c=1 f=32 h=64 w=64) in [-1, 1]

The digits are MNIST's (LeCun et al. 1998), or, where there is no MNIST and no network, drawn from
pen strokes. Moving MNIST: Srivastava et al. 2015 (arXiv:1502.04681); its captions: Mittal et al.
2017, "Sync-DRAW" (arXiv:1611.10314). Ours bind motion to time, so that obedience can be measured.
Run `python data.py` for a contact sheet
and the grammar, `python data.py --export DIR` to write such a folder.
"""

import argparse
import csv
import shlex
import sys
import zlib
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from tqdm import tqdm

from support.console import UserError, exit_status, number
from support.digits import Digits, load_digits
from support.video import write_clip

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
