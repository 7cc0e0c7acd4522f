"""From a caption to a clip: sample 17 key frames of the whole action, then fill between them.

    python sample.py "a digit moving left" --out left.gif

As in CogVideo (Hong et al. 2022, arXiv:2205.15868, section 3.1) the 17 key frames come first, at
stride 4. Then windows at half the stride take 9 neighbours as their even frames and fill the 8
between: 17 -> 33 -> 65 frames, of which the last is dropped. Windows share their end frames, so
nothing can jump where they meet. Weights of train.py also animate a picture (their first frame is
known), go on from a clip's last four, and show a part of it at a finer stride. From Python:
    model = load()                                     the shipped weights
    x = generate(model, ["a 3 moving left"])           x (b c f h w) in [-1, 1]
"""

import argparse
import sys
import time
from functools import partial

import torch
from einops import rearrange, repeat

import data
from diffusion import T, Diffusion, Noise, every, guide, replacement
from model import SHIPPED, WINDOW, amp, load, seeded
from support.console import (DEVICE, SEED, UserError, add_flags, exit_status, number, one_of,
                             printable)
from support.replay import Replayed
from support.video import check_clip_path, read_picture, write_clip
from text_encoder import words_of
from unet3d import STRIDES

CARRIED, TICKS = 4, 20  # known frames that a continuation begins with; ticks a second
SAMPLERS = {"dpm": Diffusion.dpm, "sde": partial(Diffusion.dpm, eta=1.0), "ddim": Diffusion.ddim,
            "ddpm": Diffusion.ddpm}
STEPS = {"dpm": 20, "sde": 40, "ddim": 50, "ddpm": 250}  # for key frames
FILL_STEPS = 2          # for a fill, whatever the sampler: two were measured better than ten
SAMPLER, GUIDANCE = "sde", 3.0
# Where less of the signal is left than this alpha_bar,
GUIDED_BELOW = 0.34     # guidance works (cosine schedule: t >= 600),
DECIDED_BELOW = 0.053   # and it is decided who is there and where it goes (t >= 850)
WINDOWS_AT_ONCE = 128   # sampled as one batch, to bound memory
VIEWED = 256            # screen pixels a side of a clip: its own 64 are small on today's screens


def denoiser(model, tokens, scale, stride=4, known=None, known_mask=None):
    """The network as a function (x, t) -> guided prediction, which is all that samplers see.

    tokens (b n); stride, known and known_mask as `UNet3D.forward` takes them. The predictions
    without and with the captions are halves of one batch. Ho & Salimans guide at every level; we
    stop at low noise, which saves work. So do Kynkäänniemi et al. (2024, 2404.07724), but they also
    leave out the highest noise, where we guide: no interval was measured to be better than another.
    """
    with amp(tokens.device):  # tokens of nothing but padding are the null prompt
        context, mask = model.text_encoder(torch.cat([torch.zeros_like(tokens), tokens]))
    shown = [every(tokens, stride)] + ([] if known is None else [known, known_mask])
    rows = [context, mask, *(torch.cat([each, each]) for each in shown)]             # (2b ...)
    network, b = Replayed(model.unet), len(tokens)   # on a GPU one CUDA graph a pass; else the same

    def predict(x, t):
        """x (b c f h w), t (b,), all of one level -> prediction like x."""
        with amp(x.device):
            if scale in (0, 1) or model.diffusion.alpha_bar[t[0]] > GUIDED_BELOW:
                half = slice(0, b) if scale == 0 else slice(b, 2 * b)
                return network(x, t, *(row[half] for row in rows))
            both = network(torch.cat([x, x]), torch.cat([t, t]), *rows)
            return guide(*both.chunk(2), scale)

    return predict


