"""The judge: reads a clip back from its pixels alone: which digit, which motion, how steady.

    readings = read_clips(x, classifier)   x: (b c f h w) in [-1, 1], the whole action
    scores = score(readings, truth)        does the clip obey its caption? booleans (b,)

Each frame is cut where an empty row or column parts its ink, the parts are linked into tracks, and
each track is fitted by the grammar's motions; `DigitNet`, a small CNN, names the digits. The judge
never sees the truth: on real clips it must find it (the first rows of the table), on samples held
against another clip's caption it must not (the last rows). The Frechet *digit* distance follows
FID (Heusel et al. 2017, arXiv:1706.08500) on DigitNet's features; it is no FVD, which needs I3D.

`python metrics.py` prints the table of the shipped weights; `python metrics.py --train-classifier`
trains DigitNet again (a few minutes on a CPU) and saves it as checkpoints/classifier.pt.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import nn
from tqdm import tqdm

import data
from data import KINDS, MOTIONS, SIZE
from support.console import UserError, number

CLASSIFIER = Path(__file__).parent / "checkpoints" / "classifier.pt"
INK = .25        # brightness in [0, 1] from which a pixel is ink: over noise, under thin strokes
SPECK = .06      # a part with less of a frame's ink is no digit; real ones have over .1
ONE_SIDE = 23    # pixels: a 28-pixel digit's ink is at most 20 long, 2 more when it is blurred
TWO_SIDE = 18    # pixels: a 20-pixel digit's is at most 15 long
UNCLEAR = 3.     # pixels rms: a track further off all motions of the grammar has none of them
SLOW, QUICK = 16, 22  # pixels of travel; the grammar draws 8-13 and 26-36, drift is forgiven


# ---- the digit classifier ------------------------------------------------------------------------

class DigitNet(nn.Module):
    """Crops (n 1 28 28) in [0, 1] -> logits (n 10); `features` stops at (n 32)."""

    def __init__(self, features=32):
        super().__init__()
        self.config = {"features": features}
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),  # n 32 14 14
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU(),  # n 48 7 7
            nn.Flatten(), nn.Linear(48 * 7 * 7, features), nn.ReLU())
        self.head = nn.Linear(features, 10)

    def features(self, crops):
        return self.body(crops)

    def forward(self, crops):
        return self.head(self.features(crops))


def load_classifier(path=CLASSIFIER, device="cpu"):
    """The trained `DigitNet`, ready to read."""
    if not Path(path).is_file():
        raise UserError(f"{path} is missing: run `python metrics.py --train-classifier` first")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net = DigitNet(**state["config"])
        net.load_state_dict(state["model"])  # copies half into single precision
    except Exception as error:  # torch.load raises a dozen kinds
        raise UserError(f"{path} is damaged ({type(error).__name__}): run `python metrics.py "
                        "--train-classifier` again") from None
    return net.to(device).eval()


def crop(ink, centre, size, warp=None):
    """Windows of `size` (n,) pixels around `centre` (n yx) of ink (n h w), scaled to (n 1 28 28).

    warp (n 2 2): optional small turn or stretch of the window, used in training.
    """
    axis = (torch.arange(28, device=ink.device) - 13.5) / 28
    window = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)              # 28 28 yx
    window = window * rearrange(size, "n -> n 1 1 1")                                # n 28 28 yx
    if warp is not None:
        window = window @ rearrange(warp, "n i j -> n 1 i j")
    grid = (window + rearrange(centre, "n yx -> n 1 1 yx")) * 2 / SIZE - 1
    return F.grid_sample(rearrange(ink, "n h w -> n 1 h w"), grid.flip(-1), align_corners=False)


def training_batch(digits, labels, index, rng):
    """Crops (b 1 28 28) and labels (b,) of digits `index` (b,), as the judge meets them.

    Each digit stands anywhere in a frame in one of its two sizes, sometimes blurred and noisy (so
    do decoded and generated frames look), and is cropped around its ink's centre, with jitter.
    """
    b = len(index)
    size = torch.randint(0, 2, (b,), generator=rng) * 8 + 20
    corner = torch.rand(b, 1, 2, generator=rng) * rearrange(SIZE - size, "b -> b 1 1")
    frames = data.compose(digits.images[index].float() / 255, corner, size)          # b 1 h w
    sigma = float(torch.rand(1, generator=rng)) + .05                # pixels; half the batch blurs
    blur = torch.exp(-.5 * (torch.arange(-2., 3) / sigma) ** 2)
    blur = torch.outer(blur, blur) / blur.sum() ** 2
    frames[:b // 2] = F.conv2d(frames[:b // 2], blur[None, None], padding=2)
    frames = frames[:, 0]                                                            # b h w
    noise = torch.rand(b, 1, 1, generator=rng) * .08
    frames = (frames + noise * torch.randn(frames.shape, generator=rng)).clamp(0, 1)
    centre = centroid(frames * (frames > INK)) + .6 * torch.randn(b, 2, generator=rng)
    warp = torch.eye(2) + .08 * torch.randn(b, 2, 2, generator=rng)
    return crop(frames, centre, size, warp), labels[index]


def train_classifier(digits, seed=0, epochs=14, batch=256):
    """A `DigitNet` trained on `digits` (a `data.Digits` of the train split), each in both sizes."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    net = DigitNet().train()
    labels = torch.from_numpy(np.repeat(np.arange(10), digits.count))
    steps = epochs * len(labels) // batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=.15)
    order = torch.cat([torch.randperm(len(labels), generator=rng) for _ in range(epochs)])
    for step in (bar := tqdm(range(steps), desc="classifier", mininterval=2)):
        crops, target = training_batch(digits, labels, order[step * batch:(step + 1) * batch], rng)
        loss = F.cross_entropy(net(crops), target, label_smoothing=.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval()


# ---- frames: where is ink, and does an empty row or column part it? ------------------------------

def centroid(ink):
    """Centre of mass (... yx) of ink (... h w) in pixels; the frame's middle if there is none."""
    pixel = torch.arange(SIZE, device=ink.device) + .5
    mass = reduce(ink, "... h w -> ...", "sum")
    moment = torch.stack([reduce(ink, "... h w -> ... h", "sum") @ pixel,
                          reduce(ink, "... h w -> ... w", "sum") @ pixel], -1)
    return torch.where(mass[..., None] > 0, moment / mass.clamp(min=1e-6)[..., None], SIZE / 2)


def column_cuts(ink):
    """What lies left and right of each column of ink (n h w).

    Returns longest (n w 2), the longer side in pixels of the two parts' boxes, infinite where
    column w is no empty column between two parts; and the whole ink's width (n,).
    """
    on = ink > 0
    index = torch.arange(SIZE, device=ink.device)
    column = on.any(1)                                                               # n w
    top = torch.where(on, index[:, None], SIZE).amin(1)
    bottom = torch.where(on, index[:, None], -1).amax(1)
    first, last = torch.where(column, index, SIZE), torch.where(column, index, -1)
    mass = reduce(ink, "n h w -> n w", "sum")
    parts = []
    for flip in (lambda a: a, lambda a: a.flip(-1)):
        high, low = (flip(a).cummax(-1).values for a in (bottom, last))
        up, left = (flip(a).cummin(-1).values for a in (top, first))
        side = torch.maximum(high - up, low - left) + 1
        share = flip(mass).cumsum(-1) / mass.sum(-1, keepdim=True).clamp(min=1e-6)
        parts.append(flip(torch.where(share < SPECK, torch.inf, side)))
    longest = torch.stack(parts, -1).masked_fill(column[..., None], torch.inf)
    return longest, (last.amax(-1) - first.amin(-1) + 1).clamp(min=0)


def look(ink):
    """Frames of ink (n h w) -> one, two (n,) bool: does the frame show one digit, or two apart?
    And part (n h w) bool, the pixels of one of the two (of none where no cut exists).

    Boxes that do not overlap are parted by an empty row or column; of all such cuts the best is
    that whose larger part is smallest, so that a digit's own broken strokes stay together.
    """
    across, width = column_cuts(ink)
    down, height = column_cuts(rearrange(ink, "n h w -> n w h"))
    cuts = torch.cat([across, down], 1)                                              # n 2w 2
    best = cuts.amax(-1).argmin(-1)
    sides = cuts[torch.arange(len(ink), device=ink.device), best]                    # n 2
    whole = torch.maximum(width, height)
    # a short whole may be one digit in two pieces, unless both have a small digit's length
    twins = (best < SIZE) & (sides.amin(-1) >= 13) & (sides.amax(-1) <= 16)
    two = (sides.amax(-1) <= TWO_SIDE) & (sides.amin(-1) >= 7) & ((whole > ONE_SIDE) | twins)
    one = (whole <= ONE_SIDE + 2) & (whole >= 7) & ~two  # drawn digits are up to 24 long
    index = torch.arange(SIZE, device=ink.device)
    left = rearrange(index < best[:, None], "n w -> n 1 w") & (best < SIZE)[:, None, None]
    above = rearrange(index < best[:, None] - SIZE, "n h -> n h 1")
    return one, two, left | above


# ---- tracks and motions --------------------------------------------------------------------------

def link(parts, ticks):
    """Which of the two parts is which: bool (m,), True where frame m's parts must swap.

    parts (m 2 d) of the m frames at `ticks` that show two, as in `read_frames`. Viterbi over the
    orders in two successive frames: a digit keeps its velocity (each surprise costs its pixels, 8
    at most, as digits may bounce) and its look (5 pixels for each digit that changes its label).
    """
    look = torch.from_numpy(parts[..., 2:12]).softmax(-1).numpy()
    m, p, q = len(parts), *(np.stack([a, a[:, ::-1]], 1) for a in (parts[..., :2], look))  # m s k d
    change = 2.5 * abs(q[1:, None] - q[:-1, :, None]).sum((-1, -2))                  # m-1 s s
    best, back = change[:1].sum(0), []
    best[1] = np.inf  # the first frame's order names the tracks
    for k in range(2, m):
        a, b, c = p[k - 2, :, None, None], p[k - 1, None, :, None], p[k, None, None]
        ahead = (ticks[k] - ticks[k - 1]) / (ticks[k - 1] - ticks[k - 2])
        miss = np.linalg.norm(b + (b - a) * ahead - c, axis=-1).clip(max=8).sum(-1)  # s s s
        total = best[..., None] + miss + change[k - 1]
        back.append(total.argmin(0))
        best = total.min(0)
    s = list(np.unravel_index(best.argmin(), best.shape))
    for choice in reversed(back):
        s.insert(0, choice[s[0], s[1]])
    return np.array(s[:m], bool)


def fit_halves(c, w, ticks):
    """Least squares of tracks c (n f yx), weights w (n f), by one velocity for each half.

    Returns legs (n leg yx), the place at half time (n yx) and the misfit (n,), all in pixels.
    """
    half = data.ACTION / 2
    basis = np.stack([np.ones(len(ticks)), (ticks / half - 1).clip(max=0),
                      (ticks / half - 1).clip(min=0)])                               # 3 f
    wb = basis * w[:, None]                                                          # n 3 f
    solution = np.linalg.solve(wb @ basis.T + 1e-6 * np.eye(3), wb @ c)              # n 3 yx
    error = ((basis.T @ solution - c) ** 2).sum(-1)                                  # n f
    return solution[:, 1:], solution[:, 0], np.sqrt((error * w).sum(-1) / w.sum(-1).clip(1))


def fit_bounces(c, w, ticks, size):
    """Misfit (n yx) and path (n yx), both in pixels, of the best bounce of a `size`-pixel box along
    each axis: a grid of starts and paths, one pixel apart, while the other axis stands still."""
    room, length = SIZE - size, np.arange(52, 111.)
    start, length = np.meshgrid(np.arange(room + 1.), np.concatenate([length, -length]))
    start, length = start.ravel(), length.ravel()                                    # g
    waves = room - abs((start + ticks[:, None] / data.ACTION * length) % (2 * room) - room)  # f g
    waves, w = waves + size / 2, w / w.sum(-1, keepdims=True).clip(1)
    mean, square = (np.einsum("nf,nfx->nx", w, a) for a in (c, c ** 2))              # n yx
    misfit, path = [], []
    for axis in (0, 1):
        error = square[:, axis, None] + w @ waves ** 2 - 2 * (w * c[..., axis]) @ waves    # n g
        error = error + (square - mean ** 2)[:, 1 - axis, None]
        misfit.append(np.sqrt(error.min(-1).clip(0))), path.append(abs(length[error.argmin(-1)]))
    return np.stack(misfit, -1), np.stack(path, -1)


def name_motions(c, w, ticks, size):
    """Names tracks c (n f yx) of a `size`-pixel digit, seen where w (n f) is 1.

    Returns motion (n,), an index into NAMES or -1 for none, and travel (n,) in pixels: along each
    axis for straight motion, the length of the path for turns and bounces.
    """
    legs, middle, misfit = fit_halves(c, w, ticks)
    bounce, path = fit_bounces(c, w, ticks, size)
    off, travel = [], []
    for name, halves in MOTIONS.items():
        unit = np.array(halves, float)                                               # leg yx
        axis, turn = abs(unit[0]).argmax(), " then " in name
        if name.startswith("bouncing"):
            off.append(bounce[:, axis]), travel.append(path[:, axis])
            continue
        along = (legs * unit).sum(-1) / (unit ** 2).sum(-1).clip(1)                  # n leg
        along = along.clip(10, 30) if turn else along.mean(-1, keepdims=True).clip(3, 20)
        along = along * unit.any() * np.ones(2)
        miss = ((legs - along[..., None] * unit) ** 2).sum((-1, -2)) / 4
        if turn and not unit.sum(0).any():  # straight back: a bounce if it turned at the wall
            room = SIZE / 2 - size / 2 - (middle[:, axis] - SIZE / 2) * unit[0, axis]
            miss = np.where(room < 2, np.inf, miss)
        off.append(np.sqrt(misfit ** 2 + miss)), travel.append(along.sum(-1))
    off, travel = np.stack(off, -1), np.stack(travel, -1)                            # n motion
    best, rows = off.argmin(-1), np.arange(len(c))
    return np.where(off[rows, best] < UNCLEAR, best, -1), travel[rows, best]


# ---- clips ---------------------------------------------------------------------------------------

@dataclass
class Readings:
    """What n clips show; slot 1 is empty where there is one digit, both where nothing is clear.

    count (n,) digits seen in at least three quarters of the frames, 0 if unclear; digit (n 2) and
    motion (n 2), -1 for none; travel (n 2) pixels, see `name_motions`; steady (n 2) share of frames
    whose own digit is the clip's, where digits do not hide each other; tracks (n 2 f yx) ink
    centres in pixels; features (n 256), see `frechet_distance`.
    """
    count: np.ndarray
    digit: np.ndarray
    motion: np.ndarray
    travel: np.ndarray
    steady: np.ndarray
    tracks: np.ndarray
    features: np.ndarray


def read_frames(x, classifier):
    """Clips x (b c f h w) in [-1, 1] -> what each frame shows on its own (numpy, k = 2 parts):

    two (b,) bool; found (b f) bool; empty (b f) bool; parts (b f k d), d = centre yx, 10 logits and
    the features. In clips of one digit both parts are the whole ink.
    """
    f = x.shape[2]
    light = reduce((x.float().nan_to_num(-1).clamp(-1, 1) + 1) / 2, "b c f h w -> (b f) 1 h w",
                   "max")
    ink = light * (light > INK) * (F.avg_pool2d(light, 3, 1, 1) > INK / 2)   # no lonely pixels
    light, ink = light[:, 0], ink[:, 0]                                              # n=(b f) h w
    one, two, part = look(ink)
    clip_two = rearrange(two, "(b f) -> b f", f=f).float().mean(1) >= .5
    split = repeat(clip_two, "b -> (b f)", f=f)
    parted, parts = (split & two)[:, None, None], []
    for mask in (part | ~parted, ~part | ~parted)[:1 + clip_two.any()]:
        centre = centroid(ink * mask)
        feature = classifier.features(crop(light * mask, centre, 28. - 8 * split))
        parts.append(torch.cat([centre, classifier.head(feature), feature], -1))
    found, empty = torch.where(split, two, one), ~ink.flatten(1).any(1)
    parts = rearrange(torch.stack([parts[0], parts[-1]]), "k (b f) d -> b f k d", f=f)
    found, empty = (rearrange(a, "(b f) -> b f", f=f) for a in (found, empty))
    return [a.cpu().numpy() for a in (clip_two, found, empty, parts)]


def read_batch(x, classifier, ticks):
    """`Readings` of one batch of clips, see `read_clips`."""
    two, found, empty, parts = read_frames(x, classifier)
    (b, f), points = found.shape, parts[..., :2]
    for i in np.flatnonzero(two):
        seen = np.flatnonzero(found[i])
        swap = seen[link(parts[i, seen], ticks[seen])]
        parts[i, swap] = parts[i, swap, ::-1]
    for i in np.flatnonzero(found.any(1)):  # straight lines through the frames in between
        for k, axis in np.ndindex(2, 2):
            points[i, :, k, axis] = np.interp(ticks, ticks[found[i]], points[i, found[i], k, axis])
    # two digits may hide each other where they meet, but not where they are apart
    near = two[:, None] & ~empty & (abs(points[:, :, 0] - points[:, :, 1]).max(-1) < TWO_SIDE)
    count = np.where((found | near).mean(1) >= .75, 1 + two, 0)
    slot, logits = np.arange(2) < count[:, None], parts[..., 2:12]                   # b 2, b f k 10
    digit = np.where(slot, (logits * found[..., None, None]).sum(1).argmax(-1), -1)
    same = (logits.argmax(-1) == digit[:, None]) & found[..., None]                  # b f k
    steady = same.sum(1) / (found | ~near).sum(1, keepdims=True).clip(1) * slot
    motion, travel = np.full((b, 2), -1), np.zeros((b, 2))
    for n, k in ((1, 0), (2, 0), (2, 1)):
        i = np.flatnonzero(count == n)
        motion[i, k], travel[i, k] = name_motions(
            points[i, :, k].astype(float), found[i].astype(float), ticks, 28 if n == 1 else 20)
    eight = np.linspace(0, f - 1, 8).round().astype(int)
    return Readings(count, digit, motion, travel, steady,
                    rearrange(points, "b f k yx -> b k f yx"),
                    rearrange(parts[:, eight, :, 12:].mean(2), "b f d -> b (f d)"))


@torch.no_grad()
def read_clips(x, classifier, stride_ticks=None, batch=50):
    """Reads clips x (b c f h w) in [-1, 1] that show the whole action; pixels are all it sees.

    stride_ticks: ticks between frames, by default that of the whole action in f frames.
    """
    f = x.shape[2] if x.ndim == 5 else 0
    if x.ndim != 5 or x.shape[-2:] != (SIZE, SIZE) or not (stride_ticks or f in data.STRIDES):
        raise UserError(f"clips of shape {tuple(x.shape)} cannot be read: they must be "
                        f"(b c f {SIZE} {SIZE}) with f one of {list(data.STRIDES)}")
    ticks = np.arange(f) * (stride_ticks or data.STRIDES[f])
    device = next(classifier.parameters()).device
    parts = [read_batch(part.to(device), classifier, ticks) for part in x.split(batch)]
    return Readings(*map(np.concatenate, zip(*(vars(part).values() for part in parts))))


# ---- obedience, realism, fidelity ----------------------------------------------------------------

@dataclass
class Scores:
    """Per clip (n,): does it show what its caption says? names_digit: does the caption name one;
    where it does not, digit_ok asks nothing. steadiness: mean over the clip's digits, 0 if none."""
    digit_ok: np.ndarray
    motion_ok: np.ndarray
    both_ok: np.ndarray
    steadiness: np.ndarray
    names_digit: np.ndarray


def score(readings, scenes):
    """`Scores` of n clips against their truths (`data.Scenes`), of which only what the caption says
    counts: digits it names, motions with their adverbs, and how many digits there are."""
    count = (scenes.digit >= 0).sum(1)
    says_digit = scenes.named & (scenes.digit >= 0)
    says_digit[scenes.kind == KINDS.index("two digits")] = False
    silent = (KINDS.index("subject only"), KINDS.index("two digits"))
    says_motion = (scenes.motion >= 0) & ~np.isin(scenes.kind, silent)[:, None]
    ok = np.zeros((3, len(count)), bool)
    for order in ([0, 1], [1, 0]):  # the better matching of tracks to the caption's slots
        travel = readings.travel[:, order]
        pace = np.choose(scenes.adverb, [True, travel <= SLOW, travel >= QUICK])
        digit = ((readings.digit[:, order] == scenes.digit) | ~says_digit).all(1)
        motion = (((readings.motion[:, order] == scenes.motion) & pace) | ~says_motion).all(1)
        digit, motion = digit & (readings.count > 0), motion & (readings.count == count)
        ok |= np.stack([digit, motion, digit & motion])
    return Scores(*ok, readings.steady.sum(1) / readings.count.clip(1), says_digit.any(1))


def reorder(readings, order):
    """The same readings in another order, to hold them against other clips' truths."""
    return Readings(*(value[order] for value in vars(readings).values()))


def wilson(k, n):
    """The 95 % interval (low, high) of a share of which k in n were seen (Wilson 1927)."""
    if n == 0:
        return 0., 1.
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0., (middle - half) / (1 + z * z / n)), min(1., (middle + half) / (1 + z * z / n))


