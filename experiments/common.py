"""What the measurements share: their flags, what they begin with, and a few ways to read clips."""

import argparse

import torch

import data
import metrics
from model import load
from support.console import (DATA_ROOT, DEVICE, DIGITS, SEED, add_flags, exit_status, number)


def flags(about, num):
    """The parser of a measurement's command; num: how many clips it takes by default."""
    return add_flags(argparse.ArgumentParser(description=about.split("\n")[0]), (
        ("--checkpoint", str, None, "a trained model; if none is named, the shipped weights"),
        ("--num", number(int, 2, 10**6), num, "clips in each row"),
        SEED, DIGITS, DATA_ROOT, DEVICE))


def test_scenes(args, n, captions="four", start=0, each=()):
    """n scenes of test digits; "four": a named digit in one of four directions; each: n of each of
    these kinds of caption."""
    digits = data.load_digits("test", args.digits, args.data_root)
    return data.make_scenes(n, seed=args.seed, start=start, split="test", captions=captions,
                            digits=digits, each=each)


def train_flags(args, seed, folder):
    """What a training of a measurement has from the measurement's own flags."""
    own = ["--seed", str(seed), "--out", str(folder), "--digits", args.digits,
           "--device", args.device]
    return own + (["--data-root", args.data_root] if args.data_root else [])


def run_parts(parts, names, args):
    """Calls each part as part(model, classifier, scenes, args) and returns the exit status."""
    def work():
        model = load(args.checkpoint, args.device)
        device = model.device
        classifier, scenes = metrics.load_classifier(device=device), test_scenes(args, args.num)
        print(f"checkpoint {args.checkpoint or 'shipped'}, n {args.num}, seed {args.seed}, "
              f"{device}, digits {scenes.digits.source}")
        with torch.no_grad():
            for name in names:
                parts[name](model, classifier, scenes, args)

    return exit_status(work)


def encode(model, x):
    """Latents of clips x, a few at a time."""
    device = model.device
    return torch.cat([model.vae.encode(part.to(device)) for part in x.split(16)])


def decode(model, z):
    """Clips of latents z, on the CPU, a few at a time."""
    return torch.cat([model.vae.decode(part).float().clamp(-1, 1).cpu() for part in z.split(16)])


def judge(x, classifier, scenes):
    """`metrics.Scores` of clips x against their scenes."""
    return metrics.score(metrics.read_clips(x, classifier), scenes)


def centres(x):
    """Ink centroids (b f yx) in pixels of what is brighter than one half, so that ghosts fail."""
    light = (x[:, 0].cpu() + 1) / 2
    return metrics.centroid(light * (light > .5)).numpy()
