"""Train everything on captioned Moving MNIST: the autoencoder, then captioned stills, then clips.

    python train.py --data moving_mnist_captions            --preset tiny on a CPU, base on a GPU
    python train.py --data FOLDER                           on GIF and MP4 clips of your own

Stages, in this order:
    vae     frames -> latents -> frames                             (Latent Diffusion)
    stills  text encoder and U-Net on single frames captioned by their subject; temporal layers are
            skipped, so this is an image model                      (Make-A-Video, CogVideo)
    clips   the same network on windows of 17 frames: key frames of the whole action at stride 4,
            and windows with known frames: to fill in, to animate a picture, to continue a clip
    upscale a second, small U-Net on frames at 64 and 128 pixels, if --upscale-steps says so

Everything random in step n is a function of (seed, stage, n), so a resumed run continues exactly.
The run's folder holds checkpoint.pt, log.csv (loss by noise level, gradient norm, clips a second)
and samples/: fixed prompts and noise, from the raw weights and from their moving average (EMA).
"""

import argparse
import copy
import csv
import math
import os
import shlex
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

import data
from data import UserError
from diffusion import PREDICTIONS, SCHEDULES, T
from sample import (CARRIED, DETAIL, PATCH, WINDOW, build, device_for, enlarge, generate, number,
                    read_checkpoint, restore, seeded, to_patches, upscale, upscaler)
from text_encoder import TextConfig, words_of
from unet3d import UNetConfig
from vae import VAEConfig

STAGES = ("vae", "stills", "clips", "upscale")
# Steps and rates of the presets were chosen to fit 30 minutes of 2 CPU cores and 9 of an H100.
PRESETS = {
    "tiny": dict(vae_steps=1800, stills_steps=900, clips_steps=4000, batch_size=8, lr=1e-3,
                 captions="four",
                 vae=VAEConfig(widths=(16, 32, 64), blocks=1),
                 unet=UNetConfig(widths=(48, 96), head_dim=16, emb_width=128)),
    "base": dict(vae_steps=1200, stills_steps=350, clips_steps=2400, batch_size=256, lr=1.4e-3,
                 vae=VAEConfig(), unet=UNetConfig())}
UPSCALER = UNetConfig(widths=(32, 48), head_dim=16, emb_width=48)
PER_CLIP = {"vae": 2, "stills": 8, "clips": 1, "upscale": 1}  # items a step for each of the batch
PARTS = {"vae": ("vae",), "stills": ("text_encoder", "unet"), "clips": ("text_encoder", "unet"),
         "upscale": ("upscaler",)}  # what each stage trains
VAE_LR = 2e-3
WARM_UP = 100             # steps to the full learning rate
DROP_CAPTION = 0.1        # share of captions made the null prompt (Ho & Salimans, section 4.2)
KNOWN_NOISE = 0.1         # std of the noise on known latents is drawn from 0 ... this
EMA_DECAY = 0.998
CLIP_NORM = 1.0
LOG_EVERY = 10
MEASURED = 16             # batches of 256 frames that the latents' mean and std are measured on
MADE = "moving_mnist_captions"   # the data that is made on the fly
PROMPTS = ("a 3 moving left", "a 7 moving up", "a 5 moving down", "a 2 moving right",
           "the digit six sliding down and right quickly", "digit 2 moving right then up",
           "a 8 bouncing left and right", "a 4 moving up and a 9 moving down")


# What the windows of 17 frames teach: of 16, so many show
#   KEYS      the whole action at stride 4                           (text -> clip)
#   IMAGE     the same, its first frame known                        (picture -> clip)
#   CONTINUE  four known frames, then the action                     (continuation, chains)
#   FILL      a part at stride 2 or 1, every other frame known       (interpolation)
#   PART      a part at stride 2 or 1, none known; random ones where the motion changes
KEYS, IMAGE, CONTINUE, FILL, PART = range(5)
TASKS = np.repeat(range(5), [9, 1, 2, 3, 1])
KNOWN = np.arange(WINDOW) < np.array([0, 1, CARRIED, 0, 0])[:, None]             # task f
KNOWN[FILL, ::2] = True
STEADY = [-1, data.NAMES.index("standing still"), *map(data.NAMES.index, data.STRAIGHT)]


# ---- data of one step ----------------------------------------------------------------------------

