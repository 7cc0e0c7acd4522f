"""The judge's eye for digits: `DigitNet`, a small CNN that names the digit in a crop of a frame.

`python -m experiments.train_digitnet` trains it on MNIST's training digits.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from data import SIZE
from support.console import UserError
from support.run import read_file

CLASSIFIER = Path(__file__).parent.parent / "checkpoints" / "classifier.pt"


class DigitNet(nn.Module):
    """Crops (n 1 28 28) in [0, 1] -> logits (n 10); `body` stops at features (n 32)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),  # n 32 14 14
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU(),  # n 48 7 7
            nn.Flatten(), nn.Linear(48 * 7 * 7, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, crops):
        return self.head(self.body(crops))


def load_classifier(path=CLASSIFIER, device="cpu"):
    """The trained `DigitNet`, ready to read."""
    try:
        net = DigitNet()  # in single precision; the file's half is copied into it
        net.load_state_dict(read_file(path)["model"])
    except Exception as error:  # a file may hold anything
        raise UserError(f"{path} is missing or damaged ({type(error).__name__}): make it with "
                        "`python -m experiments.train_digitnet`") from None
    return net.to(device).eval()


def crop(ink, centre, size, warp=torch.eye(2)):
    """Windows of size (n,) pixels around centre (n yx) of ink (n h w), scaled to (n 1 28 28); warp
    (n 2 2), used in training, turns and stretches them a little."""
    zoom = warp.to(ink) * rearrange(size, "n -> n 1 1") / SIZE
    place = centre.flip(-1) * 2 / SIZE - 1  # torch wants x before y, and the frame as -1 ... 1
    window = torch.cat([zoom, rearrange(place, "n xy -> n xy 1")], -1)
    grid = F.affine_grid(window, (len(ink), 1, 28, 28), align_corners=False)
    return F.grid_sample(rearrange(ink, "n h w -> n 1 h w"), grid, align_corners=False)
