"""Measures the tasks that one network learns beside text -> clip; the tables of docs/results.md.

    python -m experiments.tasks --checkpoint runs/base/checkpoint.pt --data-root DIR --num 128
    python -m experiments.tasks levels         at which noise levels it goes wrong, n 32 of a kind

Prompts are "a 3 moving left" and the like, digits are test digits. Each part runs alone when it is
named; without names all run, except levels (some 20 minutes on a CPU core).
"""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

import data
import metrics
from diffusion import T
from experiments.common import centres, decode, encode, flags, judge, run_parts, test_scenes
from model import seeded
from sample import STEPS, denoiser, generate
from support.console import number
from vae import psnr

LEVELS = (999, 950, 900, 850, 800, 700, 600, 400)


def reword(scenes, subject):
    """Captions "a 3 moving left" with another subject."""
    return [f"{subject} {caption.split(maxsplit=2)[2]}" for caption in scenes.captions]


def along(x, scenes):
    """Pixels each frame moves along its caption's direction: (b f-1)."""
    unit = np.array([data.MOTIONS[data.NAMES[m]][0] for m in scenes.motion[:, 0]], float)
    return (np.diff(centres(x), axis=1) * unit[:, None]).sum(-1)


def rates(model, classifier, scenes, args):
    """Straight motion at stride 4 should move twice as far a frame as at stride 2."""
    print("\nframe-rate token: mean pixels a frame along the caption's direction")
    for stride in (4, 2, 1):
        x = generate(model, scenes.captions, num_frames=16, stride=stride, seed=args.seed)
        moved = along(x, scenes).mean(1)
        truth = along(scenes.render(np.arange(16) * stride), scenes).mean(1)
        slack = 1.96 * moved.std() / len(moved) ** .5
        print(f"stride {stride}: {moved.mean():.2f} +- {slack:.2f}, real clips {truth.mean():.2f}; "
              f"right sense {(moved > 0).mean():.1%}", flush=True)


def seams(model, classifier, scenes, args):
    """64 frames: does the ink's centre change its speed more where two windows meet?"""
    frame = np.arange(1, 63)  # those with a frame on either side
    places = {"ends of windows": frame % 16 == 0,  # the last fill's four windows meet at 16, 32, 48
              "other known frames": (frame % 2 == 0) & (frame % 16 > 0),
              "filled frames": frame % 2 == 1}
    print("\nseams of 64 frames: mean change of speed, px a frame")
    for name, x in (("samples", generate(model, scenes.captions, num_frames=64, seed=args.seed)),
                    ("real clips", scenes.render(np.arange(64)))):
        jerk = np.linalg.norm(np.diff(centres(x), n=2, axis=1), axis=-1)             # b 62
        print(f"{name:11s}", ", ".join(f"{where} {jerk[:, chosen].mean():.3f}"
                                       for where, chosen in places.items()), flush=True)


def carry(model, classifier, scenes, args):
    """Two motions in one clip, as --chain makes it, and one motion extended twice."""
    seam = 16  # the step from the last known key frame to the first new one
    turn = {"left": "up", "up": "right", "right": "down", "down": "left"}
    ways = [caption.split()[-1] for caption in scenes.captions]
    turned = [f"{caption.rsplit(maxsplit=1)[0]} {turn[way]}"
              for caption, way in zip(scenes.captions, ways)]
    unit = np.array([data.DIRECTIONS[turn[way]] for way in ways], float)             # b yx
    print(f"\ncontinuation from the last four key frames, 13 new ones each (n {len(turned)})")
    for name, then in (("chain", [turned]), ("extend", [scenes.captions] * 2)):
        for scale in (1, 2, 3):
            x = generate(model, scenes.captions, num_frames=16, seed=args.seed, then=then,
                         guidance_scale=scale)
            centre = centres(x)
            step = np.linalg.norm(np.diff(centre, axis=1), axis=-1)                  # b f-1
            # no jump: the step over the seam is at most the longest of the others, and half a pixel
            own = np.delete(step, seam, axis=1).max(1)
            first = metrics.read_clips(x[:, :, :16], classifier)
            last = metrics.read_clips(x[:, :, -13:], classifier, stride_ticks=4)
            kept = first.digit[:, 0] == last.digit[:, 0]
            print(f"{name}, guidance {scale}: seam {step[:, seam].mean():.2f} px, longest own step "
                  f"{own.mean():.2f} px, no jump {(step[:, seam] <= own + .5).mean():.1%}, digit "
                  f"kept {kept.mean():.1%}", flush=True)
            if name == "chain":
                moved = centre[:, -1] - centre[:, seam]
                ahead, aside = (moved * unit).sum(-1), abs((moved * unit[:, ::-1]).sum(-1))
                went = along(x[:, :, :seam + 1], scenes).sum(1)
                print(f"   first motion right {(went > 4).mean():.1%}, second "
                      f"{((ahead > 4) & (ahead > aside)).mean():.1%}", flush=True)


