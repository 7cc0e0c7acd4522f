"""The network: a factorized space-time U-Net that predicts from a noisy latent clip and a caption.

    z_t (b c f h w), t (b,), context (b n d), context_mask (b n)  ->  prediction (b c f h w)

One network does every task of the papers it follows:
- Video Diffusion Models (Ho et al. 2022, arXiv:2204.03458): space and time are factorized. 1x3x3
  convolutions and spatial attention see one frame, temporal attention sees one place over time.
- Make-A-Video (Singer et al. 2022, 2209.14792): every temporal layer is born as the identity and a
  still is a clip with f = 1 that skips it, so a network trained on captioned stills *is* a video
  network. Known frames enter as extra channels with a mask.
- CogVideo (Hong et al. 2022, 2205.15868): a frame-rate token, here the stride in ticks, and
  recursive interpolation between known frames.
No weight depends on the window's length: frames are told apart by sine waves, in layers that stills
skip. Temporal attention has them twice: rotary (Su et al. 2021, 2104.09864), so that q·k knows how
far apart two frames are, which smooth motion needs; and absolute, because "then" turns in the
middle of the window, and distances alone do not tell where that is.

Inside, activations are channels-last, b f h w c, from the first layer to the last: every axis move
but the temporal attention's is a free view of the same memory. Run `python unet3d.py` for the U.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

STRIDES = (1, 2, 4)  # ticks between frames that the frame-rate token knows
WAVE_BASE = 100      # the slowest sine wave of frames, rows and columns: suits tens of them
MOST_FRAMES = 64     # of a window, for which tables of waves are made
FRAME_WAVES = 8      # cosines and sines of the frame's number that a caption is multiplied by


class Norm(nn.LayerNorm):
    """LayerNorm over the channels of each place of each frame, so frames never mix.

    A deviation: the papers' U-Nets have GroupNorm over a whole frame or clip. Per place it costs
    less, does not depend on the clip's length, and one kind of norm serves all layers.
    Autocast would lift it to float32 and double its memory traffic; its statistics are float32
    inside the kernel anyway.
    """

    def forward(self, x):
        with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype),
                                self.bias.to(x.dtype), self.eps)


def zero(layer):
    """Make a layer return exact zeros at birth: a residual that ends in it is the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def conv2d(layer, x):
    """A spatial convolution on x (b f h w c): each frame alone."""
    b = x.shape[0]
    y = layer(rearrange(x, "b f h w c -> (b f) c h w"))
    return rearrange(y, "(b f) c h w -> b f h w c", b=b)


def angles(position, count, base):
    """position (n,) at `count` speeds from 1 down towards 1/base: (n count) radians."""
    speed = base ** -(torch.arange(count, device=position.device) / count)
    return position[:, None] * speed


