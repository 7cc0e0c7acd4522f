"""The judge: reads a clip back from its pixels alone: which digit, which motion, how steady.

    readings = read_clips(x, load_classifier())   x: (b c f h w) in [-1, 1], the whole action
    scores = score(readings, scenes)              does each clip obey its caption? booleans (b,)

A frame is cut where an empty row or column parts its ink; the parts are linked into tracks; a track
takes the name of the grammar's curve that lies closest; a small CNN names its digit.
The judge never sees the truth. On real clips it must find it (the table's first rows); on samples
held against another clip's caption it must not (the last rows).
`python metrics.py` prints the shipped weights' table and a diagnosis: 512 clips, minutes on a CPU.
`python -m experiments.audit` tests the judge, `... experiments.train_digitnet` trains its CNN.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce

import data
from data import ACTION, KINDS, MOTIONS, SIZE, STRIDE_OF, choose
from model import load
from sample import AS_TOLD, GUIDANCE, SAMPLER, STEPS, generate
from support.console import (DATA_ROOT, DEVICE, DIGITS, SEED, UserError, add_flags, exit_status,
                             number, one_of)
from support.digitnet import crop, load_classifier
from vae import psnr

BOX = {1: 28, 2: 20}  # pixels: the side of a digit's box in clips of one and of two
INK = .25        # brightness in [0, 1] from which a pixel is ink: over noise, under thin strokes
SPECK = .06      # a part with less of its frame's ink is no digit; real ones have over .1
ONE_SIDE = 23    # pixels: a 28-pixel digit's ink is at most 20 long, 2 more when it is blurred
TWO_SIDE = 18    # pixels: a 20-pixel digit's is at most 15 long
LEAST = 7        # pixels: what is shorter is no digit
UNCLEAR = 3.     # pixels rms: a track farther from every curve of the grammar has no motion
APART = 4, 16, 32, 60  # ticks between two frames of which one asks whether they agree
SLOW, QUICK = 16, 22  # pixels of travel; the grammar draws 8-13 and 26-36, drift is forgiven

# ---- frames: where is ink, and does an empty row or column cut it in two? ------------------------

def centroid(ink):
    """Centre of mass (... yx) of ink (... h w) in pixels; the frame's middle if there is none."""
    pixel = torch.arange(SIZE, device=ink.device) + .5
    mass = reduce(ink, "... h w -> ... 1", "sum")
    moment = torch.stack([ink.sum(-1) @ pixel, ink.sum(-2) @ pixel], -1)
    return torch.where(mass > 0, moment / mass.clamp(min=1e-6), SIZE / 2)


def side(ink):
    """The longer side, in pixels, of the box around a frame's ink (h w)."""
    return 1 + max(np.ptp(np.flatnonzero(ink.any(axis))) for axis in (0, 1))


def cuts(ink):
    """Every way in which an empty column or row parts a frame's ink (h w) in two: (side of the
    larger part, side of the smaller, do they stand side by side?, mask (h w) of one of them)."""
    place = np.arange(SIZE)
    for axis, before in ((0, place), (1, place[:, None])):
        filled = np.flatnonzero(ink.any(axis))
        for last in filled[:-1][np.diff(filled) > 1]:
            mask = np.broadcast_to(before <= last, ink.shape)
            if SPECK < ink[mask].sum() / ink.sum() < 1 - SPECK:
                small, large = sorted((side(ink * mask), side(ink * ~mask)))
                yield large, small, axis == 0, mask


def count_digits(ink):
    """How many digits a frame's ink (h w) shows: 0 in a black frame, 1, 2 if they are apart, 3 for
    anything else; and the mask (h w) of one of the two. Of all cuts the best is that whose larger
    part is smallest, so that a digit's own broken strokes stay together."""
    if not ink.any():
        return 0, ink > 0
    whole, uncut = side(ink), (SIZE, 0, False, ink > 0)
    large, small, beside, mask = min(cuts(ink), key=lambda cut: cut[0], default=uncut)
    # a short whole may be one digit in two pieces, unless both have a small digit's height
    twins = beside and small >= 13 and large <= 16
    if LEAST <= small and large <= TWO_SIDE and (whole > ONE_SIDE or twins):
        return 2, mask
    return 1 if LEAST <= whole <= ONE_SIDE + 2 else 3, mask  # drawn digits are up to 24 long


