"""Speed and memory, on whatever device is there (never part of a timed test).

    python -m experiments.bench [--preset tiny|base] [--batch-size N] [--device ...] [--compile]

Prints frames or clips a second of each training stage, data and encoding included, the spread of
repeats, seconds a clip of sampling, and peak memory.
"""

import argparse
import copy
import resource
import sys
import time
from io import StringIO
from pathlib import Path

import torch

import data
import train
from model import pick_device
from sample import SAMPLER, STEPS, generate
from support.console import DEVICE, add_flags, exit_status, number, one_of
from support.digits import load_digits
from support.run import Run

FLAGS = (
    ("--preset", one_of(*train.PRESETS), "base", "whose networks and batch"),
    ("--batch-size", number(int, 1, 10**6), None, "clips a step; else the preset's"),
    ("--steps", number(int, 1, 10**6), 30, "steps a timing, of which three are made"),
    ("--amp", one_of("auto", *train.AMP_DTYPE), "auto", "as in train.py"),
    ("--compile", bool, False, "as in train.py"),
    DEVICE)


class Timed(Run):
    """A run without a folder: it only makes steps."""

    def __init__(self, model, ema):
        self.model, self.ema, self.saved, self.before, self.file = model, ema, None, (), StringIO()

    def steps(self, stage, total, optimizer, scaler):
        yield from range(total)

    def log(self, *numbers):
        pass


def seconds(device, work):
    """How long work() takes, with all that it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def bench_stage(stage, args, run, clips):
    """Time the stage three times after a warm-up, and print its speed."""
    def steps(n):
        train.train_stage(stage, n, 1e-4, run, clips, args)

    device = run.model.device
    steps(max(3, args.steps // 4))  # warm up
    times = sorted(seconds(device, lambda: steps(args.steps)) for _ in range(3))
    items = args.steps * train.items(stage, args)
    print(f"{stage:7s}{items / times[1]:10.1f} {'clips' if stage == 'clips' else 'frames'}/s "
          f"({items / times[2]:.1f} ... {items / times[0]:.1f}), "
          f"{1000 * times[1] / args.steps:.1f} ms a step of {items // args.steps}", flush=True)


def bench_sampling(model, n):
    """Time n clips as one batch five times, by the default sampler, and print the median."""
    prompts = ["a 3 moving left"] * n
    generate(model, prompts, steps=2)  # warm up
    times = sorted(seconds(model.device, lambda: generate(model, prompts)) for _ in range(5))
    print(f"sampling {n} clip{'s' * (n > 1)} of 32 frames ({SAMPLER}, {STEPS[SAMPLER]} steps): "
          f"{times[2] / n:.3f} s a clip ({times[0] / n:.3f} ... {times[4] / n:.3f})", flush=True)


def work(args):
    preset, device = train.PRESETS[args.preset], pick_device(args.device)
    args = argparse.Namespace(**{
        **vars(train.parse(["--out", str(Path("runs") / "bench")])[0]), **preset, **vars(args),
        "batch_size": args.batch_size or preset["batch_size"], "digits": "drawn", "prompts": ()})
    if args.amp == "auto":
        args.amp = "bf16" if device.type == "cuda" else "off"
    clips = data.MovingMNIST(args.captions, digits=load_digits("train", "drawn"))
    model = train.new_model(args, clips)
    run = Timed(model.to(device), copy.deepcopy(model).requires_grad_(False))
    train.write_samples = lambda *arguments: None
    print(f"{args.preset}, batch {args.batch_size}, {device}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, "
          + (torch.cuda.get_device_name() if device.type == "cuda" else "CPU"))
    for name, part in model.named_children():
        print(f"  {name:13s}{sum(q.numel() for q in part.parameters()):>10,} parameters")
    for stage in (stage for stage in train.STAGES if preset[f"{stage}_steps"]):
        bench_stage(stage, args, run, clips)
    if device.type == "cuda":
        model.unet.bfloat16()  # as `load` does
    for n in (1, 16, 128) if device.type == "cuda" else (1, 4):
        bench_sampling(model, n)
    peak = (torch.cuda.max_memory_allocated() if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(f"peak memory {peak / 2**30:.2f} GiB")


def main(argv=None):
    args = add_flags(argparse.ArgumentParser(description=__doc__.split("\n")[0]),
                     FLAGS).parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
