"""Train everything on captioned clips: the autoencoder, then captioned stills, then clips.

    python train.py --data moving_mnist_captions            --preset tiny on a CPU, base on a GPU
    python train.py --data FOLDER                           clips of your own (README)

    vae     frames -> latents -> frames                             (Latent Diffusion)
    decoder the same, but latents stay as they are: the decoder alone learns on, for sharp edges
    stills  text encoder and U-Net on single frames captioned by their subject; temporal layers are
            skipped, so this is an image model                      (Make-A-Video, CogVideo)
    clips   the same network on windows of 17 frames: key frames of the whole action at stride 4,
            and windows with known frames: to fill in, to animate a picture, to continue a clip

Everything random in step n is a function of (seed, stage, n), so a resumed run goes on exactly.
What you should see: the loss by noise level in runs/NAME/log.csv, strips of eight prompts in
samples/. At high noise (loss_t750_999) it stays highest, as most of a clip cannot be known there;
but there its content is decided, so a small gain in this column is a large one in the samples.
"""

import argparse
import copy
import math
import os
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch.optim.swa_utils import get_ema_multi_avg_fn

import data
from diffusion import PREDICTIONS, SCHEDULES, T
from model import WINDOW, TextToVideo, pick_device, restore, seeded
from sample import CARRIED, generate
from support.console import (DATA_ROOT, DEVICE, DIGITS, SEED, UserError, add_flags, exit_status,
                             number, one_of)
from support.digits import load_digits
from support.muon import Muon
from support.own_clips import FolderClips
from support.plots import write_losses
from support.processes import (RANK, WORLD, average_gradients, join_processes, leave_processes,
                               my_rows, print_once)
from support.run import Run, check_resume, find_run, settings_of, with_defaults
from support.video import write_clip
from text_encoder import TextConfig
from unet3d import UNetConfig
from vae import VAEConfig

VAE_STAGES = ("vae", "decoder")               # the autoencoder's
STAGES = (*VAE_STAGES, "stills", "clips")     # the others are the text encoder's and the U-Net's
# Steps were chosen to fit about 20 minutes of 2 CPU cores and 10 of an H100.
# tiny: with few clips a step gradients are mostly noise, so the rate is lower.
# base: from the latents of AdamW's autoencoder two digits, each with its motion, are learned with
# fewer clips than from Muon's (tiny does worse with them; why is not known: docs/results.md). But
# its decoder blurs, so Muon trains that on, alone.
PRESETS = {
    "tiny": dict(captions="four", vae_steps=700, vae_batch_size=16, vae_optimizer="muon",
                 decoder_steps=0, stills_steps=3000, clips_steps=2400, batch_size=8, lr=3e-4),
    "base": dict(captions="full", vae_steps=1200, vae_batch_size=512, vae_optimizer="adamw",
                 decoder_steps=800, stills_steps=150, clips_steps=4400, batch_size=512,
                 lr=1.4e-3)}
SIZES = {
    "tiny": (VAEConfig(widths=(16, 32, 64), blocks=1),
             UNetConfig(widths=(40, 80), head_dim=40, emb_width=128)),
    "base": (VAEConfig(), UNetConfig())}
VAE_LR = 2e-3             # peak learning rate of the autoencoder; the others take --lr
MUON = 14                 # Muon's learning rate in those of AdamW: its steps have another scale
WARM_UP = 100             # steps to the full learning rate
DROP_CAPTION = 0.1        # share of captions made the null prompt (Ho & Salimans, section 4.2)
KNOWN_NOISE = 0.1         # std of the noise on known latents is drawn from 0 ... this
MEASURED = 2048           # frames that the latents' mean and std are measured on


# ---- what a step sees ----------------------------------------------------------------------------

