"""Captioned Moving MNIST, made on the fly: a small language, scenes that obey it, their pixels.

    x, captions, truth = captioned_clips(8)       x: (n=8 c=1 f=32 h=64 w=64) in [-1, 1]

One 28-pixel digit, or two different 20-pixel digits, move over a black 64x64 frame for one action
of 3.2 seconds = ticks 0 ... 64. The caption, in a closed grammar, says what moves where; `Scenes`
keep the truth behind it, so that a model's obedience can be measured. Nothing is stored: clip i is
a function of (seed, split, i), the same on every machine and in any batch (support/choices.py).
Moving MNIST: Srivastava et al. 2015 (arXiv:1502.04681); captioned: Mittal et al. 2017 (1611.10314).

    python data.py                   prints the grammar and shows some clips in data.png
    python data.py --export DIR      writes captioned GIFs, a folder that train.py --data takes
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat

from support.choices import Chooser
from support.console import (DATA_ROOT, DIGITS, SEED, UserError, add_flags, exit_status, number,
                             one_of)
from support.digits import Digits, load_digits
from support.plots import write_captioned
from support.video import write_clip, write_folder
from text_encoder import words_of

SIZE = 64         # pixels: height and width of a frame
ACTION = 64       # ticks in the whole action, 20 a second
STRIDE_OF = {16: 4, 17: 4, 32: 2, 33: 2, 64: 1, 65: 1}  # frames that show the whole action -> ticks

# ---- the language --------------------------------------------------------------------------------
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
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (dy, dx), y down
STRAIGHT = DIRECTIONS | {"up and left": (-1, -1), "up and right": (-1, 1),
                         "down and left": (1, -1), "down and right": (1, 1)}
# every motion -> its directions in the two halves of the action: its two legs
MOTIONS = {name: (direction, direction) for name, direction in STRAIGHT.items()}
MOTIONS |= {f"{a} then {b}": (DIRECTIONS[a], DIRECTIONS[b]) for a, b in permutations(DIRECTIONS, 2)}
MOTIONS |= {"bouncing left and right": ((0, 1), (0, 1)), "bouncing up and down": ((1, 0), (1, 0)),
            "standing still": ((0, 0), (0, 0))}
NAMES = list(MOTIONS)
FIRST_TURN, FIRST_BOUNCE, STILL = 8, 20, 22  # in NAMES; the 4 directions and 4 diagonals come first
# What a clip shows. The first four kinds are one digit with that motion, told by the caption.
KINDS = ("straight", "turn", "bounce", "still", "subject only", "two digits", "two moving")
SUBJECT_ONLY, TWO_DIGITS = 4, 5              # tell no motion
# Of 32 clips so many show each kind: what is hard to learn comes more often. For the same reason
# half of the single digits are not named (a caption's number tells each frame which digit it is;
# without it the frames must agree), but only one of eight where two move.
OFTEN = (8, 4, 4, 1, 1, 1, 13)
# --captions: "full", the whole grammar, or "four", only "a 3 moving left" and four directions
FULL = " ".join((*NUMBERS, *"0123456789", *SUBJECTS, *VERBS, *ADVERBS, *NAMES, "two digits"))
VOCABULARY = {"full": sorted({*FULL.split()}),
              "four": sorted({"a", *"0123456789", "moving", *DIRECTIONS})}

# ---- motions -------------------------------------------------------------------------------------
# NAMES as arrays. Where there is no second digit, motion -1 finds the last name, standing still.
UNIT = np.array(list(MOTIONS.values()), float)                                       # name leg yx
TURNS = np.array([" then " in name for name in NAMES])
BOUNCES = np.array([name.startswith("bouncing") for name in NAMES])
TRAVEL = np.array([(8, 8, 26), (36, 13, 36)], float)  # least and most pixels for each of ADVERBS


def draw_motion(pick, attempt, kind, size, captions):
    """How both digits of clips of `kind` (n 1) move, in boxes of `size` (n 1) pixels: motion and
    adverb (n 2), indices into NAMES and ADVERBS; start (n 2 yx), the corners of the boxes at tick
    0; legs (n 2 leg yx), the pixels moved in each half of the action."""
    # which motion: the kind's, or where it asks for none, mostly a straight one
    free = pick.weighted(f"group*.{attempt}", (8, 4, 3, 1))      # straight, turn, bounce, still
    group = np.where(kind < SUBJECT_ONLY, kind, free)
    straight = pick.below(f"straight*.{attempt}", 4)
    if captions == "full":
        straight[pick.below(f"diagonal*.{attempt}", 4) == 3] += 4  # from direction to diagonal
    turn = FIRST_TURN + pick.below(f"turn*.{attempt}", 12)
    bounce = FIRST_BOUNCE + pick.below(f"bounce*.{attempt}", 2)
    motion = np.choose(group, (straight, turn, bounce, STILL))
    silent = (kind == SUBJECT_ONLY) | (kind == TWO_DIGITS) | (captions == "four")
    adverb = pick.weighted(f"adverb*.{attempt}", (2, 1, 1))      # half of them without
    adverb[silent | (group > 0)] = 0

    # how far: a bounce's way is long enough to meet a wall, on either side
    turns, bounces = TURNS[motion], BOUNCES[motion]
    room = SIZE - size.astype(float)                             # a corner may be at 0 ... room
    travel = np.minimum(pick.between(f"travel*.{attempt}", *TRAVEL[:, adverb]), room - .5)
    zigzag = pick.between(f"path*.{attempt}", 54, 108)
    sense = 1 - 2 * pick.below(f"sense*.{attempt}", 2)
    half = np.where(bounces, sense * zigzag, travel) / 2
    legs = [np.where(turns, pick.between(f"leg{k}*.{attempt}", 12, 28), half) for k in (0, 1)]
    legs = UNIT[motion] * np.stack(legs, -1)[..., None]                              # n 2 leg yx

    # from where: the place at half time is drawn first. There a turn keeps 4 pixels off the walls,
    # lest it look like a bounce; start and end keep off a quarter pixel; a bounce may be anywhere.
    first, second, room = legs[:, :, 0], legs[:, :, 1], room[..., None]              # n 2 yx
    off, keeps = np.where(turns, 4, .25)[..., None], ~bounces[..., None]
    low = keeps * np.maximum(off, .25 + np.maximum(first, -second))
    high = room - keeps * np.maximum(off, .25 + np.maximum(-first, second))
    share = np.stack([pick.between(f"{axis}*.{attempt}", 0, 1) for axis in "yx"], -1)
    return motion, adverb, low + share * (high - low) - first, legs

# ---- scenes --------------------------------------------------------------------------------------
@dataclass
class Scenes:
    """The truth behind n clips. Where there is one digit, the second slot's digit is -1."""
    captions: list          # n strings
    subjects: list          # n strings, captions of stills: who is there, without the motion
    kind: np.ndarray        # (n,) index into KINDS
    digit: np.ndarray       # (n 2) 0 ... 9
    motion: np.ndarray      # (n 2) index into NAMES
    named: np.ndarray       # (n 2) does the caption name the digit?
    adverb: np.ndarray      # (n 2) index into ADVERBS
    size: np.ndarray        # (n,) side of the digits' boxes in pixels
    start: np.ndarray       # (n 2 yx) corners of the boxes at tick 0
    legs: np.ndarray        # (n 2 leg yx) pixels moved in each half of the action
    bitmap: np.ndarray      # (n 2) index into digits.images
    digits: Digits
    before: np.ndarray = 0  # (n 2 yx) pixels a tick at ticks < 0, where a clip continues another

    @property
    def steady(self):
        """(n,) Does every part of the action show what the caption says? Half a turn does not."""
        return ~(TURNS | BOUNCES)[self.motion].any(1)

    def positions(self, ticks):
        """Corners (n 2 f yx) of the digits' boxes in pixels at `ticks` (f,) or (n f). After the
        action they go on as in its second half. Walls stop what does not bounce."""
        t = np.atleast_2d(ticks)[:, None, :, None]                                   # n 1 f 1
        half = t / (ACTION / 2)
        came = np.broadcast_to(self.before, self.start.shape)[:, :, None] * t.clip(max=0)
        first = self.legs[:, :, None, 0] * half.clip(0, 1)
        second = self.legs[:, :, None, 1] * (half - 1).clip(min=0)
        free = self.start[:, :, None] + came + first + second    # as if there were no walls
        room = (SIZE - self.size)[:, None, None, None]
        folded = room - abs(free % (2 * room) - room)            # as walls throw it to and fro
        return np.where(BOUNCES[self.motion][..., None, None], folded, free.clip(0, room))

    def too_close(self):
        """(n,) Do two digits begin with their ink less than 2 pixels apart, or overlap in more than
        a quarter of 33 frames?"""
        ink = self.digits.boxes[self.bitmap] * (self.size / 28)[:, None, None, None]  # n 2 lohi yx
        corner = self.positions(np.arange(0, ACTION + 1, 2))                         # n 2 f yx
        low, high = corner + ink[:, :, :1], corner + ink[:, :, 1:]
        # the gap on the better axis, less the pixel that interpolation adds to each digit
        gap = np.maximum(low[:, 0] - high[:, 1], low[:, 1] - high[:, 0]).max(-1) - 2  # n f
        return (gap[:, 0] < 2) | ((gap < 0).sum(-1) > 8)

    def carry_on(self, pick, which):
        """These scenes, where `which` (n,) is True as if they continued an earlier clip: a single
        digit begins anywhere, and half of all come from another motion. pick: a `Chooser`."""
        share = np.stack([pick.between(f"on {axis}*", 0, 1) for axis in "yx"], -1)   # n 2 yx
        anywhere = share * (SIZE - self.size)[:, None, None]
        other = UNIT[pick.below("came*", len(STRAIGHT)), 0]                          # n 2 yx
        other = other * pick.between("speed*", 8, 36)[..., None] / ACTION
        own = self.legs[:, :, 0] / (ACTION / 2)
        turned = pick.below("turned", 2)[:, None, None] == 1
        single = self.digit[:, 1] < 0            # two digits stay where they are known to be apart
        return replace(self, before=np.where(turned, other, own),
                       start=np.where((which & single)[:, None, None], anywhere, self.start))

    def render(self, ticks, device="cpu"):
        """Clips (n c=1 f h w) in [-1, 1] at `ticks` (f,) or (n f), composed on `device`."""
        return paint(self.outline(ticks), device)

    def outline(self, ticks):
        """The few numbers that `paint` needs for clips (n c=1 f h w) at `ticks` (f,) or (n f)."""
        slots = 2 if (self.digit[:, 1] >= 0).any() else 1
        bitmaps = self.digits.images[self.bitmap[:, :slots]]                         # n slot 28 28
        bitmaps[torch.from_numpy(self.digit[:, :slots] < 0)] = 0                # dark, if not there
        corner = torch.from_numpy(self.positions(ticks)[:, :slots]).float()        # n slot f yx
        return bitmaps, corner, torch.from_numpy(self.size)

