"""Measures the tasks that one network learns beside text -> clip; the README's tables.

    python tests/tasks.py --checkpoint runs/base/checkpoint.pt --data-root DIR --num 128

Prompts are "a 3 moving left" and the like, digits are test digits. Each part can be run alone:
rates, fills, seams, carry, picture, samplers, best, larger, losses, unnamed; colours, for a run on
the set that `python data.py --export DIR --colour` writes.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import metrics
import train
from diffusion import SAMPLERS
from sample import FILL_SHARE, device_for, enlarge, generate, load, preference, upscale

NEW = slice(1, None, 2)  # of 33 frames, those that a fill made


def rebuild(model, x):
    """What the autoencoder makes of clips x, a few at a time, on the CPU."""
    device = model.vae.latent_std.device
    return torch.cat([model.vae.decode(model.vae.encode(part.to(device))).clamp(-1, 1).cpu()
                      for part in x.split(16)])


def choose(scenes, index):
    """The scenes at `index`."""
    return replace(scenes, **{k: [v[i] for i in index] if isinstance(v, list) else v[index]
                              for k, v in vars(scenes).items() if k not in ("digits", "before")})


def centres(x):
    """Ink centroids (b f yx) in pixels of what is brighter than one half, so that ghosts fail."""
    light = (x[:, 0].cpu() + 1) / 2
    return metrics.centroid(light * (light > .5)).numpy()


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
        low, high = (moved.mean() + k * 1.96 * moved.std() / len(moved) ** .5 for k in (-1, 1))
        print(f"stride {stride}: {moved.mean():.2f} [{low:.2f}, {high:.2f}], real clips "
              f"{truth.mean():.2f}; right sense {(moved > 0).mean():.1%}")


def fills(model, classifier, scenes, args):
    """17 real key frames -> 33: the frames between, against the truth and two ways to cheat."""
    truth, keys = scenes.render(np.arange(33) * 2), scenes.render(np.arange(17) * 4)
    vae_keys = rebuild(model, keys)
    gap = np.linalg.norm(np.diff(centres(keys), axis=1), axis=-1)                    # b 16
    middle = (centres(keys)[:, 1:] + centres(keys)[:, :-1]) / 2
    print("\nfills: 16 new frames between 17 real key frames; off: mean distance of the ink's "
          "centre from the midpoint\nin gaps between key frames, and the share within a quarter, "
          "where the gap is 1 px or more\nway (fill's steps)      PSNR dB   off  within %  "
          "digit %  steady %  s a clip")
    ways = [("mask", 1), ("mask", 2), ("mask", 4), ("mask", 10), ("replacement", 10),
            ("reconstruction", 10), ("copying", 0), ("cross-fading", 0), ("the VAE's truth", 0)]
    for way, steps in ways:
        begin = time.perf_counter()
        if steps:
            x = generate(model, scenes.captions, num_frames=32, seed=args.seed, first=keys,
                         known_by=way, sampler=args.sampler, steps=steps * FILL_SHARE[way])
            x = x.cpu()[:, :, NEW]
        else:
            x = {"copying": vae_keys[:, :, :-1],
                 "cross-fading": (vae_keys[:, :, :-1] + vae_keys[:, :, 1:]) / 2,
                 "the VAE's truth": rebuild(model, truth[:, :, NEW])}[way]
        seconds = (time.perf_counter() - begin) / len(x)
        off = np.linalg.norm(centres(x) - middle, axis=-1)[gap >= 1] / gap[gap >= 1]
        read = metrics.read_clips(x, classifier, stride_ticks=4)
        right = (read.digit[:, 0] == scenes.digit[:, 0]).mean()
        print(f"{way + f' ({steps})' * (steps > 0):22s} {metrics.psnr(x, truth[:, :, NEW]):8.1f} "
              f"{off.mean():6.3f} {100 * (off <= .25).mean():8.1f} {100 * right:8.1f} "
              f"{100 * read.steady[:, 0].mean():9.1f}  {seconds:.3f}", flush=True)
    print(f"({(gap >= 1).sum()} of {gap.size} gaps are 1 px or more, the largest {gap.max():.1f})")


def seams(model, classifier, scenes, args):
    """64 frames: does the ink's centre change its speed more where two windows meet?"""
    x = generate(model, scenes.captions, num_frames=64, seed=args.seed)
    jerk = np.linalg.norm(np.diff(centres(x), n=2, axis=1), axis=-1)        # at frames 1 ... 62
    frame = np.arange(1, 63)
    borders = frame % 16 == 0  # the last fill's four windows meet at 16, 32 and 48
    print("\nseams of 64 frames: mean change of speed, px a frame, over frames that "
          f"end a window {jerk[:, borders].mean():.3f}, other known frames "
          f"{jerk[:, ~borders & (frame % 2 == 0)].mean():.3f}, filled frames "
          f"{jerk[:, frame % 2 == 1].mean():.3f}")