def frechet_distance(features_a, features_b):
    """Frechet distance between Gaussians fitted to features (n d) and (m d):

        |μa − μb|² + tr(Ca + Cb − 2 (Ca^½ Cb Ca^½)^½)                        (FID, Eq. 6)

    The symmetric form keeps every root an eigendecomposition of a symmetric matrix, in float64.
    `Readings.features` are those of 8 evenly spaced frames side by side: 8 x 32 = 256 numbers see
    a digit that changes on the way, and 512 clips still give a covariance of full rank. The
    distance of two finite samples of one law is above 0: compare at equal n, with that floor.
    """
    a, b = (np.asarray(features, np.float64) for features in (features_a, features_b))
    ca, cb = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    values, vectors = np.linalg.eigh(ca)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return max(0., ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb) - 2 * cross)


def psnr(x, y, where=None):
    """Mean over the frames of x, y (b c f h w) in [-1, 1] of the peak signal-to-noise ratio in dB,
    peak = 2, the full range; with `where` (b f h w) over the chosen pixels of each frame."""
    error = reduce((x - y) ** 2, "b c f h w -> b f h w", "mean")
    where = torch.ones_like(error) if where is None else where.to(error)
    mse = (error * where).sum((-1, -2)) / where.sum((-1, -2)).clamp(min=1)
    return float(10 * torch.log10(4 / mse.clamp(min=1e-10)).mean())


