"""Every picture of the README and docs, made from the shipped weights and the shipped log.

    python -m experiments.figures [NAME ...] [--checkpoint FILE] [--out docs/pictures]

Without names all of them: the GIFs of experiments/gifs.py and the figures below, which need
matplotlib (pip install -r requirements-figures.txt). Seeds are fixed and nothing is chosen, so a
picture shows what the code at hand really does. Minutes on a CPU; failures takes most of them.
"""

import csv
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat

import data
import metrics
import train
from diffusion import SCHEDULES, T, Diffusion, Noise
from experiments.common import decode, encode
from experiments.gifs import GIFS
from model import WINDOW, load, seeded
from sample import GUIDED_BELOW, SAMPLERS, STEPS, denoiser, generate
from support.console import UserError, add_flags, exit_status
from support.video import grid, write_clip
from unet3d import FRAME_WAVES, WAVE_BASE, sinusoid
from vae import psnr

DOCS = Path(__file__).parent.parent / "docs"
BLUE, ORANGE, GREEN, RED, PALE = "#2b6ca3", "#e08a2c", "#4a9a5b", "#c0504d", "#dfe6ee"


def pyplot():
    """matplotlib, which draws into files only; imported here, because nothing else needs it."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("figures are drawn by matplotlib, which is not installed: pip install -r "
                        "requirements-figures.txt") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "figure.dpi": 120, "axes.spines.top": False,
                         "axes.spines.right": False, "figure.constrained_layout.use": True})
    return plt


def tiles(x):
    """Clips x (b c=1 f h w) in [-1, 1] -> one picture (h' w'): a row each, frames side by side."""
    frames = rearrange((x.cpu().clamp(-1, 1) + 1) * 127.5, "b c f h w -> (b f) c h w")
    return grid(frames, x.shape[2])[..., 0]


def show(ax, picture):
    """Show a picture (h w) in 0 ... 255 without ticks."""
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def name_rows(ax, names, **style):
    """Write the names of a picture's rows to its left; they are equally high."""
    high = ax.get_ylim()[0] / len(names)
    ax.set_yticks([(k + .5) * high for k in range(len(names))], names, **style)
    ax.tick_params(length=0)


# ---- the method ----------------------------------------------------------------------------------

def noising(model, plt):
    """A real clip on its way to noise, and a sampler's guesses of x0 on the way back."""
    digits = data.load_digits("test", "drawn")
    scenes = data.make_scenes(1, split="test", captions="four", digits=digits)
    z = encode(model, scenes.render(np.arange(WINDOW) * 4))
    eps, levels = torch.randn(z.shape, generator=seeded(0, "noising")), (0, 250, 500, 750, 999)
    noised = torch.cat([model.diffusion.q_sample(z, t, eps) for t in levels])

    guesses, network = {}, denoiser(model, model.tokenizer(scenes.captions), 3)

    def listen(x, t):
        prediction = network(x, t)
        guesses[int(t[0])], _ = model.diffusion.to_x0_eps(prediction, x, t)
        return prediction

    noise = Noise([seeded(0, 0)])
    SAMPLERS["sde"](model.diffusion, listen, noise(z), STEPS["sde"], noise=noise)
    near = [min(guesses, key=lambda t: abs(t - level)) for level in levels[::-1]]

    figure, axes = plt.subplots(2, 1, figsize=(8, 9.2))
    for ax, rows, names, title in (
            (axes[0], noised, levels, "training: a real clip, noised"),
            (axes[1], torch.cat([guesses[t] for t in near]), near,
             f'sampling "{scenes.captions[0]}": the network\'s guess of x0')):
        show(ax, tiles(decode(model, rows)[:, :, ::2]))
        name_rows(ax, [f"t = {t}" for t in names])
        ax.set_title(title)
    return figure


