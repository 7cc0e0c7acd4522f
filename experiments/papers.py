"""Claims of the papers in miniature: small trainings that differ in one thing each.

    python -m experiments.papers holdout --data-root DIR              every variant, one by one
    python -m experiments.papers captions --only 128 --data-root DIR  one of them

    holdout   composition or memory? Digits are never shown in some directions, some pairs never
    captions  how many clips need one? Motion may be learned without      (Make-A-Video)
    flow      flow matching against v                                     (Esser et al. 2024)
    prior     a network that knows stills against one born with clips     (Make-A-Video, CogVideo)
    stills    how many stills beside each clip?                           (Video Diffusion Models)
    scale     latents of std 1 against latents as they come               (Latent Diffusion)
    guidance  how far to go where the caption pulls?                      (Ho & Salimans)
    nearest   invented or remembered? Digits beside the nearest ones of training, in nearest.png

The last two ask the shipped weights, the others train the base preset's network on "a 3 moving
left" and four directions, if not told otherwise by --captions; a variant's flags are printed. A
line tells its seconds, its rows what of --num clips is right, with 95 % intervals.
"""

import shlex
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from einops import rearrange

import data
import metrics
import train
from experiments.common import flags, judge, train_flags
from model import load, pick_device
from sample import STEPS, generate
from support.console import UserError, add_flags, exit_status, one_of
from support.video import write_clip
from vae import VAE

COMMON = ("--vae-steps 300 --vae-batch-size 256 --vae-optimizer muon --decoder-steps 0 "
          "--stills-steps 300 --steps 600 --batch-size 128 --lr 1e-3").split()
FAR = 2 ** 32  # clips from here on are those of no usual run


def held(scenes):
    """(n,) What `HeldOut` never shows: of 40 digits x directions 8, the digits 0 to 7 in one each,
    alone and straight (in pairs and in turns they may go so); of 45 pairs of digits 10, those 3 or
    7 apart, whatever they do."""
    first, second = scenes.digit.T
    one = (second < 0) & (first < 8) & (scenes.motion[:, 0] == first % 4)
    return one | (second >= 0) & np.isin((first - second) % 10, (3, 7))


class HeldOut(data.MovingMNIST):
    """Moving MNIST without what is `held`: another clip takes its place."""

    def __call__(self, n, *, seed=0, start=0):
        index = np.arange(start, start + n)
        scenes = self.draw(index, seed)
        while (out := held(scenes)).any():
            index = np.where(out, index + FAR, index)
            scenes = self.draw(index, seed)
        return scenes