# Windows of 17 frames teach five tasks, those before FILL at stride 4; of 16 so many show
KEYS = 0      # 12  the whole action at stride 4, no frame known      (text -> clip)
IMAGE = 1     #  1  the same, its first frame known                   (picture -> clip)
CONTINUE = 2  #  1  four known frames, then the action                (continuation, chains)
FILL = 3      #  1  a part at stride 2 or 1, every other frame known  (interpolation)
PART = 4      #  1  a part at stride 2 or 1, none known; where that would contradict the caption
              #     (half of "left then up" shows no "up"), random frames are known
TASKS = np.array([KEYS] * 12 + [IMAGE, CONTINUE, FILL, PART])
KNOWN = np.zeros((5, WINDOW), bool)                                              # task f
KNOWN[IMAGE, 0] = KNOWN[CONTINUE, :CARRIED] = KNOWN[FILL, ::2] = True


def draw_stills(clips, seed, stage, first, n):
    """One frame each of clips first ... first + n - 1, at any tick: outline of x (n c 1 h w),
    captions of their subjects, stride (n,) in ticks, known_mask (n 1), which is all False."""
    scenes = clips(n, seed=seed, start=first)
    ticks = data.Chooser(seed, stage, range(first, first + n)).below("tick", data.ACTION + 1)
    known_mask = torch.zeros(n, 1, dtype=torch.bool)
    return scenes.outline(ticks[:, None]), scenes.subjects, torch.full((n,), 4), known_mask


def draw_windows(clips, seed, first, n):
    """Windows of clips first ... first + n - 1: outline of x (n c 17 h w), captions, stride (n,) in
    ticks, known_mask (n 17), True where the network is shown the clean frame."""
    scenes = clips(n, seed=seed, start=first)
    choose = data.Chooser(seed, "clips", range(first, first + n))
    task, frame = TASKS[choose.below("task", len(TASKS))], np.arange(WINDOW)
    fine = np.where(choose.below("fine", 4) < 3, 2, 1)     # three parts of four at stride 2
    stride = np.where(task < FILL, 4, fine)                                             # n
    start = choose.below("start", data.ACTION - (WINDOW - 1) * stride + 1)
    start = np.where(task == CONTINUE, -4 * (CARRIED - 1), start)  # known ones come before tick 0
    ticks = start[:, None] + stride[:, None] * frame                                    # n f
    random = (choose.below("bits", 2 ** WINDOW)[:, None] >> frame) % 2 == 1             # n f
    unsteady = (task == PART) & ~scenes.steady
    known_mask = np.where(unsteady[:, None], random, KNOWN[task])
    outline = scenes.carry_on(choose, task == CONTINUE).outline(ticks)
    return outline, scenes.captions, torch.from_numpy(stride), torch.from_numpy(known_mask)


def items(stage, args):
    """Frames or clips a step of a stage, of all processes together."""
    own = {"stills": 4 * args.batch_size, "clips": args.batch_size}  # stills cost less than clips
    return own.get(stage, args.vae_batch_size)


class Batches:
    """batches[step] is what a step sees, as far as the CPU makes it: outline, tokens, stride,
    known_mask, in a list; in joint training, the same of stills is the list's second."""

    def __init__(self, stage, clips, tokenizer, args):
        self.stage, self.clips, self.tokenizer, self.args = stage, clips, tokenizer, args
        self.n = items(stage, args) // WORLD    # of this process

    def __getitem__(self, step):
        first, seed, k = (step * WORLD + RANK) * self.n, self.args.seed, self.args.stills_per_clip
        if self.stage == "clips":
            draws = [draw_windows(self.clips, seed, first, self.n)]
        else:
            draws = [draw_stills(self.clips, seed, self.stage, first, self.n)]
        if self.stage == "clips" and k:
            draws.append(draw_stills(self.clips, seed, "stills", first * k, self.n * k))
        return [(outline, self.tokenizer(captions), stride, known_mask)
                for outline, captions, stride, known_mask in draws]


# ---- losses: g is the step's generator, and the source of all that is random in it ---------------
# my_rows(torch.randn, b, ..., g=g) is torch.randn(b, ..., generator=g); with several GPUs, the part
# of one common draw that is this process's.

