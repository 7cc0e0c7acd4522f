"""Every picture of the README and docs, made from the shipped weights and the shipped log.

    python -m experiments.figures [NAME ...] [--checkpoint FILE] [--out docs/pictures]

Without names all of them: the GIFs of experiments/gifs.py, what the weights do (inside.py), and the
diagrams below. All but the GIFs need matplotlib (pip install -r requirements-figures.txt). Seeds
are fixed and nothing is chosen, so a picture shows what the code at hand really does.
It takes minutes on a CPU; failures, which samples 128 clips, takes most of them.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch

import data
import train
from diffusion import SCHEDULES, Diffusion
from experiments.gifs import GIFS
from experiments.inside import (BLUE, DOCS, GREEN, ORANGE, PALE, RED, attention, failures, guidance,
                                latents, noising, training, waves)
from model import WINDOW, load, seeded
from sample import GUIDED_BELOW
from support.console import UserError, add_flags, exit_status
from support.plots import draw_losses, pyplot, read_log
from support.video import write_clip


# ---- the method ----------------------------------------------------------------------------------

def schedules(model, plt):
    """What is left of the signal at each level, and how well each quarter of levels is learned."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    for (name, alpha_bar), colour in zip(SCHEDULES.items(), (BLUE, ORANGE)):
        left.plot(alpha_bar(), color=colour, label=name)
    left.axhline(GUIDED_BELOW, color="grey", lw=.8, ls=":")
    left.text(630, GUIDED_BELOW + .02, "below: guidance", color="grey")
    left.set(xlabel="noise level t", ylabel="ᾱ, the signal's share of the variance",
             title="schedules")
    draw_losses(right, read_log(DOCS / "training_log.csv", "clips"))
    right.set_yticks((.1, .2, .3, .4, .6), ("0.1", "0.2", "0.3", "0.4", "0.6"))
    right.set_yticks((), minor=True)
    left.legend(frameon=False)
    right.legend(frameon=False, loc=(.22, .27), ncols=2)
    return figure


def circle(model, plt):
    """x0, eps, xt and v, of which any two give the others."""
    diffusion, t = Diffusion("cosine", "v"), 400
    a, s = diffusion.scales(t, None)
    figure, ax = plt.subplots(figsize=(6, 2.9))
    turn = np.linspace(0, np.pi / 2, 100)
    ax.plot(np.cos(turn), np.sin(turn), color="grey", lw=.8)
    for x, y, colour, name in ((1, 0, BLUE, "$x_0$"), (0, 1, RED, "ε"),
                               (a, s, "black", r"$x_t = \sqrt{\bar\alpha}\,x_0 + "
                                               r"\sqrt{1-\bar\alpha}\,ε$"),
                               (-s, a, GREEN, r"$v = \sqrt{\bar\alpha}\,ε - "
                                              r"\sqrt{1-\bar\alpha}\,x_0$")):
        ax.annotate("", (x, y), (0, 0), arrowprops=dict(
            arrowstyle="-|>", color=colour, lw=2, shrinkA=0, shrinkB=0))
        ax.text(1.06 * x, 1.06 * y + .02, name, color=colour, ha="left" if x > 0 else "center",
                size=11)
    for other, colour in (((a, 0), BLUE), ((0, s), RED)):
        ax.plot([a, other[0]], [s, other[1]], color=colour, lw=.9, ls="--")
    ax.annotate("", (a - .35 * s, s + .35 * a), (a, s),
                arrowprops=dict(arrowstyle="->", color=GREEN, lw=1.2, ls="--"))
    ax.text(a / 2, -.07, r"$\sqrt{\bar\alpha}$", color=BLUE, ha="center")
    ax.text(.03, s + .04, r"$\sqrt{1-\bar\alpha}$", color=RED)
    ax.text(.33, .12, f"t = {t}", color="grey")
    ax.set(xlim=(-1.25, 1.9), ylim=(-.15, 1.2), aspect="equal")
    ax.axis("off")
    return figure