# ---- captions ------------------------------------------------------------------------------------
def describe(digit, named, style, motion, verb, adverb, adverb_first):
    """S and M of the grammar for one digit. style 0-4: SUBJECTS with a figure; 5-9: with a word."""
    subject = f"{SUBJECTS[style % 5]} {digit if style < 5 else NUMBERS[digit]}"
    words = [VERBS[verb], NAMES[motion]] if motion < FIRST_BOUNCE else [NAMES[motion]]
    if adverb:
        words.insert(1 if adverb_first else 2, ADVERBS[adverb])
    return subject if named else "a digit", " ".join(words)


def draw_unsaid(captions, known, seed, i):
    """The captions of clip i, one after the other in time, with a name drawn for its digit if they
    leave it open: from ["a digit moving left"] to ["a 3 moving left"]. For ["two digits"] names and
    motions are drawn. known: the model's words; without all figures among them, or for two digits
    all words of ours, it learned from other clips than these, and nothing is drawn.

    It asks for what it asked for, as all names are equally likely in the data. But what a network
    makes in one go lies between its choices now and then, here between a 4 and a 9 (mode
    interpolation, Aithal et al. 2024, 2406.09358); a drawn name never does. DALL-E 3 has its
    captions completed for the like reasons (Betker et al. 2023).
    """
    lines = [words_of(caption) for caption in captions]
    pick = Chooser(seed, "names", [i])
    name = pick.below("name", 10)[0]
    if {*VOCABULARY["full"]} <= {*known} and all(line == ["two", "digits"] for line in lines):
        other = (name + 1 + pick.below("other", 9)[0]) % 10
        # as `MovingMNIST.draw` draws them; where they start is for the network to say
        motions = draw_motion(pick, 0, np.array([[TWO_DIGITS]]), np.array([[20]]), "full")[0][0]
        said = [describe(digit, True, 0, motion, 0, 0, False)
                for digit, motion in zip((name, other), motions)]
        return [" and ".join(f"{who} {does}" for who, does in said)] * len(lines)
    told = {*NUMBERS, *"0123456789"} & {word for line in lines for word in line}
    if told or not {*"0123456789"} <= {*known} or any(line.count("digit") != 1 for line in lines):
        return list(captions)
    return [" ".join(str(name) if word == "digit" else word for word in line) for line in lines]


