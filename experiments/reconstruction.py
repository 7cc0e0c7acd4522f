"""Known frames for a network that never learned to see them, and what the learned mask gains.

    python -m experiments.reconstruction --checkpoint FILE --num 128 --data-root DIR

Two tricks need no training: replacement (Song et al. 2021, score SDE, arXiv:2011.13456, app. I.2)
puts noised truth where a frame is known; reconstruction guidance (Video Diffusion Models, Ho et al.
2022, arXiv:2204.03458, section 3.1) also pulls the rest towards what explains it. Both wrap a
network(x, t) -> prediction; mask is True where x is known, eps the noise that x began with.

The command fills 16 new frames between 17 real key frames by each way, and by two ways to cheat.
You should see the learned mask (of weights that trained with known frames) far ahead of replacement
and copying; reconstruction guidance comes up to it, at seven times the cost.
"""

import sys
import time

import numpy as np
import torch
from einops import rearrange, repeat

import metrics
from diffusion import replacement
from experiments.common import centres, decode, encode, flags, run_parts
from model import seeded
from sample import denoiser
from vae import psnr

WAYS = {"learned mask": (1, 2, 4, 10), "replacement": (10,), "reconstruction": (10,)}  # steps


def from_x0(diffusion, x0, xt, t):
    """The prediction that means this x0 at xt: what `Diffusion.to_x0_eps` undoes."""
    a, s = diffusion.scales(t, xt)
    return diffusion.target(x0, t, (xt - a * x0) / s)


def reconstruction(diffusion, model, known, mask, eps, weight=2.0):
    """Reconstruction guidance: replacement, and x0 of the unknown part b moves against the gradient
    of the known part's error:  x0_b ← x0_b − w·(a/2)·∇_xb |known − x0_a|²       (VDM Eq. 7)"""
    def predict(x, t):
        with torch.enable_grad():
            x = torch.where(mask, diffusion.q_sample(known, t, eps), x).requires_grad_()
            x0, _ = diffusion.to_x0_eps(model(x, t), x, t)
            error = ((x0 - known) ** 2 * mask).sum()
            gradient, = torch.autograd.grad(error, x)
        a, _ = diffusion.scales(t, x)
        x0 = x0 - torch.where(mask, 0, weight * a / 2 * gradient)
        return from_x0(diffusion, x0, x, t).detach()
    return predict


def fill(model, prompts, keys, way, steps, seed):
    """The frames between key frames keys (b c 17 h w), by one of WAYS -> (b c 16 h w): two windows
    of 9 known frames and 8 new ones for each clip, as sample.py fills them."""
    z = encode(model, keys)
    known = z.new_zeros(len(z), 2, z.shape[1], 17, *z.shape[3:])                     # b k c f h w
    known[:, 0, :, ::2], known[:, 1, :, ::2] = z[:, :, :9], z[:, :, 8:]
    draws = [torch.randn(known.shape[1:], generator=seeded(seed, i)) for i in range(len(z))]
    known, eps = (rearrange(a, "b k c f h w -> (b k) c f h w")
                  for a in (known, torch.stack(draws).to(z)))
    tokens = repeat(model.tokenizer(prompts).to(z.device), "b n -> (b k) n", k=2)
    seen = repeat(torch.arange(17, device=z.device) % 2 == 0, "f -> b f", b=len(known))
    window = dict(known=known, known_mask=seen) if way == "learned mask" else {}
    network = denoiser(model, tokens, 1, stride=2, **window)
    guided = reconstruction if way == "reconstruction" else replacement
    mask = rearrange(seen, "b f -> b 1 f 1 1")
    x = model.diffusion.dpm(guided(model.diffusion, network, known, mask, eps), eps, steps)
    return decode(model, rearrange(x[:, :, 1::2], "(b k) c f h w -> b c (k f) h w", k=2))


def fills(model, classifier, scenes, args):
    """Every way against the truth: PSNR, the ink's centre, the digit, and seconds."""
    keys, truth = scenes.render(np.arange(17) * 4), scenes.render(np.arange(1, 33, 2) * 2)
    ends = decode(model, encode(model, keys))
    here, there = centres(keys)[:, :-1], centres(keys)[:, 1:]
    gap, middle = np.linalg.norm(there - here, axis=-1), (here + there) / 2          # b 16
    print("\nfills: 16 new frames between 17 real key frames; off: mean distance of the ink's "
          "centre from the midpoint\nin gaps between key frames, and the share within a quarter, "
          f"in the {(gap >= 1).sum()} of {gap.size} gaps of 1 px or more (at most {gap.max():.1f})"
          "\nway (a fill's steps)    PSNR dB    off  within %  digit %  steady %  s a clip")

    def row(name, x, seconds=0.):
        off = np.linalg.norm(centres(x) - middle, axis=-1)[gap >= 1] / gap[gap >= 1]
        read = metrics.read_clips(x, classifier, stride_ticks=4)
        print(f"{name:22s} {psnr(x, truth):8.1f} {off.mean():6.3f} "
              f"{100 * (off <= .25).mean():9.1f} "
              f"{100 * (read.digit[:, 0] == scenes.digit[:, 0]).mean():8.1f} "
              f"{100 * read.steady[:, 0].mean():9.1f} {seconds / len(x):9.3f}", flush=True)

    for way, steps in ((way, steps) for way in WAYS for steps in WAYS[way]):
        begun = time.perf_counter()
        x = torch.cat([fill(model, scenes.captions[i:i + 32], keys[i:i + 32], way, steps, args.seed)
                       for i in range(0, len(keys), 32)])
        row(f"{way} ({steps})", x, time.perf_counter() - begun)
    row("copying", ends[:, :, :-1])
    row("cross-fading", (ends[:, :, :-1] + ends[:, :, 1:]) / 2)
    row("the VAE's truth", decode(model, encode(model, truth)))


def main(argv=None):
    args = flags(__doc__, num=128).parse_args(argv)
    return run_parts({"fills": fills}, ["fills"], args)


if __name__ == "__main__":
    sys.exit(main())
