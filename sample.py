"""From a caption to a clip: assemble the model, open a checkpoint, sample key frames, fill between.

    python sample.py "a digit moving left" --out left.gif

The network's window is 17 frames. As in CogVideo (Hong et al. 2022, arXiv:2205.15868), it first
makes the 17 key frames of the whole action at stride 4. Then windows at half the stride take 9
neighbouring frames as their even ones and fill the 8 between: 17 -> 33 -> 65 frames, of which the
last is dropped. Windows share their end frames, so nothing can jump where they meet.
The same network animates a picture, continues a clip, chains prompts and samples plain windows at
finer strides; `preference` ranks clips and `upscale` enlarges them.
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

import numpy as np
import torch
from einops import rearrange
from torch import nn

from data import SIZE
from diffusion import SAMPLERS, Diffusion, T, guide
from support.console import UserError, exit_status, number
from support.video import check_clip_path, fit, no_bombs, write_clip
from text_encoder import TextConfig, TextEncoder, Tokenizer
from unet3d import STRIDES, UNet3D, UNetConfig
from vae import VAE, VAEConfig

SHIPPED = Path(__file__).parent / "checkpoints" / "base.pt"
WINDOW = 17                                     # frames the network is trained to see at once
CARRIED = 4                                     # known frames that a continuation begins with
SECONDS, TICKS = 3.2, 20                        # one action; ticks a second
STEPS = {"dpm": 20, "ddim": 50, "ddpm": 250}    # for key frames
FILL_SHARE = {"mask": 10, "replacement": 2, "reconstruction": 2}  # a fill takes one in so many
GUIDANCE = 3.0
GUIDED_FROM = 600                               # the lowest noise level that guidance works at
PATCH = 4                                       # pixels: what super-resolution takes as one place
DETAIL = 8                                      # 1 / std of what bicubic enlarging lacks
CHUNK = 128                                     # windows sampled as one batch, to bound memory


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
        self.upscaler = (UNet3D(UNetConfig(**config["upscale"])) if "upscale" in config else None)
        # the sharp picture follows from the blurred one almost for certain, so it is asked for x0:
        # measured, that learns three times as fast as v, most of which is noise to be passed on
        self.sharpening = Diffusion(config["schedule"], "x0")


def build(config):
    """A `TextToVideo` with fresh weights from a config dict: "vae", "text" and "unet" hold their
    dataclasses' fields, as does "upscale" where there is super-resolution; "vocabulary" the words,
    "schedule", "predict", "size" (pixels) the rest."""
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
    except PermissionError:
        raise UserError(f"{path} cannot be read: you have no permission to") from None
    except Exception as error:  # torch.load raises a dozen kinds for files that are not its own
        raise UserError(f"{path} is no checkpoint of this program, or it is damaged "
                        f"({type(error).__name__}): train one with train.py") from None


def restore(saved, key, path):
    """The `TextToVideo` of a checkpoint's config with its weights `key`, "ema" or "model"."""
    try:
        model = build(saved["config"])
        model.load_state_dict(saved[key])
        words = model.config["vocabulary"]
        with torch.no_grad():  # a still, to see that the parts fit each other and the program
            z = torch.zeros(1, model.vae.config.latent_channels, 1, SIZE // 8, SIZE // 8)
            z = model.unet(z, torch.zeros(1), *model.text_encoder(model.tokenizer(words[-1:])))
            x = model.vae.decode(z)
            if model.upscaler:
                upscale(model, x, steps=1)
        if (x.shape[1] not in (1, 3) or model.config["size"] != SIZE
                or not all(word.isprintable() for word in words)):
            raise ValueError
    except Exception:  # a config may hold anything
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


def seeded(*key, device="cpu"):
    """A generator for a key of numbers and words. Hashed, because torch's CPU generator keeps only
    32 bits of its seed; on the CPU, because then noise is the same on every device."""
    return torch.Generator(device).manual_seed(zlib.crc32(repr(key).encode()))


def amp(device):
    """Mixed precision where it pays: bfloat16 on CUDA."""
    on = device.type == "cuda"
    return torch.autocast("cuda" if on else "cpu", torch.bfloat16, enabled=on)


def denoiser(model, tokens, scale, **window):
    """The network as a function (x, t) -> guided prediction, which is all the samplers see.

    Guidance pushes at high noise only, where a clip's content is decided; below GUIDED_FROM it
    would add the errors of two passes, and one is cheaper. (Kynkäänniemi et al. 2024, 2404.07724,
    found the same of low noise; of the highest they found harm, where our motion is decided.)
    """
    b, drops = len(tokens), {0: [True], 1: [False]}.get(scale, [False, True])
    with amp(tokens.device):  # a pass with the caption; one without, where guidance needs it
        drop = torch.tensor(drops, device=tokens.device).repeat_interleave(b)
        context, mask = model.text_encoder(tokens.repeat(len(drops), 1), drop)

    def predict(x, t):
        n = len(drops) if t[0] >= GUIDED_FROM else 1
        rest = {k: v.repeat(n, *[1] * (v.ndim - 1)) if torch.is_tensor(v) else v
                for k, v in window.items()}
        with amp(x.device):
            out = model.unet(x.repeat(n, 1, 1, 1, 1), t.repeat(n), context[:n * b], mask[:n * b],
                             **rest)
        if n == 1:
            return out
        conditional, unconditional = out.chunk(2)
        return guide(unconditional, conditional, scale)

    return predict


def cuts(n, ends):
    """Where windows of `ends` neighbours begin in n frames, each sharing a frame with the next (the
    last two share more where they must)."""
    starts = list(range(0, n - ends + 1, ends - 1))
    return starts if starts[-1] + ends == n else starts + [n - ends]


def fill(z, f=WINDOW):
    """Cut z (b c n h w) into windows with room between their frames.

    Returns known (b*k c f h w), every other frame known, and known_mask (b*k f).
    """
    ends = (f + 1) // 2                                                     # 9 known of 17
    windows = torch.stack([z[:, :, i:i + ends] for i in cuts(z.shape[2], ends)], dim=1)
    windows = rearrange(windows, "b k c e h w -> (b k) c e h w")
    known = windows.new_zeros(*windows.shape[:2], f, *windows.shape[3:])
    known[:, :, ::2] = windows
    return known, (torch.arange(f, device=z.device) % 2 == 0).expand(len(known), f)


def join(windows, b, n):
    """Undo `fill`'s cutting of n frames: (b*k c f h w) windows -> (b c 2n-1 h w)."""
    windows = rearrange(windows, "(b k) c f h w -> k b c f h w", b=b)
    z = windows.new_zeros(*windows.shape[1:3], 2 * n - 1, *windows.shape[4:])
    f = windows.shape[3]
    for window, i in zip(windows, cuts(n, (f + 1) // 2)):
        z[:, :, 2 * i:2 * i + f] = window
    return z


def begin(z):
    """A window that begins with the frames z (b c k h w): known (b c f h w), known_mask (b f)."""
    b, c, k, h, w = z.shape
    known = torch.cat([z, z.new_zeros(b, c, WINDOW - k, h, w)], dim=2)
    return known, (torch.arange(WINDOW, device=z.device) < k).expand(b, WINDOW)


def speakers(n, level):
    """Which prompt speaks for each window that `fill` cuts n frames into, `level` fills after the
    key frames: that of its middle. The first spoke for 17 key frames, the rest for 13 each."""
    middle = [(k + 4) // 2 ** level for k in cuts(n, (WINDOW + 1) // 2)]
    return [max(0, (k - CARRIED) // (WINDOW - CARRIED)) for k in middle]


def check_plan(num_frames, stride, known, sampler):
    """Raise `UserError` for frames, strides and samplers that `generate` does not have."""
    if sampler not in SAMPLERS:
        raise UserError(f"there is no sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
    if num_frames not in (16, 32, 64):
        raise UserError(f"--frames is {num_frames}, but must be 16, 32 or 64")
    if stride < 4 and (num_frames > 16 or known):
        raise UserError("a window at --stride 2 or 1 has 16 frames, begins with none and is not "
                        "continued: leave out --frames, --image, --extend and --chain")


@torch.no_grad()
def generate(model, prompts, *, num_frames=32, steps=None, sampler=None, guidance_scale=None,
             seed=0, stride=4, first=None, then=(), known_by="mask"):
    """One clip a prompt: x (b c f h w) in [-1, 1] on the model's device.

    num_frames: 16, 32 or 64 frames of one action of 3.2 s. steps: for the key frames; a fill takes
    a tenth. sampler: dpm, ddim or ddpm. guidance_scale: 0 ignores the prompt, 1 is plain
    conditional; fills see their neighbours and need at most 1. Clip i's noise depends on (seed, i).
    stride: 2 or 1 makes one window of 16 frames at 10 or 20 a second, a part of the action.
    first (b c k h w): pixels of the k frames that the clips begin with, 4 ticks apart. then: a list
    of prompts (b each) for every window of 13 key frames that goes on from the last four.
    known_by: "mask" (learned), "replacement" or "reconstruction": how known frames take part.
    """
    sampler = sampler or "dpm"
    check_plan(num_frames, stride, first is not None or then, sampler)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    steps = steps or STEPS[sampler]
    scale = GUIDANCE if guidance_scale is None else guidance_scale
    device = model.vae.latent_std.device
    tokens = torch.stack([model.tokenizer(part) for part in (prompts, *then)]).to(device)   # s b n
    shape = (model.vae.config.latent_channels, WINDOW, *[model.config["size"] // 8] * 2)
    clips, chunk = [], max(1, CHUNK * 16 // (num_frames * len(tokens)))  # CHUNK windows at most
    for i in range(0, len(prompts), chunk):
        part = tokens[:, i:i + chunk]
        randoms = [seeded(seed, i + k) for k in range(part.shape[1])]

        def noise(like):  # each clip's windows draw their noise from the clip's own generator
            k = len(like) // len(randoms)
            return torch.cat([torch.randn(k, *shape, generator=g) for g in randoms]).to(device)

        def sample(tokens, steps, scale, stride, known=None, known_mask=None):
            """One batch of windows; known frames come back as they were."""
            run = getattr(model.diffusion, sampler)
            run = run if sampler == "dpm" else partial(run, noise=noise)
            x_T = noise(tokens)
            if known is None:
                return run(denoiser(model, tokens, scale, stride=stride), x_T, steps)
            mask = rearrange(known_mask, "b f -> b 1 f 1 1")
            window = dict(known=known, known_mask=known_mask) if known_by == "mask" else {}
            network = denoiser(model, tokens, scale, stride=stride, **window)
            # important: with a learned mask too, x's known frames are noised truth at every level,
            # as in training. No loss asked what the network says of them: left to it, they drift
            # and lead the rest astray, the more steps the further (README, "More than text")
            way = getattr(model.diffusion, {"mask": "replacement"}.get(known_by, known_by))
            return torch.where(mask, known, run(way(network, known, mask, x_T), x_T, steps))

        start = () if first is None else begin(model.vae.encode(first[i:i + chunk].to(device)))
        whole = first is not None and first.shape[2] == WINDOW  # then there is only to fill
        z = start[0] if whole else sample(part[0], steps, scale, stride, *start)
        for again in part[1:]:
            z = torch.cat([z, sample(again, steps, scale, 4, *begin(z[:, :, -CARRIED:]))
                           [:, :, CARRIED:]], dim=2)
        for level in range(int(math.log2(num_frames // 16))):
            known, known_mask = fill(z)
            again = rearrange(part[speakers(z.shape[2], level)], "k b n -> (b k) n")
            few = max(1, steps // FILL_SHARE[known_by])  # there is little left to invent
            new = sample(again, few, min(scale, 1), 2 - level, known, known_mask)
            z = join(new, part.shape[1], z.shape[2])
        with amp(device):
            clips.append(model.vae.decode(z[:, :, :-1]).float().clamp(-1, 1))
    return torch.cat(clips)


def to_patches(x):
    """Pixels (b c f h w) -> "latents" (b 16c f h/4 w/4) that hold each 4x4 patch as it is."""
    return rearrange(x, "b c f (h p) (w q) -> b (c p q) f h w", p=PATCH, q=PATCH)


def enlarge(x):
    """x (b c f h w) to twice the size, bicubic: what super-resolution starts from."""
    frames = rearrange(x, "b c f h w -> (b f) c h w")
    frames = nn.functional.interpolate(frames, scale_factor=2, mode="bicubic").clamp(-1, 1)
    return rearrange(frames, "(b f) c h w -> b c f h w", b=len(x))


def upscaler(model, x):
    """The second U-Net as a function (detail_t, t) -> x0, the detail that `enlarge` lacks, given
    x (n c 1 h w): frames alone, with the null prompt. Its known frame is the enlarged one."""
    known, n, device = to_patches(enlarge(x)), len(x), x.device
    context, mask = model.text_encoder(torch.zeros(n, 1, dtype=torch.long, device=device))
    known_mask = torch.ones(n, 1, dtype=torch.bool, device=device)

    def predict(z, t):
        with amp(device):
            return model.upscaler(z, t, context, mask, known=known, known_mask=known_mask)

    return predict


@torch.no_grad()
def upscale(model, x, steps=2, seed=0):
    """Clips x (b c f h w) -> (b c f 2h 2w), as Make-A-Video in space (section 3): each frame is
    denoised alone but from the same noise, so that what is invented does not flicker."""
    frames, out = rearrange(x, "b c f h w -> (b f) c 1 h w"), []
    noise = torch.randn(1, *to_patches(enlarge(frames[:1])).shape[1:],
                        generator=seeded(seed, "upscale")).to(x.device)
    for part in frames.split(CHUNK):
        z = model.sharpening.dpm(upscaler(model, part), noise.expand(len(part), *noise.shape[1:]),
                                steps)
        detail = rearrange(z / DETAIL, "n (c p q) f h w -> n c f (h p) (w q)", p=PATCH, q=PATCH)
        out.append((enlarge(part) + detail).clamp(-1, 1))
    return rearrange(torch.cat(out), "(b f) c 1 h w -> b c f h w", b=len(x))


@torch.no_grad()
def preference(model, prompts, x, stride, draws=16, seed=0):
    """How much better the model denoises each clip x (b c f h w) with its prompt than without one:
    (b,), by which `--best-of` ranks. The denoising loss bounds -log p, so this estimates
    log p(x|prompt) - log p(x), which by Bayes is log p(prompt|x) and a constant: what CogView
    (Ding et al. 2021, 2105.13290, section 3.2) ranks by, with a captioner trained for it. Mean
    over `draws` noise levels; every clip sees the same noise.
    """
    if len(x) > CHUNK:
        parts = [slice(i, i + CHUNK) for i in range(0, len(x), CHUNK)]
        return torch.cat([preference(model, prompts[p], x[p], stride, draws, seed) for p in parts])
    device = model.vae.latent_std.device
    z, tokens = model.vae.encode(x.to(device)), model.tokenizer(prompts).to(device)
    generator, total = seeded(seed, "preference"), 0
    for k in range(draws):
        t = torch.full((len(z),), int((k + .5) / draws * T), device=device)
        eps = torch.randn(1, *z.shape[1:], generator=generator).to(device).expand_as(z)
        without, with_ = (model.diffusion.loss(denoiser(model, tokens, scale, stride=stride),
                                               z, t, eps) for scale in (0, 1))
        total = total + (without - with_) / draws
    return total


# ---- the command ---------------------------------------------------------------------------------

def parse(argv):
    """The command's arguments, checked before any work."""
    p = argparse.ArgumentParser(description="Make clips from captions.", usage=(
        "python sample.py PROMPT [PROMPT ...] [options]   (--help lists them)"))
    p.add_argument("prompts", nargs="+", metavar="PROMPT", help='such as "a digit moving left"')
    p.add_argument("--checkpoint", metavar="FILE", help="weights (default: the shipped ones)")
    p.add_argument("--out", default="sample.gif", metavar="FILE",
                   help=".gif, .mp4, or .png for a strip of frames (default: %(default)s)")
    p.add_argument("--frames", type=int, choices=(16, 32, 64),
                   help="frames of the 3.2-second action (default: 32, or 16 with --stride 2 or 1)")
    p.add_argument("--fps", type=number(float, 0.1, 100), metavar="N",
                   help="frames a second of the file (default: real time)")
    p.add_argument("--steps", type=number(int, 1, 1000), metavar="N",
                   help="denoising steps for key frames, a tenth for fills (default: "
                        + ", ".join(f"{k} {v}" for k, v in STEPS.items()) + ")")
    p.add_argument("--sampler", default="dpm", choices=SAMPLERS)
    p.add_argument("--guidance", type=number(float, 0, 100), default=GUIDANCE, metavar="X",
                   help="0 ignores the prompt, 1 is plain conditional (default: %(default)s)")
    p.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N")
    p.add_argument("--num", type=number(int, 1, 1000), default=1, metavar="N",
                   help="clips of each prompt, shown as one grid (default: %(default)s)")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    more = p.add_argument_group("one network, more tasks (README, 'More than text to clip')")
    more.add_argument("--stride", type=int, default=4, choices=STRIDES,
                      help="ticks of 1/20 s between frames: 2 or 1 samples one window of 16 frames "
                           "at that rate (default: %(default)s, the whole action)")
    more.add_argument("--image", metavar="FILE", help="a picture that the clip begins with")
    more.add_argument("--extend", type=number(int, 0, 20), default=0, metavar="N",
                      help="go on N times from the last four key frames, 2.6 seconds each")
    more.add_argument("--chain", action="store_true",
                      help="one clip that does what the prompts say, one after the other")
    more.add_argument("--best-of", type=number(int, 1, 64), default=1, metavar="N",
                      help="make N clips and keep the one that suits its prompt best")
    more.add_argument("--upscale", type=int, choices=(1, 2), default=1,
                      help="2: super-resolution to 128x128 pixels (default: %(default)s)")
    more.add_argument("--known-by", default="mask",
                      choices=("mask", "replacement", "reconstruction"),
                      help="how known frames take part: by the learned mask, or in ways that need "
                           "no training (default: %(default)s)")
    args = p.parse_intermixed_args(argv)  # prompts may stand among the options
    if not all(re.search(r"\w", prompt) for prompt in args.prompts):
        raise UserError('a prompt has no words: write what should move where, such as '
                        '"a digit moving left"; --guidance 0 samples without a prompt')
    if args.chain and (len(args.prompts) < 2 or args.extend or args.best_of > 1):
        raise UserError("--chain takes two or more prompts, and neither --extend nor --best-of")
    if args.best_of > 1 and (args.extend or args.num > 1):
        raise UserError("--best-of keeps one clip of each prompt: leave out --extend and --num")
    args.frames = args.frames or (32 if args.stride == 4 else 16)
    check_clip_path(args.out)
    return args


def read_picture(path, model):
    """A picture file -> x (c 1 h w) in [-1, 1] in the model's size and colours, and a sentence that
    says what was done: its longer side fits the frame, black fills the rest."""
    import imageio.v3 as imageio
    try:
        with open(path, "rb") as file:  # important: Pillow would run PostScript, a program, and
            head = file.read(26)        # find it inside of other formats
        if not head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")):
            raise UserError("another format")
        if head[1:4] == b"PNG" and head[24:] == b"\x10\0":
            raise UserError("16-bit grey")  # which Pillow would turn white
        with no_bombs():
            picture = imageio.imread(path, plugin="pillow", index=0, mode="RGBA", rotate=True)
    except Exception as error:  # imageio raises what its plug-ins raise
        why = error if isinstance(error, UserError) else type(error).__name__
        raise UserError(f"{path} cannot be read as a picture ({why}): name a PNG, JPEG or GIF file"
                        ) from None
    size, c, (h, w) = model.config["size"], model.vae.config.channels, picture.shape[:2]
    # what is transparent is black
    x = fit(picture[..., :3] * (picture[..., 3:] / np.float32(255)), size)
    x = rearrange(x.mean(0, keepdim=True) if c == 1 else x, "c h w -> c 1 h w")
    return x / 127.5 - 1, (f"{path}: {w}x{h} pixels fitted to {size}x{size} in "
                           f"{'grey' if c == 1 else 'colour'}, black around")


def run(args, model):
    """What the command asks for: clips x (b c f h w)."""
    each = args.num * args.best_of
    lines = [[prompt] * each for prompt in args.prompts]
    prompts = lines[0] if args.chain else sum(lines, [])
    then = lines[1:] if args.chain else [prompts] * args.extend
    first = None
    if (args.image or then or args.stride < 4) and "tasks" not in model.config:
        print("note: these weights never learned to continue, to animate a picture or to show a "
              "part of the action: for that, train with train.py", file=sys.stderr)
    if args.image:
        first, note = read_picture(args.image, model)
        print(f"note: {note}", file=sys.stderr)
        first = first.expand(len(prompts), *first.shape)
    x = generate(model, prompts, num_frames=args.frames, steps=args.steps, sampler=args.sampler,
                 guidance_scale=args.guidance, seed=args.seed, stride=args.stride, first=first,
                 then=then, known_by=args.known_by)
    if args.best_of > 1:
        x = keep_best(args, model, prompts, x)
    return upscale(model, x, seed=args.seed) if args.upscale == 2 else x


def keep_best(args, model, prompts, x):
    """Of the --best-of clips of each prompt the one that suits it best, and a line that says so."""
    keys = x[:, :, ::args.frames // 16]  # the network's own window: 16 frames at --stride
    scores = preference(model, prompts, keys, args.stride).cpu()
    scores = rearrange(scores, "(b n) -> b n", n=args.best_of)
    best = scores.argmax(1)
    print(f"kept {best.tolist()} of {args.best_of} each, by the denoising loss saved: "
          f"{', '.join(f'{v:.4f}' for v in scores.max(1).values)}")
    return x[best + torch.arange(len(best)) * args.best_of]


def main(argv=None):
    """Runs the command; returns its exit status."""
    begin = time.perf_counter()

    def work():
        args = parse(argv)
        model = load(args.checkpoint, args.device)
        if args.upscale == 2 and model.upscaler is None:
            raise UserError("these weights have no super-resolution: train it with train.py "
                            "--upscale-steps N, and name them with --checkpoint")
        x = run(args, model)
        fps = args.fps or (args.frames / SECONDS if args.stride == 4 else TICKS / args.stride)
        write_clip(x, args.out, fps=fps)
        print(f"{args.out}: {len(x)} clip{'s' * (len(x) > 1)} of {x.shape[2]} frames from "
              f"{args.checkpoint or SHIPPED}, seed {args.seed}, "
              f"{time.perf_counter() - begin:.1f} s on {next(model.parameters()).device}")

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest: print(f"note: {message}", file=sys.stderr)
        return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
