"""A run's folder: checkpoint.pt, log.csv and samples/; what lets training survive a stop.

    with Run(folder, settings, model, ema, saved) as run:
        for step in run.steps("clips", 2400, optimizer, scaler):   from where the checkpoint stopped
            ...
            run.log(losses, t, norm, lr)

After every tenth step it writes a row of the log and stops if asked to. It saves where a stage
begins and ends and when it is stopped; in between some sixteen times, but not within 20 seconds of
the last save. A checkpoint replaces the old one whole, and on resume log.csv is cut back to what
the checkpoint has seen: after kill -9 the steps since then are made again, exactly, and no row of
the log is lost or there twice. Numbers that are not finite stop the run before they are saved. Of
several processes only the first one writes.
"""

import csv
import hashlib
import io
import os
import signal
import sys
import time
import zipfile
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.data import DataLoader
from tqdm import tqdm

from support.console import Stopped, UserError, in_words, printable, write_whole
from support.processes import RANK, WORLD, everyones, print_once

try:
    import fcntl
except ImportError:  # Windows has no file locks of this kind
    fcntl = None

LOG_EVERY = 10   # steps a row
APART = 20       # seconds at least between saves inside a stage: one takes up to a second
WORKERS = 4      # processes that make batches for one GPU
# items: at the present batch size; seconds: since this command began, strips of samples included
COLUMNS = ("stage", "step", "items", "loss", "loss_t0_249", "loss_t250_499", "loss_t500_749",
           "loss_t750_999", "grad_norm", "lr", "skipped", "items_per_s", "seconds")


def save(path, content):
    """Write a file of torch such that a crash at any moment leaves the old one or the new one. It
    is a zip archive; as its comment it gets the sha256 of all that stands before."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()                          # ends in the comment's length, 2 zero bytes
    digest = hashlib.sha256(body).hexdigest().encode()
    try:
        write_whole(path, body[:-2] + len(digest).to_bytes(2, "little") + digest)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {in_words(error)}. What was saved before is "
                        "intact: go on with --resume") from None


def read_file(path):
    """What `save` wrote, or shipped weights; `UserError` for any other file and for a damaged one.
    Nothing in it is executed or unpacked, so it costs no more than its size."""
    if not Path(path).is_file():  # nor a pipe, which would wait forever
        raise UserError(f"there is no checkpoint {str(path)!r}: train one with train.py, or leave "
                        "--checkpoint out to use the shipped weights")
    try:
        content = Path(path).read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if (any(entry.compress_type for entry in entries)
                    or sum(entry.file_size for entry in entries) > len(content)
                    or any(b"bytearray" in archive.read(entry) for entry in entries
                           if entry.filename.endswith(".pkl"))):  # it may be of any size
                raise ValueError("larger than it looks")
            if content[-22:-18] == b"PK\5\6":  # no comment, as shipped: each entry has its own sum
                intact = archive.testzip() is None
            else:
                body = content[:-66] + b"\0\0"
                intact = hashlib.sha256(body).hexdigest().encode() == content[-64:]
        if not intact:
            raise ValueError("damaged")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise a dozen kinds for files of others
        raise UserError(f"{path} cannot be read as a checkpoint of this program, or it is damaged "
                        f"({type(error).__name__}): train one with train.py") from None


@contextmanager
def no_larger_than(weights):
    """Refuse modules made inside as soon as they have more numbers than the tensors `weights` of a
    file: their memory is asked for by then, but not touched. (On the device "meta" they would cost
    none, but arithmetic there imports torch's compiler, which takes a second.)"""
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in weights if value.is_cpu}
    if sum(held.values()) < sum(value.nbytes for value in weights):
        raise ValueError("its weights share memory: they are fewer than they claim")
    left = sum(value.numel() for value in weights)

    def count(module, name, parameter):
        nonlocal left
        left -= parameter.numel()
        if left < 0:
            raise ValueError("its config asks for more weights than it holds")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


# ---- going on with a run -------------------------------------------------------------------------