# ---- the command ---------------------------------------------------------------------------------

def table(name, scores, scenes):
    """Prints one row of the alignment table for all clips and one for each kind of caption."""
    for k in range(-1, len(KINDS)):
        kind = scenes.kind == k if k >= 0 else np.ones(len(scenes.kind), bool)
        if not kind.any():
            continue
        cells = []
        for ok, asked in ((scores.digit_ok, kind & scores.names_digit), (scores.motion_ok, kind),
                          (scores.both_ok, kind)):
            low, high = wilson(ok[asked].sum(), asked.sum())
            cells.append(f"{100 * ok[asked].mean():5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"
                         if asked.any() else " " * 20 + "-")
        print(f"{name:20s} {KINDS[k] if k >= 0 else 'all':13s} {kind.sum():5d}  ", "  ".join(cells),
              f"{100 * scores.steadiness[kind].mean():7.1f}")


def audit(args):
    """Prints how often the judge finds the truth of real test clips: motion, adverb and count of
    every clip, also where its caption is silent, and all digits."""
    from sample import device_for
    device = device_for(args.device)
    classifier = load_classifier(device=device)
    digits, rows = data.load_digits("test", args.digits, args.data_root), []
    for start in tqdm(range(0, args.num, 250), desc="reading"):
        x, _, truth = data.captioned_clips(
            min(250, args.num - start), seed=args.seed, start=start, split="test",
            captions=args.captions or "full", digits=digits, device=device)
        says_all = np.where(truth.size == 20, KINDS.index("two moving"), KINDS.index("straight"))
        scores = score(read_clips(x, classifier),
                       replace(truth, kind=says_all, named=np.ones_like(truth.named)))
        rows.append(np.stack([truth.kind, scores.motion_ok, scores.digit_ok]))
    kind, motion, digit = np.concatenate(rows, axis=1)
    print(f"the judge on real {digits.source} test clips, seed {args.seed}, n {args.num}\n\n"
          f"{'captions':13s} {'n':>5s}  motion and count %  all digits %")
    for k in range(-1, len(KINDS)):
        chosen = (kind == k) | (k < 0)
        if chosen.any():
            print(f"{KINDS[k] if k >= 0 else 'all':13s} {chosen.sum():5d}  "
                  f"{100 * motion[chosen].mean():18.2f}  {100 * digit[chosen].mean():12.2f}")


