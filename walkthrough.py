# %% [markdown]
# # A walk through text-to-video diffusion
# For readers who know PyTorch and have never met diffusion. Seven stops: a few lines of code, then
# something printed and a picture in the folder `walkthrough/`. Open this file in an editor that
# knows `# %%` cells (VS Code, PyCharm, Spyder), or run all of it from the repository's folder:
# `python walkthrough.py`, about a minute on 2 CPU cores, without a network.
# ## 1. A captioned clip
# Digits move over black for 3.2 seconds, as a caption says; we made them, so we know the truth.
# They are drawn from pen strokes, to fetch nothing; weights and judge were trained on MNIST's.

# %%
from pathlib import Path

import torch
from einops import rearrange, repeat

from data import NAMES, VOCABULARY, captioned_clips, make_scenes
from diffusion import Diffusion
from metrics import load_classifier, read_clips, score, wilson
from sample import generate, load
from support.digits import load_digits
from support.video import write_clip
from text_encoder import TextConfig, TextEncoder, Tokenizer
from unet3d import UNet3D, UNetConfig
from vae import psnr

folder = Path("walkthrough")
folder.mkdir(exist_ok=True)
digits = load_digits("test", "drawn")
x, captions, truth = captioned_clips(1, start=3, num_frames=65, split="test", digits=digits)
print(f"1. x (b c f h w) = {tuple(x.shape)} in {x.min():.0f} ... {x.max():.0f}: {captions[0]!r}")
(y, left), (_, right) = truth.positions([0, 64])[0, 0]
print(f"   truth: a {truth.digit[0, 0]}, its box goes from column {left:.1f} to {right:.1f}")
write_clip(x, folder / "1_clip.gif", fps=20)

# %% [markdown]
# ## 2. Noise it
# Diffusion learns to undo noise. First an autoencoder makes 16 times fewer numbers of a frame,
# latents z. At level t, `q_sample` leaves a share ᾱ of their variance and adds Gaussian noise: at
# t = 999 nothing is left. The network has to go from the picture's last row up to the first.

# %%
model = load(device="cpu").requires_grad_(False)     # the shipped weights
diffusion = Diffusion()
keys = x[:, :, ::4]                                  # 17 key frames, as many as the network sees
z = model.vae.encode(keys)
torch.manual_seed(0)
levels = torch.tensor([0, 250, 500, 750, 999])
noisy = diffusion.q_sample(z.expand(5, -1, -1, -1, -1), levels, torch.randn(5, *z.shape[1:]))
decoded = model.vae.decode(noisy).clamp(-1, 1)
print(f"2. z (b c f h w) = {tuple(z.shape)}: mean {z.mean():.2f}, std {z.std():.2f}")
for t, clip in zip(levels, decoded):
    print(f"   t {t:3d}  ᾱ {diffusion.alpha_bar[t]:.4f}  PSNR {psnr(clip[None], keys):4.1f} dB")
write_clip(decoded[:, :, ::2], folder / "2_noise.png")

# %% [markdown]
# ## 3. Overfit two captions
# Training: draw a level and noise, mix, ask the network for v (a blend of noise and data), take the
# squared error. A small U-Net and text encoder learn two clips of 9 frames by heart. Then, whatever
# the noise, the caption decides which clip comes out: two rows are real, six are samples.

# %%
scenes = make_scenes(1, split="test", digits=digits, each=("turn", "bounce"))
real = scenes.render(range(0, 65, 8))                                                # 2 1 9 64 64
tokens = repeat(Tokenizer(VOCABULARY["full"])(scenes.captions), "b n -> (k b) n", k=3)
z = repeat(model.vae.encode(real), "b c f h w -> (k b) c f h w", k=3)    # three levels a step
torch.manual_seed(0)
text = TextEncoder(TextConfig(width=32, layers=1))
unet = UNet3D(UNetConfig(widths=(32, 32), head_dim=16, emb_width=64, context_width=32))


def network(z_t, t):  # all that diffusion sees of it: noisy latents and levels in, v out
    return unet(z_t, t, *text(tokens))


optimizer = torch.optim.AdamW([*text.parameters(), *unet.parameters()], betas=(0.9, 0.99))
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=250, pct_start=0.1)
losses = []
for step in range(250):
    t, eps = torch.randint(1000, (6,)), torch.randn_like(z)
    loss = diffusion.loss(network, z, t, eps).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
    losses.append(loss.item())
first, last = (sum(part) / 20 for part in (losses[:20], losses[-20:]))
print(f"3. loss of the first 20 steps {first:.3f}, of the last 20 {last:.3f}: {first / last:.0f}x")
x_T = repeat(torch.randn(3, *z.shape[1:]), "k c f h w -> (k b) c f h w", b=2)
samples = model.vae.decode(diffusion.dpm(network, x_T, 20)).clamp(-1, 1)
best = model.vae.decode(z).clamp(-1, 1)              # what the autoencoder makes of the truth
for i, caption in enumerate(scenes.captions):
    own, other, top = (psnr(y, real[[k]]) for y, k in
                       ((samples[i::2], i), (samples[i::2], 1 - i), (best[[i]], i)))
    print(f"   {caption!r}: PSNR {own:.1f} dB (autoencoder {top:.1f}, other clip {other:.1f})")