def carry(model, classifier, scenes, args):
    """Two motions in one clip, as --chain makes it, and one motion extended twice."""
    seam = 16  # the step from the last known key frame to the first new one
    turned = [" ".join(c.split()[:-1] + [{"left": "up", "up": "right", "right": "down",
                                          "down": "left"}[c.split()[-1]]]) for c in scenes.captions]
    unit = np.array([data.DIRECTIONS[c.split()[-1]] for c in turned], float)
    print(f"\ncontinuation from the last four key frames, 13 new ones each (n {len(turned)})")
    for name, then in (("chain", [turned]), ("extend", [scenes.captions] * 2)):
        for scale in (1, 2, 3):
            x = generate(model, scenes.captions, num_frames=16, seed=args.seed, then=then,
                         guidance_scale=scale)
            c = centres(x)
            step = np.linalg.norm(np.diff(c, axis=1), axis=-1)                       # b f-1
            # no jump: the step over the seam is at most the longest of the others, and half a pixel
            own = np.delete(step, seam, axis=1).max(1)
            first = metrics.read_clips(x[:, :, :16], classifier)
            last = metrics.read_clips(x[:, :, -13:], classifier, stride_ticks=4)
            kept = first.digit[:, 0] == last.digit[:, 0]
            print(f"{name}, guidance {scale}: seam {step[:, seam].mean():.2f} px, longest own step "
                  f"{own.mean():.2f} px, no jump {(step[:, seam] <= own + .5).mean():.1%}, digit "
                  f"kept {kept.mean():.1%}", end="" if name == "chain" else "\n", flush=True)
            if name == "chain":
                moved = c[:, -1] - c[:, seam]
                ahead, aside = (moved * unit).sum(-1), abs((moved * unit[:, ::-1]).sum(-1))
                went = along(x[:, :, :seam + 1], scenes).sum(1)
                print(f", first motion right {(went > 4).mean():.1%}, second "
                      f"{((ahead > 4) & (ahead > aside)).mean():.1%}")


def picture(model, classifier, scenes, args):
    """A real first frame is animated: does it stay, does the digit, does the motion obey?"""
    first = scenes.render(np.zeros(1))
    x = generate(model, scenes.captions, num_frames=32, seed=args.seed, first=first).cpu()
    scores = metrics.score(metrics.read_clips(x, classifier), scenes)
    same = metrics.psnr(x[:, :, :1], rebuild(model, first))
    print(f"\npicture: frame 0 against the VAE's rebuilt picture {same:.1f} dB; "
          f"digit {scores.digit_ok.mean():.1%}, motion {scores.motion_ok.mean():.1%}, steady "
          f"{scores.steadiness.mean():.1%}")


def samplers(model, classifier, scenes, args):
    """Obedience against guidance, and against steps for each sampler (16 key frames)."""
    def row(**options):
        x = generate(model, scenes.captions, num_frames=16, seed=args.seed, **options)
        s = metrics.score(metrics.read_clips(x, classifier), scenes)
        return (f"digit {100 * s.digit_ok.mean():5.1f}  motion {100 * s.motion_ok.mean():5.1f}  "
                f"both {100 * s.both_ok.mean():5.1f}  steady {100 * s.steadiness.mean():5.1f}")

    print("\nguidance (dpm, 20 steps)")
    for scale in (0, 1, 2, 4, 8):
        print(f"{scale:>3}  {row(guidance_scale=scale)}", flush=True)
    print("\nsteps (guidance 3)")
    for name in SAMPLERS:
        for steps in (4, 8, 16, 32, 64):
            print(f"{name:5s}{steps:3d}  {row(sampler=name, steps=steps)}", flush=True)


def best(model, classifier, scenes, args, n=8):
    """Best of 8 against the first of 8: guidance 1, 8 steps, where there is room to gain."""
    kinds = {"four directions": scenes}
    if "standing" in model.config["vocabulary"]:
        full = data.make_scenes(8 * len(scenes.captions), seed=args.seed, split="test",
                                digits=scenes.digits)
        two = np.flatnonzero(full.kind == data.KINDS.index("two moving"))
        kinds["two moving"] = choose(full, two[:len(scenes.captions)])
    print(f"\nbest of {n} by the denoising loss saved (guidance 1, 8 steps)")
    for name, chosen in kinds.items():
        prompts = [c for c in chosen.captions for _ in range(n)]
        x = generate(model, prompts, num_frames=16, steps=8, guidance_scale=1, seed=args.seed)
        liked = preference(model, prompts, x, 4).cpu().view(-1, n).argmax(1).numpy()
        for way, pick in (("first", liked * 0), ("best", liked)):
            s = metrics.score(metrics.read_clips(x[pick + np.arange(len(pick)) * n], classifier),
                              chosen)
            low, high = metrics.wilson(s.both_ok.sum(), len(s.both_ok))
            print(f"{name}, {way}: digit {s.digit_ok.mean():.1%} motion {s.motion_ok.mean():.1%} "
                  f"both {s.both_ok.mean():.1%} [{low:.1%}, {high:.1%}] (n {len(pick)})")