def picture(model, classifier, scenes, args):
    """A real first frame is animated: does it stay, does the digit, does the motion obey?"""
    first = scenes.render(np.zeros(1))
    x = generate(model, scenes.captions, num_frames=32, seed=args.seed, first=first).cpu()
    s = judge(x, classifier, scenes)
    same = psnr(x[:, :, :1], decode(model, encode(model, first)))
    print(f"\npicture: frame 0 against the VAE's rebuilt picture {same:.1f} dB; digit "
          f"{s.digit_ok.mean():.1%}, motion {s.motion_ok.mean():.1%}, steady "
          f"{s.steadiness.mean():.1%}")


def samplers(model, classifier, scenes, args):
    """Obedience against guidance, and against steps for each sampler (16 key frames)."""
    def row(name, **options):
        x = generate(model, scenes.captions, num_frames=16, seed=args.seed, **options)
        s = judge(x, classifier, scenes)
        print(f"{name:8s}  digit {100 * s.digit_ok.mean():5.1f}  motion "
              f"{100 * s.motion_ok.mean():5.1f}  both {100 * s.both_ok.mean():5.1f}  steady "
              f"{100 * s.steadiness.mean():5.1f}", flush=True)

    print("\nguidance (dpm, 20 steps)")
    for scale in (0, 1, 2, 4, 8):
        row(str(scale), guidance_scale=scale, sampler="dpm")
    print("\nsteps (guidance 3)")
    for name in STEPS:
        for steps in (4, 8, 16, 32, 64):
            row(f"{name} {steps}", sampler=name, steps=steps)


def losses(model, classifier, scenes, args, draws=8):
    """The denoising loss at fixed noise on test stills and on the key frames of test clips: by
    which runs with and without joint training compare."""
    print(f"\nmean denoising loss at {draws} uniform noise levels a clip, and its standard error")
    for name, ticks, captions in (("stills", [32], scenes.subjects),
                                  ("clips", np.arange(17) * 4, scenes.captions)):
        z, mean, noise = encode(model, scenes.render(np.array(ticks))), 0, seeded(1, name)
        network = denoiser(model, model.tokenizer(captions).to(z.device), 1, stride=4)
        for k in range(draws):
            t = (torch.rand(len(z), generator=noise) + k) * T / draws  # one level in each stratum
            eps = torch.randn(z.shape, generator=noise).to(z)
            mean = mean + model.diffusion.loss(network, z, t.long().to(z.device), eps) / draws
        print(f"{name}: {mean.mean():.4f} +- {mean.std() / len(mean) ** .5:.4f} (n {len(mean)})")


