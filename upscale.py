"""Super-resolution: clips of 64x64 pixels -> 128x128, by a second, small U-Net.

    python upscale.py                                       trains it for the shipped weights
    python upscale.py --checkpoint runs/base/checkpoint.pt  trains it for weights of your own
    python sample.py "a 3 moving left" --upscale 2 [--checkpoint FILE]

As in Make-A-Video (Singer et al. 2022, section 3) and CogView2 (Ding et al. 2022, 2204.14217) it is
a diffusion model of its own, conditioned on the small picture. It makes what bicubic enlarging
lacks, the detail: sharp = enlarge(x) + detail. It works on pixels in patches of 4x4, so that
the same space-time U-Net serves with f = 1, and its known frame is the enlarged picture.
The sharp picture follows from the small one almost for certain, so the network is asked for x0:
measured, that learns three times as fast as v, most of which is noise to be passed on.
Its weights lie in the folder upscale/ beside the checkpoint that they were trained for.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

import data
from diffusion import Diffusion, T
from model import SHIPPED, amp, load, seeded
from support.console import (DATA_ROOT, DEVICE, DIGITS, SEED, UserError, add_flags, exit_status,
                             number)
from support.digits import load_digits
from support.processes import WORLD
from support.run import Run, check_resume, find_run, read_file, settings_of, with_defaults
from support.video import write_clip
from train import learning_rate, update_ema
from unet3d import UNet3D, UNetConfig

PATCH = 4        # pixels a side of what the network takes as one place
DETAIL = 8.0     # 1 / std of the detail, so that diffusion sees std 1
ROUGH = 0.02     # std of noise on the small picture: samples are a little rougher than real clips
FRAMES_AT_ONCE = 128  # enlarged as one batch, to bound memory


def to_patches(x):
    """Pixels (b c f h w) -> (b 16c f h/4 w/4), each 4x4 patch as channels, nothing lost."""
    return rearrange(x, "b c f (h p) (w q) -> b (c p q) f h w", p=PATCH, q=PATCH)


def enlarge(x):
    """x (b c f h w) to twice the size, bicubic: what super-resolution starts from."""
    frames = rearrange(x, "b c f h w -> (b f) c h w")
    frames = F.interpolate(frames, scale_factor=2, mode="bicubic").clamp(-1, 1)
    return rearrange(frames, "(b f) c h w -> b c f h w", b=len(x))


class Upscaler(nn.Module):
    """The second U-Net, for frames of 1 or 3 channels."""

    def __init__(self, channels):
        super().__init__()
        self.config = {"channels": channels}
        self.unet = UNet3D(UNetConfig(latent_channels=PATCH ** 2 * channels, widths=(32, 48),
                                      head_dim=16, emb_width=48, context_width=16))
        self.diffusion = Diffusion("cosine", "x0")

    @property
    def device(self):
        return self.unet.conv_in.weight.device

    def denoiser(self, x):
        """The network as a function (z_t, t) -> detail in patches, given stills x (n c 1 h w)."""
        known, n = to_patches(enlarge(x)), len(x)
        # there is nothing to say in words: one token of zeros
        context = torch.zeros(n, 1, self.unet.config.context_width, device=x.device)
        yes = torch.ones(n, 1, dtype=torch.bool, device=x.device)  # it is real; the frame is known

        def predict(z_t, t):
            with amp(x.device):
                return self.unet(z_t, t, context, yes, known=known, known_mask=yes)

        return predict


def load_upscaler(checkpoint, model):
    """The trained `Upscaler` that belongs to a model's checkpoint (None: the shipped weights)."""
    path = Path(checkpoint or SHIPPED).parent / "upscale" / "weights.pt"
    if not path.exists():
        raise UserError(f"these weights have no super-resolution ({path}): train it by upscale.py "
                        "--checkpoint FILE")
    upscaler = Upscaler(model.vae.config.channels)
    fill_in(upscaler, read_file(path), "ema", path)
    return upscaler.to(model.device).eval()


def fill_in(upscaler, saved, key, path):
    """Give an `Upscaler` the weights `key`, "ema" or "model", of a file's dict."""
    try:
        upscaler.load_state_dict(saved[key])
        finite = all(value.isfinite().all() for value in upscaler.state_dict().values())
    except Exception:  # a file may hold anything
        finite = False
    if not finite:
        raise UserError(f"{path} holds no super-resolution for these weights, or is damaged: train "
                        "it by upscale.py")


@torch.no_grad()
def upscale(upscaler, x, steps=2, seed=0):
    """Clips x (b c f h w) -> (b c f 2h 2w). Each frame is denoised alone but from the same noise,
    so that what is invented does not flicker."""
    frames, out = rearrange(x, "b c f h w -> (b f) c 1 h w"), []
    shape = to_patches(enlarge(frames[:1])).shape
    noise = torch.randn(shape, generator=seeded(seed, "upscale")).to(x.device)
    for part in frames.split(FRAMES_AT_ONCE):
        z_T = repeat(noise, "1 c f h w -> n c f h w", n=len(part))
        z = upscaler.diffusion.dpm(upscaler.denoiser(part), z_T, steps)
        detail = rearrange(z, "n (c p q) f h w -> n c f (h p) (w q)", p=PATCH, q=PATCH) / DETAIL
        out.append((enlarge(part) + detail).clamp(-1, 1))
    return rearrange(torch.cat(out), "(b f) c 1 h w -> b c f h w", b=len(x))


