"""From a caption to a clip: assemble the model, open a checkpoint, sample key frames, fill between.

    python sample.py "a digit moving left" --out left.gif

The network's window is 17 frames. As in CogVideo (Hong et al. 2022, arXiv:2205.15868), it first
makes the 17 key frames of the whole action at stride 4. Then windows at half the stride take 9
neighbouring frames as their even ones and fill the 8 between: 17 -> 33 -> 65 frames, of which the
last is dropped. Windows share their end frames, so nothing can jump where they meet.
From Python:
    model = load()                                     the shipped weights
    x = generate(model, ["a 3 moving left"])           x (b c f h w) in [-1, 1]
"""

import argparse
import math
import re
import sys
import time
import warnings
import zlib
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import nn

from data import UserError, check_clip_path, write_clip
from diffusion import SAMPLERS, Diffusion, guide
from text_encoder import TextConfig, TextEncoder, Tokenizer
from unet3d import UNet3D, UNetConfig
from vae import VAE, VAEConfig

SHIPPED = Path(__file__).parent / "checkpoints" / "base.pt"
WINDOW = 17                                     # frames the network is trained to see at once
SECONDS = 3.2                                   # one action
STEPS = {"dpm": 20, "ddim": 50, "ddpm": 250}    # for key frames; a fill takes half
GUIDANCE = 3.0
GUIDED_FROM = 600                               # the lowest noise level that guidance works at
CHUNK = 64                                      # clips sampled as one batch, to bound memory


class TextToVideo(nn.Module):
    """The three networks with what they need to work together; `build` makes it from a config."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config["vocabulary"], config["text"]["length"])
        self.diffusion = Diffusion(config["schedule"], config["predict"])
        self.vae = VAE(VAEConfig(**config["vae"]))
        self.text_encoder = TextEncoder(TextConfig(**config["text"]))
        self.unet = UNet3D(UNetConfig(**config["unet"]))


def build(config):
    """A `TextToVideo` with fresh weights from a config dict: "vae", "text" and "unet" hold their
    dataclasses' fields, "vocabulary" the words, "schedule", "predict", "size" (pixels) the rest."""
    return TextToVideo(config)


def device_for(name="auto"):
    """The torch device called auto, cpu, cuda or mps; auto takes the fastest there is."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if name == "auto":
        name = next(d for d in there if there[d])
    if not there.get(name):
        raise UserError(f"there is no device {name!r} here: choose from "
                        f"{', '.join(d for d in there if there[d])}")
    return torch.device(name)


def read_checkpoint(path):
    """The dict in a checkpoint file; `UserError` for anything else. Executes nothing in it."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: train one with train.py, or leave "
                        "--checkpoint out to use the shipped weights")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved | {"config": dict(saved["config"]), "ema": dict(saved["ema"])}
    except Exception as error:  # torch.load raises a dozen kinds for files that are not its own
        raise UserError(f"{path} is no checkpoint of this program, or it is damaged "
                        f"({type(error).__name__}): train one with train.py") from None


def restore(saved, key, path):
    """The `TextToVideo` of a checkpoint's config with its weights `key`, "ema" or "model"."""
    try:
        model = build(saved["config"])
        model.load_state_dict(saved[key])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path} is a checkpoint of another architecture: train one with this "
                        "version's train.py") from None
    return model


def load(checkpoint=None, device="auto"):
    """Open a checkpoint (default: the shipped weights) -> a `TextToVideo` ready to `generate`.

    Takes a file of train.py or shipped half-precision weights; EMA weights, in float32. Raises
    `UserError` for a missing, damaged or foreign file and for a device that is not there.
    """
    device, path = device_for(device), Path(checkpoint or SHIPPED)
    return restore(read_checkpoint(path), "ema", path).to(device).eval()


