"""Seconds to 95/95: how soon does a network that knew nothing show "a 3 moving left" as told?

    python -m experiments.speedrun --data-root DIR [--runs 5]

Each run is `train.py` with the flags in RUN and a seed of its own, timed from the command to its
weights: imports, digits, all stages, checkpoints and strips of samples count. Then, untimed,
400 clips of test digits in four directions are judged, by the command's usual sampler; of all
runs together the digit must be right in 95 %, and the motion in 95 %. docs/results.md has the
records. To beat one, change train.py or RUN, and say what you changed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import metrics
from experiments.common import flags, judge, test_scenes, train_flags
from model import load, pick_device
from sample import generate
from support.console import UserError, add_flags, exit_status, number

RUN = ("--captions four --batch-size 256 --lr 1.4e-3 --vae-steps 250 --vae-optimizer muon "
       "--decoder-steps 0 --stills-steps 500 --steps 350").split()
ROOT = Path(__file__).parent.parent


def train_once(seed, folder, args):
    """The seconds that train.py takes, in a process of its own."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, ROOT / "train.py", "--data", "moving_mnist_captions",
                           *RUN, *train_flags(args, seed, folder)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"train.py ended with status {done.returncode}: {done.stderr[-300:]}")
    return time.perf_counter() - begun


@torch.no_grad()
def speedrun(args):
    """Prints a row for each run, then the mean, the spread and the verdict."""
    classifier = metrics.load_classifier(device=pick_device(args.device))
    scenes, rows = test_scenes(args, args.num), []
    print(f"train.py {' '.join(RUN)}; n {args.num}, digits {scenes.digits.source}, "
          f"torch {torch.__version__}, {classifier.head.weight.device}\n"
          "seed  seconds  digit %  motion %", flush=True)
    for seed in range(args.seed, args.seed + args.runs):
        with tempfile.TemporaryDirectory() as folder:
            seconds = train_once(seed, folder, args)
            model = load(Path(folder) / "weights.pt", args.device)
        x = generate(model, scenes.captions, num_frames=32, seed=seed)
        scores = judge(x, classifier, scenes)
        rows.append((seconds, 100 * scores.digit_ok.mean(), 100 * scores.motion_ok.mean()))
        print("{:4d}  {:7.1f}  {:7.1f}  {:8.1f}".format(seed, *rows[-1]), flush=True)
    seconds, digit, motion = np.array(rows).T
    print(f"\n{seconds.mean():.1f} s (from {seconds.min():.1f} to {seconds.max():.1f}), digit "
          f"{digit.mean():.1f} %, motion {motion.mean():.1f} %: "
          + ("95/95" if min(digit.mean(), motion.mean()) >= 95 else "short of 95/95"))


def main(argv=None):
    p = add_flags(flags(__doc__, num=400), (("--runs", number(int, 1, 100), 5, "seeds"),))
    args = p.parse_args(argv)
    return exit_status(lambda: speedrun(args))


if __name__ == "__main__":
    sys.exit(main())