def read_log(stage):
    """Rows of the shipped training log of a stage: columns of floats by name, nan where empty."""
    with open(DOCS / "training_log.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == stage]
    return {name: np.array([float(row[name] or "nan") for row in rows])
            for name in rows[0] if name != "stage"}


def schedules(model, plt):
    """What is left of the signal at each level, and how well each quarter of levels is learned."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    for (name, alpha_bar), colour in zip(SCHEDULES.items(), (BLUE, ORANGE)):
        left.plot(alpha_bar(), color=colour, label=name)
    left.axhline(GUIDED_BELOW, color="grey", lw=.8, ls=":")
    left.text(T, GUIDED_BELOW + .02, "guidance works below", ha="right", color="grey")
    left.set(xlabel="noise level t", ylabel="ᾱ, the signal's share of the variance",
             title="schedules")
    log = read_log("clips")
    for quarter, colour in zip((0, 250, 500, 750), (GREEN, BLUE, ORANGE, RED)):
        loss = np.convolve(log[f"loss_t{quarter}_{quarter + 249}"], np.full(10, .1), "valid")
        right.plot(log["items"][9:] / 1e6, loss, color=colour, label=f"t {quarter} … {quarter + 249}")
    right.set(xlabel="million clips seen", ylabel="loss of v (mean of 100 steps)", yscale="log",
              title="clips stage: loss by noise level")
    for ax in (left, right):
        ax.legend(frameon=False)
    return figure


def circle(model, plt):
    """x0, eps, xt and v, of which any two give the others."""
    diffusion, t = Diffusion("cosine", "v"), 400
    a, s = diffusion.scales(t, None)
    figure, ax = plt.subplots(figsize=(4.6, 4.6))
    turn = np.linspace(0, np.pi / 2, 100)
    ax.plot(np.cos(turn), np.sin(turn), color="grey", lw=.8)
    for x, y, colour, name in ((1, 0, BLUE, "$x_0$"), (0, 1, RED, "ε"),
                               (a, s, "black", r"$x_t = \sqrt{\bar\alpha}\,x_0 + "
                                               r"\sqrt{1-\bar\alpha}\,ε$"),
                               (-s, a, GREEN, r"$v = \sqrt{\bar\alpha}\,ε - "
                                              r"\sqrt{1-\bar\alpha}\,x_0$")):
        ax.annotate("", (x, y), (0, 0), arrowprops=dict(arrowstyle="-|>", color=colour, lw=2))
        ax.text(1.06 * x, 1.06 * y + .02, name, color=colour, ha="left" if x > 0 else "center",
                size=11)
    for other, colour in (((a, 0), BLUE), ((0, s), RED)):
        ax.plot([a, other[0]], [s, other[1]], color=colour, lw=.9, ls="--")
    ax.annotate("", (a - .35 * s, s + .35 * a), (a, s),
                arrowprops=dict(arrowstyle="->", color=GREEN, lw=1.2, ls="--"))
    ax.text(a / 2, -.07, r"$\sqrt{\bar\alpha}$", color=BLUE, ha="center")
    ax.text(-.03, s / 2, r"$\sqrt{1-\bar\alpha}$", color=RED, ha="right")
    ax.text(.33, .12, f"t = {t}", color="grey")
    ax.set(xlim=(-.85, 1.5), ylim=(-.15, 1.2), aspect="equal")
    ax.axis("off")
    return figure


def guidance(model, plt):
    """The same seed at four guidance scales, for three captions."""
    prompts = ["a 3 moving left", "the 8 bouncing up and down", "a 4 moving up and a 9 moving down"]
    figure, axes = plt.subplots(2, 2, figsize=(8, 6.4))
    for ax, scale in zip(axes.flat, (0, 1, 3, 8)):
        x = generate(model, prompts, num_frames=16, guidance_scale=scale)
        show(ax, tiles(x[:, :, ::3]))
        ax.set_title(f"guidance {scale}")
    for ax in axes[:, 0]:
        name_rows(ax, ["a 3 moving\nleft", "the 8 bouncing\nup and down",
                       "a 4 moving up\nand a 9\nmoving down"])
    return figure


# ---- windows in time -----------------------------------------------------------------------------

def windows(model, plt):
    """The windows that training shows, on the action's clock."""
    kinds = ((train.KEYS, 0, 4, "keys: text → clip"),
             (train.IMAGE, 0, 4, "image: picture → clip"),
             (train.CONTINUE, -12, 4, "continue: 4 frames → clip"),
             (train.FILL, 16, 2, "fill: every other frame"),
             (train.PART, 32, 1, "part, of a steady motion"),
             (train.PART, 16, 2, "part, of a turn or bounce"))
    figure, ax = plt.subplots(figsize=(8, 2.8))
    for row, (task, start, stride, name) in enumerate(kinds):
        known = train.KNOWN[task]
        if name.endswith("bounce"):  # random frames are known; training draws them like this
            known = torch.rand(WINDOW, generator=seeded(0, "windows")).numpy() < .5
        ticks = start + stride * np.arange(WINDOW)
        for tick, shown in zip(ticks, known):
            ax.bar(tick, .7, width=.8 * min(stride, 3), bottom=row - .35,
                   color=BLUE if shown else PALE, edgecolor=BLUE, lw=.6)
        ax.text(67, row, f"{(train.TASKS == task).sum()} of 16, stride {stride}", va="center",
                color="grey")
    ax.axvspan(-.9, 64.9, color="black", alpha=.04, lw=0)
    ax.set_yticks(range(len(kinds)), [name for *_, name in kinds])
    ax.set(xlabel="tick of 1/20 s; the action lasts from 0 to 64 (dark: known frames, pale: to be "
                  "made)", xlim=(-15, 86), xticks=range(-8, 65, 8))
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


# ---- inside the network --------------------------------------------------------------------------

def words_seen(module, x, context, mask):
    """How much places x (b n c) look at words context (b m d): softmax(q·k/√e), the mean over heads
    (b n m). As `Attention.forward`, which does not keep it."""
    q = rearrange(module.q(module.norm(x)), "b n (h e) -> b h n e", h=module.heads)
    k, _ = rearrange(module.kv(context), "b m (two h e) -> two b h m e", two=2, h=module.heads)
    likeness = q @ k.mT / q.shape[-1] ** .5
    likeness = likeness.masked_fill(~rearrange(mask, "b m -> b 1 1 m"), -torch.inf)
    return reduce(likeness.softmax(-1), "b h n m -> b n m", "mean")


def attention(model, plt):
    """Which words the digit's places look at, in each frame, while the clip is sampled."""
    prompt, seen = "a 3 moving left then up", {}
    words = prompt.split()

    def hook(module, inputs, _):
        weight = words_seen(module, *inputs)[-1, :, :len(words)]     # of the half with the caption
        seen.setdefault(module, []).append(rearrange(weight, "(f s) m -> f s m", f=WINDOW))

    blocks = {name: block.cross for name, block in model.unet.named_modules()
              if name.rpartition(".")[0] in ("down", "up") or name == "middle"}
    hooks = [cross.register_forward_hook(hook) for cross in blocks.values()]
    noise = Noise([seeded(0, 0)])
    network, x_T = denoiser(model, model.tokenizer([prompt]), 3), noise(torch.empty(1, *model.window))
    z = SAMPLERS["sde"](model.diffusion, network, x_T, STEPS["sde"], noise=noise)
    for handle in hooks:
        handle.remove()
    light = (decode(model, z)[0, 0] + 1) / 2                                     # f h w
    figure, axes = plt.subplots(len(blocks) + 1, 1, figsize=(8, 9.5), height_ratios=[1] + [2] * 5)
    show(axes[0], tiles(light[None, None] * 2 - 1))
    axes[0].set_title(f'"{prompt}"')
    for ax, (name, cross) in zip(axes[1:], blocks.items()):
        weight = torch.stack(seen[cross]).mean(0)                                # f s m
        side = round(weight.shape[1] ** .5)
        ink = F.adaptive_avg_pool2d(light, side).flatten(1)                      # f s
        heard = torch.einsum("fs,fsm->mf", ink / ink.sum(1, keepdim=True), weight)
        image = ax.imshow(heard, cmap="viridis", aspect="auto", vmin=0)
        ax.set_yticks(range(len(words)), words)
        ax.set(xticks=range(0, WINDOW, 4), ylabel=f"{name}, {side}×{side}")
        figure.colorbar(image, ax=ax, fraction=.03, pad=.01)
    axes[-1].set_xlabel("frame")
    return figure


def waves(model, plt):
    """What captions add to each frame's embedding, along the axis that parts two of them most."""
    frame, unet = torch.arange(WINDOW), model.unet
    wave = sinusoid(frame, FRAME_WAVES, WAVE_BASE)                               # f k
    ways = dict(zip(("left", "right", "up", "down"), (BLUE, ORANGE, GREEN, RED)))
    context, mask = model.text_encoder(model.tokenizer([f"a 3 moving {way}" for way in ways]))
    mean = (context * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)        # b d, as in embed
    added = wave @ rearrange(unet.frame(mean), "b (k e) -> b k e", k=FRAME_WAVES)          # b f e
    figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
    axes[0].plot(frame, wave, lw=1)
    axes[0].set(title="8 waves of the frame's number", xlabel="frame")
    for ax, (one, other) in zip(axes[1:], ((0, 1), (2, 3))):
        axis = torch.linalg.svd(added[one] - added[other]).Vh[0]                 # e
        line = added @ axis                                                      # b f
        line = line * (line[one, -1] - line[one, 0]).sign()
        for (way, colour), row in zip(ways.items(), line):
            ax.plot(frame, row, color=colour, label=way)
        ax.set(title=f"caption × wave: {list(ways)[one]} against {list(ways)[other]}",
               xlabel="frame")
    axes[1].legend(frameon=False)
    return figure


def latents(model, plt):
    """Frames, the four channels of their latents, and what the decoder makes of these."""
    digits = data.load_digits("test", "drawn")
    scenes = data.make_scenes(3, split="test", digits=digits)
    x = scenes.render(np.array([32]))
    z = encode(model, x)
    rebuilt = decode(model, z)
    figure, axes = plt.subplots(3, 6, figsize=(8, 4.2))
    for row, frame, latent, back in zip(axes, x, z, rebuilt):
        show(row[0], tiles(frame[None]))
        for ax, channel in zip(row[1:5], latent[:, 0]):
            image = ax.imshow(channel, cmap="RdBu", vmin=-3, vmax=3)
            ax.set(xticks=[], yticks=[])
        show(row[5], tiles(back[None]))
    names = ["frame, 64×64", *(f"latent {k}, 8×8" for k in range(4)), "rebuilt, 64×64"]
    for ax, name in zip(axes[0], names):
        ax.set_title(name, size=9)
    figure.colorbar(image, ax=axes[:, 1:5], orientation="horizontal", fraction=.04, pad=.02,
                    label=f"normalised latents;  rebuilt: PSNR {psnr(x, rebuilt):.1f} dB")
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
            arrowstyle="-|>", color=ORANGE, lw=1.2, ls="--", shrinkA=38, shrinkB=38))
    path.append((2 * levels + 2.5, 0))
    box(*path[-1], f"v\n{WINDOW}×{side}×{side}×{c}", "white")
    for start, end in zip(path, path[1:]):
        ax.annotate("", end, start, zorder=0, arrowprops=dict(arrowstyle="-|>", color=BLUE, lw=1.4))
    ax.text(levels + 1.25, .25, "skips", color=ORANGE, ha="center")
    parts = ("res", "temporal_conv", "spatial", "cross", "temporal")
    said = ("space: 1×3×3 convolutions,\nscaled by t, stride, caption × frame",
            "time: 3×1×1\nconvolution", "space: attention\nin each frame",
            "words: attention\nto the caption", "time: attention\nat each place")
    ax.text(-.6, -4.3, "each\nblock:", ha="center", va="center")
    for k, (part, text) in enumerate(zip(parts, said)):
        box(.75 + 1.42 * k, -4.3, text + f"\n{count(getattr(net.down[0], part))}", "white")
    ax.set(xlim=(-.9, 2 * levels + 3.1), ylim=(-5, .7))
    ax.axis("off")
    return figure