def sinusoid(position, width, base):
    """position (n,) -> (n width), as in the Transformer (Vaswani et al. 2017, section 3.5)."""
    angle = angles(position, width // 2, base)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotary(x, wave):
    """Turn pairs of channels of x (b heads f e) by angles that grow with the frame's number, so
    that q·k knows their distance (RoFormer section 3.2; its pairs are neighbours, ours halves).
    wave (f e): the angles' cosines and sines."""
    cos, sin = wave.to(x.dtype).chunk(2, dim=-1)                                     # f e/2
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


class Attention(nn.Module):
    """Pre-norm attention with a residual: x (b n c) over itself, or over context (b m d)."""

    def __init__(self, c, head_dim, context_width=None, temporal=False):
        super().__init__()
        self.heads, self.temporal = c // head_dim, temporal
        self.norm = Norm(c)
        self.q = nn.Linear(c, c)
        self.kv = nn.Linear(context_width or c, 2 * c)
        self.out = zero(nn.Linear(c, c))
        if temporal:  # tables, no weights: made once, as sines cost more than what they are for
            frame = torch.arange(MOST_FRAMES)
            self.register_buffer("wave", sinusoid(frame, c, WAVE_BASE), persistent=False)
            self.register_buffer("turn", sinusoid(frame, head_dim, WAVE_BASE), persistent=False)

    def forward(self, x, context=None, mask=None):
        y = self.norm(x)
        if self.temporal:  # which frame of the window
            y = y + self.wave[:x.shape[1]].to(y.dtype)
        q = rearrange(self.q(y), "b n (h e) -> b h n e", h=self.heads)
        k, v = rearrange(self.kv(y if context is None else context), "b m (two h e) -> two b h m e",
                         two=2, h=self.heads)
        if self.temporal:
            q, k = rotary(q, self.turn[:x.shape[1]]), rotary(k, self.turn[:x.shape[1]])
        if mask is not None:
            mask = rearrange(mask, "b m -> b 1 1 m")
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(rearrange(a, "b h n e -> b n (h e)"))


class ResBlock(nn.Module):
    """x (b f h w c) -> (b f h w d): two 1x3x3 convolutions; emb (b f e) by scale and shift."""

    def __init__(self, c, d, emb_width):
        super().__init__()
        self.norm1, self.conv1 = Norm(c), nn.Conv2d(c, d, 3, padding=1)
        self.emb = nn.Linear(emb_width, 2 * d)
        self.norm2, self.conv2 = Norm(d), zero(nn.Conv2d(d, d, 3, padding=1))
        self.shortcut = nn.Linear(c, d) if c != d else nn.Identity()

    def forward(self, x, emb):
        y = conv2d(self.conv1, F.silu(self.norm1(x)))
        scale, shift = rearrange(self.emb(emb), "b f (two d) -> two b f 1 1 d", two=2)
        y = conv2d(self.conv2, F.silu(self.norm2(y) * (1 + scale) + shift))
        return self.shortcut(x) + y


class TemporalConv(nn.Module):
    """x (b f h w c) -> same: a 3x1x1 convolution over frames with a residual, identity at birth.

    Computed as 3x1 on "images" of frames by places: Conv3d would copy channels-last memory."""

    def __init__(self, c):
        super().__init__()
        self.norm, self.conv = Norm(c), zero(nn.Conv3d(c, c, (3, 1, 1), padding=(1, 0, 0)))

    def forward(self, x):
        h = x.shape[2]
        y = rearrange(F.silu(self.norm(x)), "b f h w c -> b c f (h w)")
        y = F.conv2d(y, self.conv.weight[..., 0], self.conv.bias, padding=(1, 0))
        return x + rearrange(y, "b c f (h w) -> b f h w c", h=h)


class Block(nn.Module):
    """One level's work: space, words, time. Temporal layers are skipped for a single frame."""

    def __init__(self, c, d, config):
        super().__init__()
        self.res = ResBlock(c, d, config.emb_width)
        self.temporal_conv = TemporalConv(d)
        self.spatial = Attention(d, config.head_dim)
        self.cross = Attention(d, config.head_dim, config.context_width)
        self.temporal = Attention(d, config.head_dim, temporal=True)

    def forward(self, x, emb, context, mask, temporal=True):
        x = self.res(x, emb)
        b, f, h, w, _ = x.shape
        if temporal:
            x = self.temporal_conv(x)
        x = self.spatial(rearrange(x, "b f h w c -> (b f) (h w) c"))
        x = self.cross(rearrange(x, "(b f) s c -> b (f s) c", b=b), context, mask)
        if temporal:
            x = self.temporal(rearrange(x, "b (f s) c -> (b s) f c", f=f))
            x = rearrange(x, "(b s) f c -> b (f s) c", b=b)
        return rearrange(x, "b (f h w) c -> b f h w c", h=h, w=w)


@dataclass
class UNetConfig:
    latent_channels: int = 4
    widths: tuple = (96, 192)   # channels at 8x8 and 4x4
    head_dim: int = 48          # few heads: short sequences waste less of a GPU
    emb_width: int = 176        # of the noise level, stride and caption embedding
    context_width: int = 96     # of the text encoder's vectors


class UNet3D(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, w, e = config, tuple(config.widths), config.emb_width
        c = config.latent_channels
        self.time = nn.Sequential(nn.Linear(w[0], e), nn.SiLU(), nn.Linear(e, e))
        self.stride = nn.Embedding(len(STRIDES), e)
        self.caption = nn.Linear(config.context_width, e)
        # place: sine waves tell a pixel's row and column, scaled for each channel. frame: "left"
        # means right of the middle now and left of it later, so for each sine wave of the frame's
        # number the caption picks a vector to add: caption × wave. (Caption and frame
        # added separately find the axis of a motion long before its sign.) Zero at birth, as every
        # temporal layer.
        self.place = nn.Parameter(torch.ones(w[0]))
        self.frame = zero(nn.Linear(config.context_width, FRAME_WAVES * e))
        # noisy latents, known latents, and the mask that says which frames are known
        self.conv_in = nn.Conv2d(2 * c + 1, w[0], 3, padding=1)
        self.down = nn.ModuleList(Block(d, d, config) for d in w)
        self.shrink = nn.ModuleList(nn.Conv2d(d, wider, 3, stride=2, padding=1)
                                    for d, wider in zip(w, w[1:]))
        self.middle = Block(w[-1], w[-1], config)
        self.up = nn.ModuleList(Block(2 * d, d, config) for d in w[::-1])
        self.grow = nn.ModuleList(nn.Conv2d(d, thinner, 3, padding=1)
                                  for d, thinner in zip(w[::-1], w[-2::-1]))
        self.norm_out, self.conv_out = Norm(w[0]), zero(nn.Conv2d(w[0], c, 3, padding=1))

    def embed(self, t, stride, context, mask, f, temporal):
        """Noise level (b,), stride (b,) in ticks, the caption as a whole and, as a temporal layer,
        what the caption says about each frame: "left, so by now here" -> emb (b f e)."""
        emb = self.time(sinusoid(t, self.config.widths[0], base=10_000))
        mean = (context * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)        # b d
        emb = emb + self.stride(stride.log2().round().long()) + self.caption(mean)           # b e
        emb = repeat(emb, "b e -> b f e", f=f)
        if temporal:
            waves = sinusoid(torch.arange(f, device=t.device), FRAME_WAVES, WAVE_BASE)       # f k
            emb = emb + waves @ rearrange(self.frame(mean), "b (k e) -> b k e", k=FRAME_WAVES)
        return F.silu(emb)

    def forward(self, z_t, t, context, context_mask, stride=4, known=None, known_mask=None,
                temporal=True):
        """Predict from noisy latents z_t (b c f h w) at noise levels t (b,) in 0 ... 999.

        context (b n d) and context_mask (b n), True = a real token, come from the text encoder.
        stride: ticks between frames, 1, 2 or 4, one number or (b,). known (b c f h w) holds clean
        latents where known_mask (b f) is True and is ignored elsewhere. temporal=False skips the
        temporal layers, as f = 1 always does. Returns (b c f h w) in float32.
        """
        b, c, f, h, w = z_t.shape
        shrinks = 2 ** len(self.shrink)
        fits = c == self.config.latent_channels and h % shrinks == w % shrinks == 0
        assert fits and f <= MOST_FRAMES, (
            f"z_t must be (b {self.config.latent_channels} f h w) of at most {MOST_FRAMES} frames "
            f"with sides that {shrinks} divides, not {tuple(z_t.shape)}")
        if known is None:
            known, known_mask = torch.zeros_like(z_t), z_t.new_zeros(b, f)
        seen = rearrange(known_mask.to(z_t.dtype), "b f -> b 1 f 1 1")
        x = torch.cat([z_t, known * seen, seen.expand(b, 1, f, h, w)], dim=1)
        x = rearrange(x, "b c f h w -> b f h w c").contiguous()
        stride = torch.as_tensor(stride, device=t.device, dtype=torch.float32).expand(b)
        temporal = temporal and f > 1
        emb = self.embed(t, stride, context, context_mask, f, temporal)
        rest = emb, context, context_mask, temporal

        x = conv2d(self.conv_in, x)
        row, column = (sinusoid(torch.arange(n, device=x.device), x.shape[-1] // 2, WAVE_BASE)
                       for n in (h, w))
        row, column = repeat(row, "h c -> h w c", w=w), repeat(column, "w c -> h w c", h=h)
        place = torch.cat([row, column], dim=-1)
        x = x + (self.place * place).to(x.dtype)
        skips = []
        for i, block in enumerate(self.down):
            x = block(x, *rest)                                             # b f h w c
            skips.append(x)
            if i < len(self.shrink):
                x = conv2d(self.shrink[i], x)                               # b f h/2 w/2 2c
        x = self.middle(x, *rest)
        for i, block in enumerate(self.up):
            x = block(torch.cat([x, skips.pop()], dim=-1), *rest)
            if i < len(self.grow):
                x = conv2d(self.grow[i], repeat(x, "b f h w c -> b f (h 2) (w 2) c"))
        x = conv2d(self.conv_out, F.silu(self.norm_out(x)))
        return rearrange(x, "b f h w c -> b c f h w").float()


if __name__ == "__main__":
    torch.manual_seed(0)
    unet = UNet3D(UNetConfig())

    def show(name):
        def hook(module, _, out):
            print(f"  {name:8s} {str(tuple(out.shape)):24s} "
                  f"{sum(p.numel() for p in module.parameters()):>9,} parameters")
        return hook

    hooks = [module.register_forward_hook(show(name)) for name, module in unet.named_modules()
             if isinstance(module, Block)]
    z, t = torch.randn(1, 4, 17, 8, 8), torch.tensor([500])
    context, mask = torch.randn(1, 20, 96), torch.arange(20)[None] < 4
    print(f"latent clip b c f h w = {tuple(z.shape)}; down and up the U as b f h w c:")
    out = unet(z, t, context, mask)
    for hook in hooks:
        hook.remove()
    count = sum(p.numel() for p in unet.parameters())
    print(f"prediction {tuple(out.shape)}; {count:,} parameters")
    same = torch.equal(out, unet(z, t, context, mask, temporal=False))
    print(f"before training, temporal layers change nothing, bit for bit: {same}")
