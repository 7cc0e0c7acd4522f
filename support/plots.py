"""Pictures with words in them, by matplotlib where it is installed (requirements-figures.txt). It
is imported late: nothing but pictures needs it, and it takes a second."""

import csv
import sys

import numpy as np
import torch.nn.functional as F
from einops import rearrange

from support.video import LINE

QUARTERS = {0: "tab:green", 250: "tab:blue", 500: "tab:orange", 750: "tab:red"}


def pyplot():
    """matplotlib's pyplot, which draws into files only, or None where there is none that works."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except Exception:  # missing, or broken in a way of its own
        return None
    plt.rcParams.update({"font.size": 9, "figure.dpi": 120, "axes.spines.top": False,
                         "axes.spines.right": False, "figure.constrained_layout.use": True})
    return plt


def read_log(path, stage):
    """A stage's rows of a log.csv: columns of floats by name, nan where empty; an empty list
    where it has no rows."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == stage]
    return rows and {name: np.array([float(row[name] or "nan") for row in rows])
                     for name in rows[0] if name != "stage"}


def draw_losses(ax, log):
    """The loss of each quarter of the noise levels over the clips seen, means of ten rows."""
    for first, colour in QUARTERS.items():
        loss, wide = log[f"loss_t{first}_{first + 249}"], np.ones(min(10, len(log["items"])))
        total = np.convolve(np.nan_to_num(loss), wide, "valid")   # small batches leave cells empty
        count = np.convolve(~np.isnan(loss), wide, "valid")
        ax.plot(log["items"][len(wide) - 1:] / 1e6, total / np.maximum(count, 1), color=colour,
                marker="." if len(total) == 1 else "", label=f"t {first} … {first + 249}")
    ax.set(xlabel="million clips seen", ylabel="loss", yscale="log",
           title="clips stage: loss by noise level")
    ax.legend(frameon=False)


def write_losses(log, path):
    """A picture of a run's log.csv, the loss by noise level; False where it cannot be drawn, which
    must not end a run."""
    plt, rows = pyplot(), read_log(log, "clips")
    if not plt or not rows:
        return False
    figure, ax = plt.subplots(figsize=(6, 3.6))
    try:
        draw_losses(ax, rows)
        figure.savefig(path)
    except Exception as error:  # matplotlib raises what its parts raise
        print(f"note: no {path}: {error}", file=sys.stderr)
        return False
    finally:
        plt.close(figure)
    return True


def write_captioned(x, captions, path):
    """Clips x (b c=1 f h w) in [-1, 1] as strips, each under its caption; False where matplotlib is
    missing, or would make too large a picture."""
    plt = pyplot() if len(x) <= 64 else None
    if plt:
        figure, axes = plt.subplots(len(x), 1, figsize=(10, .95 * len(x)))
        for ax, clip, caption in zip(np.atleast_1d(axes), x, captions):
            lined = F.pad(clip, (0, LINE), value=0.)                   # grey between frames
            ax.imshow(rearrange(lined, "1 f h w -> h (f w)"), cmap="gray", vmin=-1, vmax=1)
            ax.set_title(caption, loc="left", size=8, pad=2)
            ax.axis("off")
        figure.savefig(path)
        plt.close(figure)
    return plt is not None