# ---- what came of it -----------------------------------------------------------------------------

def training(model, plt):
    """The same captions and noise over the training of the shipped weights: rows of its strips."""
    import imageio.v3 as imageio
    strips = (("stills_000150", "after stills"), ("clips_001300", "1.3 M clips"),
              ("clips_002600", "2.7 M clips"), ("clips_006700", "6.9 M clips"))
    prompts = {5: "the number seven going up and the number 2 moving right then left",
               6: "the number eight sliding up then down and the 2 sliding quickly up"}
    figure, axes = plt.subplots(len(prompts), 1, figsize=(8, 5.2))
    for ax, (row, prompt) in zip(axes, prompts.items()):
        rows = [imageio.imread(DOCS / "pictures" / "training" / f"{name}.png")
                for name, _ in strips]
        frames = [rearrange(torch.from_numpy(strip / 1.), "(b h) (f w) -> b f 1 h w", h=64, w=64)
                  for strip in rows]
        shown = torch.cat([clips[row, ::2] for clips in frames])
        show(ax, grid(shown, 8)[..., 0])
        name_rows(ax, [name for _, name in strips])
        ax.set_title(f'"{prompt}"', size=9)
    return figure


def read_aloud(shown, i):
    """What the judge read of clip i: digits and motions."""
    said = [f"{digit if digit >= 0 else '?'} {data.NAMES[motion] if motion >= 0 else 'unclear'}"
            for digit, motion in zip(shown.digit[i], shown.motion[i])]
    return " and ".join(said[:shown.count[i]]) or "neither one digit nor two"