write_clip(torch.cat([real, samples]), folder / "3_overfit.png")

# %% [markdown]
# ## 4. Guide it
# The shipped weights predict with and without the caption; with guidance s the prediction is
# without + s · (with - without): 0 never hears the caption, 1 is plain, 3 exaggerates. The same
# four noises (rows), four frames for each s from left to right; the judge names what it sees in
# the pixels alone. At 1 all move left, but one is a 0 and one nearly an 8; at 3 all are 3s.

# %%
judge = load_classifier()


def told(clips):
    """What the judge reads in each clip, such as "3 left" or "4 up, 9 down"; "?" if nothing."""
    shown, names = read_clips(clips, judge), [*NAMES, "?"]  # -1, no clear motion, finds the last
    return [", ".join(f"{digit[k]} {names[motion[k]]}" for k in range(count)) or "?"
            for count, digit, motion in zip(shown.count, shown.digit, shown.motion)]


guided = [generate(model, ["a 3 moving left"] * 4, num_frames=16, steps=20, guidance_scale=scale)
          for scale in (0, 1, 3)]
for scale, clips in zip((0, 1, 3), guided):
    print(f"4. 'a 3 moving left', guidance {scale}: {' | '.join(told(clips))}")
write_clip(torch.cat([clips[:, :, ::5] for clips in guided], 2), folder / "4_guidance.png")

# %% [markdown]
# ## 5. Fill between frames
# Longer clips come in rounds: 17 key frames, then those between them, twice. Here the
# keys are real, so we know what belongs between. The rival, a cross-fade, is better where digits
# move less than two pixels a key (a fill is no sharper than its autoencoder), but shows fast ones
# twice, and pale. Only new frames count. Rows of the picture, four clips each: real, faded, filled.

# %%
x, captions, truth = captioned_clips(4, num_frames=65, split="test", digits=digits)
keys, real = x[:, :, ::4], x[:, :, :64]
share = rearrange(torch.arange(4) / 4, "k -> k 1 1")
fade = torch.lerp(keys[:, :, :-1, None], keys[:, :, 1:, None], share)                # b c 16 4 h w
fade = rearrange(fade, "b c f k h w -> b c (f k) h w")
best = model.vae.decode(model.vae.encode(real)).clamp(-1, 1)
speed = torch.from_numpy(truth.positions(range(0, 65, 4))).diff(dim=2).abs().amax((1, 2, 3))
for n in (32, 64):                                   # one step, as all key frames are known
    filled = generate(model, captions, num_frames=n, first=keys, steps=1)
    true, *shown = (y[:, :, ::y.shape[2] // n][:, :, 1::2] for y in (real, filled, fade, best))
    for i, caption in enumerate(captions):
        marks = ", ".join(f"{psnr(y[[i]], true[[i]]):.1f}" for y in shown)
        print(f"5. to {n}, {speed[i]:.1f} px a key: filled, faded, rebuilt {marks} dB: {caption}")
write_clip(torch.cat([real, fade, filled])[:, :, 20:29], folder / "5_fill.png")

# %% [markdown]
# ## 6. Animate a picture
# A picture is a first frame that is known. No caption names its digit, so it must be seen. The
# judge weighs all frames of a clip together and reads four 3s. You see more: these pen strokes are
# new to the weights, and in later frames one 3 has become nearly an 8, and one no digit at all.

# %%
prompts = ["a digit moving up", "a digit standing still", "a digit bouncing left and right",
           "a digit moving down then right"]
picture = keys[3:, :, :1].expand(4, -1, -1, -1, -1)  # of the first stop's clip
moved = generate(model, prompts, num_frames=16, steps=20, first=picture)
for prompt, seen in zip(prompts, told(moved)):
    print(f"6. {prompt!r}: {seen}")
write_clip(moved, folder / "6_picture.gif", fps=5)

# %% [markdown]
# ## 7. Read the judge's marks
# The first eight test captions, nothing chosen. Right is what obeys all that its caption *says*: a
# digit that is not named may be any (a name is drawn first, see `draw_unsaid` of data.py). A "?",
# if you see one, is a clip whose digits the judge cannot count, as when a pale 0, plain to you,
# falls into pieces for it. Eight are few: see the interval.

# %%
scenes = make_scenes(8, split="test", digits=digits)
clips = generate(model, scenes.captions, num_frames=16, steps=20)
right = score(read_clips(clips, judge), scenes).both_ok
for row in [("caption", "digit and motion", "right"), *zip(scenes.captions, told(clips), right)]:
    print("7. {:74s} {:42s} {}".format(*row))
low, high = wilson(right.sum(), 8)
print(f"   right: {right.sum()} of 8; 95 % interval {low:.0%} to {high:.0%}")
write_clip(clips, folder / "7_marks.gif", fps=5)