@torch.no_grad()
def look(x, classifier):
    """What each frame of one clip x (c f h w) shows: shows (f,), by `count_digits`; and of its k
    parts, two if most frames show two digits, centre (f k yx) in pixels and features (f k 32)."""
    light = ((x.float().nan_to_num(-1).clamp(-1, 1) + 1) / 2).amax(0)                # f h w
    alone = F.avg_pool2d(light, 3, 1, 1) <= INK / 2                      # pixels without neighbours
    ink = light * (light > INK) * ~alone
    shows, masks = map(np.array, zip(*(count_digits(frame) for frame in ink.cpu().numpy())))
    k = 2 if (shows == 2).mean() >= .5 else 1
    mask = torch.from_numpy(masks).to(ink.device)
    parts = torch.stack([mask, ~mask][:k], 1)                                        # f k h w
    parts[(shows != k) | (k == 1)] = True  # the whole ink, where nothing is cut
    ink, light = (rearrange(a[:, None] * parts, "f k h w -> (f k) h w") for a in (ink, light))
    centre = centroid(ink)
    features = classifier.body(crop(light, centre, centre.new_full((len(ink),), BOX[k])))
    return shows, *(rearrange(a, "(f k) d -> f k d", k=k) for a in (centre, features))


# ---- tracks: which part is which? ----------------------------------------------------------------

def follow(centre, ticks):
    """Which of the frames that show two, centre (m k yx) at `ticks`, list their parts in the other
    order than the first: bool (m,). A digit keeps its velocity: of the two orders that one is right
    whose parts are nearer to where the last two frames point."""
    swap, track = np.zeros(len(ticks), bool), centre.copy()
    for i in range(1, len(ticks)):
        ahead = (ticks[i] - ticks[i - 1]) / (ticks[i - 1] - ticks[i - 2]) if i > 1 else 0
        expected = track[i - 1] + ahead * (track[i - 1] - track[i - 2])
        keep, turn = (np.linalg.norm(expected - order, axis=-1).sum()
                      for order in (track[i], track[i, ::-1]))
        if turn < keep:
            swap[i], track[i] = True, track[i, ::-1].copy()
    return swap


# ---- motions: the grammar's curve that lies closest ----------------------------------------------

@cache
def bounces(size):
    """All bounces of a `size`-pixel box between two walls, one pixel apart: the box's centre at
    every tick (65 g), and the length of the path (g,)."""
    room, clock = SIZE - size, np.linspace(0, 1, ACTION + 1)[:, None]
    # a start beyond the far wall is one on the way back; the grammar draws lengths of 54-108
    start, length = map(np.ravel, np.meshgrid(np.arange(2. * room), np.arange(52., 111)))
    return room - abs((start + clock * length) % (2 * room) - room) + size / 2, length


def fit_legs(legs, units):
    """How far legs (half yx), pixels moved in each half of the action, are from what the grammar
    allows a motion with directions units (half yx): misfit and travel (pixels)."""
    along = (legs * units).sum(-1) / (units ** 2).sum(-1).clip(1)                    # half
    if (units[0] == units[1]).all():
        along[:] = along.mean().clip(3, 20) * units.any()  # straight: half of 8-36, or stands still
    else:
        along = along.clip(10, 30)                         # a turn: 12-28 each
    return np.linalg.norm(legs - along[:, None] * units) / 2, along.sum()


def name_motion(track, ticks, size):
    """The motion of a `size`-pixel digit seen at track (m yx) at `ticks` (m,): an index into NAMES,
    -1 for none; and its travel in pixels, along each axis if straight, else along its path."""
    clock = ticks * 2 / ACTION - 1                                                   # -1 ... 1
    basis = np.stack([np.ones(len(ticks)), clock.clip(max=0), clock.clip(min=0)], 1)   # m 3
    found = np.linalg.lstsq(basis, track, rcond=None)[0]  # place at half time, and a leg each side
    rest, fits = np.sqrt(((track - basis @ found) ** 2).sum(-1).mean()), []
    for index, (name, units) in enumerate(MOTIONS.items()):
        units = np.array(units, float)                                               # half yx
        if name.startswith("bouncing"):
            (where, length), axis = bounces(size), units[0].argmax()
            error = ((track[:, axis, None] - where[ticks]) ** 2).mean(0)             # g
            misfit = np.sqrt(error.min() + track[:, 1 - axis].var())  # the other axis stands still
            travel = length[error.argmin()]
        else:
            misfit, travel = fit_legs(found[1:], units)
            misfit = np.hypot(rest, misfit)
        fits.append((misfit, index, travel))
    misfit, index, travel = min(fits)
    return index if misfit < UNCLEAR else -1, travel


