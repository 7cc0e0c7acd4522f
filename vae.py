"""The autoencoder: frames -> small latents -> frames, so diffusion has 16 times fewer numbers to
predict (48 times in colour).

An encoder squeezes a frame into few numbers, its latents; a decoder rebuilds the frame from them.
They learn as one, from the error of what is rebuilt, what is worth keeping. But then a decoder
knows only the very points it has seen, and diffusion, never quite exact, lands beside them. So a
*variational* autoencoder (VAE) makes a frame a small cloud, a mean and a std for every latent, and
rebuilds from a point drawn in it: all of the cloud must come out as that frame. Lest clouds shrink
to points or flee each other, KL, their distance from N(0, 1), is added to the error. Its weight is
tiny, for clouds that all were N(0, 1) would say nothing of their frames. To draw new latents from
N(0, 1) needs a large one, and blurs; here diffusion learns where they lie, so near 0 is enough.

This one (Kingma & Welling 2014, arXiv:1312.6114; Rombach et al. 2022, "Latent Diffusion",
2112.10752, section 3.1) sees each frame alone and makes it 8 times smaller a side.

    encode: x (b c f h w) pixels in [-1, 1]  ->  z (b 4 f h/8 w/8) latents with mean 0 and std 1
    decode: z  ->  x

After training, `measure_latents` writes the latents' own mean and std into buffers; encode and
decode apply them, so no constant such as 0.18215 (which belongs to another autoencoder) is needed.
Latent Diffusion adds LPIPS and a GAN loss, because squared error blurs the texture of photographs.
Digits have no texture: an edge is all there is to see, and squared error puts it in its place.
Run `python vae.py` to watch it learn to rebuild a few clips.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn


class ResBlock(nn.Module):
    """(b c h w) -> (b d h w): two convolutions beside a shortcut."""

    def __init__(self, c, d):
        super().__init__()
        self.body = nn.Sequential(nn.GroupNorm(8, c), nn.SiLU(), nn.Conv2d(c, d, 3, padding=1),
                                  nn.GroupNorm(8, d), nn.SiLU(), nn.Conv2d(d, d, 3, padding=1))
        self.shortcut = nn.Conv2d(c, d, 1) if c != d else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.body(x)


class Up(nn.Module):
    """(b c h w) -> (b c 2h 2w): nearest neighbour, then a convolution (no checkerboard)."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@dataclass
class VAEConfig:
    channels: int = 1                # of the pixels: 1 or 3
    latent_channels: int = 4
    widths: tuple = (32, 64, 96)     # at 1/2, 1/4 and 1/8 of the frame's size
    blocks: int = 2                  # residual blocks a level in the decoder (one in the encoder)