@torch.no_grad()
def report(args):
    """Makes the clips, reads them and prints the table; needs a trained model."""
    from sample import device_for, generate, load
    device = device_for(args.device)
    digits = data.load_digits("test", args.digits, args.data_root)
    classifier, model = load_classifier(device=device), load(args.checkpoint, args.device)
    knows = "full" if "standing" in model.config["vocabulary"] else "four"
    if (captions := args.captions or knows) == "full" and knows == "four":
        raise UserError("this checkpoint was trained with --captions four: leave --captions out")
    words = {*model.config["vocabulary"]}
    if model.config["vae"]["channels"] == 3 or not words.issuperset(data.VOCABULARY[captions]):
        raise UserError("this checkpoint was trained on clips of another kind, or on too few to "
                        "know all words: the judge reads only captioned Moving MNIST in grey")
    options = dict(seed=args.seed, split="test", captions=captions, digits=digits)
    x, captions, truth = data.captioned_clips(args.num, **options)
    others, _, _ = data.captioned_clips(args.num, start=args.num, **options)
    print(f"checkpoint {args.checkpoint or 'shipped'}, seed {args.seed}, n {args.num}, device "
          f"{device}, digits {digits.source}")
    decoded = torch.cat([model.vae.decode(model.vae.encode(part.to(device))).cpu()
                         for part in tqdm(x.split(16), desc="reconstructing")]).clamp(-1, 1)
    samples = generate(model, captions, num_frames=32, steps=args.steps,
                       guidance_scale=args.guidance, seed=args.seed).cpu()
    read = {name: read_clips(clips, classifier) for name, clips in
            (("real", x), ("others", others), ("decoded", decoded), ("samples", samples))}
    ring = np.random.default_rng(args.seed % 2**63).permutation(args.num)
    partner = np.roll(ring, 1)[ring.argsort()]  # one cycle through all clips: none keeps its own
    read["shuffled"] = reorder(read["samples"], partner)
    print(f"\n{'clips':20s} {'captions':13s} {'n':>5s}   {'digit % [95 %]':21s}  "
          f"{'motion % [95 %]':21s}  {'both % [95 %]':21s}  steady %")
    for name, key in (("real clips", "real"), ("VAE reconstructions", "decoded"),
                      ("samples", "samples"), ("shuffled prompts", "shuffled")):
        table(name, score(read[key], truth), truth)
    white = replace(digits, images=torch.full_like(digits.images, 255))
    inside = replace(truth, digits=white).render(np.arange(32) * data.STRIDES[32])[:, 0] > -1
    print(f"\nVAE reconstruction: PSNR {psnr(x, decoded):.1f} dB, inside the digits' boxes "
          f"{psnr(x, decoded, inside):.1f} dB")
    for name in ("samples", "others") if args.num > 256 else ():  # else the covariance is singular
        distance = frechet_distance(read[name].features, read["real"].features)
        name = "other real clips (the floor)" if name == "others" else name
        print(f"Frechet digit distance to real clips: {distance:7.3f} for {name}")