# ---- clips ---------------------------------------------------------------------------------------

@dataclass
class Readings:
    """What n clips show; slot 1 is empty where there is one digit, both where nothing is clear."""
    count: np.ndarray   # (n,)        digits seen in three quarters of the frames or more, else 0
    digit: np.ndarray   # (n 2)       0 ... 9, -1 for none
    motion: np.ndarray  # (n 2)       an index into NAMES, -1 for none
    travel: np.ndarray  # (n 2)       pixels, see `name_motion`
    steady: np.ndarray  # (n 2)       share of the frames that show the clip's own digit
    frames: np.ndarray  # (n 2 f)     the digit that each frame shows, -1 where none is clear
    tracks: np.ndarray  # (n 2 f yx)  centres of ink in pixels


def read_clip(x, classifier, ticks):
    """One clip x (c f h w), with frames at `ticks`, as a row of `Readings`."""
    shows, centre, features = look(x, classifier)
    logits = classifier.head(features).detach().cpu().numpy()                        # f k 10
    centre, k = centre.cpu().numpy().astype(float), logits.shape[1]
    seen, tracks = shows == k, np.zeros((2, len(ticks), 2))
    if k == 2:
        swap = np.flatnonzero(seen)[follow(centre[seen], ticks[seen])]
        centre[swap], logits[swap] = centre[swap, ::-1], logits[swap, ::-1]
    for slot, axis in np.ndindex(k if seen.any() else 0, 2):  # straight lines between what is seen
        tracks[slot, :, axis] = np.interp(ticks, ticks[seen], centre[seen, slot, axis])
    # two digits may hide each other where they meet, but not where they are apart
    near = abs(tracks[0] - tracks[1]).max(-1) < TWO_SIDE
    hidden = (k == 2) & near & ~seen & (shows > 0)
    count = k if (seen | hidden).mean() >= .75 else 0
    frames = np.full((2, len(ticks)), -1)
    frames[:k, seen] = rearrange(logits[seen].argmax(-1), "m k -> k m")
    digit, motion, travel, steady = [-1, -1], [-1, -1], [0., 0.], [0., 0.]
    for slot in range(count):
        digit[slot] = logits[seen, slot].sum(0).argmax()
        steady[slot] = (frames[slot] == digit[slot]).sum() / (~hidden).sum()
        motion[slot], travel[slot] = name_motion(tracks[slot, seen], ticks[seen], BOX[k])
    return count, digit, motion, travel, steady, frames, tracks


def read_clips(x, classifier, stride_ticks=None):
    """Reads clips x (b c f h w) in [-1, 1], one by one; pixels are all it sees. stride_ticks:
    between frames, by default that of the whole action in f frames."""
    if x.ndim != 5 or x.shape[-2:] != (SIZE, SIZE) or not (stride_ticks or x.shape[2] in STRIDE_OF):
        raise UserError(f"clips of shape {tuple(x.shape)} cannot be read: they must be "
                        f"(b c f {SIZE} {SIZE}) with f one of {list(STRIDE_OF)}")
    ticks = np.arange(x.shape[2]) * (stride_ticks or STRIDE_OF[x.shape[2]])
    device = classifier.head.weight.device
    rows = [read_clip(clip.to(device), classifier, ticks) for clip in x]
    return Readings(*map(np.array, zip(*rows)))


# ---- obedience -----------------------------------------------------------------------------------

@dataclass
class Scores:
    """Per clip (n,): does it show what its caption says?"""
    digit_ok: np.ndarray
    motion_ok: np.ndarray
    both_ok: np.ndarray      # in one and the same matching of digits to the caption's slots
    steadiness: np.ndarray   # mean over the clip's digits, 0 if there are none
    names_digit: np.ndarray  # does the caption name a digit? Where not, digit_ok asks nothing


