"""Speed and memory, on whatever device is there (never part of a timed test).

    python tests/bench.py [--preset tiny|base] [--batch-size N] [--device ...] [--profile]

Prints frames or clips a second of each training stage, data and encoding included, seconds a clip
of sampling, and peak memory.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import train
from sample import device_for, generate


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--preset", default="base", choices=tuple(train.PRESETS))
    p.add_argument("--batch-size", type=int)
    p.add_argument("--steps", type=int, default=40)
    p.add_argument("--device", default="auto")
    p.add_argument("--amp", default="auto")
    p.add_argument("--profile", action="store_true")
    args = p.parse_args()
    folder = tempfile.TemporaryDirectory()
    flags = train.parse(["--preset", args.preset, "--digits", "drawn", "--amp", args.amp])
    flags.batch_size = args.batch_size
    run, _ = train.prepare(flags, Path(folder.name), device_for(args.device))
    train.write_checkpoint = train.write_samples = train.settle_vae = lambda *args: None
    train.add_upscaler(run)
    settings, model, device = dict(run.settings), run.model, run.device
    print(f"{args.preset}, batch {settings['batch_size']}, {device}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, "
          + (torch.cuda.get_device_name() if device.type == "cuda" else "CPU"))
    for name, part in model.named_children():
        print(f"  {name:13s}{sum(q.numel() for q in part.parameters()):>10,} parameters")

    for stage in train.STAGES:
        def steps(n):
            run.settings[f"{stage}_steps"] = n
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            train.train_stage(stage, run, 0, *train.optimizer_for(run, stage, None))
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - begin

        steps(max(2, args.steps // 4))  # warm up
        seconds = steps(args.steps)
        items = args.steps * settings["batch_size"] * train.PER_CLIP[stage]
        print(f"{stage:7s}{items / seconds:10.1f} {'clips' if stage == 'clips' else 'frames'}/s, "
              f"{1000 * seconds / args.steps:.1f} ms a step", flush=True)
        if args.profile:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            kinds += [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
            with torch.profiler.profile(activities=kinds) as profile:
                steps(5)
            order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
            print(profile.key_averages().table(sort_by=order, row_limit=25,
                                               max_name_column_width=60))

    for n in (1, 16):
        generate(model, ["a 3 moving left"] * n, steps=2)
        begin = time.perf_counter()
        generate(model, ["a 3 moving left"] * n)[0, 0, 0, 0, 0].item()
        print(f"sampling, {n} clips of 32 frames: {(time.perf_counter() - begin) / n:.2f} s a clip")
    peak = (torch.cuda.max_memory_allocated() if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(f"peak memory {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