class VAE(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, w = config, tuple(config.widths)
        # The first halving moves 2x2 pixels into channels: nothing is lost, and the costly
        # full-resolution layers of the usual design (3/4 of its time) never exist.
        layers = [nn.Conv2d(4 * config.channels, w[0], 3, padding=1)]
        for c, d in zip(w, w[1:]):
            layers += [ResBlock(c, c), nn.Conv2d(c, d, 3, stride=2, padding=1)]
        self.encoder = nn.Sequential(*layers, ResBlock(w[-1], w[-1]), nn.GroupNorm(8, w[-1]),
                                     nn.SiLU(), nn.Conv2d(w[-1], 2 * config.latent_channels, 1))
        layers = [nn.Conv2d(config.latent_channels, w[-1], 3, padding=1)]
        for c, d in zip(w[::-1], w[-2::-1]):
            layers += [ResBlock(c, c) for _ in range(config.blocks)] + [Up(c), ResBlock(c, d)]
        self.decoder = nn.Sequential(*layers, ResBlock(w[0], w[0]), nn.GroupNorm(8, w[0]),
                                     nn.SiLU(), nn.Conv2d(w[0], 4 * config.channels, 3, padding=1))
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def posterior(self, frames):
        """Frames (b c h w) in [-1, 1] -> mean and log-variance of q(z|x), each (b d h/8 w/8)."""
        halved = rearrange(frames, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        halved = halved.contiguous(memory_format=torch.channels_last)
        mean, log_var = self.encoder(halved).float().chunk(2, dim=1)
        return mean, log_var.clamp(-20, 10)

    def rebuild(self, z):
        """Raw latents (b d h/8 w/8) -> frames (b c h w)."""
        z = z.contiguous(memory_format=torch.channels_last)
        return rearrange(self.decoder(z).float(), "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)

    def loss(self, frames, noise, kl_weight=1e-6):
        """Mean squared error per pixel plus KL(q(z|x) || N(0, 1)) in nats a frame; and the parts.

        noise (b d h/8 w/8) samples the posterior: z = mean + std * noise. Latent Diffusion weighs
        KL by 1e-6 against a *sum* over pixels (its appendix G), only to keep latents from running
        away. Against our *mean* over 4096 pixels the same number is about the ELBO's own weight
        for a pixel error of 0.05 (2·0.05²/4096 = 1.2e-6), so latents come out a little smoother;
        the shipped ones rebuild with 37 dB.
        """
        mean, log_var = self.posterior(frames)
        mse = F.mse_loss(self.rebuild(mean + (log_var / 2).exp() * noise), frames)
        kl = kl_to_standard_normal(mean, log_var).mean()
        return mse + kl_weight * kl, mse, kl

    def encode(self, x):
        """x (b c f h w) in [-1, 1] -> normalised latents z (b d f h/8 w/8), posterior means."""
        b, c, f, h, w = x.shape
        if c != self.config.channels or h % 8 or w % 8:
            raise ValueError(f"encode needs {self.config.channels} channels and sides that 8 "
                             f"divides, not {tuple(x.shape)}")
        mean, _ = self.posterior(rearrange(x, "b c f h w -> (b f) c h w"))
        z = (mean - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)
        return rearrange(z, "(b f) d h w -> b d f h w", f=f)

    def decode(self, z):
        """Normalised latents z (b d f h w) -> x (b c f 8h 8w) in about [-1, 1], not clamped."""
        f = z.shape[2]
        z = rearrange(z, "b d f h w -> (b f) d h w")
        x = self.rebuild(z * _per_channel(self.latent_std) + _per_channel(self.latent_mean))
        return rearrange(x, "(b f) c h w -> b c f h w", f=f)

    @torch.no_grad()
    def measure_latents(self, batches):
        """Measure the latents' per-channel mean and std over batches of frames (b c h w), once,
        after training. important: diffusion assumes std 1; without this it adds the wrong noise."""
        means = torch.cat([rearrange(self.posterior(frames)[0], "b d h w -> d (b h w)")
                           for frames in batches], dim=1).cpu().double()
        self.latent_mean.copy_(means.mean(1))
        self.latent_std.copy_(means.std(1))


def kl_to_standard_normal(mean, log_var):
    """KL(N(mean, e^log_var) || N(0, 1)) = (mean² + e^log_var − 1 − log_var)/2: (b,) nats."""
    return (mean ** 2 + log_var.exp() - 1 - log_var).flatten(1).sum(1) / 2   # VAE paper, appendix B


def psnr(x, y, where=None):
    """Mean over the frames of x, y (b c f h w) in [-1, 1] of the peak signal-to-noise ratio in dB,
    peak = 2, the full range; with `where` (b f h w) over the chosen pixels of each frame."""
    error = reduce((x - y) ** 2, "b c f h w -> b f h w", "mean")
    where = torch.ones_like(error) if where is None else where.to(error)
    mse = (error * where).sum((-1, -2)) / where.sum((-1, -2)).clamp(min=1)
    return float(10 * torch.log10(4 / mse.clamp(min=1e-10)).mean())


def _per_channel(v):
    return rearrange(v, "d -> 1 d 1 1")


if __name__ == "__main__":
    from data import captioned_clips
    from support.digits import load_digits
    from support.video import write_clip

    torch.manual_seed(0)
    x, _, _ = captioned_clips(6, num_frames=16, digits=load_digits("train", "drawn"))
    frames = rearrange(x, "b c f h w -> (b f) c h w")
    vae = VAE(VAEConfig(widths=(16, 32, 64), blocks=1))  # as train.py's tiny preset
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    for step in range(401):
        batch = frames[torch.randint(len(frames), (16,))]
        loss, mse, kl = vae.loss(batch, torch.randn(16, 4, 8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            decibels = 10 * (4 / mse).log10()  # full-range peak: pixels span 2
            print(f"step {step:3d}  PSNR {decibels:.1f} dB  KL {kl:.0f} nats a frame")
    vae.measure_latents([frames])
    with torch.no_grad():
        z = vae.encode(x)
        write_clip(torch.cat([x[:2], vae.decode(z)[:2]]), "vae.png")
    print(f"x {tuple(x.shape)} -> z {tuple(z.shape)}, std {z.std():.3f}; vae.png: truth, rebuilt")
