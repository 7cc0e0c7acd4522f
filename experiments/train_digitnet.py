"""Trains the judge's classifier, `DigitNet`, on MNIST's training digits: a few minutes.

    python -m experiments.train_digitnet --data-root DIR       writes checkpoints/classifier.pt

It learns digits as the judge will meet them: in both sizes, blurred and noisy as decoded frames
are, cropped around their ink's centre. You should see a loss near 0.3 at the end, most of which is
the smoothing of its labels.
"""

import argparse
import sys

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
from metrics import INK, centroid
from support.console import DATA_ROOT, DIGITS, SEED, add_flags, exit_status
from support.digitnet import CLASSIFIER, DigitNet, crop
from support.run import save


def blur(frames, sigma):
    """Frames (b 1 h w) under a Gaussian of `sigma` pixels."""
    bell = torch.exp(-.5 * (torch.arange(-2., 3) / sigma) ** 2)
    bell = torch.outer(bell, bell) / bell.sum() ** 2
    return F.conv2d(frames, bell[None, None], padding=2)


def training_batch(digits, labels, index, rng):
    """Crops (b 1 28 28) and labels (b,) of digits `index` (b,), as the judge meets them."""
    b = len(index)
    size = torch.randint(0, 2, (b,), generator=rng) * 8 + 20                     # 20 or 28 pixels
    corner = torch.rand(b, 1, 2, generator=rng) * (data.SIZE - size)[:, None, None]  # anywhere
    frames = data.compose(digits.images[index].float() / 255, corner, size)          # b 1 h w
    sigma = float(torch.rand(1, generator=rng)) + .05
    frames[:b // 2] = blur(frames[:b // 2], sigma)  # as the autoencoder does; the rest stays sharp
    frames = frames[:, 0]                                                            # b h w
    noise = torch.rand(b, 1, 1, generator=rng) * .08
    frames = (frames + noise * torch.randn(frames.shape, generator=rng)).clamp(0, 1)
    centre = centroid(frames * (frames > INK)) + .6 * torch.randn(b, 2, generator=rng)
    warp = torch.eye(2) + .08 * torch.randn(b, 2, 2, generator=rng)
    return crop(frames, centre, size, warp), labels[index]


def train_classifier(digits, seed=0, epochs=14, batch=256):
    """A `DigitNet` trained on `digits` (a `data.Digits` of the train split)."""
    torch.manual_seed(seed)
    rng, net = torch.Generator().manual_seed(seed), DigitNet().train()
    labels = torch.from_numpy(np.repeat(np.arange(10), digits.count))
    steps = epochs * len(labels) // batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=.15)
    order = torch.cat([torch.randperm(len(labels), generator=rng) for _ in range(epochs)])
    for step in (bar := tqdm(range(steps), desc="classifier", mininterval=2)):
        crops, target = training_batch(digits, labels, order[step * batch:(step + 1) * batch], rng)
        loss = F.cross_entropy(net(crops), target, label_smoothing=.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval()


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args = add_flags(p, (SEED, DIGITS, DATA_ROOT)).parse_args(argv)

    def work():
        # drawn ones only if asked for: the judge reads MNIST
        source = "mnist" if args.digits == "auto" else args.digits
        digits = data.load_digits("train", source, args.data_root)
        net = train_classifier(digits, args.seed)
        half = {name: value.half() if value.is_floating_point() else value
                for name, value in net.state_dict().items()}
        save(CLASSIFIER, {"model": half})
        print(f"saved {CLASSIFIER}: DigitNet trained on {digits.source}, seed {args.seed}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