def count(module):
    """A module's parameters in thousands, in words."""
    return f"{sum(p.numel() for p in module.parameters()) / 1000:,.0f} k"


def unet(model, plt):
    """The U with the shapes that the config gives it."""
    net, side = model.unet, model.config["size"] // 8
    config, levels = net.config, len(net.config.widths)
    figure, ax = plt.subplots(figsize=(8, 3.9))

    def box(x, y, text, colour=PALE):
        ax.text(x, y, text, ha="center", va="center", size=8,
                bbox=dict(boxstyle="round,pad=.5", fc=colour, ec=BLUE))

    def shape(level):
        return f"{WINDOW}×{side >> level}×{side >> level}×{config.widths[level]}"

    c = config.latent_channels
    box(0, 0, f"$z_t$, known, mask\n{WINDOW}×{side}×{side}×{2 * c + 1}", "white")
    path = [(0, 0)]
    for k, block in enumerate(net.down):
        path.append((1.5 + k, -1.3 * k))
        box(*path[-1], f"down {k}\n{shape(k)}\n{count(block)}")
    path.append((levels + 1.25, -1.3 * levels))
    box(*path[-1], f"middle\n{shape(levels - 1)}\n{count(net.middle)}")
    for k, block in enumerate(net.up):
        level = levels - 1 - k
        path.append((levels + 2 + k, -1.3 * level))
        box(*path[-1], f"up {k}\n{shape(level)}\n{count(block)}")
        ax.annotate("", path[-1], path[1 + level], zorder=0, arrowprops=dict(
            arrowstyle="-|>", color=ORANGE, lw=1.2, ls="--", shrinkA=34, shrinkB=34))
    path.append((2 * levels + 2.5, 0))
    box(*path[-1], f"v\n{WINDOW}×{side}×{side}×{c}", "white")
    for start, end in zip(path, path[1:]):
        ax.annotate("", end, start, zorder=0, arrowprops=dict(
            arrowstyle="-|>", color=BLUE, lw=1.4, shrinkB=30))
    ax.text(levels + 1.25, .25, "skips", color=ORANGE, ha="center")
    parts = ("res", "temporal_conv", "spatial", "cross", "temporal")
    said = ("space: 1×3×3\nconvolutions, told t,\nstride, caption × frame",
            "time: 3×1×1\nconvolution", "space: attention\nin each frame",
            "words: attention\nto the caption", "time: attention\nat each place")
    ax.text(-.6, -4.3, "each\nblock:", ha="center", va="center")
    for k, (part, text) in enumerate(zip(parts, said)):
        box(.85 + 1.4 * k, -4.3, text + f"\n{count(getattr(net.down[0], part))}", "white")
    ax.set(xlim=(-.9, 2 * levels + 3.1), ylim=(-5, .7))
    ax.axis("off")
    return figure


# ---- windows in time -----------------------------------------------------------------------------