class FewCaptions(data.MovingMNIST):
    """Moving MNIST of which only `few` clips have captions. They are every second clip shown, if
    there are any; of all others nothing is told. Stills keep their captions, but every second one
    shows one of those `few`, too."""

    def __init__(self, *options, few, **named):
        super().__init__(*options, **named)
        self.few = few

    def __call__(self, n, *, seed=0, start=0):
        index = np.arange(start, start + n)
        told = (index % 2 == 0) & (self.few > 0)
        scenes = self.draw(np.where(told, index // 2 % max(1, self.few), index + FAR), seed)
        scenes.captions = [caption if t else "" for caption, t in zip(scenes.captions, told)]
        return scenes


# ---- the comparisons: variant -> its own flags, and what is put in the place of what -------------

FEW = {n: patch.object(data, "MovingMNIST", partial(FewCaptions, few=n)) for n in (0, 128, 1024)}
PLANS = {
    "holdout": {"all": ([], None),
                "held": ([], patch.object(data, "MovingMNIST", HeldOut))},
    "captions": {"none": ([], FEW[0]), "128": ([], FEW[128]), "1024": ([], FEW[1024]),
                 "all": ([], None)},
    "flow": {"v": ([], None), "flow": (["--predict", "flow"], None)},
    "prior": {"prior": ([], None),
              "scratch": (["--stills-steps", "1", "--steps", "800"], None)},  # about as long
    "stills": {n: (["--stills-per-clip", n], None) for n in ("0", "4", "8")},
    "scale": {"on": ([], None),
              "off": ([], patch.object(VAE, "measure_latents", lambda vae, frames: None))}}
SAMPLERS = {"flow": (("sde", 40), ("dpm", 20), ("ddim", 20), ("ddim", 50))}
SCALES = (0, 1, 2, 3, 5, 8)


def row(name, *shares):
    print(f"{name:28s}", *(metrics.share(ok) for ok in shares), sep="  ", flush=True)


def groups(args, name):
    """What a comparison asks for: name -> scenes of test digits."""
    source = data.MovingMNIST(args.captions, "test",
                              data.load_digits("test", args.digits, args.data_root))
    many = source(100 * args.num, seed=args.seed)
    named = many.named[:, 0] & (many.named[:, 1] | (many.digit[:, 1] < 0))
    straight = (many.kind == 0) & (many.motion[:, 0] < 4) & named
    asked = {"one digit": straight,
             "two moving": (many.kind == data.KINDS.index("two moving")) & named}
    if name == "holdout":
        asked = {f"{kind}, {how}": which & there for kind, which in asked.items()
                 for how, there in (("seen", ~held(many)), ("unseen", held(many)))}
    return {kind: data.choose(many, np.flatnonzero(which)[:args.num])
            for kind, which in asked.items() if which.any()}


@torch.no_grad()
def examine(model, title, asked, args, **how):
    """A row for each group of scenes: what of the clips made by generate(..., **how) is right."""
    for kind, scenes in asked.items():
        x = generate(model, scenes.captions, num_frames=16, seed=args.seed, **how)
        s = judge(x, args.classifier, scenes)
        row(f"{title}, {kind}", s.digit_ok, s.motion_ok, s.both_ok)


def compare(name, args):
    """Trains and examines the variants of one comparison."""
    plan = PLANS[name]
    try:
        more = shlex.split(args.train)
    except ValueError as error:
        raise UserError(f"--train {args.train}: {error}") from None
    if args.only not in (None, *plan):
        raise UserError(f"{name} has no variant {args.only}: choose from {', '.join(plan)}")
    asked = groups(args, name)
    for variant, (own, other) in plan.items():
        if args.only not in (None, variant):
            continue
        with tempfile.TemporaryDirectory() as folder:
            told = [*COMMON, "--captions", args.captions, *own, *more]
            begun = time.perf_counter()
            with other or nullcontext():
                status = train.main(["--preset", "base", *told,
                                     *train_flags(args, args.seed, folder)])
            if status:
                raise UserError(f"the training of {variant} ended with status {status}")
            seconds = time.perf_counter() - begun
            model = load(Path(folder) / "weights.pt", args.device)
        print(f"{name} {variant}: {seconds:.0f} s of train.py {' '.join(told)}")
        for sampler, steps in SAMPLERS.get(name, (("sde", STEPS["sde"]),)):
            title = f"{variant} {sampler} {steps}" if name in SAMPLERS else variant
            examine(model, title, asked, args, sampler=sampler, steps=steps)


def guidance(args):
    """Guidance scales, on weights that are there."""
    model = load(args.checkpoint, args.device)
    args.captions = "full"
    asked = groups(args, "guidance")
    for scale in SCALES:
        examine(model, f"guidance {scale}", asked, args, guidance_scale=scale)


@torch.no_grad()
def nearest(args):
    """A PNG with a row for each of ten clips: its middle frame's digit, and of all training digits
    the three that differ least in their pixels, all of them around their ink's middle."""
    model = load(args.checkpoint, args.device)
    known = data.load_digits("train", args.digits, args.data_root).images / 255      # n 28 28
    x = generate(model, [f"a {n} moving left" for n in range(10)], num_frames=16, seed=args.seed)
    light = (x[:, 0, 8].cpu() + 1) / 2                                               # b h w
    drawn = metrics.crop(light, metrics.centroid(light), torch.full((10,), 28.))[:, 0]
    far = torch.cdist(drawn.flatten(1), known.flatten(1))                            # b n
    rows = torch.cat([drawn[:, None], known[far.topk(3, largest=False).indices]], 1)
    write_clip(rearrange(rows, "b four h w -> b 1 four h w") * 2 - 1, "nearest.png", scale=3)
    print("nearest.png: a digit of a clip, then the three training digits that are most like it; "
          f"root of the mean squared difference {far.min(1).values.mean() / 28:.3f} of 0 ... 1")


def work(args):
    """What the command does."""
    if args.name in ("guidance", "nearest") and (args.only or args.train):
        raise UserError(f"{args.name} trains nothing: leave out --only and --train")
    if args.name == "nearest":
        return nearest(args)
    args.classifier = metrics.load_classifier(device=pick_device(args.device))
    print(f"n {args.num}, seed {args.seed}, torch {torch.__version__}; right %, 95 % intervals\n"
          f"{'':28s}  {'digit':20s}  {'motion':20s}  both")
    if args.name == "guidance":
        guidance(args)
    else:
        compare(args.name, args)


def main(argv=None):
    p = add_flags(flags(__doc__, num=256), (
        ("--only", str, None, "one variant of the comparison"),
        ("--captions", one_of("four", "full"), "four", "the language that is learned"),
        ("--train", str, "", "more flags of train.py, in quotes, over the variant's own")))
    p.add_argument("name", choices=(*PLANS, "guidance", "nearest"))
    args = p.parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
