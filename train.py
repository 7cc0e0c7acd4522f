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
import io
import math
import os
import shlex
import signal
import sys
import time
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import data
from data import UserError, number
from diffusion import PREDICTIONS, SCHEDULES, T
from sample import (CARRIED, DETAIL, PATCH, WINDOW, build, device_for, enlarge, generate,
                    read_checkpoint, restore, seeded, to_patches, upscale, upscaler)
from support.own_clips import FolderClips
from support.video import write_clip
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


# ---- several processes, and being asked to stop --------------------------------------------------

SIGNALS = []  # the numbers of those that asked this process to stop


class Stopped(Exception):
    """Raised with (signal, stage, step) when everything up to that step is saved."""


def rank():
    """This process's number among those that torchrun started; 0 without it."""
    return int(os.environ.get("RANK", 0))


def processes():
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def say(text, file=None):
    """Print once, however many processes there are."""
    if rank() == 0:
        print(text, file=file)


def first_alone(work):
    """work() in the first process and then in the others, which find what it has written; if it
    fails there, all raise the same `UserError`."""
    failed = [None]
    if rank() == 0:
        try:
            result = work()
        except (UserError, OSError) as error:
            failed = [str(error)]
    if processes() > 1:
        dist.broadcast_object_list(failed)
    if failed[0]:
        raise UserError(failed[0])
    return result if rank() == 0 else work()


def on_signal(number, frame):
    """Ctrl-C and SIGTERM: go on to the end of the step, and save. A second one stops at once."""
    if SIGNALS and processes() == 1:
        raise KeyboardInterrupt
    SIGNALS.append(number)