def score(readings, scenes):
    """`Scores` of n clips against their `data.Scenes`. Only what the caption says counts: digits
    that it names, motions with their adverbs, and how many digits there are."""
    count = (scenes.digit >= 0).sum(1)
    only_two, only_who = (scenes.kind == KINDS.index(k) for k in ("two digits", "subject only"))
    says_digit = scenes.named & (scenes.digit >= 0) & ~only_two[:, None]
    says_motion = (scenes.motion >= 0) & ~(only_two | only_who)[:, None]
    ok = np.zeros((3, len(count)), bool)
    for order in ([0, 1], [1, 0]):  # tracks have no order of their own: the better matching counts
        digit, motion, travel = (a[:, order] for a in
                                 (readings.digit, readings.motion, readings.travel))
        pace = np.choose(scenes.adverb, [True, travel <= SLOW, travel >= QUICK])
        moves = (motion == scenes.motion) & pace
        digit_ok = ((digit == scenes.digit) | ~says_digit).all(1) & (readings.count > 0)
        motion_ok = (moves | ~says_motion).all(1) & (readings.count == count)
        ok |= np.stack([digit_ok, motion_ok, digit_ok & motion_ok])
    steadiness = readings.steady.sum(1) / readings.count.clip(1)
    return Scores(*ok, steadiness, says_digit.any(1))


def wilson(k, n):
    """The 95 % interval of a share p, k of n (Wilson 1927): (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) /
    (1 + z²/n)."""
    p, slack = k / n, 1.959964 ** 2 / n                        # z is 1.96, slack is z²/n
    middle, half = p + slack / 2, np.sqrt(slack * (p * (1 - p) + slack / 4))
    return max(0., (middle - half) / (1 + slack)), min(1., (middle + half) / (1 + slack))


# ---- the table -----------------------------------------------------------------------------------

def share(ok):
    """A cell of the table: the share of True in ok (n,) in per cent, with its 95 % interval."""
    if not len(ok):
        return " " * 19 + "-"
    low, high = wilson(ok.sum(), len(ok))
    return f"{100 * ok.mean():5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"


def print_rows(name, scores, scenes):
    """Prints one row of the table for all clips and one for each kind of caption."""
    for kind in ("all", *KINDS):
        chosen = np.array([kind in ("all", KINDS[k]) for k in scenes.kind])
        if chosen.any():
            s = choose(scores, chosen)
            cells = s.digit_ok[s.names_digit], s.motion_ok, s.both_ok
            print(f"{name:20s} {kind:13s} {chosen.sum():5d} ", *map(share, cells),
                  f"{100 * s.steadiness.mean():7.1f}", sep="  ")


# ---- the diagnosis: not learned yet, or not bound? -----------------------------------------------

def agreement(frames, ticks):
    """How often two frames `ticks` apart show the same digit: frames (n f) of the whole action,
    one slot of `Readings.frames` -> the share of all such pairs whose two frames are clear."""
    apart = ticks // STRIDE_OF[frames.shape[1]]
    first, later = frames[:, :-apart], frames[:, apart:]
    clear = (first >= 0) & (later >= 0)
    return ((first == later) & clear).sum() / max(1, clear.sum())


def constancy(readings):
    """Cells of a table for n clips of one digit, in per cent: those that show one digit in every
    frame, with the 95 % interval, and the `agreement` of frames APART ticks apart."""
    whole = (readings.count == 1) & (readings.steady[:, 0] == 1)
    return share(whole) + "  " + "".join(f"{100 * agreement(readings.frames[:, 0], ticks):6.1f}"
                                         for ticks in APART)