def windows(model, plt):
    """The windows that training shows, on the action's clock."""
    kinds = ((train.KEYS, 0, 4, "KEYS: text → clip", "stride 4"),
             (train.IMAGE, 0, 4, "IMAGE: picture → clip", "stride 4"),
             (train.CONTINUE, -12, 4, "CONTINUE: 4 frames → clip", "stride 4"),
             (train.FILL, 16, 2, "FILL: every other frame", "stride 2 or 1"),
             (train.PART, 36, 1, "PART of a straight motion", "stride 2 or 1"),
             (train.PART, 16, 2, "PART of a turn or bounce", "the same one"))
    figure, ax = plt.subplots(figsize=(8, 2.8))
    for row, (task, start, stride, name, note) in enumerate(kinds):
        known = train.KNOWN[task]
        if name.endswith("bounce"):  # random frames are known; training draws them like this
            known = torch.rand(WINDOW, generator=seeded(0, "windows")).numpy() < .5
        ticks = start + stride * np.arange(WINDOW)
        for tick, shown in zip(ticks, known):
            ax.bar(tick, .7, width=.8 * min(stride, 3), bottom=row - .35,
                   color=BLUE if shown else PALE, edgecolor=BLUE, lw=.6)
        ax.text(67, row, f"{(train.TASKS == task).sum()} of 16, {note}", va="center", color="grey")
    ax.axvspan(-.9, 64.9, color="black", alpha=.04, lw=0)
    ax.set_yticks(range(len(kinds)), [name for *_, name, _ in kinds])
    ax.set(xlabel="tick of 1/20 s; the action lasts from 0 to 64 (dark: known frames, pale: to be "
                  "made)", xlim=(-15, 91), xticks=range(-8, 65, 8))
    ax.invert_yaxis()
    ax.spines[["left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


def timeline(model, plt):
    """How 17 key frames become 33 and 65."""
    figure, ax = plt.subplots(figsize=(8, 2.3))
    for row, (stride, ends) in enumerate(((4, ()), (2, (0, 32, 64)), (1, (0, 16, 32, 48, 64)))):
        ticks = np.arange(0, data.ACTION + 1, stride)
        new = np.full(len(ticks), True) if row == 0 else ticks // stride % 2 == 1
        for chosen, colour, size in ((~new, BLUE, 22), (new, ORANGE, 22)):
            ax.scatter(ticks[chosen], np.full(chosen.sum(), row), s=size, color=colour, zorder=2)
        for k, (first, last) in enumerate(zip(ends, ends[1:])):
            y = row - .3 - .1 * (k % 2)
            ax.plot([first, last], [y, y], color="grey", lw=2.5, solid_capstyle="butt")
    ax.set_yticks(range(3), ["17 key frames, stride 4:\none window",
                             "33 frames, stride 2:\n2 windows", "65 frames, stride 1:\n4 windows"])
    ax.set(xlabel="tick of 1/20 s (orange: new, blue: known from the row above, grey: a window of "
                  "17)", xticks=range(0, 65, 8), ylim=(2.4, -.5))
    ax.spines[["left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


# ---- the command ---------------------------------------------------------------------------------

FIGURES = dict(noising=noising, schedules=schedules, circle=circle, guidance=guidance,
               windows=windows, timeline=timeline, attention=attention, waves=waves,
               latents=latents, unet=unet, training=training, failures=failures)
FLAGS = (
    ("--checkpoint", str, None, "a trained model; if none is named, the shipped weights"),
    ("--out", Path, DOCS / "pictures", "an existing folder"))


def work(args):
    """Makes the named pictures, or all."""
    names = args.names or [*GIFS, *FIGURES]
    if unknown := set(names) - {*GIFS, *FIGURES}:
        raise UserError(f"there is no picture {', '.join(sorted(unknown))}: choose from "
                        f"{', '.join((*GIFS, *FIGURES))}")
    if not args.out.is_dir():
        raise UserError(f"--out {args.out} is no folder: name an existing one")
    plt = pyplot() if set(names) & set(FIGURES) else None
    if plt is None and set(names) & set(FIGURES):
        raise UserError("figures are drawn by matplotlib, which is not installed: pip install -r "
                        "requirements-figures.txt")
    model = load(args.checkpoint, "cpu")
    for name in names:
        with torch.no_grad():
            if name in GIFS:
                path = args.out / f"{name}.gif"
                x, fps = GIFS[name](model)
                write_clip(x, path, fps, scale=4)
            else:
                path = args.out / f"{name}.png"
                figure = FIGURES[name](model, plt)
                figure.savefig(path, metadata={"Software": None})  # the same bytes every time
                plt.close(figure)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def main(argv=None):
    """Runs the command; returns its exit status."""
    p = ArgumentParser(description="Makes the pictures of the README and docs.")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join((*GIFS, *FIGURES))}")
    args = add_flags(p, FLAGS).parse_intermixed_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