def key_levels(diffusion, steps):
    """Noise levels (steps,) of key frames, from 999 down. Half of them lie at high noise, where it
    is decided who is there and where it goes; the others decide the looks. Even steps would leave
    a seventh to the hard part: two moving digits obeyed in 85 % of clips then, and in 88 to 89 %
    now (docs/results.md)."""
    if not 1 <= steps <= T:
        raise UserError(f"steps is {steps}, but must be 1 ... {T}")
    edge = int((diffusion.alpha_bar > DECIDED_BELOW).sum())
    high = min((steps + 1) // 2, T - 1 - edge)                   # at most one step a level
    levels = torch.cat([torch.linspace(T - 1, edge, high + 1)[:-1],
                        torch.linspace(edge, -1, steps - high + 1)[:-1]])
    return levels.round().int().tolist()


def sample(model, tokens, noise, sampler, steps, scale, stride, known=None, known_mask=None):
    """One batch of windows for captions tokens (b n) -> latents (b c f h w).

    steps: as samplers take them, a number or the noise levels themselves.
    known (b c f h w), known_mask (b f): frames that are given; they come back as they were.
    """
    x_T = noise(torch.empty(len(tokens), *model.window, device=tokens.device))
    network = denoiser(model, tokens, scale, stride, known, known_mask)
    if known is not None:
        mask = rearrange(known_mask, "b f -> b 1 f 1 1")
        network = replacement(model.diffusion, network, known, mask, x_T)
    x0 = SAMPLERS[sampler](model.diffusion, network, x_T, steps, noise=noise)
    return x0 if known is None else torch.where(mask, known, x0)


def begin_with(z, step=1):
    """Windows that begin with frames z (b c k h w), one every `step`: known and known_mask."""
    b, c, k, h, w = z.shape
    known, known_mask = z.new_zeros(b, c, WINDOW, h, w), z.new_zeros(b, WINDOW, dtype=torch.bool)
    known[:, :, :k * step:step], known_mask[:, :k * step:step] = z, True
    return known, known_mask


def fill(model, z, told, noise, sampler, scale, stride):
    """Frames z (b c f h w) -> (b c 2f-1 h w): windows of 9 neighbours get 8 new frames between.

    told (b f n): tokens of each frame's caption; a window hears that of its middle frame.
    """
    b, f, ends = len(z), z.shape[2], (WINDOW + 1) // 2
    starts = [min(i, f - ends) for i in range(0, f - 1, ends - 1)]   # neighbours share a frame
    windows = torch.stack([z[:, :, i:i + ends] for i in starts], dim=1)              # b k c 9 h w
    known, known_mask = begin_with(rearrange(windows, "b k c e h w -> (b k) c e h w"), step=2)
    tokens = rearrange(told[:, [i + ends // 2 for i in starts]], "b k n -> (b k) n")
    new = sample(model, tokens, noise, sampler, FILL_STEPS, scale, stride, known, known_mask)
    out = z.new_zeros(*z.shape[:2], 2 * f - 1, *z.shape[3:])
    for i, window in zip(starts, rearrange(new, "(b k) c f h w -> k b c f h w", b=b)):
        out[:, :, 2 * i:2 * i + WINDOW] = window
    return out


@torch.no_grad()
def generate(model, prompts, *, num_frames=32, steps=None, sampler=None, guidance_scale=None,
             seed=0, stride=4, first=None, then=(), as_told=False):
    """One clip a prompt: x (b c f h w) in [-1, 1] on the model's device.

    num_frames: 16, 32 or 64 frames of one action of 3.2 s. steps: for the key frames; a fill takes
    2. sampler: sde (default), dpm, ddim or ddpm. guidance_scale: 0 ignores the prompt, 1 is plain
    conditional; fills need no more. Clip i's noise depends on (seed, i) alone.
    stride: 2 or 1 makes one window of 16 frames at 10 or 20 a second, a part of the action.
    first (b c k h w): pixels of the k frames that the clips begin with, 4 ticks apart; with 17 of
    them there is only to fill. then: lists of prompts (b each), one for every continuation by 13
    key frames. as_told: draw no name for "a digit", and nothing for "two digits" (else
    `data.draw_unsaid` does, except with `first`, which shows who it is). Raises `UserError` for
    what does not go together.
    """
    sampler, scale = sampler or SAMPLER, GUIDANCE if guidance_scale is None else guidance_scale
    check_plan(num_frames, stride, first is not None or len(then) > 0, sampler)
    levels = key_levels(model.diffusion, steps or STEPS[sampler])
    prompts = [prompts] if isinstance(prompts, str) else prompts
    lines = list(zip(prompts, *then))                            # of each clip: first this, then
    if first is None and not as_told:
        lines = [data.draw_unsaid(line, model.tokenizer.words, seed, i)
                 for i, line in enumerate(lines)]
    lines = [model.tokenizer(line).to(model.device) for line in zip(*lines)]           # s of (b n)
    chunk = max(1, WINDOWS_AT_ONCE * 16 // (num_frames * len(lines)))
    clips = []
    for i in range(0, len(prompts), chunk):
        tokens, *later = (line[i:i + chunk] for line in lines)
        noise = Noise(seeded(seed, i + k) for k in range(len(tokens)))
        known = () if first is None else begin_with(
            model.vae.encode(first[i:i + chunk].to(model.device)))
        z = sample(model, tokens, noise, sampler, levels, scale, stride, *known)
        told = repeat(tokens, "b n -> b f n", f=WINDOW)          # each frame's caption
        for tokens in later:                                     # go on from the last four frames
            new = sample(model, tokens, noise, sampler, levels, scale, stride,
                         *begin_with(z[:, :, -CARRIED:]))
            z = torch.cat([z, new[:, :, CARRIED:]], dim=2)
            told = torch.cat([told, repeat(tokens, "b n -> b f n", f=WINDOW - CARRIED)], dim=1)
        for finer in {16: (), 32: (2,), 64: (2, 1)}[num_frames]:  # strides of 17 -> 33 -> 65 frames
            z = fill(model, z, told, noise, sampler, min(scale, 1), finer)
            told = repeat(told, "b f n -> b (f 2) n")[:, :-1]
        with amp(model.device):
            clips.append(model.vae.decode(z[:, :, :-1]).float().clamp(-1, 1))
    return torch.cat(clips)


def check_plan(num_frames, stride, known, sampler):
    """Raise `UserError` for frames, strides and samplers that `generate` does not have."""
    if sampler not in STEPS:
        raise UserError(f"there is no sampler {sampler!r}: choose from {', '.join(STEPS)}")
    if num_frames not in (16, 32, 64) or stride not in STRIDES:
        raise UserError(f"{num_frames} frames at stride {stride}: --frames must be 16, 32 or 64, "
                        "and --stride 4, 2 or 1")
    if stride < 4 and (num_frames > 16 or known):
        raise UserError("a window at --stride 2 or 1 has 16 frames, begins with none and is not "
                        "continued: leave out --frames, --image, --extend and --chain")


# ---- the command ---------------------------------------------------------------------------------

AS_TOLD = ("--as-told", bool, False,
           'draw no name for "a digit", nothing for "two digits": the network does')
FLAGS = (
    ("--checkpoint", str, None, "weights; if none are named, the shipped ones"),
    ("--out", str, "sample.gif", "a .gif or .mp4 file, or .png for a strip of frames"),
    ("--frames", int, None, "16, 32 or 64 of the 3.2-second action; else 32, or 16 with --stride"),
    ("--fps", number(float, 0.1, 100), None, "frames a second of the file; else real time"),
    ("--steps", number(int, 1, 1000), None, "denoising steps for key frames, else 20 (dpm), 40 "
     f"(sde), 50 (ddim), 250 (ddpm); a fill takes {FILL_STEPS}"),
    ("--sampler", one_of(*STEPS), SAMPLER, "how to get from noise to a clip"),
    ("--guidance", number(float, 0, 100), GUIDANCE, "0 ignores the prompt, 1 is plain conditional"),
    ("--num", number(int, 1, 1000), 1, "clips of each prompt, shown as one grid"),
    ("--stride", int, 4, "ticks of 1/20 s between frames; 2 or 1 shows 16 frames of a part"),
    AS_TOLD,
    ("--image", str, None, "a picture that the clip begins with"),
    ("--extend", number(int, 0, 20), 0, "go on so often from the last four key frames, 2.6 s each"),
    ("--chain", bool, False, "one clip that does what the prompts say, one after the other"),
    ("--best-of", number(int, 1, 64), 1, "make so many clips, keep the one that suits best"),
    ("--scale", number(int, 1, 16), None, "screen pixels a side for each pixel, for viewing; else "
     f"as many as make {VIEWED} of a .gif's or .mp4's clip (4), and 1 in a .png"),
    SEED, DEVICE)


def parse(argv):
    """The command's arguments, checked before any work."""
    p = argparse.ArgumentParser(description="Make clips from captions.", usage=(
        "python sample.py PROMPT [PROMPT ...] [options]   (--help lists them)"))
    p.add_argument("prompts", nargs="+", metavar="PROMPT", help='such as "a digit moving left"')
    args = add_flags(p, FLAGS).parse_intermixed_args(argv)  # prompts may stand among the options
    if not all(map(words_of, args.prompts)):
        raise UserError('a prompt has no words: write what should move where, such as '
                        '"a digit moving left"; --guidance 0 samples without a prompt')
    if args.chain and (len(args.prompts) < 2 or args.extend or args.best_of > 1):
        raise UserError("--chain takes two or more prompts, and neither --extend nor --best-of")
    if args.best_of > 1 and (args.extend or args.num > 1):
        raise UserError("--best-of keeps one clip of each prompt: leave out --extend and --num")
    if args.frames is None:
        args.frames = 32 if args.stride == 4 else 16
    known = args.image is not None or args.extend > 0 or args.chain
    check_plan(args.frames, args.stride, known, args.sampler)
    check_clip_path(args.out)
    return args


def work(args):
    """What the command does."""
    begun = time.perf_counter()
    model = load(args.checkpoint, args.device)
    first, each = None, args.num * args.best_of
    prompts, *then = ([prompt] * each for prompt in args.prompts)
    if not args.chain:  # one after the other, or side by side
        prompts = sum(then, prompts)
        then = [prompts] * args.extend
    if args.image is not None:
        first, note = read_picture(args.image, model.config["size"], model.vae.config.channels)
        print(printable(f"note: {note}"), file=sys.stderr)
        first = repeat(first, "c 1 h w -> b c 1 h w", b=len(prompts))
    x = generate(model, prompts, num_frames=args.frames, steps=args.steps, sampler=args.sampler,
                 guidance_scale=args.guidance, seed=args.seed, stride=args.stride, first=first,
                 then=then, as_told=args.as_told)
    if args.best_of > 1:
        from experiments.best_of import keep_best
        x = keep_best(model, prompts, x, args.best_of, args.stride)
    strip = args.out.lower().endswith(".png")
    scale = args.scale or (1 if strip else max(1, VIEWED // x.shape[-1]))
    write_clip(x, args.out, args.fps or TICKS / args.stride * args.frames / 16, scale)
    print(printable(f"{args.out}: {len(x)} clip{'' if len(x) == 1 else 's'} of {x.shape[2]} frames "
                    f"from {args.checkpoint or SHIPPED}, seed {args.seed}, "
                    f"{time.perf_counter() - begun:.1f} s on {model.device}"))


def main(argv=None):
    """Runs the command; returns its exit status."""
    return exit_status(lambda: work(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