def write_captions(scenes, pick, captions):
    """Captions and subjects of `scenes`, n strings each."""
    style, verb = pick.below("subject*", 10), pick.below("verb*", 3)
    if captions == "four":
        style[:], verb[:] = 0, 0  # "a 3", "moving"
    choices = np.stack([scenes.digit, scenes.named, style, scenes.motion, verb, scenes.adverb,
                        pick.below("first*", 2)], -1)                                # n 2 choice
    texts, subjects = [], []
    for kind, slots in zip(scenes.kind, choices.tolist()):
        said = [describe(*slot) for slot in slots if slot[0] >= 0]
        subject = "two digits" if kind == TWO_DIGITS else " and ".join(who for who, _ in said)
        text = " and ".join(f"{who} {does}" for who, does in said)
        texts.append(subject if kind in (SUBJECT_ONLY, TWO_DIGITS) else text)
        subjects.append(subject)
    return texts, subjects

# ---- pixels --------------------------------------------------------------------------------------
def paint(outline, device="cpu"):
    """What an outline stands for: clips (n c=1 f h w) in [-1, 1], composed on `device`."""
    bitmaps, corner, size = (part.to(device, non_blocking=True) for part in outline)
    n, slots = corner.shape[:2]
    bitmaps = rearrange(bitmaps, "n slot i j -> (n slot) i j").float() / 255
    corner = rearrange(corner, "n slot f yx -> (n slot) f yx")
    x = compose(bitmaps, corner, repeat(size, "n -> (n slot)", slot=slots))
    # where digits overlap, the brighter is seen
    return reduce(x, "(n slot) f h w -> n 1 f h w", "max", n=n).clamp(max=1) * 2 - 1