# what belongs to one command and not to its run
NO_SETTINGS = ("out", "resume", "device", "compile", "prompts", "checkpoint")


def find_run(folder, resume):
    """The checkpoint in a run's folder as a dict, or None where a new run may begin."""
    path, log = folder / "checkpoint.pt", folder / "log.csv"
    rows = log.read_bytes() if log.is_file() else b""
    there = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{folder} cannot be written: name another folder with --out")
    strange = rows and not rows.startswith(",".join(COLUMNS).encode())
    if strange or log.exists() and not log.is_file():
        raise UserError(f"{log} is no log of a run: move it away, or name another folder")
    if not path.exists():
        if len(rows.splitlines()) > 1:
            raise UserError(f"{folder} holds the log of a run, but no checkpoint.pt to go on from: "
                            "put it back, or begin the run in another folder")
        if resume:
            print_once(f"note: no {path} yet, so the run starts from the beginning")
        return None
    if not resume:
        raise UserError(f"{path} exists: add --resume to go on with that run, or begin another one "
                        "in another folder")
    when, saved = path.stat().st_mtime_ns, read_file(path)
    try:
        (stage, step), settings = saved["progress"], saved["settings"]
        whole = (0 <= step <= settings[f"{stage}_steps"] and saved["log_bytes"] >= 0
                 and type(step) is type(saved["log_bytes"]) is int
                 and all(isinstance(name, str) for name in settings)
                 and {"model", "ema", "optimizer", "scaler"} <= saved.keys())
    except Exception:  # a file may hold anything
        whole = False
    if not whole:
        raise UserError(f"{path} holds weights for sampling only, or is damaged or of another "
                        "version: a run cannot go on from it")
    return saved | {"when": when}


def with_defaults(parser, argv, saved, preset):
    """A command's arguments: what is given wins over the settings of the checkpoint `saved` (or
    None), and those over a preset's dict of settings."""
    kept = saved["settings"] if saved else {}
    defaults = {**preset, **{name: value for name, value in kept.items() if value is not None}}
    # as text, so that what a file says is checked like what a user types
    parser.set_defaults(**{name: value if isinstance(value, bool) else str(value)
                           for name, value in defaults.items()})
    return parser.parse_args(argv)


def settings_of(args):
    """What of a command's arguments its run remembers."""
    return {name: value for name, value in vars(args).items() if name not in NO_SETTINGS}


def check_resume(args, saved, fixed):
    """Refuse a setting that would make the run another one; say which others are new."""
    began, now = saved["settings"], settings_of(args)
    if unknown := [name for name in fixed if name not in began]:
        raise UserError(f"the run was begun by another version of this program, which had no "
                        f"--{unknown[0].replace('_', '-')}: begin another run in another folder")
    new = [name for name in now if now[name] != began.get(name)]
    told = {name: f"--{name.replace('_', '-')} {now[name]} (it was {began.get(name)})"
            for name in new}
    if "clips" in new:
        told["clips"] = "other clips than it began with"
    for name in new:
        if name in fixed or name == "clips" and "data" in new:
            raise UserError(f"the run cannot go on with {told[name]}: leave that out, or begin "
                            "another run in another folder")
    if new:
        print_once(printable(f"note: this run goes on with {', '.join(told.values())}"),
                   sys.stderr)


# ---- the run -------------------------------------------------------------------------------------

