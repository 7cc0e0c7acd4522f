"""The four parts as one model, and the file it is kept in.

    caption -> text_encoder -> context -> unet3d, called by diffusion's samplers -> vae.decode -> x

A model is made from its config, a plain dict that travels in the file beside the weights. A run's
checkpoint holds raw weights, "model", and their moving average, "ema"; shipped weights "ema" alone.
What is damaged, made by hand or of another version is refused before it can cost memory.
"""

import zlib
from pathlib import Path

import torch
from torch import nn

from diffusion import Diffusion
from support.console import UserError
from support.run import no_larger_than, read_file
from text_encoder import TextConfig, TextEncoder, Tokenizer
from unet3d import UNet3D, UNetConfig
from vae import VAE, VAEConfig

SHIPPED = Path(__file__).parent / "checkpoints" / "moving_mnist_captions.pt"
WINDOW = 17     # frames that the network sees at once: 16 gaps, which fills can halve
MOST = 65_536   # the largest size in a config; of layers and blocks there are 64 at most


class TextToVideo(nn.Module):
    """config: "vae", "text" and "unet" hold their dataclasses' fields, "vocabulary" the words,
    "schedule" and "predict" what `Diffusion` takes, "size" a frame's pixels a side."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config["vocabulary"], config["text"]["length"])
        self.diffusion = Diffusion(config["schedule"], config["predict"])
        self.vae = VAE(VAEConfig(**config["vae"]))
        self.text_encoder = TextEncoder(TextConfig(**config["text"]))
        self.unet = UNet3D(UNetConfig(**config["unet"]))

    @property
    def device(self):
        return self.vae.latent_std.device

    @property
    def window(self):
        """The shape of one window of latents, (c f h w)."""
        side = self.config["size"] // 8
        return self.vae.config.latent_channels, WINDOW, side, side


def load(checkpoint=None, device="auto"):
    """Open a checkpoint (default: the shipped weights) -> a `TextToVideo` ready to `generate`, with
    the averaged weights in float32, on CUDA the U-Net's in bfloat16. Raises `UserError` for a
    missing, damaged or foreign file and for a device that is not there."""
    device, path = pick_device(device), SHIPPED if checkpoint is None else checkpoint
    model = restore(read_file(path), "ema", path).to(device).eval()
    if device.type == "cuda":
        model.unet.bfloat16()  # `amp` would cast them anew in every pass, a third of its kernels
    return model


def restore(saved, key, path):
    """The `TextToVideo` of a checkpoint's dict with its weights `key`, "ema" or "model"."""
    try:
        config, weights = saved["config"], saved[key]
        check_sizes(config)
        with no_larger_than(weights.values()):
            model = TextToVideo(config)
        model.load_state_dict(weights)
        with torch.no_grad():  # one still, to see that the parts fit
            told = model.text_encoder(model.tokenizer(config["vocabulary"][-1:])[:, :1])
            z = model.unet(torch.zeros(1, *model.window)[:, :, :1], torch.zeros(1), *told)
            x = model.vae.decode(z)
        if x.shape not in {(1, c, 1, config["size"], config["size"]) for c in (1, 3)}:
            raise ValueError(f"it makes frames of shape {tuple(x.shape)}")
    except Exception as error:  # a config may hold anything
        raise UserError(f"{path} is a checkpoint of another architecture, or holds none "
                        f"({type(error).__name__}): train one with this version's train.py"
                        ) from None
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise UserError(f"{path} holds weights that are not finite numbers: its training went "
                        "wrong; use an earlier checkpoint or train again")
    return model


def check_sizes(config):
    """Refuse a config whose numbers are no sizes, before anything is built from them."""
    for part in ("vae", "text", "unet"):
        for name, value in config[part].items():
            sizes = value if isinstance(value, (list, tuple)) else [value]
            most = 64 if name in ("layers", "blocks") else MOST
            if len(sizes) > 8 or not all(type(n) is int and 1 <= n <= most for n in sizes):
                raise ValueError(f"{part} {name} {value}")
    if not all(word.isprintable() for word in config["vocabulary"]):
        raise ValueError("words that cannot be printed")
    if config["size"] not in range(16, 257, 8):
        raise ValueError(f"frames of {config['size']} pixels")


def pick_device(name="auto"):
    """The torch device called auto, cpu, cuda or mps; auto takes the fastest there is."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    if name not in ("auto", *found):
        raise UserError(f"there is no device {name!r} here: choose from {', '.join(found)}")
    return torch.device(found[0] if name == "auto" else name)


def seeded(*key, device="cpu"):
    """A generator for a key of numbers and words, hashed, because torch's keeps only 32 bits."""
    return torch.Generator(device).manual_seed(zlib.crc32(repr(key).encode()))


def amp(device):
    """Mixed precision where it pays: bfloat16 on CUDA. Casts of weights are not cached, because a
    pass needs each but once, and `support.replay` would keep them when weights change."""
    on = device.type == "cuda"
    return torch.autocast("cuda" if on else "cpu", torch.bfloat16, on, cache_enabled=False)