def compose(bitmaps, corner, size):
    """Frames (n f h w) in [0, 1] of bitmaps (n s s) in [0, 1], shrunk to boxes of `size` (n,)
    pixels whose corners (n f yx) may lie between pixels. Bilinear interpolation treats rows and
    columns apart: a frame is wy @ bitmap @ wx.T, where wy says how much each row of the bitmap adds
    to each row of the frame."""
    s = bitmaps.shape[-1]
    zoom = rearrange(s / size, "n -> n 1 1 1")                   # bitmap pixels in a frame pixel
    pixel = torch.arange(SIZE, device=corner.device) + .5        # centres
    u = (pixel - corner[..., None]) * zoom - .5                  # n f yx side, in bitmap pixels
    taps = torch.arange(-2, s + 2, device=corner.device)         # bitmap pixels, with a black rim
    w = (1 - (u[..., None] - taps).abs() / zoom[..., None]).relu()                   # … side s+4
    wy, wx = (w / w.sum(-1, keepdim=True).clamp(min=.5)).unbind(2)  # far off the sum is 0
    return wy @ rearrange(F.pad(bitmaps, (2, 2, 2, 2)), "n i j -> n 1 i j") @ wx.mT

# ---- the source ----------------------------------------------------------------------------------
class MovingMNIST:
    """The source of clips for training: source(n, seed=, start=) -> `Scenes`."""
    channels = 1
    length = 20  # tokens that a caption may have; the longest has 17
    fingerprint, notes = "moving_mnist_captions", ()
    paint = staticmethod(paint)

    def __init__(self, captions="full", split="train", digits=None):
        self.captions, self.split, self.words = captions, split, VOCABULARY[captions]
        self.digits = digits or load_digits(split)

    def __call__(self, n, *, seed=0, start=0):
        """`Scenes` of clips start ... start + n - 1."""
        return self.draw(np.arange(start, start + n), seed)

    def draw(self, index, seed, attempt=0):
        """`Scenes` of the clips `index` (n,)."""
        pick, digits, four = Chooser(seed, self.split, index), self.digits, self.captions == "four"
        kind = pick.weighted("kind", OFTEN)
        kind[four] = 0
        two = kind >= TWO_DIGITS
        size = np.where(two, 20, 28)
        first = pick.below("digit0", 10)
        second = (first + 1 + pick.below("digit1", 9)) % 10      # never the first again
        digit = np.stack([first, np.where(two, second, -1)], -1)                     # n 2
        bitmap = digits.first[digit] + pick.below("bitmap*", digits.count[digit])
        named = (pick.below("named*", 16) >= np.where(two, 2, 8)[:, None]) | four
        motion, adverb, start, legs = draw_motion(pick, attempt, kind[:, None], size[:, None],
                                                  self.captions)
        motion[~two, 1], adverb[~two, 1] = -1, 0
        made = Scenes([], [], kind, digit, motion, named, adverb, size, start, legs, bitmap, digits)
        # two digits draw their motions again until they keep apart: else nobody could tell them
        near = np.flatnonzero(two & made.too_close())
        if len(near):
            again = self.draw(index[near], seed, attempt + 1)
            motion[near], adverb[near] = again.motion, again.adverb
            start[near], legs[near] = again.start, again.legs
        made.captions, made.subjects = write_captions(made, pick, self.captions)
        return made