def make_batch(stage, step, n, settings, source, device):
    """Step `step`'s clips: x (n c f h w), captions, stride (n,) in ticks, known_mask (n f).

    source(n, seed=..., start=...) gives them: `data.make_scenes`, or clips of the user's own.
    """
    scenes = source(n, seed=settings["seed"], start=step * n)
    pick = data.Chooser(settings["seed"], stage, range(step * n, step * n + n))
    if stage != "clips":  # stills: one frame, any tick, captioned by the subject alone
        ticks = pick.below("tick", data.ACTION + 1)[:, None]
        if stage == "upscale":  # with the truth at twice the size where others have captions
            return scenes.render(ticks, device), scenes.render(ticks, device, 2), None, None
        return scenes.render(ticks, device), scenes.subjects, torch.full((n,), 4), None
    task, frame = TASKS[pick.below("task", len(TASKS))], np.arange(WINDOW)
    stride = np.where(task < FILL, 4, np.where(pick.below("fine", 4) < 3, 2, 1))
    start = pick.below("start", data.ACTION - (WINDOW - 1) * stride + 1)
    start = np.where(task == CONTINUE, -4 * (CARRIED - 1), start)
    ticks = start[:, None] + stride[:, None] * frame                              # n f
    # a part of the action shows what its caption says only where that holds all the time
    steady = np.isin(scenes.motion, STEADY).all(1)
    random = (pick.below("bits", 2 ** WINDOW)[:, None] >> frame & 1) == 1
    known_mask = np.where(((task == PART) & ~steady)[:, None], random, KNOWN[task])
    scenes = scenes.carry_on(pick, task == CONTINUE)
    return (scenes.render(ticks, device), scenes.captions, torch.from_numpy(stride),
            torch.from_numpy(known_mask))


# ---- losses --------------------------------------------------------------------------------------

def vae_loss(model, x, generator):
    """Loss (b,) of the autoencoder on stills x (b c 1 h w)."""
    frames = rearrange(x, "b c 1 h w -> b c h w")
    shape = len(x), model.vae.config.latent_channels, x.shape[-2] // 8, x.shape[-1] // 8
    noise = torch.randn(shape, device=x.device, generator=generator)
    return model.vae.loss(frames, noise)[0].expand(len(x)), None


def diffusion_loss(model, x, captions, stride, known_mask, generator):
    """Loss (b,) and noise levels t (b,) of the U-Net and the text encoder: the whole method."""
    b, device = len(x), x.device
    with torch.no_grad():
        z = model.vae.encode(x)                                             # b c f h w
    tokens = model.tokenizer(captions).to(device)
    drop = torch.rand(b, device=device, generator=generator) < DROP_CAPTION
    context, context_mask = model.text_encoder(tokens, drop)
    # High levels more often, u = t/T with density 2u in stills and 4u^3 in clips: 17 frames that
    # repeat each other give their motion away until almost nothing is left of them, so only there
    # is the caption needed and learned (Chen 2023, arXiv:2301.10972, on redundancy and noise).
    power = 1 / 2 if z.shape[2] == 1 else 1 / 4
    t = T * torch.rand(b, device=device, generator=generator) ** power
    t = t.long().clamp(max=T - 1)
    eps = torch.randn(z.shape, device=device, generator=generator)
    window = dict(stride=stride.to(device))
    weight = None
    if known_mask is not None:
        # important: known frames are noised a little, else the network trusts them to the last
        # digit and errors grow from fill to fill (conditioning augmentation, Ho et al. 2021)
        level = KNOWN_NOISE * torch.rand(b, 1, 1, 1, 1, device=device, generator=generator)
        known = z + level * torch.randn(z.shape, device=device, generator=generator)
        window |= dict(known=known, known_mask=known_mask.to(device))
        weight = rearrange(~known_mask, "b f -> b 1 f 1 1").to(device, z.dtype)

    def network(z_t, t):
        return model.unet(z_t, t, context, context_mask, **window)

    return model.diffusion.loss(network, z, t, eps, weight), t


