"""What the shipped weights do, as figures: noise and guesses, words and waves, failures.

Each function draws one figure from a model, by matplotlib's pyplot, which it is given.
`python -m experiments.figures` makes them with all other pictures (experiments/figures.py).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce

import data
import metrics
from diffusion import Noise
from experiments.common import decode, encode
from model import WINDOW, seeded
from sample import SAMPLERS, STEPS, denoiser, generate, key_levels, sample
from support.video import LINE, grid
from unet3d import FRAME_WAVES, WAVE_BASE, sinusoid
from vae import psnr

DOCS = Path(__file__).parent.parent / "docs"
BLUE, ORANGE, GREEN, RED, PALE = "#2b6ca3", "#e08a2c", "#4a9a5b", "#c0504d", "#dfe6ee"


def tiles(x):
    """Clips x (b c=1 f h w) in [-1, 1] -> one picture (h' w'): a row each, frames side by side."""
    frames = rearrange((x.cpu().clamp(-1, 1) + 1) * 127.5, "b c f h w -> (b f) c h w")
    return grid(frames, x.shape[2])[..., 0]


def cut(strip, side=64):
    """A strip (h' w') of train.py -> frames (b f 1 side side). Older runs' have no lines."""
    line = LINE if strip.shape[1] % side else 0
    lined = F.pad(strip, (0, line, 0, line))
    cells = rearrange(lined, "(b h) (f w) -> b f 1 h w", h=side + line, w=side + line)
    return cells[..., :side, :side]


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


# ---- sampling ------------------------------------------------------------------------------------

def noising(model, plt):
    """A real clip on its way to noise, and a sampler's guesses of x0 on the way back."""
    digits = data.load_digits("test", "drawn")
    scenes = data.make_scenes(1, split="test", digits=digits, each=["turn"])
    z = encode(model, scenes.render(np.arange(WINDOW) * 4))
    eps, levels = torch.randn(z.shape, generator=seeded(0, "noising")), (0, 250, 500, 750, 999)
    guessed = 999, 950, 850, 600, 0                  # high ones are where the motion is decided
    noised = torch.cat([model.diffusion.q_sample(z, t, eps) for t in levels])

    guesses, network = {}, denoiser(model, model.tokenizer(scenes.captions), 3)

    def listen(x, t):
        prediction = network(x, t)
        guesses[int(t[0])], _ = model.diffusion.to_x0_eps(prediction, x, t)
        return prediction

    noise = Noise([seeded(0, 0)])
    SAMPLERS["sde"](model.diffusion, listen, noise(z), key_levels(model.diffusion, STEPS["sde"]),
                    noise=noise)
    near = [min(guesses, key=lambda t: abs(t - level)) for level in guessed]

    figure, axes = plt.subplots(2, 1, figsize=(8, 9.2))
    for ax, rows, names, title in (
            (axes[0], noised, levels, "training: a real clip, noised"),
            (axes[1], torch.cat([guesses[t] for t in near]), near,
             f'sampling "{scenes.captions[0]}": the network\'s guess of x0')):
        show(ax, tiles(decode(model, rows)[:, :, ::2]))
        name_rows(ax, [f"t = {t}" for t in names])
        ax.set_title(title)
    return figure