def fetch(draw, paint, device):
    """A draw of `Batches` on the device, with its pixels x painted. important: non_blocking. Else
    the CPU would wait here until the GPU has done all that it still has to do."""
    outline, *rest = draw
    return paint(outline, device), *(part.to(device, non_blocking=True) for part in rest)


def vae_loss(model, x, g):
    """Loss (b,) of the autoencoder on stills x (b c 1 h w)."""
    c, _, h, w = model.window
    noise = my_rows(torch.randn, len(x), c, h, w, g=g)
    return model.vae.loss(rearrange(x, "b c 1 h w -> b c h w"), noise)[0].expand(len(x))


def noise_levels(b, power, g):
    """Levels t (b,): a quarter uniform, the others uniform ** power, whose density is 2·t/T in
    stills, at power 1/2, and 4·(t/T)³ in clips, at 1/4.

    Uniform t would spend most steps where 17 frames, which repeat each other, still show their
    motion; only where almost nothing is left of them is the caption needed and learned (Chen 2023,
    arXiv:2301.10972, on redundancy and noise). They are stratified, one in each b-th part of
    0 ... 1, so that the loss of a batch says more of the network and less of its levels.
    """
    uniform = (my_rows(torch.randperm, b, g=g) + my_rows(torch.rand, b, g=g)) / (b * WORLD)
    high = my_rows(torch.rand, b, g=g) < 3 / 4
    return (T * torch.where(high, uniform ** power, uniform)).long().clamp(max=T - 1)


def diffusion_loss(model, x, tokens, stride, known_mask, g):
    """The whole method: loss (b,) and noise levels t (b,) of the U-Net and the text encoder.

    x (b c f h w) pixels, tokens (b n), stride (b,) ticks, known_mask (b f) bool.
    """
    b = len(x)
    with torch.no_grad():
        z = model.vae.encode(x)                                                 # b c f h w
    # important: without dropped captions the null prompt is never trained, yet guidance needs it
    drop = my_rows(torch.rand, b, g=g) < DROP_CAPTION
    context, context_mask = model.text_encoder(tokens, drop)

    t = noise_levels(b, 1 / 2 if z.shape[2] == 1 else 1 / 4, g)
    eps = my_rows(torch.randn, *z.shape, g=g)

    # important: known frames are noised a little, else the network trusts them to the last digit
    # and errors grow from fill to fill (conditioning augmentation, Ho et al. 2021, 2106.15282, who
    # also tell the network how much; ours finds out)
    level = KNOWN_NOISE * my_rows(torch.rand, b, 1, 1, 1, 1, g=g)
    known = z + level * my_rows(torch.randn, *z.shape, g=g)
    weight = rearrange(~known_mask, "b f -> b 1 f 1 1").to(z.dtype)             # unknown ones count

    def network(z_t, t):
        return model.unet(z_t, t, context, context_mask, stride, known, known_mask)

    return model.diffusion.loss(network, z, t, eps, weight), t


# ---- the loop ------------------------------------------------------------------------------------

def learning_rate(step, steps, peak):
    """Linear warm-up, then a cosine down to zero."""
    return peak * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def update_ema(ema, model, step):
    """ema <- decay·ema + (1 - decay)·model: over about the last tenth of its steps so far."""
    pairs = [(e, p) for e, p in zip(ema.parameters(), model.parameters()) if p.requires_grad]
    averages, weights = zip(*pairs)
    decay = (1 + step) / (10 + step)
    get_ema_multi_avg_fn(decay)(averages, weights, None)  # all of them in one call