def asked_to_stop(device):
    """The signal that asked this process to stop, or any of them, since all must stop together."""
    asked = max(SIGNALS, default=0)
    if processes() > 1:
        asked = torch.tensor(asked, device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    return int(asked)


def take(folder):
    """Make a run's folder and keep other runs out of it, such as workers whose torchrun was killed,
    as long as the returned descriptor is open."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process that dies lets go
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"another run is writing into {folder}: stop it, or name another folder "
                        "with --out") from None
    return lock


@contextmanager
def held(folder):
    """The folder is this run's alone, and goes again if an error comes before all writing."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = first_alone(lambda: take(folder) if rank() == 0 else None)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
        for path in made:
            with suppress(OSError):
                path.rmdir()  # only if it is empty


# ---- data of one step ----------------------------------------------------------------------------

def make_batch(stage, first, n, settings, source, device):
    """Clips first ... first + n - 1: x (n c f h w), captions, stride (n,) in ticks, known_mask
    (n f).

    source(n, seed=..., start=...) gives them: `data.make_scenes`, or clips of the user's own.
    """
    scenes = source(n, seed=settings["seed"], start=first)
    pick = data.Chooser(settings["seed"], stage, range(first, first + n))
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

class Draws:
    """The random numbers of one step, a function of `key` = (seed, stage, step) alone: drawn for
    the whole batch, of which each of `world` processes takes its own rows."""

    def __init__(self, key, device, rank=0, world=1):
        self.generator = seeded(*key, device=device)
        self.device, self.rank, self.world = device, rank, world

    def _rows(self, draw, b, *shape):
        whole = draw(b * self.world, *shape, device=self.device, generator=self.generator)
        return whole[self.rank * b:(self.rank + 1) * b]

    def uniform(self, b, *shape):
        return self._rows(torch.rand, b, *shape)

    def normal(self, b, *shape):
        return self._rows(torch.randn, b, *shape)


def vae_loss(model, x, draws):
    """Loss (b,) of the autoencoder on stills x (b c 1 h w), and zeros in place of noise levels."""
    frames = rearrange(x, "b c 1 h w -> b c h w")
    noise = draws.normal(len(x), model.vae.config.latent_channels, *[s // 8 for s in x.shape[-2:]])
    zeros = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return model.vae.loss(frames, noise)[0].expand(len(x)), zeros


def diffusion_loss(model, x, captions, stride, known_mask, draws):
    """Loss (b,) and noise levels t (b,) of the U-Net and the text encoder: the whole method."""
    b, device = len(x), x.device
    with torch.no_grad():
        z = model.vae.encode(x)                                             # b c f h w
    tokens = model.tokenizer(captions).to(device)
    drop = draws.uniform(b) < DROP_CAPTION
    context, context_mask = model.text_encoder(tokens, drop)
    # High levels more often, u = t/T with density 2u in stills and 4u^3 in clips: 17 frames that
    # repeat each other give their motion away until almost nothing is left of them, so only there
    # is the caption needed and learned (Chen 2023, arXiv:2301.10972, on redundancy and noise).
    power = 1 / 2 if z.shape[2] == 1 else 1 / 4
    t = (T * draws.uniform(b) ** power).long().clamp(max=T - 1)
    eps = draws.normal(*z.shape)
    window = dict(stride=stride.to(device))
    weight = None
    if known_mask is not None:
        # important: known frames are noised a little, else the network trusts them to the last
        # digit and errors grow from fill to fill (conditioning augmentation, Ho et al. 2021)
        level = KNOWN_NOISE * draws.uniform(b, 1, 1, 1, 1)
        known = z + level * draws.normal(*z.shape)
        window |= dict(known=known, known_mask=known_mask.to(device))
        weight = rearrange(~known_mask, "b f -> b 1 f 1 1").to(device, z.dtype)

    def network(z_t, t):
        return model.unet(z_t, t, context, context_mask, **window)

    return model.diffusion.loss(network, z, t, eps, weight), t


def upscale_loss(model, x, sharp, draws):
    """Loss (b,) and noise levels (b,) of the super-resolution of stills x to sharp (b c 1 2h 2w).

    It starts from what the autoencoder makes of x, as it will when sampling, and a little noise.
    """
    with torch.no_grad():
        x = model.vae.decode(model.vae.encode(x)).clamp(-1, 1)
        x = x + .02 * draws.normal(*x.shape)
    detail = DETAIL * to_patches(sharp - enlarge(x))
    t = (T * draws.uniform(len(x))).long()
    eps = draws.normal(*detail.shape)
    return model.sharpening.loss(upscaler(model, x), detail, t, eps), t


class Objective(nn.Module):
    """What a stage minimises, as one forward pass: the form in which DDP averages gradients."""

    def __init__(self, stage, model):
        super().__init__()
        self.stage, self.model = stage, model

    def forward(self, batch, stills, draws):
        """batch and stills, the second forward of joint training or None: what `make_batch` gives.
        Returns the loss (), and of each item of the batch its loss (b,) and noise level (b,)."""
        x, captions, *_ = batch
        if self.stage == "vae":
            losses, t = vae_loss(self.model, x, draws)
        elif self.stage == "upscale":  # its "captions" are the truth at twice the size
            losses, t = upscale_loss(self.model, x, captions, draws)
        else:
            losses, t = diffusion_loss(self.model, *batch, draws)
        loss = losses.mean()
        if stills:  # frames weigh alike
            joint = len(stills[0]) // len(x)
            apart = diffusion_loss(self.model, *stills, draws)[0].mean()
            loss = (WINDOW * loss + joint * apart) / (WINDOW + joint)
        return loss, losses.detach(), t


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
    try:
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be written ({reason}): what was saved before is intact; "
                        "make room and go on with --resume") from None


class Log:
    """The rows of log.csv, one every LOG_EVERY steps, and the sums behind the next one. Both travel
    in the checkpoint (`state`), so on resume no row is missing and none is there twice."""

    columns = ("stage", "step", "clips", "loss", "loss_t0_249", "loss_t250_499", "loss_t500_749",
               "loss_t750_999", "grad_norm", "lr", "skipped", "clips_per_s", "seconds")

    def __init__(self, path, state, device):
        self.path, self.recent = path, []
        self.rows = list(state["rows"]) if state else [self.columns]
        # the loss and the count of each quarter of the noise levels; the first process has them all
        self.sums = state["sums"].to(device) if state and rank() == 0 else torch.zeros(
            2, 4, device=device)
        self.begin = self.mark = time.perf_counter()
        if rank() == 0:
            with open(path.with_suffix(".part"), "w", newline="") as file:  # whole or not at all
                csv.writer(file).writerows(self.rows)
            path.with_suffix(".part").replace(path)

    def state(self):
        return {"rows": self.rows, "sums": self.sums}

    def add(self, losses, t, norm):
        """Take in one step, without waiting for the device."""
        losses = losses.float()
        self.sums.index_add_(1, t * 4 // T, torch.stack([losses, torch.ones_like(losses)]))
        worst = losses.nan_to_num(torch.inf).argmax()
        self.recent.append(torch.stack([losses[worst], norm.float(), t[worst].float()]))

    def check(self, stage, step, scaler):
        """Raise `UserError` if a loss or gradient since the last row is not finite. Returns the
        last gradient's norm and how many steps fp16's loss scaling skipped, which is its way."""
        recent, self.recent = torch.stack(self.recent), []                          # steps 3
        if processes() > 1:  # of all processes' losses, the worst of each step
            every = [torch.empty_like(recent) for _ in range(processes())]
            dist.all_gather(every, recent)
            every = torch.stack(every)                                      # processes steps 3
            worst = every[..., 0].nan_to_num(torch.inf).argmax(0)
            recent = every[worst, torch.arange(len(recent))]
        recent = recent.cpu()
        loss_ok, norm_ok = recent[:, 0].isfinite(), recent[:, 1].isfinite()
        bad = (~(loss_ok & (norm_ok | scaler.is_enabled()))).nonzero().flatten().tolist()
        if scaler.get_scale() < 1:  # it halves at every skipped step, from 65536
            raise UserError(f"nearly every step of stage {stage} was skipped until step {step}: "
                            "--resume with --amp bf16 or off")
        if bad:
            at, level = step - len(recent) + 1 + bad[0], int(recent[bad[0], 2])
            what = "gradient" if loss_ok[bad[0]] else "loss"
            where = "" if stage == "vae" else f", noise level {level}"
            raise UserError(f"the {what} is not finite at step {at} of stage {stage}{where}: the "
                            "last good checkpoint is kept; --resume with --amp off, or begin "
                            "again with a lower --lr")
        return recent[-1, 1].item(), int((~norm_ok).sum())

    def row(self, stage, step, clips, lr, scaler):
        """Check and write what was added; returns the mean loss, items a second, skipped steps."""
        norm, skipped = self.check(stage, step, scaler)
        if processes() > 1:
            dist.all_reduce(self.sums)
        total, count = self.sums.cpu().clone()
        self.sums.zero_()
        now = time.perf_counter()
        mean, speed = (total.sum() / count.sum()).item(), count.sum().item() / (now - self.mark)
        values = (stage, step, clips, mean, *(total / count).tolist(), norm, lr, skipped, speed,
                  now - self.begin)
        self.rows.append([f"{v:.6g}" if isinstance(v, float) else v for v in values])
        if rank() == 0:
            with open(self.path, "a", newline="") as file:
                csv.writer(file).writerow(self.rows[-1])
        self.mark = now
        return mean, speed, skipped


def write_samples(run, stage, step, x):
    """Strips at fixed prompts and noise, raw and EMA weights; of the vae, truth and rebuilt."""
    if rank() > 0:
        return
    try:
        for name, net in (("raw", run.model), ("ema", run.ema)):
            if stage in ("vae", "upscale"):
                with torch.no_grad():
                    pair = ((x[:8], net.vae.decode(net.vae.encode(x[:8]))) if stage == "vae" else
                            (enlarge(x[:8]), upscale(net, x[:8])))
                strip = rearrange(torch.stack(pair), "two b c 1 h w -> two c b h w")
            else:
                strip = generate(net, run.settings["prompts"], num_frames=16, seed=0)
            write_clip(strip, run.out / "samples" / f"{stage}_{step:06d}_{name}.png")
    except (ImportError, OSError, UserError) as error:  # strips may be lost, but not the run
        print(f"note: no sample strips: {error}", file=sys.stderr)


# ---- the loop ------------------------------------------------------------------------------------

@dataclass
class Run:
    """What the stages share."""
    out: Path
    settings: dict
    source: object      # gives clips: `data.make_scenes`, or `FolderClips`
    config: dict
    model: nn.Module
    ema: nn.Module
    log: Log
    device: torch.device


def train_stage(stage, run, first, optimizer, scaler):
    """Run one stage from step `first`; checkpoints at intervals, strips at every fourth."""
    settings, device, world, me = run.settings, run.device, processes(), rank()
    model, log, dtype = run.model, run.log, AMP[settings["amp"]]
    steps, n = settings[f"{stage}_steps"], settings["batch_size"] * PER_CLIP[stage] // world
    joint = settings["stills_per_clip"] * (stage == "clips") * n
    peak = VAE_LR if stage in ("vae", "upscale") else settings["lr"]
    trained = [p for p in model.parameters() if p.requires_grad]
    objective = Objective(stage, model)
    if world > 1:  # layers that a stage skips get no gradient
        objective = DistributedDataParallel(objective, find_unused_parameters=True)
    interval = max(LOG_EVERY, steps // 16 // LOG_EVERY * LOG_EVERY)
    unit = "clips" if stage == "clips" else "frames"
    with tqdm(total=steps, initial=first, desc=stage, disable=me > 0) as bar:
        for step in range(first, steps):
            # of the step's batch, this process takes clips number me * n ... me * n + n - 1
            batch = make_batch(stage, (step * world + me) * n, n, settings, run.source, device)
            stills = joint and make_batch("stills", (step * world + me) * joint, joint, settings,
                                          run.source, device)
            draws = Draws((settings["seed"], stage, step), device, me, world)
            with torch.autocast(device.type if dtype else "cpu", dtype or torch.bfloat16,
                                enabled=dtype is not None):
                loss, losses, t = objective(batch, stills, draws)
            optimizer.param_groups[0]["lr"] = lr = learning_rate(step, steps, peak)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            update_ema(run.ema, model, step)

            log.add(losses, t, norm)
            bar.update()
            last, due = step + 1 == steps, (step + 1) % LOG_EVERY == 0
            stop = (world == 1 or due) and asked_to_stop(device)
            if due or last:
                mean, speed, skipped = log.row(stage, step + 1, (step + 1) * n * world, lr, scaler)
                bar.set_postfix_str(f"loss {mean:.4f}, {speed:.0f} {unit}/s"
                                    + f", {skipped} steps skipped" * (skipped > 0))
            elif stop:
                log.check(stage, step + 1, scaler)
            if last or stop or (step + 1) % interval == 0:
                if stage == "vae" and last:
                    settle_vae(run)
                if last or (step + 1) % (4 * interval) == 0:
                    write_samples(run, stage, step + 1, batch[0])
                write_checkpoint(run, stage, step + 1, optimizer, scaler)
                log.mark = time.perf_counter()
            if stop:
                raise Stopped(stop, stage, step + 1)


def write_checkpoint(run, stage, step, optimizer, scaler):
    """All that a run needs to go on."""
    if rank() == 0:
        save(run.out / "checkpoint.pt", {
            "config": run.config, "settings": run.settings, "ema": run.ema.state_dict(),
            "model": run.model.state_dict(), "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(), "log": run.log.state(),
            "progress": (STAGES.index(stage), step)})


def settle_vae(run):
    """After the vae stage: take the averaged weights, measure the latents, report the PSNR."""
    model, ema = run.model, run.ema
    model.vae.load_state_dict(ema.vae.state_dict())
    frames = [make_batch("stills", 256 * k, 256, run.settings, run.source, run.device)[0].squeeze(2)
              for k in range(MEASURED)]
    model.vae.measure_latents(frames)
    ema.vae.load_state_dict(model.vae.state_dict())
    with torch.no_grad():
        mse = sum((model.vae.decode(model.vae.encode(x[:, :, None])).squeeze(2).clamp(-1, 1) - x)
                  .square().mean().item() for x in frames) / len(frames)
    say(f"vae: PSNR {10 * math.log10(4 / mse):.1f} dB a frame on training clips")


def optimizer_for(run, stage, saved):
    """AdamW on what the stage trains, and fp16's loss scaling; as in `saved`, if it holds them."""
    for name, part in run.model.named_children():
        part.requires_grad_(name in PARTS[stage])
    optimizer = torch.optim.AdamW([p for p in run.model.parameters() if p.requires_grad],
                                  lr=0.0, betas=(0.9, 0.99), weight_decay=0.01,
                                  fused=run.device.type == "cuda")
    fp16 = run.settings["amp"] == "fp16"
    scaler = torch.amp.GradScaler(run.device.type if fp16 else "cpu", enabled=fp16)
    if saved:
        try:  # it may hold anything
            optimizer.load_state_dict(optimizer.state_dict()
                                      | {"state": saved["optimizer"]["state"]})
            if not all(state[name].shape == p.shape for p, state in optimizer.state.items()
                       for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError
            if fp16 and saved["scaler"]:  # empty where the run was not fp16 so far
                scaler.load_state_dict(saved["scaler"])
        except Exception:
            raise UserError(f"{run.out / 'checkpoint.pt'} is damaged: its optimizer's state does "
                            "not fit the model") from None
    return optimizer, scaler


def add_upscaler(run):
    """The second U-Net, of super-resolution: born with its stage, so that none is untrained."""
    run.config["upscale"] = asdict(replace(
        UPSCALER, context_width=run.config["text"]["width"],
        latent_channels=PATCH ** 2 * run.config["vae"]["channels"]))
    torch.manual_seed(run.settings["seed"])
    run.model.upscaler = build(run.config).upscaler.to(run.device)
    run.ema.upscaler = copy.deepcopy(run.model.upscaler).requires_grad_(False)


def train_stages(run, saved):
    """All stages, from scratch or from where the checkpoint `saved` stopped."""
    begun, step = saved["progress"] if saved else (0, 0)
    for k, stage in enumerate(STAGES):
        if k < begun or not run.settings[f"{stage}_steps"]:
            continue
        if stage == "upscale" and run.model.upscaler is None:
            add_upscaler(run)
        first = step if k == begun else 0
        train_stage(stage, run, first, *optimizer_for(run, stage, saved if first else None))
    if rank() == 0:
        half = {name: value.half().cpu() for name, value in run.ema.state_dict().items()}
        save(run.out / "weights.pt", {"config": run.config, "ema": half})  # all that sampling needs


# ---- the command ---------------------------------------------------------------------------------

def source_name(text):
    """The name of what to train on, as runs keep it: a folder's absolute path, or the text."""
    return os.path.abspath(text) if text != MADE and os.path.isdir(text) else text


def parse(argv):
    """The command's arguments; None where the preset or a resumed run decides."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], usage=(
        "python train.py --data moving_mnist_captions [options]   (--help lists them)"))
    count = number(int, 1, 10**6)
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
    p.add_argument("--upscale-steps", type=number(int, 0, 10**6), metavar="N",
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
    p.add_argument("--data-root", metavar="DIR", type=os.path.abspath,
                   help="folder with MNIST's .gz files")
    p.add_argument("--captions", choices=("full", "four"),
                   help='full: the whole grammar (base); four: only "a 3 moving left" and the '
                        'like, one digit in four directions (tiny)')
    p.add_argument("--schedule", choices=tuple(SCHEDULES), help="noise schedule (default: cosine)")
    p.add_argument("--predict", choices=PREDICTIONS, help="what the U-Net predicts (default: v)")
    return p.parse_args(argv)


DEFAULTS = dict(data=MADE, seed=0, digits="auto", data_root=None, captions="full", predict="v",
                schedule="cosine", stills_per_clip=0, upscale_steps=0)  # a preset may say otherwise
FLAGS = ("vae_steps", "stills_steps", "clips_steps", "batch_size", "lr", *DEFAULTS)
IDENTITY = ("preset", "data", "captions", "schedule", "predict")  # what makes a run another run
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def flag_of(name):
    """A setting's flag, without its dashes."""
    return {"stills_steps": "image-steps", "clips_steps": "steps"}.get(name, name.replace("_", "-"))


def read_run(path):
    """A training checkpoint with all its parts and its "models", the network and its average;
    `UserError` for any other file."""
    saved = read_checkpoint(path)
    ema = restore(saved, "ema", path)
    try:  # the rest may hold anything, too
        saved["models"] = restore(saved, "model", path), ema
        (stage, step), log, settings = saved["progress"], saved["log"], saved["settings"]
        given = {name: settings[name] for name in (*FLAGS, "preset", "amp")
                 if (name, settings[name]) != ("data_root", None)}
        with redirect_stderr(io.StringIO()):  # what the command would not take, it did not write
            taken = vars(parse([f"--{flag_of(k)}={v}" for k, v in given.items()]))
        whole = (all(taken[k] == v for k, v in given.items())
                 and type(stage) is int and type(step) is int and 0 <= stage
                 and 0 <= step <= settings[f"{STAGES[stage]}_steps"]
                 and all(map(words_of, settings["prompts"] or [""]))
                 and log["sums"].shape == (2, 4) and log["sums"].dtype == torch.float32
                 and {len(row) for row in log["rows"]} == {len(Log.columns)}
                 and saved["optimizer"].keys() and isinstance(saved["scaler"], dict))
    except (Exception, SystemExit):
        whole = False
    if not whole:
        raise UserError(f"{path} holds weights for sampling only, or is damaged or of another "
                        "version: a run cannot be resumed from it")
    return saved


def settings_for(args, saved, device):
    """The run's settings: the preset's, then the resumed checkpoint's, then the flags given."""
    preset = args.preset if args.preset != "auto" else "tiny" if device.type == "cpu" else "base"
    began = saved["settings"] if saved else {}
    settings = DEFAULTS | PRESETS[preset] | {"preset": preset} | began
    given = {flag: getattr(args, flag) for flag in FLAGS if getattr(args, flag) is not None}
    given |= {"preset": preset} if args.preset != "auto" else {}
    for flag in IDENTITY if saved else ():
        moved = flag == "data" and MADE not in (given.get(flag), began[flag])  # a folder may be
        if given.get(flag, began[flag]) != began[flag] and not moved:
            raise UserError(f"the run began with --{flag} {began[flag]}, not {given[flag]}: leave "
                            "the flag out, or begin another run with --out")
    settings |= given
    auto = began.get("amp") or ("bf16" if device.type == "cuda" else "off")
    settings["amp"] = auto if args.amp == "auto" else args.amp
    if not saved and args.predict == "eps" and args.schedule is None:
        say("note: --predict eps takes the linear schedule, as in DDPM: at the cosine's last "
            "step, x0 = (xt - s eps) / a divides by 5e-5")
        settings["schedule"] = "linear"
    if settings["batch_size"] % processes():
        raise UserError(f"--batch-size {settings['batch_size']} is shared by {processes()} "
                        "processes, so it must be a multiple of their number")
    if saved:
        now, step = saved["progress"]
        for k, stage in enumerate(STAGES[:now + 1]):
            made, new = step if k == now else began[f"{stage}_steps"], settings[f"{stage}_steps"]
            if new != began[f"{stage}_steps"] and (k < now or new <= made):
                raise UserError(f"the {stage} stage has made {made} steps already, so it cannot "
                                f"end at {new}: " + ("give it more, or " * (k == now))
                                + "leave the flag out")
        other = [f"--{flag_of(k)} {settings[k]} (it was {v})"
                 for k, v in began.items() if settings[k] != v]
        if other:
            say(f"note: this run goes on with {', '.join(other)}", file=sys.stderr)
    return {k: v for k, v in settings.items() if k not in ("vae", "unet")}


def source_for(args, settings, saved, out):
    """What gives the run its clips: captioned Moving MNIST, or a folder, decoded into `out`."""
    if settings["data"] == MADE:
        digits = first_alone(lambda: data.load_digits("train", settings["digits"],
                                                      settings["data_root"]))
        settings["digits"] = "mnist" if digits.source == "MNIST" else "drawn"  # to be resumed with
        return partial(data.make_scenes, captions=settings["captions"], digits=digits)
    if not os.path.isdir(settings["data"]):
        raise UserError(f"--data {settings['data']} is neither {MADE} nor a folder of clips: name "
                        "their folder, on --resume also where it was moved to")
    if args.captions or args.digits or args.data_root or settings["upscale_steps"]:
        raise UserError("--captions, --digits, --data-root and --upscale-steps are only for "
                        f"{MADE}, whose truth is known: leave them out")
    clips = first_alone(lambda: FolderClips(settings["data"], out))
    say(clips.note, file=sys.stderr)
    if saved and saved["settings"].get("clips") != clips.fingerprint:
        if saved["settings"]["data"] != settings["data"]:
            raise UserError(f"{settings['data']} does not hold the clips that the run began with "
                            "(names, captions, sizes, times): begin another run with --out")
        say("note: the clips have changed since the run began, so it will not go on exactly as it "
            "would have", file=sys.stderr)
    settings["clips"] = clips.fingerprint
    return clips


def config_for(settings, source):
    """A fresh run's config, of which `sample.build` makes the model."""
    preset, captions = PRESETS[settings["preset"]], getattr(source, "captions", [])
    vae = replace(preset["vae"], channels=getattr(source, "channels", 1))
    split = [words_of(caption) for caption in captions]
    words = sorted(set().union(*split)) or data.VOCABULARY[settings["captions"]]
    text = TextConfig(vocabulary=len(words), width=preset["unet"].context_width,
                      length=max([TextConfig.length, *map(len, split)]))
    settings["prompts"] = list(dict.fromkeys(captions))[:8] or [  # of the sample strips
        prompt for prompt in PROMPTS if {*words_of(prompt)} <= {*words}]
    return dict(vae=asdict(vae), text=asdict(text), unet=asdict(preset["unet"]), size=data.SIZE,
                vocabulary=words, schedule=settings["schedule"], predict=settings["predict"],
                tasks=len(set(TASKS)))


def prepare(args, out, device):
    """The `Run` that the arguments ask for, and the checkpoint it goes on from or None."""
    path, saved = out / "checkpoint.pt", None
    if path.exists() and not args.resume:
        raise UserError(f"{path} exists: add --resume to continue that run, or name another "
                        "folder with --out")
    if args.resume and path.exists():
        saved = read_run(path)
    elif args.resume:
        say(f"note: no {path} yet, so the run starts from the beginning")
    settings = settings_for(args, saved, device)
    source = source_for(args, settings, saved, out)
    torch.manual_seed(settings["seed"])
    if saved:
        config, (model, ema) = saved["config"], saved["models"]
    else:
        config = config_for(settings, source)
        model = build(config)
        ema = copy.deepcopy(model)
    if getattr(source, "channels", 1) != config["vae"]["channels"]:
        raise UserError("the clips have changed between grey and colour since the run began: "
                        "begin another run with --out")
    if args.compile:
        model.unet.compile()  # in place, so that saved names carry no _orig_mod. prefix
    (out / "samples").mkdir(exist_ok=True)
    log = Log(out / "log.csv", saved and saved["log"], device)
    return Run(out, settings, source, config, model.to(device),
               ema.to(device).eval().requires_grad_(False), log, device), saved


def train(args):
    """What the command does."""
    device = device_for(args.device)
    if processes() > 1:
        if device.type == "cuda":
            gpus = torch.cuda.device_count()
            if int(os.environ["LOCAL_WORLD_SIZE"]) > gpus:
                raise UserError(f"there are {gpus} GPUs here: start no more processes than that")
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group(timeout=timedelta(hours=6))  # the first may have clips to decode
    out = args.out or Path("runs") / Path(args.data or MADE).name
    with held(out):
        run, saved = prepare(args, out, device)
        before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            train_stages(run, saved)
        finally:
            SIGNALS.clear()
            for asked, handler in before.items():
                signal.signal(asked, handler)
    say(f"done: python sample.py {shlex.quote(run.settings['prompts'][0])} --checkpoint "
        f"{shlex.quote(str(out / 'checkpoint.pt'))}")


def main(argv=None):
    """Runs the command; returns its exit status."""
    args = parse(argv)

    def work():
        try:
            train(args)
        except UserError:
            if rank() > 0:  # all processes have the same one, and torchrun ends all with the first
                time.sleep(5)
                sys.exit(2)
            raise

    try:
        return data.exit_status(work)
    except Stopped as stop:
        number, stage, step = stop.args
        say(f"\nstopped after step {step} of stage {stage}; all is saved: add --resume to the same "
            "command to go on")
        return 128 + number
    finally:
        if processes() > 1 and dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