def guidance(model, plt):
    """The same seed at four guidance scales, for three captions."""
    prompts = ["a 3 moving left", "the 8 bouncing up and down", "a 4 moving up and a 9 moving down"]
    figure, axes = plt.subplots(2, 2, figsize=(8, 4.3))
    for ax, scale in zip(axes.flat, (0, 1, 3, 8)):
        x = generate(model, prompts, num_frames=16, guidance_scale=scale)
        show(ax, tiles(x[:, :, ::3]))
        ax.set_title(f"guidance {scale}")
    for ax in axes[:, 0]:
        name_rows(ax, ["a 3 moving\nleft", "the 8 bouncing\nup and down",
                       "a 4 moving up\nand a 9\nmoving down"])
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
    z = sample(model, model.tokenizer([prompt]), Noise([seeded(0, 0)]), "sde",
               key_levels(model.diffusion, STEPS["sde"]), scale=3, stride=4)
    for handle in hooks:
        handle.remove()
    light = (decode(model, z)[0, 0] + 1) / 2                                     # f h w
    figure, axes = plt.subplots(len(blocks) + 1, 1, figsize=(8, 9.5),
                                height_ratios=[1] + [2] * len(blocks))
    show(axes[0], tiles(light[None, None] * 2 - 1))
    axes[0].set_title(f'"{prompt}"')
    for ax, (name, cross) in zip(axes[1:], blocks.items()):
        weight = torch.stack(seen[cross]).mean(0)                                # f s m
        side = round(weight.shape[1] ** .5)
        ink = F.adaptive_avg_pool2d(light, side).flatten(1)                      # f s
        share = ink / ink.sum(1, keepdim=True).clamp(min=1e-6)
        heard = einsum(share, weight, "f s, f s m -> m f")
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
    figure, axes = plt.subplots(1, 3, figsize=(8, 3))
    axes[0].plot(frame, wave, lw=1)
    axes[0].set(title="8 waves of the frame's number", xlabel="frame")
    for ax, (one, other) in zip(axes[1:], ((0, 1), (2, 3))):
        axis = torch.linalg.svd(added[one] - added[other]).Vh[0]                 # e
        line = added @ axis                                                      # b f
        line = line * (line[one, -1] - line[one, 0]).sign()
        for (way, colour), row in zip(ways.items(), line):
            ax.plot(frame, row, color=colour, label=way)
        ax.set(title=f"the axis {list(ways)[one]} – {list(ways)[other]}", xlabel="frame")
    lines, names = axes[1].get_legend_handles_labels()
    figure.legend(lines, [f'"a 3 moving {way}"' for way in names], ncols=4, frameon=False,
                  loc="outside lower center")
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
            ax.spines[:].set_visible(False)
        show(row[5], tiles(back[None]))
    names = ["frame, 64×64", *(f"latent {k}, 8×8" for k in range(4)), "rebuilt, 64×64"]
    for ax, name in zip(axes[0], names):
        ax.set_title(name, size=9)
    figure.colorbar(image, ax=axes[:, 1:5], orientation="horizontal", fraction=.04, pad=.02,
                    label=f"normalised latents;  rebuilt: PSNR {psnr(x, rebuilt):.1f} dB")
    return figure


# ---- what came of training, and what fails -------------------------------------------------------

def training(model, plt):
    """The same captions and noise over the training of the shipped weights: rows of its strips."""
    import imageio.v3 as imageio
    strips = (("stills_000150", "after stills"), ("clips_002150", "2.2 M clips"),
              ("clips_003550", "3.6 M clips"), ("clips_007100", "7.3 M clips"))
    prompts = {5: "the number seven going up and the number 2 moving right then left",
               6: "the number eight sliding up then down and the 2 sliding quickly up"}
    figure, axes = plt.subplots(len(prompts), 1, figsize=(6.4, 5.2))
    clips = [cut(torch.from_numpy(imageio.imread(DOCS / "pictures/training" / f"{name}.png") / 1.))
             for name, _ in strips]
    for ax, (row, prompt) in zip(axes, prompts.items()):
        shown = torch.cat([x[row, ::2] for x in clips])
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


def find_failures(model, classifier, scenes, prompts, judged, at_once=8):
    """Samples all prompts. The clips that fail: a list of (clip x, a line of text). judged: what to
    say of clip i of a batch, from its readings and scenes; None where it is right."""
    found = []
    for start in range(0, len(prompts), at_once):
        part = np.arange(start, min(start + at_once, len(prompts)))
        some, told = data.choose(scenes, part), [prompts[i] for i in part]
        x = generate(model, told, num_frames=16, seed=start, as_told=True).cpu()
        shown = metrics.read_clips(x, classifier)
        said = [judged(shown, some, i) for i in range(len(part))]
        found += [(x[i], f'"{told[i]}": {text}') for i, text in enumerate(said) if text]
    return found


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
    return f"not the same digit in every frame\n(read: {digits})"


def failures(model, plt):
    """The first clips that the judge finds wrong, and what it read."""
    classifier, digits = metrics.load_classifier(), data.load_digits("test", "drawn")
    two = data.make_scenes(64, split="test", digits=digits, each=["two moving"])
    one = data.make_scenes(64, split="test", captions="four", digits=digits)
    unnamed = [f"a digit moving {caption.split()[-1]}" for caption in one.captions]
    figure, axes = plt.subplots(8, 1, figsize=(8, 8.2))
    for four, (kind, scenes, prompts, judged) in zip(axes.reshape(2, 4), (
            ("two moving digits", two, two.captions, two_wrong),
            ("a digit that is not named (--as-told)", one, unnamed, unsteady))):
        found = find_failures(model, classifier, scenes, prompts, judged)
        for ax, (x, text) in zip(four, found):
            show(ax, tiles(x[None]))
            ax.set_title(text, size=7.5, loc="left")
        heading = f"{kind.upper()}: {len(found)} of {len(prompts)} clips fail, the first are"
        four[0].set_title(f"{heading}\n{four[0].get_title(loc='left')}", size=7.5, loc="left")
    return figure