def make_scenes(n, *, seed=0, start=0, split="train", captions="full", digits=None, each=()):
    """`Scenes` of clips start ... start + n - 1 of a `MovingMNIST` with these options. With `each`,
    some of KINDS, the first n clips from `start` on of each of them, kind by kind."""
    source = MovingMNIST(captions, split, digits)
    if not each:
        return source(n, seed=seed, start=start)
    many = source(64 * (n + 4), seed=seed, start=start)  # the rarest kind is one clip in 32
    return choose(many, np.concatenate([np.flatnonzero(many.kind == KINDS.index(kind))[:n]
                                        for kind in each]))


def choose(rows, index):
    """The rows at `index` (numbers, or a mask of booleans) of a dataclass that holds lists and
    arrays with a row for each clip, such as `Scenes`; what else it holds stays."""
    chosen = {}
    for name, value in vars(rows).items():
        if isinstance(value, list):
            chosen[name] = np.array(value)[index].tolist()
        elif isinstance(value, np.ndarray):
            chosen[name] = value[index]
    return replace(rows, **chosen)


def captioned_clips(n, *, seed=0, start=0, split="train", num_frames=32, device="cpu",
                    captions="full", digits=None):
    """Clips start ... start + n - 1: x (n c=1 f h=64 w=64) in [-1, 1], captions, truth (`Scenes`).
    num_frames: 16 or 17, 32 or 33, 64 or 65: the whole action at 5, 10 or 20 frames a second."""
    if num_frames not in STRIDE_OF:
        raise UserError(f"num_frames is {num_frames}, but must be one of {list(STRIDE_OF)}")
    truth = make_scenes(n, seed=seed, start=start, split=split, captions=captions, digits=digits)
    x = truth.render(np.arange(num_frames) * STRIDE_OF[num_frames], device)
    return x, truth.captions, truth

# ---- the command ---------------------------------------------------------------------------------
def export(folder, n, **options):
    """Write training clips 0 ... n - 1 for train.py --data. options: those of captioned_clips."""
    write_folder(folder, n, lambda i: captioned_clips(1, start=i, num_frames=65, **options)[:2])


FLAGS = (
    ("--export", str, None, "write a new folder of GIFs with captions, for train.py --data"),
    ("--num", number(int, 1, 10**6), None, "clips; else 12, or 2000 with --export"),
    ("--captions", one_of(*VOCABULARY), None, "else full, or four with --export"),
    SEED, DIGITS, DATA_ROOT)


def main(argv=None):
    """Runs the command; returns its exit status."""
    p = argparse.ArgumentParser(description="Shows the grammar and some clips, or writes clips.")
    args = add_flags(p, FLAGS).parse_args(argv)
    shown = args.export is None

    def work():
        """What the command does."""
        options = dict(seed=args.seed, captions=args.captions or ("full" if shown else "four"),
                       digits=load_digits("train", args.digits, args.data_root))
        if shown:
            x, texts, _ = captioned_clips(args.num or 12, num_frames=16, **options)
            if not write_captioned(x, texts, "data.png"):
                write_clip(x, "data.png")
            print(GRAMMAR, "\ndata.png: 16 key frames a clip, a row per caption", *texts, sep="\n")
        else:
            export(args.export, args.num or 2000, **options)
            print(f"written: python train.py --data {shlex.quote(args.export)}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
