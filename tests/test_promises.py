"""Facts of what a run promises: killed, stopped, out of room, numbers wrong, several processes."""

import csv
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import data
import metrics
import sample
import train
import unet3d
import vae

ROOT = Path(__file__).parent.parent
WRITE_SAMPLES = train.write_samples
FEW = ["--digits", "drawn", "--device", "cpu", "--vae-steps", "3", "--image-steps", "2", "--steps",
       "3", "--upscale-steps", "2", "--batch-size", "2"]


def shrink():
    """Small networks, and a checkpoint after every step: what the processes below begin with."""
    torch.set_num_threads(1)
    train.PRESETS["tiny"] |= dict(vae=vae.VAEConfig(widths=(8, 16, 16), blocks=1),
                                  unet=unet3d.UNetConfig(widths=(16,), head_dim=8, emb_width=32))
    train.UPSCALER = unet3d.UNetConfig(widths=(16,), head_dim=8, emb_width=16)
    train.MEASURED = train.LOG_EVERY = 1
    train.write_samples = lambda *args: None


def start(*arguments, launcher=()):
    """Run train.py's command in another process, as `shrink` makes it."""
    code = (f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
            "import test_promises, train\ntest_promises.shrink()\nadd = train.Log.add\n"
            "train.Log.add = lambda *rest: (add(*rest), print('step', flush=True))\n"
            "sys.exit(train.main(sys.argv[1:]))")
    path = Path(arguments[-1]).parent / "driver.py"
    path.write_text(code)
    return subprocess.Popen([sys.executable, *launcher, str(path), *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@contextmanager
def shrunk():
    """`shrink`, undone at the end."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("UPSCALER", "MEASURED", "LOG_EVERY", "write_samples"):
            patch.setattr(train, name, getattr(train, name))
        patch.setitem(train.PRESETS, "tiny", dict(train.PRESETS["tiny"]))
        shrink()
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small():
    with shrunk():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with shrunk():
        assert train.main([*FEW, "--out", str(out)]) == 0
    return out


def rows(out):
    """log.csv without its time columns."""
    with open(out / "log.csv", newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def same(a, b):
    """Bit for bit the same weights, averages and log, and whole files only."""
    one, two = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (a, b))
    for key in ("model", "ema"):
        assert one[key].keys() == two[key].keys()
        assert all(torch.equal(one[key][k], two[key][k]) for k in one[key])
    half = [torch.load(out / "weights.pt", weights_only=True)["ema"] for out in (a, b)]
    assert all(torch.equal(half[0][k], half[1][k]) for k in half[0])
    assert rows(a) == rows(b) and not list(b.glob("*.part"))


# ---- stopped -------------------------------------------------------------------------------------

@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_nothing_is_lost(whole, tmp_path, kills):
    """kill -9, whatever the run is doing: every checkpoint loads, and the end is the same."""
    out, chance = tmp_path / "killed", random.Random(kills)
    few = [*FEW, "--resume", "--out", str(out)]
    seen, ended = [], 0
    while len(seen) < kills:
        process = start(*few)
        for _ in range(1 + chance.randrange(6)):  # after 1 ... 6 of 10 steps and a moment more
            while process.stdout.readline() not in ("step\n", ""):
                pass
        time.sleep(chance.uniform(0, .3))
        process.kill()
        if process.wait() == 0:  # faster than the kill: the end is as it should be; once more
            same(whole, out)
            shutil.rmtree(out)
            ended += 1
            continue
        saved = (out / "checkpoint.pt").exists()
        seen.append(train.read_run(out / "checkpoint.pt")["progress"] if saved else None)
    print(f"killed {kills} times, with this saved: {seen}; {ended} runs ended in between")
    process = start(*few)
    process.communicate()
    assert process.returncode == 0 and len(set(seen) - {None}) > kills / 4
    same(whole, out)


@pytest.mark.parametrize("stage,number", [*enumerate([signal.SIGINT, signal.SIGTERM] * 2)],
                         ids=train.STAGES)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(whole, tmp_path, monkeypatch, capsys, stage,
                                                      number):
    """Also in the middle of a row of the log."""
    add = train.Log.add

    def stop(self, losses, t, norm):
        add(self, losses, t, norm)
        if train.STAGES[stage] == now[0]:
            os.kill(os.getpid(), number)
            monkeypatch.setattr(train.Log, "add", add)

    now, real = [None], train.train_stage
    monkeypatch.setattr(train, "train_stage",
                        lambda name, *rest: (now.__setitem__(0, name), real(name, *rest)))
    monkeypatch.setattr(train.Log, "add", stop)
    before = signal.getsignal(number)
    monkeypatch.setattr(train, "LOG_EVERY", 10)
    assert train.main([*FEW, "--out", str(tmp_path)]) == 128 + number
    assert "--resume" in capsys.readouterr().out and signal.getsignal(number) is before
    assert train.read_run(tmp_path / "checkpoint.pt")["progress"] == (stage, 1)
    assert train.main(["--resume", "--device", "cpu", "--out", str(tmp_path)]) == 0
    a, b = (train.read_run(out / "checkpoint.pt") for out in (whole, tmp_path))
    assert all(torch.equal(a[key][k], b[key][k]) for key in ("model", "ema") for k in a[key])
    steps = [(row[0], row[1]) for row in rows(tmp_path)[1:]]
    assert steps == [("vae", "3"), ("stills", "2"), ("clips", "3"), ("upscale", "2")]
    want = {row[0]: [float(r[3]) for r in rows(whole) if r[0] == row[0]] for row in rows(whole)[1:]}
    for row in rows(tmp_path)[1:]:  # the row's loss is the mean over all its steps
        assert float(row[3]) == pytest.approx(sum(want[row[0]]) / len(want[row[0]]), rel=1e-4)


def test_a_stop_never_saves_wrong_numbers(tmp_path, monkeypatch, capsys):
    real, calls = train.diffusion_loss, []

    def poisoned(model, *rest):
        losses, t = real(model, *rest)
        calls.append(t)
        if len(calls) == 4:  # clips 2, in the middle of a row of the log
            os.kill(os.getpid(), signal.SIGTERM)
            losses = losses * float("nan")
        return losses, t

    monkeypatch.setattr(train, "diffusion_loss", poisoned)
    monkeypatch.setattr(train, "LOG_EVERY", 10)
    assert train.main([*FEW, "--out", str(tmp_path)]) == 2
    assert "not finite at step 2 of stage clips" in capsys.readouterr().err
    assert train.read_run(tmp_path / "checkpoint.pt")["progress"] == (1, 2)


def test_two_runs_never_write_into_one_folder(tmp_path, capsys):
    with train.held(tmp_path):
        assert train.main([*FEW, "--out", str(tmp_path)]) == 2
        assert not any(tmp_path.iterdir())
    assert "another run is writing" in capsys.readouterr().err
    assert train.main([*FEW, "--vae-steps", "1", "--out", str(tmp_path)]) == 0


def test_lost_strips_are_no_lost_run(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(train, "write_samples", WRITE_SAMPLES)
    monkeypatch.setitem(sample.STEPS, "dpm", 1)
    monkeypatch.setattr(train, "write_clip", full)
    assert train.main([*FEW, "--out", str(tmp_path)]) == 0
    assert "no sample strips: No space left" in capsys.readouterr().err


def test_a_full_disk_is_said_and_the_last_checkpoint_is_intact(whole, tmp_path, capsys):
    out = tmp_path / "full"
    shutil.copytree(whole, out)
    before = (out / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        status = train.main(["--resume", "--device", "cpu", "--upscale-steps", "4", "--out",
                             str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert status == 2 and "cannot be written" in error and "Traceback" not in error
    assert (out / "checkpoint.pt").read_bytes() == before and not list(out.glob("*.part"))


def test_resuming_with_other_settings_says_which(whole, tmp_path, capsys):
    out = tmp_path / "other"
    shutil.copytree(whole, out)
    assert train.main(["--resume", "--device", "cpu", "--upscale-steps", "3", "--lr", "0.002",
                       "--out", str(out)]) == 0
    error = capsys.readouterr().err
    assert "--upscale-steps 3 (it was 2)" in error and "--lr 0.002 (it was 0.001)" in error
    assert "--seed" not in error


@pytest.mark.parametrize("flag", ["--vae-steps", "--image-steps", "--steps"])
def test_stages_that_are_over_cannot_be_given_other_steps(whole, capsys, flag):
    before = (whole / "checkpoint.pt").read_bytes()
    assert train.main(["--resume", "--device", "cpu", flag, "9", "--out", str(whole)]) == 2
    assert "steps already" in capsys.readouterr().err
    assert (whole / "checkpoint.pt").read_bytes() == before


def test_precision_is_kept_on_resume(tmp_path, capsys):
    assert train.main([*FEW, "--amp", "bf16", "--upscale-steps", "0", "--steps", "1", "--out",
                       str(tmp_path)]) == 0
    saved = train.read_run(tmp_path / "checkpoint.pt")
    for given, amp in (([], "bf16"), (["--amp", "off"], "off")):
        args = train.parse(["--resume", *given])
        assert train.settings_for(args, saved, torch.device("cpu"))["amp"] == amp
        assert ("--amp off (it was bf16)" in capsys.readouterr().err) == bool(given)


# ---- numbers and memory --------------------------------------------------------------------------

@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_going_wrong_names_stage_step_and_noise_level(tmp_path, monkeypatch, capsys, what):
    """It stops before the next checkpoint, so the last one is good."""
    real, calls = train.diffusion_loss, []

    def poisoned(model, x, *rest):
        losses, t = real(model, x, *rest)
        calls.append(t)
        if len(calls) < 4:  # stills 1 and 2, clips 1
            return losses, t
        bad = losses.clone()
        if what == "loss":
            bad[1] = float("nan")
        else:  # finite, with an infinite slope
            bad[1] = losses[1] + (losses[1] - losses[1].detach()).sqrt()
        return bad, t

    monkeypatch.setattr(train, "diffusion_loss", poisoned)
    assert train.main([*FEW, "--out", str(tmp_path)]) == 2
    error, = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert f"the {what} is not finite at step 2 of stage clips, noise level" in error
    if what == "loss":
        assert f"noise level {int(calls[3][1])}:" in error
    good = train.read_run(tmp_path / "checkpoint.pt")
    assert good["progress"] == (2, 1)
    assert all(v.isfinite().all() for v in good["model"].values())


def test_skipped_steps_of_fp16_are_counted_and_no_error(tmp_path):
    log = train.Log(tmp_path / "log.csv", None, torch.device("cpu"))
    fp16, off = (torch.amp.GradScaler("cpu", enabled=on) for on in (True, False))
    for norm in (1., float("inf"), float("nan"), 2.):
        log.add(torch.ones(2), torch.tensor([0, 999]), torch.tensor(norm))
    assert log.row("clips", 4, 8, .1, fp16)[2] == 2
    for scaler, words in ((off, "gradient is not finite at step 1 "),
                          (torch.amp.GradScaler("cpu", init_scale=.5), "every step .* skipped")):
        with pytest.raises(data.UserError, match=words):
            log.add(torch.ones(2), torch.tensor([0, 999]), torch.tensor(float("inf")))
            log.row("clips", 1, 2, .1, scaler)


def test_out_of_memory_says_to_lower_the_batch(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB")

    monkeypatch.setattr(train, "make_batch", full)
    assert train.main([*FEW, "--out", str(tmp_path)]) == 2
    assert "lower --batch-size" in capsys.readouterr().err


# ---- several processes ---------------------------------------------------------------------------

def test_two_processes_follow_one_with_the_joined_batch(whole, tmp_path):
    """And only the first writes; the run can go on with another number of processes."""
    out = tmp_path / "two"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(*FEW, "--out", str(out), launcher=launcher)
    printed, _ = process.communicate()
    assert process.returncode == 0 and printed.count("done: ") == printed.count("PSNR") == 1
    one = tmp_path / "one"
    shutil.copytree(whole, one)
    for folder in (one, out):
        assert train.main(["--resume", "--device", "cpu", "--upscale-steps", "3", "--out",
                           str(folder)]) == 0
    a, b = (train.read_run(folder / "checkpoint.pt")["ema"] for folder in (one, out))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)
    for x, y in zip(rows(one)[1:], rows(out)[1:], strict=True):
        assert x[:3] == y[:3]
        assert [float(v) for v in x[3:]] == pytest.approx([float(v) for v in y[3:]], rel=1e-2,
                                                          nan_ok=True)
    assert rows(out)[-1][:3] == ["upscale", "3", "6"]


def test_each_process_draws_its_rows_of_the_same_numbers():
    one = train.Draws((0, "clips", 7), "cpu")
    two = [train.Draws((0, "clips", 7), "cpu", rank, 2) for rank in (0, 1)]
    for draw in ("uniform", "normal"):
        a, b = getattr(one, draw)(6, 3), [getattr(d, draw)(3, 3) for d in two]
        assert torch.equal(a, torch.cat(b))


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(data.UserError, match="multiple"):
        train.settings_for(train.parse([*FEW, "--batch-size", "3"]), None, torch.device("cpu"))


# ---- files that are not what they should be ------------------------------------------------------

def damage(key, value):
    """A checkpoint's dict with the entry at `key` (a path) changed."""
    def change(saved):
        part = saved
        for name in key[:-1]:
            part = part[name]
        part[key[-1]] = value
        return saved
    return change


DAMAGES = [
    damage(["config"], {}), damage(["config"], 3), damage(["config", "unet"], "x"),
    damage(["config", "unet", "widths"], [10, 10]), damage(["config", "unet", "head_dim"], 0),
    damage(["config", "vae", "widths"], []), damage(["config", "text", "heads"], -1),
    damage(["config", "vocabulary"], None), damage(["config", "vocabulary"], []),
    damage(["config", "size"], "64"), damage(["config", "predict"], "noise"),
    damage(["config", "vocabulary", 3], "\x1b[31mred"), damage(["config", "vocabulary", 3], 3),
    damage(["config", "upscale", "widths"], [16, 16]), damage(["ema"], []),
    damage(["ema"], {"a": 1})]
NO_MODEL = damage(["model"], {})
DAMAGED_RUNS = [
    damage(["progress"], (-1, 1)), damage(["settings", "seed"], None),
    damage(["settings", "batch_size"], None), damage(["settings", "amp"], None),
    damage(["progress"], (2, -1)), damage(["progress"], (1., 0)), damage(["settings", "amp"], "x"),
    damage(["settings", "lr"], float("nan")), damage(["settings", "seed"], 2**70),
    damage(["settings", "batch_size"], 0), damage(["settings", "prompts"], [1]),
    damage(["optimizer", "state", 0, "exp_avg"], torch.zeros(7)),
    damage(["progress"], (9, 1)), damage(["progress"], ()), damage(["progress"], (0, None)),
    damage(["settings"], {}), damage(["settings", "lr"], "fast"), NO_MODEL,
    damage(["settings", "data_root"], 5), damage(["optimizer"], {"a": 1}), damage(["log"], 0),
    damage(["log", "sums"], torch.zeros(2)), damage(["log", "rows"], [["vae", 1]])]


@pytest.fixture(scope="module")
def models(whole):
    with shrunk():
        return train.read_run(whole / "checkpoint.pt")["models"]


@pytest.mark.parametrize("main,change", [*((sample.main, change) for change in DAMAGES),
                                         *((train.main, change) for change in DAMAGES[::4]),
                                         *((train.main, change) for change in DAMAGED_RUNS)])
def test_damaged_checkpoints_get_one_sentence_and_status_2(whole, models, tmp_path, monkeypatch,
                                                           capsys, main, change):
    path = tmp_path / "checkpoint.pt"
    torch.save(change(torch.load(whole / "checkpoint.pt", weights_only=True)), path)
    if change in DAMAGED_RUNS and change is not NO_MODEL:  # the networks are sound, and built once
        monkeypatch.setattr(train, "restore", lambda saved, key, path: models[key == "ema"])
    before = path.read_bytes()
    arguments = (["a 3", "--checkpoint", str(path), "--out", str(tmp_path / "a.gif")]
                 if main is sample.main else ["--resume", "--out", str(tmp_path)])
    assert main([*arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert path.read_bytes() == before and not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize("share", [0, .1, .5, .99])
def test_truncated_checkpoints_get_one_sentence_and_status_2(whole, tmp_path, capsys, share):
    content = (whole / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[:int(share * len(content))])
    assert train.main(["--resume", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert sample.main(["a 3", "--checkpoint", str(tmp_path / "checkpoint.pt"), "--out",
                        str(tmp_path / "a.gif")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_malicious_run_is_refused_unexecuted(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    torch.save({"config": {}, "ema": {}, "settings": Evil()}, tmp_path / "checkpoint.pt")
    assert train.main(["--resume", "--out", str(tmp_path), "--device", "cpu"]) == 2
    (tmp_path / "classifier.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes())
    with pytest.raises(data.UserError, match="damaged"):
        metrics.load_classifier(tmp_path / "classifier.pt")
    assert not (tmp_path / "owned").exists()


# ---- strange words -------------------------------------------------------------------------------

STRANGE = ["", " ", "\t\n", "\0", "\x1b[31mred", "a 3\x00moving\x07left", "😀", "😀 moving left",
           "数字が左に動く", "цифра 3 движется", "رقم ثلاثة", "אפס", "α β γ", "é" * 500, "a " * 10_000,
           "moving " * 10_000, "x" * 100_000, "$(rm -rf /)", "`id`", "; ls", "a 3 && reboot",
           "| cat", "> out.gif", "../../etc/passwd", "C:\\digits", "%s%n%x", "{0.__class__}",
           "{prompt}", "' OR 1=1 --", "<script>", "\\", "\"", "'", "-", "--", "a 3 --steps",
           "nan", "inf", "-1",
           "1e999", "ⅷ", "٣", "３ moving left", "a\u202e3 moving left", "\ufeffa 3", "\ud7ff",
           "a.3.left", "A 3 MOVING LEFT", "a-3-moving-left"]


def test_two_hundred_strange_prompts_make_a_clip_or_one_sentence(whole, tmp_path, monkeypatch,
                                                                 capsys):
    model, chance = sample.load(whole / "weights.pt", "cpu"), random.Random(0)
    monkeypatch.setattr(sample, "load", lambda *args: model)
    prompts = [*STRANGE, *("".join(chr(chance.randrange(1, 0xd800)) for _ in range(
        chance.randrange(1, 60))) for _ in range(200 - len(STRANGE)))]
    assert len(prompts) == 200
    made = 0
    for prompt in prompts:
        (tmp_path / "a.png").unlink(missing_ok=True)
        try:
            status = sample.main(["--steps", "1", "--frames", "16", "--out",
                                  str(tmp_path / "a.png"), "--", prompt])
        except SystemExit as stop:
            status = stop.code
        out, error = capsys.readouterr()
        assert (status == 0) == (tmp_path / "a.png").exists() and status in (0, 2), prompt
        assert "Traceback" not in error and len(error) < 2000
        assert all(c.isprintable() or c == "\n" for c in out + error), prompt
        assert (status == 2) == (error.count("error: ") == 1)
        made += status == 0
    assert 100 < made < 200
    assert [path.name for path in tmp_path.iterdir()] in ([], ["a.png"])