def upscale_loss(model, x, sharp, generator):
    """Loss (b,) and noise levels (b,) of the super-resolution of stills x to sharp (b c 1 2h 2w).

    It starts from what the autoencoder makes of x, as it will when sampling, and a little noise.
    """
    b, device = len(x), x.device
    with torch.no_grad():
        x = model.vae.decode(model.vae.encode(x)).clamp(-1, 1)
        x = x + .02 * torch.randn(x.shape, device=device, generator=generator)
    detail = DETAIL * to_patches(sharp - enlarge(x))
    t = torch.randint(T, (b,), device=device, generator=generator)
    eps = torch.randn(detail.shape, device=device, generator=generator)
    return model.sharpening.loss(upscaler(model, x), detail, t, eps), t


# ---- the loop's small parts ----------------------------------------------------------------------

def learning_rate(step, steps, peak):
    """Linear warm-up, then a cosine down to zero."""
    return peak * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def update_ema(ema, model, step):
    """ema <- decay ema + (1 - decay) model; the decay warms up, to forget the early noise."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    pairs = [(e, p) for e, p in zip(ema.parameters(), model.parameters()) if p.requires_grad]
    get_ema_multi_avg_fn(decay)(*zip(*pairs), None)


def save(path, content):
    """Write a checkpoint so that a crash at any moment leaves the old one or the new one."""
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class Log:
    """log.csv: a row every LOG_EVERY steps; on resume, rows the checkpoint has not seen go."""

    columns = ("stage", "step", "clips", "loss", "loss_t0_249", "loss_t250_499", "loss_t500_749",
               "loss_t750_999", "grad_norm", "lr", "clips_per_s", "seconds")

    def __init__(self, path, stage, step):
        rows = list(csv.reader(open(path, newline=""))) if path.exists() else []
        keep = [row for row in rows[1:] if len(row) == len(self.columns)
                and (STAGES.index(row[0]), int(row[1])) <= (stage, step)]
        self.file = open(path, "w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerows([self.columns] + keep)

    def row(self, *values):
        self.writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in values)
        self.file.flush()


def write_samples(folder, stage, step, x, model, ema, prompts):
    """Strips at fixed prompts and noise, raw and EMA weights; of the vae, truth and rebuilt."""
    try:
        for name, net in (("raw", model), ("ema", ema)):
            if stage in ("vae", "upscale"):
                with torch.no_grad():
                    pair = ((x[:8], net.vae.decode(net.vae.encode(x[:8]))) if stage == "vae" else
                            (enlarge(x[:8]), upscale(net, x[:8])))
                strip = rearrange(torch.stack(pair), "two b c 1 h w -> two c b h w")
            else:
                strip = generate(net, prompts, num_frames=16, seed=0)
            data.write_clip(strip, folder / f"{stage}_{step:06d}_{name}.png")
    except ImportError as error:  # a training machine without imageio loses strips, not the run
        print(f"note: no sample strips: {error}", file=sys.stderr)


# ---- the loop ------------------------------------------------------------------------------------

def train_stage(stage, first, model, ema, optimizer, scaler, dtype, settings, source, log, finish):
    """Run one stage from step `first`; finish(step) writes checkpoint and strips at intervals."""
    device = next(model.parameters()).device
    steps, n = settings[f"{stage}_steps"], settings["batch_size"] * PER_CLIP[stage]
    peak = VAE_LR if stage in ("vae", "upscale") else settings["lr"]
    trained = [p for p in model.parameters() if p.requires_grad]
    interval = max(LOG_EVERY, steps // 16 // LOG_EVERY * LOG_EVERY)
    bins, bar = torch.zeros(2, 4, device=device), tqdm(total=steps, initial=first, desc=stage)
    begin = mark = time.perf_counter()
    for step in range(first, steps):
        x, captions, stride, known_mask = make_batch(stage, step, n, settings, source, device)
        generator = torch.Generator(device).manual_seed(
            seeded(settings["seed"], stage, step).initial_seed())
        with torch.autocast(device.type if dtype else "cpu", dtype or torch.bfloat16,
                            enabled=dtype is not None):
            losses, t = (vae_loss(model, x, generator) if stage == "vae" else
                         upscale_loss(model, x, captions, generator) if stage == "upscale" else
                         diffusion_loss(model, x, captions, stride, known_mask, generator))
            loss = losses.mean()
            if joint := settings["stills_per_clip"] * (stage == "clips"):
                stills = make_batch("stills", step, n * joint, settings, source, device)
                apart = diffusion_loss(model, *stills, generator)[0].mean()
                loss = (WINDOW * loss + joint * apart) / (WINDOW + joint)  # frames weigh alike
        optimizer.param_groups[0]["lr"] = lr = learning_rate(step, steps, peak)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, model, step)

        level = torch.zeros(n, dtype=torch.long, device=device) if t is None else t * 4 // T
        bins[0].index_add_(0, level, losses.detach().float())
        bins[1].index_add_(0, level, torch.ones_like(losses, dtype=torch.float32))
        bar.update()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            now = time.perf_counter()
            (total, count), norm = bins.cpu(), norm.item()
            speed = count.sum().item() / (now - mark)
            mean = (total.sum() / count.sum()).item()
            if not math.isfinite(mean):
                raise UserError(f"the loss is {mean} at step {step + 1} of stage {stage}: the last "
                                "good checkpoint is kept; resume it with a lower --lr or --amp off")
            log.row(stage, step + 1, (step + 1) * n, mean, *(total / count).tolist(), norm, lr,
                    speed, now - begin)
            unit = "clips" if stage == "clips" else "frames"
            bar.set_postfix_str(f"loss {mean:.4f}, {speed:.0f} {unit}/s")
            bins.zero_()
            mark = now
        last = step + 1 == steps
        if last or (step + 1) % interval == 0:
            finish(stage, step + 1, x, strips=last or (step + 1) // interval % 4 == 0)
            mark = time.perf_counter()
    bar.close()


def settle_vae(model, ema, settings, source, device):
    """After the vae stage: take the averaged weights, measure the latents, report the PSNR."""
    model.vae.load_state_dict(ema.vae.state_dict())
    frames = [make_batch("stills", step, 256, settings, source, device)[0].squeeze(2)
              for step in range(MEASURED)]
    model.vae.measure_latents(frames)
    ema.vae.load_state_dict(model.vae.state_dict())
    with torch.no_grad():
        mse = sum((model.vae.decode(model.vae.encode(x[:, :, None])).squeeze(2).clamp(-1, 1) - x)
                  .square().mean().item() for x in frames) / len(frames)
    print(f"vae: PSNR {10 * math.log10(4 / mse):.1f} dB a frame on training clips")


def run(settings, config, dtype, compiled, out, saved, device, clips=None):
    """All stages, from scratch or from the checkpoint `saved`; clips: a `FolderClips`, or None for
    captioned Moving MNIST."""
    source = clips or partial(
        data.make_scenes, captions=settings["captions"],
        digits=data.load_digits("train", settings["digits"], settings["data_root"]))
    torch.manual_seed(settings["seed"])
    if saved:
        fresh = build(config)  # a finished run may be resumed to add super-resolution
        for key in ("model", "ema"):
            saved[key] |= {name: value for name, value in fresh.state_dict().items()
                           if name.startswith("upscaler.") and name not in saved[key]}
        saved["config"] = config
        model, ema = (restore(saved, key, out / "checkpoint.pt") for key in ("model", "ema"))
    else:
        model = build(config)
        ema = copy.deepcopy(model)
    model, ema = model.to(device), ema.to(device).eval().requires_grad_(False)
    if compiled:
        model.unet.compile()  # in place, so that saved names carry no _orig_mod. prefix
    stage, step = saved["progress"] if saved else (0, 0)
    (out / "samples").mkdir(parents=True, exist_ok=True)
    log = Log(out / "log.csv", stage, step)
    for k in range(stage, len(STAGES)):
        if not settings[f"{STAGES[k]}_steps"]:
            continue
        for name, part in model.named_children():
            part.requires_grad_(name in PARTS[STAGES[k]])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                                      lr=0.0, betas=(0.9, 0.99), weight_decay=0.01,
                                      fused=device.type == "cuda")
        scaling = dtype == torch.float16
        scaler = torch.amp.GradScaler(device.type if scaling else "cpu", enabled=scaling)
        if saved and k == stage and step > 0:
            optimizer.load_state_dict(saved["optimizer"])
            if scaling and saved["scaler"]:  # empty where the run was not fp16 so far
                scaler.load_state_dict(saved["scaler"])

        def finish(stage, step, x, strips):
            """Write the checkpoint, and strips if asked; settle the autoencoder at its end."""
            if stage == "vae" and step == settings["vae_steps"]:
                settle_vae(model, ema, settings, source, device)
            if strips:
                write_samples(out / "samples", stage, step, x, model, ema, settings["prompts"])
            save(out / "checkpoint.pt", {
                "config": config, "settings": settings, "ema": ema.state_dict(),
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(), "progress": (STAGES.index(stage), step)})

        train_stage(STAGES[k], step if k == stage else 0, model, ema, optimizer, scaler, dtype,
                    settings, source, log, finish)
    half = {name: value.half().cpu() for name, value in ema.state_dict().items()}
    save(out / "weights.pt", {"config": config, "ema": half})  # all that sampling needs


# ---- the command ---------------------------------------------------------------------------------

def source_name(text):
    """An argparse type: MADE, or a folder's absolute path."""
    if text != MADE and not (text and Path(text).is_dir()):  # "" would be the folder we are in
        raise argparse.ArgumentTypeError(f"{text!r} is neither {MADE} nor a folder of clips")
    return text if text == MADE else str(Path(text).resolve())