def step_loss(stage, model, paint, batch, g):
    """The loss () that a step minimises, and for the log each item's loss (b,) and t (b,)."""
    draw, *stills = [fetch(draw, paint, model.device) for draw in batch]
    if stage in VAE_STAGES:
        losses, t = vae_loss(model, draw[0], g), None    # it has no noise levels
    else:
        losses, t = diffusion_loss(model, *draw, g)
    loss = losses.mean()
    if stills:  # joint training: frames weigh alike (Video Diffusion Models, section 3)
        apart, _ = diffusion_loss(model, *stills[0], g)
        k = len(apart) / len(losses)
        loss = (WINDOW * loss + k * apart.mean()) / (WINDOW + k)
    return loss, losses, t


def train_stage(stage, steps, peak, run, clips, args):
    """One stage: fetch, encode, noise, predict, loss, step, average, log."""
    model, device = run.model, run.model.device
    for name, part in model.named_children():
        part.requires_grad_((name == "vae") == (stage in VAE_STAGES))
    model.vae.encoder.requires_grad_(stage == "vae")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trained = [p for _, p in named]
    options = dict(lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda")
    if stage == "vae" and args.vae_optimizer == "adamw":
        optimizer = torch.optim.AdamW(trained, **options)
    else:  # for a first reading: AdamW, but steps of matrices are made orthogonal (support/muon.py)
        optimizer = Muon(named, **options)
    mixed = device.type if args.amp != "off" else "cpu"          # older torch knows no mps here
    scaler = torch.amp.GradScaler(mixed, enabled=args.amp == "fp16")        # else it does nothing
    batches = run.batches(stage, steps, Batches(stage, clips, model.tokenizer, args))
    paint = clips.paint
    if args.compile and stage == "clips":   # others are too short for it. In place: names stay
        paint = torch.compile(paint, dynamic=False) if args.data == MADE else paint  # no files
        model.vae.encoder.compile(dynamic=False)
        model.text_encoder.compile(dynamic=False)
        # all its kernels as one CUDA graph; not tried with a second pass a step, of stills
        mode = None if args.stills_per_clip else "reduce-overhead"
        model.unet.compile(dynamic=False, mode=mode)
    # run.steps resumes, logs, saves and stops
    for step, batch in zip(run.steps(stage, steps, optimizer, scaler), batches):
        g = seeded(args.seed, stage, step, device=device)
        with torch.autocast(mixed, AMP_DTYPE[args.amp], enabled=args.amp != "off"):
            loss, losses, t = step_loss(stage, model, paint, batch, g)
        scaler.scale(loss).backward()
        average_gradients(trained)                               # of all processes
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        lr = learning_rate(step, steps, peak)
        for group in optimizer.param_groups:
            group["lr"] = MUON * lr
        optimizer.param_groups[0]["lr"] = lr                     # AdamW's
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        update_ema(run.ema, model, step)
        run.log(losses, t, norm, lr)
        if step + 1 == steps or (step + 1) % max(200, steps // 4) == 0:
            write_samples(run, stage, step + 1, clips, args)


def finish_vae(stage, run, clips, seed):
    """After a stage of the autoencoder: take the averaged weights and report the PSNR. The first
    makes the latents, so it measures them; the decoder's leaves them as they are."""
    model, ema = run.model, run.ema
    model.vae.load_state_dict(ema.vae.state_dict())
    frames = [clips.paint(draw_stills(clips, seed, "stills", k, min(256, MEASURED))[0],
                          model.device) for k in range(0, MEASURED, 256)]
    if stage == "vae":
        model.vae.measure_latents([rearrange(x, "b c 1 h w -> b c h w") for x in frames])
        ema.vae.load_state_dict(model.vae.state_dict())
    with torch.no_grad():
        errors = [(model.vae.decode(model.vae.encode(x)).clamp(-1, 1) - x).square().mean().item()
                  for x in frames]
    print_once(f"{stage}: PSNR {10 * math.log10(4 / np.mean(errors)):.1f} dB of the mean error on "
               "training clips")


@torch.no_grad()
def write_samples(run, stage, step, clips, args):
    """A strip by the averaged weights of fixed prompts and noise; of the vae, truth and rebuilt."""
    if RANK > 0:
        return
    try:
        if stage in VAE_STAGES:
            x = clips.paint(draw_stills(clips, args.seed, "vae", 0, 8)[0], run.model.device)
            pair = torch.cat([x, run.ema.vae.decode(run.ema.vae.encode(x))], dim=2)
            strip = rearrange(pair, "b c two h w -> two c b h w")
        else:
            strip = generate(run.ema, args.prompts, num_frames=16, steps=20)
        write_clip(strip, run.folder / "samples" / f"{stage}_{step:06d}.png")
    except (ImportError, OSError, UserError) as error:  # strips may be lost, but not the run
        print(f"note: no sample strips: {error}", file=sys.stderr)


# ---- the command ---------------------------------------------------------------------------------

MADE = "moving_mnist_captions"  # the data that is made on the fly
AMP_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
AUTO = {"v": "cosine", "x0": "cosine", "flow": "flow",   # --schedule for a --predict
        "eps": "linear"}                                 # which needs alpha_bar well above 0
COUNT = number(int, 1, 10**6)
FLAGS = (  # a default of None is the preset's; on --resume all defaults are the run's own
    ("--data", str, MADE, "captions made on the fly, or a folder of captioned clips (README)"),
    ("--preset", one_of("auto", *PRESETS), "auto", "auto: base on a GPU, tiny on a CPU"),
    ("--captions", one_of("full", "four"), None, "the whole grammar, or one digit, 4 directions"),
    ("--vae-steps", COUNT, None, "steps of the autoencoder's stage"),
    ("--vae-batch-size", COUNT, None, "frames a step of the autoencoder"),
    ("--vae-optimizer", one_of("adamw", "muon"), None, "of the vae stage; the decoder's is muon"),
    ("--decoder-steps", number(int, 0, 10**6), None, "steps in which its decoder learns on alone"),
    ("--stills-steps --image-steps", COUNT, None, "steps of the stills stage"),
    ("--clips-steps --steps", COUNT, None, "steps of the clips stage"),
    ("--stills-per-clip", number(int, 0, 64), 0, "stills beside each clip of the clips stage"),
    ("--batch-size", COUNT, None, "clips a step; the stills stage takes 4 frames for each"),
    ("--lr", number(float, 1e-8, 1), None, "peak learning rate of the stills and clips stages"),
    ("--amp", one_of("auto", *AMP_DTYPE), "auto", "mixed precision; auto: bf16 on CUDA, else off"),
    ("--crop", bool, False, "own clips: cut to the middle square"),
    ("--schedule", one_of("auto", *SCHEDULES), "auto", "auto: cosine; eps: linear; flow: flow"),
    ("--predict", one_of(*PREDICTIONS), "v", "what the U-Net predicts; flow: flow matching"),
    ("--out", str, None, "the run's folder; else runs/DATA"),
    ("--resume", bool, False, "go on with the run in --out"),
    ("--compile", bool, False, "torch.compile the U-Net: a minute to start, then faster steps"),
    SEED, DIGITS, DATA_ROOT, DEVICE)
FIXED = ("preset", "captions", "schedule", "predict", "crop", "vae_steps", "vae_batch_size",
         "vae_optimizer", "decoder_steps", "stills_steps")


def parse(argv):
    """The command's arguments, and the checkpoint that the run goes on from or None."""
    p = add_flags(argparse.ArgumentParser(description=__doc__.split("\n")[0], usage=(
        "python train.py --data moving_mnist_captions [options]   (--help lists them)")), FLAGS)
    given = p.parse_args(argv)
    if given.out == "":
        raise UserError("--out names no folder: leave it out for runs/DATA")
    out = Path(given.out or Path("runs") / Path(os.path.abspath(given.data)).name)
    preset = given.preset
    saved = find_run(out, given.resume)
    if preset == "auto" and saved:
        preset = str(saved["settings"].get("preset"))
    elif preset == "auto":
        preset = "tiny" if pick_device(given.device).type == "cpu" else "base"
    args = with_defaults(p, argv, saved, PRESETS.get(preset, {}))
    args.out, args.preset = out, preset
    sizes = {"--batch-size": args.batch_size}
    if not saved or saved["progress"][0] in VAE_STAGES:
        sizes["--vae-batch-size"] = args.vae_batch_size
    for flag, size in sizes.items():
        if size % WORLD:
            raise UserError(f"{flag} {size} is shared by {WORLD} processes, so it must be a "
                            "multiple of their number")
    if args.data == MADE and args.crop:
        raise UserError("--crop is for clips of your own: leave it out")
    if args.data != MADE and (given.captions or given.data_root or given.digits != "auto"):
        raise UserError(f"--captions, --digits and --data-root are for {MADE} only: leave them out")
    return args, saved


def open_clips(args):
    """What gives the run its clips: captioned Moving MNIST, or a folder of the user's own."""
    if args.data == MADE:
        digits = load_digits("train", args.digits, args.data_root)
        args.digits = digits.source.lower()  # to be resumed with
        return data.MovingMNIST(args.captions, digits=digits)
    if not os.path.isdir(args.data):
        raise UserError(f"--data {args.data} is neither {MADE} nor a folder of clips: name their "
                        "folder, on --resume also where it was moved to")
    args.data = os.path.abspath(args.data)
    return FolderClips(args.data, args.crop)


def new_model(args, clips):
    """A network of the preset's size for the clips' words and colours, born of the seed."""
    vae, unet = SIZES[args.preset]
    torch.manual_seed(args.seed)
    return TextToVideo(dict(
        vae=asdict(replace(vae, channels=clips.channels)), unet=asdict(unet),
        text=asdict(TextConfig(len(clips.words), clips.length, unet.context_width)),
        vocabulary=clips.words, size=data.SIZE, predict=args.predict,
        schedule=AUTO[args.predict] if args.schedule == "auto" else args.schedule))


def train(args, saved):
    """What the command does."""
    device = join_processes(pick_device(args.device))
    clips = open_clips(args)
    args.clips = clips.fingerprint
    for note in clips.notes:
        print_once(f"note: {note}", sys.stderr)
    if saved:
        model, ema = (restore(saved, key, args.out / "checkpoint.pt") for key in ("model", "ema"))
        check_resume(args, saved, FIXED)
        if clips.channels != model.vae.config.channels:
            raise UserError(f"{args.data} has changed between grey and colour since the run began: "
                            "begin another run with --out")
    else:
        model = new_model(args, clips)
        ema = copy.deepcopy(model)
    torch.backends.cudnn.benchmark = True  # shapes stay the same: look for the fastest kernels
    if args.amp == "auto":
        args.amp = "bf16" if device.type == "cuda" else "off"
    args.prompts = list(dict.fromkeys(clips(64).captions))[:8]
    ema = ema.to(device).eval().requires_grad_(False)
    plan = {"vae": (args.vae_steps, VAE_LR), "decoder": (args.decoder_steps, VAE_LR),
            "stills": (args.stills_steps, args.lr), "clips": (args.clips_steps, args.lr)}
    with Run(args.out, settings_of(args), model.to(device), ema, saved) as run:
        for stage in STAGES[STAGES.index(saved["progress"][0]) if saved else 0:]:
            steps, peak = plan[stage]
            if steps == 0:
                continue
            train_stage(stage, steps, peak, run, clips, args)
            if stage in VAE_STAGES:
                finish_vae(stage, run, clips, args.seed)
        run.write_weights()
        if RANK == 0 and write_losses(args.out / "log.csv", args.out / "losses.png"):
            print(f"{args.out / 'losses.png'}: the loss by noise level")
    leave_processes(device)
    print_once(f"done: python sample.py {shlex.quote(args.prompts[0])} --checkpoint "
               f"{shlex.quote(str(args.out / 'checkpoint.pt'))}")


def main(argv=None):
    """Runs the command; returns its exit status."""
    return exit_status(lambda: train(*parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