def larger(model, classifier, scenes, args):
    """Super-resolution of real clips (rebuilt by the VAE) against bicubic, to the truth at 128."""
    if model.upscaler is None:
        return print("\nno super-resolution in these weights")
    ticks = np.arange(16) * 4
    x = rebuild(model, scenes.render(ticks)).to(model.vae.latent_std.device)
    truth = scenes.render(ticks, scale=2)

    def edges(x):  # mean squared difference of neighbouring pixels
        return (x.diff(dim=-1) ** 2).mean().item() + (x.diff(dim=-2) ** 2).mean().item()

    print("\nsuper-resolution 64 -> 128: PSNR dB, edge energy as a share of the truth's, flicker\n"
          "(mean squared change from frame to frame as a share of the truth's)")
    ways = {"truth": lambda: truth, "bicubic": lambda: enlarge(x)}
    ways |= {f"{k} steps": lambda k=k: upscale(model, x, k) for k in (1, 2, 4, 10)}
    for name, make in ways.items():
        y = make().cpu()
        flicker = (y.diff(dim=2) ** 2).mean() / (truth.diff(dim=2) ** 2).mean()
        print(f"{name:8s} {metrics.psnr(truth, y):5.1f}  {edges(y) / edges(truth):.2f}  "
              f"{flicker:.2f}")


def losses(model, classifier, scenes, args):
    """The denoising loss on test stills and on training's windows of test clips, at fixed noise: by
    which runs with and without joint training compare."""
    def source(n, *, seed, start):
        return choose(scenes, range(start, start + n))

    device = model.vae.latent_std.device
    print("\nmean denoising loss, and its standard error")
    for stage in ("stills", "clips"):
        parts = [train.diffusion_loss(model, *train.make_batch(stage, i, 32, dict(seed=1), source,
                                                               device),
                                      train.Draws((1, stage, i), device))[0]
                 for i in range(0, args.num - 31, 32)]
        loss = torch.cat(parts)
        print(f"{stage}: {loss.mean():.4f} +- {loss.std() / len(loss) ** .5:.4f} (n {len(loss)})")


def unnamed(model, classifier, scenes, args):
    """Does a digit stay the same one where the caption does not name it in every frame?"""
    for subject in ("a digit", "a 3"):
        prompts = [f"{subject} {c.split(maxsplit=2)[2]}" for c in scenes.captions]
        x = generate(model, prompts, num_frames=16, seed=args.seed)
        steady = metrics.read_clips(x, classifier).steady[:, 0]
        print(f'\n"{subject} moving left" and the like: steady {steady.mean():.1%}, without any '
              f"change {(steady == 1).mean():.1%}")


def colours(model, classifier, scenes, args):
    """A run on the colour set: digit and motion by the judge; colour by the nearest of the six to
    the mean of what is brighter than one half, each scaled to its brightest channel."""
    if model.vae.config.channels == 1:
        return print("\nno colours in these weights")
    _, prompts, truth = data.captioned_clips(args.num, seed=args.seed, split="test", colour=True,
                                             captions="four", digits=scenes.digits)
    x = (generate(model, prompts, seed=args.seed).cpu() + 1) / 2
    s = metrics.score(metrics.read_clips(2 * x - 1, classifier), truth)
    ink = x * (x.amax(1, keepdim=True) > .5)
    mean, names = ink.sum((2, 3, 4)), torch.tensor(list(data.COLOURS.values())).float()
    off = torch.cdist(mean / mean.amax(1, keepdim=True).clamp(min=1e-6), names / 255)
    right = np.array([list(data.COLOURS)[k] in p.split() for k, p in zip(off.argmin(1), prompts)])
    print(f"\ncolours: colour {right.mean():.1%}, digit {s.digit_ok.mean():.1%}, motion "
          f"{s.motion_ok.mean():.1%}, all three {(right & s.both_ok).mean():.1%}, steady "
          f"{s.steadiness.mean():.1%}")


PARTS = dict(rates=rates, fills=fills, seams=seams, carry=carry, picture=picture,
             samplers=samplers, best=best, larger=larger, losses=losses, unnamed=unnamed,
             colours=colours)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    p.add_argument("--checkpoint")
    p.add_argument("--num", type=int, default=128)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--sampler", default="dpm", choices=SAMPLERS)
    p.add_argument("--data-root")
    args = p.parse_intermixed_args(argv)
    model, device = load(args.checkpoint), device_for()
    classifier = metrics.load_classifier(device=device)
    digits = data.load_digits("test", "auto", args.data_root)
    scenes = data.make_scenes(args.num, seed=args.seed, split="test", captions="four",
                              digits=digits)
    print(f"checkpoint {args.checkpoint or 'shipped'}, n {args.num}, seed {args.seed}, {device}, "
          f"digits {digits.source}")
    with torch.no_grad():
        for name in args.parts or PARTS:
            PARTS[name](model, classifier, scenes, args)


if __name__ == "__main__":
    main()