def unnamed(model, classifier, scenes, args):
    """Does a digit stay the same one where the caption does not name it? By the ODE's sampler and
    by the SDE's, whose fresh noise lets later levels mend what earlier ones left."""
    print("\none digit in every frame % [95 %]; the same in two frames "
          f"{', '.join(map(str, metrics.APART))} ticks apart %; steady %")
    for subject, as_told in (("a digit", True), ("a digit", False), ("a 3", True)):
        for sampler in ("dpm", "sde"):
            x = generate(model, reword(scenes, subject), num_frames=16, seed=args.seed,
                         sampler=sampler, steps=args.steps, as_told=as_told)
            shown, drawn = metrics.read_clips(x, classifier), "" if as_told else ", its name drawn"
            print(f'{sampler}, "{subject} moving left" and the like{drawn}: '
                  f"{metrics.constancy(shown)}  {100 * shown.steady[:, 0].mean():.1f}", flush=True)


def denoise_from(model, z, prompts, level, seed):
    """Latents z noised to a level (DDPM Eq. 4) and denoised from there, guided by 3, by DDIM in
    steps of about 33 levels: what the network makes of the rest that is left of them."""
    def at(level):
        return torch.full((len(z),), int(level), device=z.device)

    network = denoiser(model, model.tokenizer(prompts).to(z.device), 3, stride=4)
    levels = np.linspace(level, -1, round((level + 1) / 33) + 1).round()  # -1: no noise at all
    eps = torch.randn(z.shape, generator=seeded(seed, "levels")).to(z)
    x = model.diffusion.q_sample(z, at(level), eps)
    for t, after in pairwise(levels):
        x0, eps = model.diffusion.to_x0_eps(network(x, at(t)), x, at(t))
        x = model.diffusion.q_sample(x0, at(after), eps)
    return decode(model, x[:, :, :16])


def levels(model, classifier, scenes, args):
    """At which noise levels it goes wrong: what is right when one starts at 400 and wrong when one
    starts at 950 is decided, wrongly, in between."""
    groups = {"unnamed": (scenes, reword(scenes, "a digit")), "named": (scenes, scenes.captions)}
    if "standing" in model.config["vocabulary"]:
        two = test_scenes(args, args.num, "full", each=["two moving"])
        groups["two moving"] = two, two.captions
    print(f"\n% of real clips noised to t and denoised from there (n {args.num}, of a kind)\n"
          f"{'':36s}", *(f"{t:5d}" for t in LEVELS), flush=True)
    for name, (truth, prompts) in groups.items():
        z, right = encode(model, truth.render(np.arange(17) * 4)), []
        for t in LEVELS:
            s = judge(denoise_from(model, z, prompts, t, args.seed), classifier, truth)
            right.append((s.steadiness == 1, s.motion_ok, s.digit_ok))
        for what, row in zip(("a digit in every frame", "motion", "digit"), zip(*right)):
            print(f"{name + ': ' + what:36s}", *(f"{100 * ok.mean():5.0f}" for ok in row),
                  flush=True)


def vae(model, classifier, scenes, args):
    """How well the autoencoder rebuilds real clips, also inside the digits' boxes alone."""
    ticks, white = np.arange(32) * 2, torch.full_like(scenes.digits.images, 255)
    x = scenes.render(ticks)
    boxes = replace(scenes, digits=replace(scenes.digits, images=white)).render(ticks)[:, 0] > -1
    rebuilt = decode(model, encode(model, x))
    print(f"\nVAE: PSNR {psnr(x, rebuilt):.1f} dB, inside the digits' boxes "
          f"{psnr(x, rebuilt, boxes):.1f} dB")


PARTS = dict(vae=vae, rates=rates, seams=seams, carry=carry, picture=picture, samplers=samplers,
             losses=losses, unnamed=unnamed, levels=levels)
USUAL = [name for name in PARTS if name != "levels"]


def main(argv=None):
    p = flags(__doc__, num=128)
    p.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    p.add_argument("--steps", type=number(int, 1, 1000), metavar="X",
                   help="denoising steps of the part unnamed; else the sampler's own")
    args = p.parse_intermixed_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        p.error(f"there is no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    if args.parts == ["levels"]:
        p.set_defaults(num=32)
        args = p.parse_intermixed_args(argv)
    return run_parts(PARTS, args.parts or USUAL, args)


if __name__ == "__main__":
    sys.exit(main())