def upscale_loss(upscaler, vae, x, sharp, g):
    """Loss (n,) and noise levels t (n,) for stills x (n c 1 h w) and sharp (n c 1 2h 2w). It starts
    from what the autoencoder makes of x, as it will when sampling."""
    n, device = len(x), x.device
    with torch.no_grad():
        x = vae.decode(vae.encode(x)).clamp(-1, 1)
    x = x + ROUGH * torch.randn(x.shape, device=device, generator=g)
    detail = DETAIL * to_patches(sharp - enlarge(x))
    t = (T * torch.rand(n, device=device, generator=g)).long()
    eps = torch.randn(detail.shape, device=device, generator=g)
    return upscaler.diffusion.loss(upscaler.denoiser(x), detail, t, eps), t


def draw_pairs(clips, seed, first, n, device):
    """One frame each of clips first ... first + n - 1, at any tick: x (n c 1 h w), and sharp at
    twice the size."""
    scenes = clips(n, seed=seed, start=first)
    choose = data.Chooser(seed, "upscale", range(first, first + n))
    ticks = choose.below("tick", data.ACTION + 1)[:, None]                              # n 1
    return scenes.render(ticks, device), scenes.render(ticks, device, scale=2)


def train_upscaler(run, model, clips, args):
    """The loop, as in train.py: fetch, predict, loss, step, average, log."""
    upscaler, steps, n = run.model, args.upscale_steps, args.batch_size
    optimizer = torch.optim.AdamW(upscaler.parameters(), lr=0.0, weight_decay=0.01)
    for step in run.steps("upscale", steps, optimizer):
        x, sharp = draw_pairs(clips, args.seed, step * n, n, model.device)
        g = seeded(args.seed, "upscale", step, device=model.device)
        losses, t = upscale_loss(upscaler, model.vae, x, sharp, g)
        losses.mean().backward()
        norm = nn.utils.clip_grad_norm_(upscaler.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr = learning_rate(step, steps, args.lr)
        optimizer.step()
        optimizer.zero_grad()
        update_ema(run.ema, upscaler, step)
        run.log(losses, t, norm, lr)
    x, sharp = draw_pairs(clips, args.seed, 0, 8, model.device)
    rows = torch.stack([enlarge(x), upscale(run.ema, x), sharp])
    write_clip(rearrange(rows, "row n c 1 h w -> row c n h w"),
               run.folder / "samples" / "rows.png")


FLAGS = (
    ("--checkpoint", str, None, "weights of train.py; if none are named, the shipped ones"),
    ("--upscale-steps --steps", number(int, 1, 10**6), 500, "steps of training"),
    ("--batch-size", number(int, 1, 10**6), 256, "frames a step"),
    ("--lr", number(float, 1e-8, 1), 2e-3, "peak learning rate"),
    ("--resume", bool, False, "go on with the run beside the checkpoint"),
    SEED, DIGITS, DATA_ROOT, DEVICE)


def work(argv):
    """What the command does."""
    p = add_flags(argparse.ArgumentParser(description=__doc__.split("\n")[0]), FLAGS)
    given = p.parse_args(argv)
    if WORLD > 1:
        raise UserError("upscale.py takes one process: start it without torchrun")
    path = SHIPPED if given.checkpoint is None else Path(given.checkpoint)
    folder = path.parent / "upscale"
    saved = find_run(folder, given.resume)
    args = with_defaults(p, argv, saved, {})
    model = load(path, args.device)
    if model.vae.config.channels != 1:
        raise UserError("super-resolution learns from captioned Moving MNIST, whose sharp truth is "
                        "known: these weights were trained on clips in colour")
    digits = load_digits("train", args.digits, args.data_root)
    args.digits = digits.source.lower()  # to be resumed with
    torch.manual_seed(args.seed)
    upscaler = Upscaler(model.vae.config.channels)
    ema = copy.deepcopy(upscaler)
    if saved:
        check_resume(args, saved, ("seed",))
        fill_in(upscaler, saved, "model", folder / "checkpoint.pt")
        fill_in(ema, saved, "ema", folder / "checkpoint.pt")
    ema = ema.to(model.device).eval().requires_grad_(False)
    with Run(folder, settings_of(args), upscaler.to(model.device), ema, saved) as run:
        train_upscaler(run, model, data.MovingMNIST("full", digits=digits), args)
        run.write_weights()
    print(f"done: {folder / 'weights.pt'}; add --upscale 2 to sample.py's command")


def main(argv=None):
    """Runs the command; returns its exit status."""
    return exit_status(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