def diagnose(read, scenes):
    """Prints what the table does not tell apart. Of clips of one digit: do they show the same one
    all along, where the caption names it and where it does not. Of clips of two moving digits: how
    many show the right digits and the right motions, whichever belongs to which, and how many of
    those bind them as the caption does. read: the table's names -> `Readings` of all clips."""
    one, named = scenes.digit[:, 1] < 0, scenes.named[:, 0]
    print(f"\n{'one digit':20s} {'':13s} {'n':>5s}   {'in every frame %':20s}  "
          f"the same in two frames {', '.join(map(str, APART))} ticks apart %")
    for name in ("real clips", "samples"):
        for how, chosen in (("named", one & named), ("not named", one & ~named)):
            if chosen.any():
                print(f"{name:20s} {how:13s} {chosen.sum():5d}  ",
                      constancy(choose(read[name], chosen)))

    # captions that an exchange of the two digits would break: a coin would bind half of the clips
    differ = scenes.named.any(1) & (scenes.motion[:, 0] != scenes.motion[:, 1])
    two = (scenes.kind == KINDS.index("two moving")) & differ
    if not two.any():
        return
    print(f"\n{'two digits in different motions':34s} {'n':>5s}   {'digits as a set %':20s}  "
          f"{'motions as a set %':20s}  {'both sets right %':20s}  {'one digit twice %':20s}  "
          "of those with both sets: bound %")
    for name in ("real clips", "samples", "shuffled prompts"):
        shown, s = choose(read[name], two), choose(score(read[name], scenes), two)
        both = s.digit_ok & s.motion_ok  # each in the order that suits it better
        twice = (shown.count == 2) & (shown.digit[:, 0] == shown.digit[:, 1])
        cells = s.digit_ok, s.motion_ok, both, twice, s.both_ok[both]
        print(f"{name:34s} {two.sum():5d} ", *map(share, cells), f"of {both.sum()}", sep="  ")


@torch.no_grad()
def report(args):
    """Makes the clips, reads them, prints the table and the diagnosis; needs a trained model."""
    digits = data.load_digits("test", args.digits, args.data_root)
    model = load(args.checkpoint, args.device)
    classifier = load_classifier(device=model.device)
    words = set(model.config["vocabulary"])
    grammar = args.captions or ("full" if "standing" in words else "four")
    if model.config["vae"]["channels"] == 3 or not words.issuperset(data.VOCABULARY[grammar]):
        raise UserError("this checkpoint was trained on clips of another kind, or does not know "
                        f"all words of --captions {grammar}: the judge reads only grey MNIST")
    scenes = data.make_scenes(args.num, seed=args.seed, split="test", captions=grammar,
                              digits=digits, each=KINDS if args.each else ())
    x, n = scenes.render(np.arange(32) * 2), len(scenes.captions)
    print(f"checkpoint {args.checkpoint or 'shipped'}, sampler {args.sampler}, seed {args.seed}, "
          f"n {n}, device {model.device}, digits {digits.source}")
    decoded = torch.cat([model.vae.decode(model.vae.encode(part.to(model.device))).cpu()
                         for part in x.split(16)]).clamp(-1, 1)
    samples = generate(model, scenes.captions, num_frames=32, steps=args.steps,
                       sampler=args.sampler, guidance_scale=args.guidance, seed=args.seed,
                       as_told=args.as_told).cpu()
    clips = {"real clips": x, "VAE reconstructions": decoded, "samples": samples}
    read = {name: read_clips(x, classifier) for name, x in clips.items()}
    # along one cycle through all clips, so that none is held against its own caption
    ring, order = np.random.default_rng(args.seed).permutation(n), np.empty(n, int)
    order[ring] = np.roll(ring, 1)  # each clip is read as its neighbour on the ring
    read["shuffled prompts"] = choose(read["samples"], order)
    print(f"\n{'clips':20s} {'captions':13s} {'n':>5s}   {'digit % [95 %]':20s}  "
          f"{'motion % [95 %]':20s}  {'both % [95 %]':20s}  steady %")
    for name, readings in read.items():
        print_rows(name, score(readings, scenes), scenes)
    print(f"\nVAE reconstruction: PSNR {psnr(x, decoded):.1f} dB")
    diagnose(read, scenes)


FLAGS = (
    ("--checkpoint", str, None, "a trained model; if none is named, the shipped weights"),
    ("--num", number(int, 2, 10**6), 512, "clips of the language's own mix"),
    ("--each", bool, False, "--num clips of each kind of caption instead"),
    ("--captions", one_of("full", "four"), None, "the grammar's part; else what the model knows"),
    ("--guidance", number(float, 0, 100), None, f"guidance scale; else {GUIDANCE}"),
    ("--sampler", one_of(*STEPS), SAMPLER, "how to get from noise to a clip"),
    ("--steps", number(int, 1, 1000), None, "sampling steps; else the sampler's own"),
    AS_TOLD, SEED, DIGITS, DATA_ROOT, DEVICE)


def main(argv=None):
    """Runs the command; returns its exit status."""
    p = argparse.ArgumentParser(description="Does the model obey its captions? The table.")
    args = add_flags(p, FLAGS).parse_args(argv)
    return exit_status(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