def seeded(*key):
    """A CPU generator for a key of numbers and words. Hashed, because torch's CPU generator keeps
    only 32 bits of its seed; on the CPU, because then noise is the same on every device."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def amp(device):
    """Mixed precision where it pays: bfloat16 on CUDA."""
    on = device.type == "cuda"
    return torch.autocast("cuda" if on else "cpu", torch.bfloat16, enabled=on)


def denoiser(model, tokens, scale, **window):
    """The network as a function (x, t) -> guided prediction, which is all the samplers see.

    Guidance pushes at high noise only, where a clip's content is decided; below GUIDED_FROM it
    would add the errors of two passes, and one is cheaper (Kynkäänniemi et al. 2024, 2404.07724).
    """
    b, scales = len(tokens), {0: [True], 1: [False]}.get(scale, [False, True])
    with amp(tokens.device):  # with the caption; without, where guidance needs that too
        drop = torch.tensor(scales, device=tokens.device).repeat_interleave(b)
        context, mask = model.text_encoder(tokens.repeat(len(scales), 1), drop)

    def predict(x, t):
        n = len(scales) if t[0] >= GUIDED_FROM else 1
        rest = {k: v.repeat(n, *[1] * (v.ndim - 1)) if torch.is_tensor(v) else v
                for k, v in window.items()}
        with amp(x.device):
            out = model.unet(x.repeat(n, 1, 1, 1, 1), t.repeat(n), context[:n * b], mask[:n * b],
                             **rest)
        return out if n == 1 else guide(*out.chunk(2)[::-1], scale)

    return predict


def fill(z, f=WINDOW):
    """Cut z (b c n h w) into windows that share their end frames and leave room between frames.

    Returns known (b*k c f h w), every other frame known, and known_mask (b*k f).
    """
    ends = (f + 1) // 2                                                     # 9 known of 17
    windows = rearrange(z.unfold(2, ends, ends - 1), "b c k h w e -> (b k) c e h w")
    known = windows.new_zeros(*windows.shape[:2], f, *windows.shape[3:])
    known[:, :, ::2] = windows
    return known, (torch.arange(f, device=z.device) % 2 == 0).expand(len(known), f)


def join(windows, b):
    """Undo `fill`'s cutting: (b*k c f h w) windows -> (b c k(f-1)+1 h w), shared frames once."""
    windows = rearrange(windows, "(b k) c f h w -> b k c f h w", b=b)
    body = rearrange(windows[:, :, :, :-1], "b k c f h w -> b c (k f) h w")
    return torch.cat([body, windows[:, -1, :, -1:]], dim=2)