def main(argv=None):
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Does the model obey its captions? The table.",
                                     usage="python metrics.py [options]   (--help lists them)")
    add = parser.add_argument
    add("--checkpoint", help="a trained model (default: the shipped weights)")
    add("--num", type=number(int, 2, 10**6), default=512, help="clips in each row, 2 or more (512)")
    add("--captions", choices=["full", "four"], help="the grammar's part (what the model knows)")
    add("--guidance", type=number(float, 0, 100), help="guidance scale (the sampler's default)")
    add("--steps", type=number(int, 1, 1000), help="sampling steps (the sampler's default)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0,
        help="of captions, noise and shuffling (0)")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    add("--digits", choices=["auto", "mnist", "drawn"], default="auto", help="as in train.py")
    add("--data-root", help="folder with MNIST's four .gz files")
    add("--audit", action="store_true", help="test the judge itself, on real clips; no checkpoint")
    add("--train-classifier", action="store_true", help="train the judge's DigitNet instead")
    args = parser.parse_args(argv)

    def work():
        if args.train_classifier:
            source = "mnist" if args.digits == "auto" else args.digits  # drawn only if asked for
            digits = data.load_digits("train", source, args.data_root)
            net = train_classifier(digits, args.seed)
            state = {name: value.half() if value.is_floating_point() else value
                     for name, value in net.state_dict().items()}
            torch.save({"config": net.config, "model": state}, CLASSIFIER)
            print(f"saved {CLASSIFIER}: DigitNet trained on {digits.source}, seed {args.seed}")
        else:
            (audit if args.audit else report)(args)

    return data.exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