def cause(shown, scores, scenes, i):
    """Why the judge counts clip i of two moving digits as wrong."""
    if shown.count[i] != 2:
        return "not two digits"
    if scores.digit_ok[i] and scores.motion_ok[i]:
        return "the motions are exchanged"
    return "wrong motion" if scores.digit_ok[i] else "wrong digit"


def first_failures(model, classifier, scenes, prompts, judged, most=4, at_once=8):
    """The first clips that fail: rows of (clip x, its number, a line of text). judged: what to say
    of clip i of a batch, from its readings and scenes; None where it is right."""
    found = []
    for start in range(0, len(prompts), at_once):
        part = np.arange(start, min(start + at_once, len(prompts)))
        some = data.choose(scenes, part)
        x = generate(model, [prompts[i] for i in part], num_frames=16, seed=start).cpu()
        shown = metrics.read_clips(x, classifier)
        for i in range(len(part)):
            said = judged(shown, some, i)
            if said is not None:
                found.append((x[i], f'clip {start + i}, "{prompts[start + i]}": {said}'))
        if len(found) >= most:
            break
    return found[:most]


def two_wrong(shown, scenes, i):
    """What is wrong with clip i of two moving digits."""
    scores = metrics.score(shown, scenes)
    if scores.both_ok[i]:
        return None
    return f"{cause(shown, scores, scenes, i)}\n(read: {read_aloud(shown, i)})"


def unsteady(shown, scenes, i):
    """What is wrong with clip i of one digit that the caption does not name."""
    if shown.count[i] == 1 and shown.steady[i, 0] == 1:
        return None
    digits = " ".join("?" if digit < 0 else str(digit) for digit in shown.frames[i, 0])
    return f"it becomes another digit\n(read: {digits})"


def failures(model, plt):
    """The first clips that the judge finds wrong, and what it read."""
    classifier, digits = metrics.load_classifier(), data.load_digits("test", "drawn")
    two = data.make_scenes(64, split="test", digits=digits, each=["two moving"])
    one = data.make_scenes(64, split="test", captions="four", digits=digits)
    unnamed = [f"a digit moving {caption.split()[-1]}" for caption in one.captions]
    found = (first_failures(model, classifier, two, two.captions, two_wrong)
             + first_failures(model, classifier, one, unnamed, unsteady))
    figure, axes = plt.subplots(len(found), 1, figsize=(8, 1.02 * len(found)))
    for ax, (x, text) in zip(axes, found):
        show(ax, tiles(x[None]))
        ax.set_title(text, size=7.5, loc="left")
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