@torch.no_grad()
def generate(model, prompts, *, num_frames=32, steps=None, sampler=None, guidance_scale=None,
             seed=0):
    """One clip a prompt: x (b c f h w) in [-1, 1] on the model's device.

    num_frames: 16, 32 or 64 frames of one action of 3.2 s. steps: for the key frames (a fill takes
    half). sampler: dpm, ddim or ddpm. guidance_scale: 0 ignores the prompt, 1 is plain conditional;
    fills see their neighbours and need at most 1. Clip i's noise depends on (seed, i) only.
    """
    if num_frames not in (16, 32, 64):
        raise UserError(f"--frames is {num_frames}, but must be 16, 32 or 64")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    sampler = sampler or "dpm"
    if sampler not in SAMPLERS:
        raise UserError(f"there is no sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
    steps = steps or STEPS[sampler]
    scale = GUIDANCE if guidance_scale is None else guidance_scale
    device = model.vae.latent_std.device
    tokens = model.tokenizer(prompts).to(device)
    shape = (model.vae.config.latent_channels, WINDOW, *[model.config["size"] // 8] * 2)
    clips = []
    for first in range(0, len(prompts), CHUNK):
        part = tokens[first:first + CHUNK]
        randoms = [seeded(seed, first + i) for i in range(len(part))]

        def sample(tokens, steps, scale, **window):
            def noise(like=None):  # a clip's k windows draw their noise from the clip's generator
                k = len(tokens) // len(randoms)
                return torch.cat([torch.randn(k, *shape, generator=g) for g in randoms]).to(device)

            run = getattr(model.diffusion, sampler)
            run = run if sampler == "dpm" else partial(run, noise=noise)
            return run(denoiser(model, tokens, scale, **window), noise(), steps)

        z = sample(part, steps, scale, stride=4)
        for level in range(int(math.log2(num_frames // 16))):
            known, known_mask = fill(z)
            again = part.repeat_interleave(len(known) // len(part), dim=0)
            new = sample(again, max(1, steps // 2), min(scale, 1), stride=2 - level, known=known,
                         known_mask=known_mask)
            keep = rearrange(known_mask, "b f -> b 1 f 1 1")
            z = join(torch.where(keep, known, new), len(part))
        with amp(device):
            clips.append(model.vae.decode(z[:, :, :num_frames]).float().clamp(-1, 1))
    return torch.cat(clips)


# ---- the command ---------------------------------------------------------------------------------

def number(kind, low, high=math.inf):
    """An argparse type: an int or float in low ... high, or one sentence that says so."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} ... {high}")
        return value
    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


def parse(argv):
    """The command's arguments, checked before any work."""
    p = argparse.ArgumentParser(description="Make clips from captions.", usage=(
        "python sample.py PROMPT [PROMPT ...] [options]   (--help lists them)"))
    p.add_argument("prompts", nargs="+", metavar="PROMPT", help='such as "a digit moving left"')
    p.add_argument("--checkpoint", metavar="FILE", help="weights (default: the shipped ones)")
    p.add_argument("--out", default="sample.gif", metavar="FILE",
                   help=".gif, .mp4, or .png for a strip of frames (default: %(default)s)")
    p.add_argument("--frames", type=int, default=32, choices=(16, 32, 64),
                   help="frames of the 3.2-second action (default: %(default)s)")
    p.add_argument("--fps", type=number(float, 0.1, 100), metavar="N",
                   help="frames a second of the file (default: frames / 3.2)")
    p.add_argument("--steps", type=number(int, 1, 1000), metavar="N",
                   help="denoising steps for key frames, half for fills (default: "
                        + ", ".join(f"{k} {v}" for k, v in STEPS.items()) + ")")
    p.add_argument("--sampler", default="dpm", choices=SAMPLERS)
    p.add_argument("--guidance", type=number(float, 0, 100), default=GUIDANCE, metavar="X",
                   help="0 ignores the prompt, 1 is plain conditional (default: %(default)s)")
    p.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N")
    p.add_argument("--num", type=number(int, 1, 1000), default=1, metavar="N",
                   help="clips of each prompt, shown as one grid (default: %(default)s)")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    args = p.parse_intermixed_args(argv)  # prompts may stand among the options
    if not all(re.search(r"\w", prompt) for prompt in args.prompts):
        raise UserError('a prompt has no words: write what should move where, such as '
                        '"a digit moving left"; --guidance 0 samples without a prompt')
    check_clip_path(args.out)
    return args


def main(argv=None):
    """Runs the command; returns its exit status."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest: print(f"note: {message}", file=sys.stderr)
        try:
            args = parse(argv)
            model = load(args.checkpoint, args.device)
            prompts = [prompt for prompt in args.prompts for _ in range(args.num)]
            x = generate(model, prompts, num_frames=args.frames, steps=args.steps,
                         sampler=args.sampler, guidance_scale=args.guidance, seed=args.seed)
            write_clip(x, args.out, fps=args.fps or args.frames / SECONDS)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(f"{args.out}: {len(x)} clip{'s' * (len(x) > 1)} of {args.frames} frames from "
          f"{args.checkpoint or SHIPPED}, seed {args.seed}, "
          f"{time.perf_counter() - begin:.1f} s on {next(model.parameters()).device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