def parse(argv):
    """The command's arguments; None where the preset or a resumed run decides."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], usage=(
        "python train.py --data moving_mnist_captions [options]   (--help lists them)"))
    count = number(int, 1)
    p.add_argument("--data", type=source_name, metavar="NAME", help=f"{MADE} (the default), or a "
                   "folder of GIF and MP4 clips with captions (README, 'Your own clips')")
    p.add_argument("--preset", default="auto", choices=("auto", *PRESETS),
                   help="auto is base on a GPU and tiny on a CPU")
    p.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME)")
    p.add_argument("--resume", action="store_true",
                   help="continue the run in --out; its settings hold unless given again")
    p.add_argument("--vae-steps", type=count, metavar="N", help="steps of the autoencoder's stage")
    p.add_argument("--image-steps", type=count, metavar="N", dest="stills_steps",
                   help="steps of the stills stage")
    p.add_argument("--steps", type=count, metavar="N", dest="clips_steps",
                   help="steps of the clips stage")
    p.add_argument("--upscale-steps", type=number(int, 0), metavar="N",
                   help="steps of the super-resolution stage (default: 0, none)")
    p.add_argument("--batch-size", type=count, metavar="N",
                   help="clips a step; the vae and stills stages take 2 and 8 frames for each")
    p.add_argument("--stills-per-clip", type=number(int, 0, 64), metavar="N",
                   help="train on N stills beside each clip of the clips stage (default: 0)")
    p.add_argument("--lr", type=number(float, 1e-8, 1), metavar="X",
                   help="peak learning rate of the stills and clips stages")
    p.add_argument("--seed", type=number(int, 0, 2**63 - 1), metavar="N", help="default: 0")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    p.add_argument("--amp", default="auto", choices=("auto", "bf16", "fp16", "off"),
                   help="mixed precision; auto is bf16 on CUDA and off elsewhere")
    p.add_argument("--compile", action="store_true",
                   help="torch.compile the U-Net: minutes to start, then faster steps")
    p.add_argument("--digits", choices=("auto", "mnist", "drawn"),
                   help="auto: MNIST where it can be had, else digits drawn from pen strokes")
    p.add_argument("--data-root", metavar="DIR", help="folder with MNIST's .gz files")
    p.add_argument("--captions", choices=("full", "four"),
                   help='full: the whole grammar (base); four: only "a 3 moving left" and the '
                        'like, one digit in four directions (tiny)')
    p.add_argument("--schedule", choices=tuple(SCHEDULES), help="noise schedule (default: cosine)")
    p.add_argument("--predict", choices=PREDICTIONS, help="what the U-Net predicts (default: v)")
    return p.parse_args(argv)


DEFAULTS = dict(data=MADE, seed=0, digits="auto", data_root=None, captions="full", predict="v",
                schedule="cosine", stills_per_clip=0, upscale_steps=0)  # a preset may say otherwise
FLAGS = ("vae_steps", "stills_steps", "clips_steps", "batch_size", "lr", *DEFAULTS)


def check_resumed(args, settings, saved):
    """Raise `UserError` where flags would make a resumed run another one."""
    began = {"data": MADE} | saved["settings"] | {"preset": saved["config"]["preset"]}
    given = {"preset": None if args.preset == "auto" else args.preset}
    given |= {flag: getattr(args, flag) for flag in ("data", "captions", "schedule", "predict")}
    for flag, value in given.items():
        if value not in (None, began[flag]):
            raise UserError(f"the run began with --{flag} {began[flag]}, not {value}: leave the "
                            "flag out, or begin another run with --out")
    stage, step = STAGES[saved["progress"][0]], saved["progress"][1]
    name = f"{stage}_steps"
    if settings[name] != began[name] and settings[name] <= step:
        raise UserError(f"the {stage} stage has made {step} steps already, so it cannot end at "
                        f"{settings[name]}: give it more, or leave the flag out")


def settings_for(args, saved, device, out=None):
    """The run's settings: the preset's, then the resumed checkpoint's, then the flags given; its
    config and precision; and its source of clips, if that is a folder, decoded into `out`."""
    preset = args.preset if args.preset != "auto" else "tiny" if device.type == "cpu" else "base"
    settings = DEFAULTS | PRESETS[preset] | (saved["settings"] if saved else {})
    settings |= {flag: getattr(args, flag) for flag in FLAGS if getattr(args, flag) is not None}
    if not saved and args.predict == "eps" and args.schedule is None:
        print("note: --predict eps takes the linear schedule, as in DDPM: at the cosine's last "
              "step, x0 = (xt - s eps) / a divides by 5e-5")
        settings["schedule"] = "linear"
    vae, unet = settings.pop("vae"), settings.pop("unet")
    if saved:
        check_resumed(args, settings, saved)
    clips, captions = None, []
    if settings["data"] != MADE:
        if args.captions or args.digits or args.data_root or settings["upscale_steps"]:
            raise UserError("--captions, --digits, --data-root and --upscale-steps are only for "
                            f"{MADE}, whose truth is known: leave them out")
        clips = data.FolderClips(settings["data"], out)
        captions, vae = clips.captions, replace(vae, channels=clips.channels)
        if settings.setdefault("clips", clips.fingerprint) != clips.fingerprint:
            print("note: the clips have changed since the run began, so it will not go on exactly "
                  "as it would have", file=sys.stderr)
    if saved:
        config = saved["config"]
        if clips and clips.channels != config["vae"]["channels"]:
            raise UserError("the clips have changed between grey and colour since the run began: "
                            "begin another run with --out")
    else:
        split = [words_of(caption) for caption in captions]
        words = sorted(set().union(*split)) or data.VOCABULARY[settings["captions"]]
        text = TextConfig(vocabulary=len(words), width=unet.context_width,
                          length=max([TextConfig.length, *map(len, split)]))
        config = dict(vae=asdict(vae), text=asdict(text), unet=asdict(unet), size=data.SIZE,
                      vocabulary=words, schedule=settings["schedule"],
                      predict=settings["predict"], preset=preset, tasks=len(set(TASKS)))
    settings.setdefault("prompts", list(dict.fromkeys(captions))[:8] or  # of the sample strips
                        [p for p in PROMPTS if {*words_of(p)} <= {*config["vocabulary"]}])
    if settings["upscale_steps"] and "upscale" not in config:
        config["upscale"] = asdict(replace(UPSCALER, context_width=config["text"]["width"],
                                           latent_channels=PATCH**2 * config["vae"]["channels"]))
    amp = args.amp if args.amp != "auto" else "bf16" if device.type == "cuda" else "off"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]
    return settings, config, dtype, clips


def main(argv=None):
    """Runs the command; returns its exit status."""
    args = parse(argv)
    try:
        device = device_for(args.device)
        out = args.out or Path("runs") / Path(args.data or MADE).name
        path, saved = out / "checkpoint.pt", None
        if path.exists() and not args.resume:
            raise UserError(f"{path} exists: add --resume to continue that run, or name another "
                            "folder with --out")
        if args.resume and path.exists():
            saved = read_checkpoint(path)
            if "optimizer" not in saved:
                raise UserError(f"{path} holds weights for sampling only: a run cannot be resumed "
                                "from it")
        elif args.resume:
            print(f"note: no {path} yet, so the run starts from the beginning")
        settings, config, dtype, clips = settings_for(args, saved, device, out)
        run(settings, config, dtype, args.compile, out, saved, device, clips)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"done: python sample.py {shlex.quote(settings['prompts'][0])} --checkpoint "
          f"{shlex.quote(str(path))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