class Run:
    """One run and its folder, into which no other run may write at the same time. settings: plain
    values that --resume goes on with; saved: the checkpoint's dict, or None for a new run."""

    def __init__(self, folder, settings, model, ema, saved=None):
        self.folder, self.settings, self.model, self.ema = folder, settings, model, ema
        self.saved, self.stop, self.recent = saved, 0, []
        self.begun = self.saved_at = time.perf_counter()
        if RANK == 0:
            self.open_log(saved["log_bytes"] if saved else 0)
        self.before = {s: signal.signal(s, self.on_signal) for s in (signal.SIGINT, signal.SIGTERM)}

    def open_log(self, seen):
        """Take the folder for this run alone, and cut its log back to what a checkpoint saw."""
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        self.file = open(self.folder / "log.csv", "a", newline="")
        try:
            if fcntl:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a dead process lets go
        except BlockingIOError:
            raise UserError(f"another run is writing into {self.folder}: stop it, or begin this "
                            "one in another folder") from None
        path = self.folder / "checkpoint.pt"  # another run may have come and gone
        if path.exists() and (not self.saved or path.stat().st_mtime_ns != self.saved["when"]):
            raise UserError(f"another run has written {path} meanwhile: start again with --resume")
        if self.log_bytes() < seen:
            print("note: log.csv has lost rows that the checkpoint remembers", file=sys.stderr)
        self.file.truncate(min(seen, self.log_bytes()))
        if self.log_bytes() == 0:
            self.write(COLUMNS)

    def log_bytes(self):
        return os.fstat(self.file.fileno()).st_size

    def write(self, row):
        csv.writer(self.file).writerow(row)
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if RANK == 0:
            self.file.close()

    def on_signal(self, number, frame):
        """Ctrl-C and SIGTERM: go on to the next row of the log, save, stop. Twice: at once, but
        not under torchrun, which passes one Ctrl-C on as two signals."""
        if self.stop and WORLD == 1:
            raise KeyboardInterrupt
        self.stop = number
        print_once("\nstopping after the next row of the log; once more stops at once", sys.stderr)

    def steps(self, stage, total, optimizer, scaler=None):
        """Yield the stage's steps, from where the checkpoint stopped if it stopped in this one."""
        first = self.first_step(stage)
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        if self.goes_on(stage):
            self.restore_optimizer(optimizer)
        else:
            self.write_checkpoint(stage, 0, optimizer)  # so that each log has a checkpoint
        if first > total:
            raise UserError(f"the {stage} stage has made {first} steps already, so it cannot end "
                            f"at {total}")
        every = max(LOG_EVERY, total // 16 // LOG_EVERY * LOG_EVERY)
        self.mark = time.perf_counter()
        with tqdm(total=total, initial=first, desc=stage, disable=RANK > 0) as bar:
            for step in range(first, total):
                yield step
                bar.update()
                done = step + 1
                if done % LOG_EVERY and done < total:
                    continue
                bar.set_postfix_str(self.row(stage, done))
                stop = self.asked_to_stop()
                due = done % every == 0 and time.perf_counter() - self.saved_at >= APART
                if stop or due or done == total:
                    self.write_checkpoint(stage, done, optimizer)
                    self.mark = time.perf_counter()  # saving counts as no step's time
                if stop:
                    print_once(f"\nstopped after step {done} of stage {stage}; all is saved: add "
                               "--resume to the same command to go on")
                    raise Stopped(128 + stop)

    def batches(self, stage, total, batches):
        """batches[step] for each step that the stage still has to make; for a GPU other processes
        have them ready in time."""
        ahead = dict(num_workers=WORKERS, prefetch_factor=4, pin_memory=True,
                     worker_init_fn=self.begin_worker) if self.model.device.type == "cuda" else {}
        steps = range(self.first_step(stage), total)
        return DataLoader(batches, batch_size=None, sampler=steps, **ahead)

    def begin_worker(self, worker):
        """In a worker process: stopping is not its business, nor is the folder."""
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)
        if RANK == 0:
            self.file.close()

    def goes_on(self, stage):
        """Did the checkpoint stop in this stage?"""
        return self.saved is not None and self.saved["progress"][0] == stage

    def first_step(self, stage):
        """The step that a stage begins or goes on with."""
        return self.saved["progress"][1] if self.goes_on(stage) else 0

    def restore_optimizer(self, optimizer):
        """Give the optimizer, and fp16's loss scaling, what the checkpoint has of them."""
        try:
            fresh = optimizer.state_dict()
            optimizer.load_state_dict(fresh | {"state": self.saved["optimizer"]["state"]})
            adamw, muon = {"step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg"}
            fits = all(state.keys() == keys and state["step"] > 0
                       and all(state[name].shape == p.shape for name in keys - {"step"})
                       for group, keys in zip(optimizer.param_groups,
                                              chain([adamw], repeat(muon)))
                       for p, state in optimizer.state.items() if p in {*group["params"]})
            if self.scaler.is_enabled() and self.saved["scaler"]:  # empty if it was not fp16 so far
                self.scaler.load_state_dict(self.saved["scaler"])
        except Exception:  # a file may hold anything
            fits = False
        if not fits:
            raise UserError(f"{self.folder / 'checkpoint.pt'} is damaged: its optimizer's state "
                            "does not fit the model")

    def write_checkpoint(self, stage, step, optimizer):
        """Write all that a run needs to go on."""
        self.saved_at = time.perf_counter()
        if RANK == 0:
            os.fsync(self.file.fileno())
            save(self.folder / "checkpoint.pt", dict(
                config=self.model.config, settings=self.settings, progress=(stage, step),
                model=self.model.state_dict(), ema=self.ema.state_dict(),
                optimizer=optimizer.state_dict(), scaler=self.scaler.state_dict(),
                log_bytes=self.log_bytes()))

    def write_weights(self):
        """Write the averaged weights in half precision: all that sampling needs."""
        if RANK == 0:
            half = {name: value.half().cpu() for name, value in self.ema.state_dict().items()}
            save(self.folder / "weights.pt", {"config": self.model.config, "ema": half})

    def asked_to_stop(self):
        """The signal that asked any of the processes to stop: all must stop together."""
        stop = torch.tensor([self.stop], device=self.model.device)
        return int(everyones(stop, dim=0).max())

    def log(self, losses, t, norm, lr):
        """Take in a step's losses (b,), their noise levels t (b,) or None, the gradient's norm ()
        and the learning rate, without waiting for the device."""
        losses, self.lr = losses.detach().float(), lr
        t = torch.full_like(losses, torch.nan) if t is None else t.float()
        self.recent.append(torch.stack([losses, t, norm.float().expand(len(t))]))

    def row(self, stage, step):
        """Write the row of all steps since the last one; returns it in words."""
        recent, self.recent = torch.stack(self.recent, dim=1), []               # 3 steps b
        losses, t, norms = everyones(recent, dim=2).cpu()
        skipped = self.check(stage, step, losses, t, norms[:, 0])
        now = time.perf_counter()
        speed, self.mark = losses.numel() / (now - self.mark), now
        quarters = [losses[t // 250 == k].mean().item() for k in range(4)]
        numbers = [losses.mean().item(), *quarters, norms[-1, 0].item(), self.lr, skipped, speed,
                   now - self.begun]
        cells = ["" if n != n else f"{n:.6g}" for n in numbers]  # nan: no loss at such a level
        if RANK == 0:
            self.write([stage, step, step * losses.shape[1], *cells])
        return f"loss {numbers[0]:.4f}, {speed:.0f}/s" + (f", {skipped} skipped" if skipped else "")

    def check(self, stage, step, losses, t, norms):
        """Raise `UserError` if a loss (steps b) or gradient (steps) is not finite. Returns how many
        steps fp16's loss scaling skipped, which is its way to find its scale."""
        finite = losses.isfinite().all(1)
        skipped = finite & ~norms.isfinite() & self.scaler.is_enabled()
        bad = ~finite | ~(norms.isfinite() | skipped)
        if self.scaler.get_scale() < 1:  # it halves at every skipped step, from 65536
            raise UserError(f"nearly every step of stage {stage} was skipped until step {step}: "
                            "--resume with --amp bf16 or off")
        if bad.any():
            i = int(bad.int().argmax())
            what = "gradient" if finite[i] else "loss"
            level = t[i, losses[i].nan_to_num(torch.inf).argmax()].item()
            where = "" if level != level else f", noise level {level:.0f}"
            raise UserError(f"the {what} is not finite at step {step - len(losses) + 1 + i} of "
                            f"stage {stage}{where}: the last good checkpoint is kept; --resume "
                            "with --amp off, or begin again with a lower --lr")
        return int(skipped.sum())
