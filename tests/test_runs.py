"""Facts of what a run promises: settings, stops, kills, numbers going wrong, several processes."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import train
from conftest import FEW, ROOT, rows, same, weights
from support import processes, run
from support.console import UserError
from unet3d import UNet3D, UNetConfig

pytestmark = pytest.mark.usefixtures("small")


def go_on(out, *flags):
    return train.main(["--resume", "--device", "cpu", "--out", str(out), *flags])


def test_training_writes_a_checkpoint_weights_and_a_log_without_nan(trained):
    last = [row[:3] for row in rows(trained)[1:]]
    assert last == [*(["vae", str(k), str(4 * k)] for k in (1, 2, 3)),
                    *(["decoder", str(k), str(4 * k)] for k in (1, 2)),
                    *(["stills", str(k), str(8 * k)] for k in (1, 2)),
                    *(["clips", str(k), str(2 * k)] for k in (1, 2, 3))]
    assert "nan" not in (trained / "log.csv").read_text()
    vae, clips = rows(trained)[1], rows(trained)[-1]
    assert vae[4:8] == [""] * 4                  # an autoencoder has no noise levels
    assert sum(cell != "" for cell in clips[4:8]) in (1, 2)         # two clips, one level each
    half = torch.load(trained / "weights.pt", weights_only=True)
    assert {v.dtype for v in half["ema"].values()} == {torch.float16} and "optimizer" not in half


CHANGES = [["--vae-steps", "2"], ["--image-steps", "1"], ["--steps", "2"], ["--batch-size", "1"],
           ["--vae-batch-size", "3"], ["--vae-optimizer", "adamw"], ["--decoder-steps", "1"],
           ["--lr", "0.01"], ["--seed", "5"], ["--captions", "full"], ["--schedule", "linear"],
           ["--stills-per-clip", "2"], ["--predict", "eps"], ["--predict", "x0"],
           ["--predict", "flow"], ["--preset", "base"], ["--amp", "bf16"], ["--amp", "fp16"]]


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_every_training_flag_changes_something(trained, tmp_path, monkeypatch, change):
    vae, _ = train.SIZES["tiny"]
    monkeypatch.setattr(run, "LOG_EVERY", 10)
    monkeypatch.setitem(train.SIZES, "base",
                        (vae, UNetConfig(widths=(24,), head_dim=8, emb_width=32)))
    assert train.main([*FEW, *change, "--out", str(tmp_path)]) == 0
    a, b = weights(trained), weights(tmp_path)
    assert any(a[k].shape != b[k].shape or not torch.equal(a[k], b[k]) for k in a)


def test_the_decoder_learns_on_alone_and_leaves_the_latents_as_they_were(trained, tmp_path):
    assert train.main([*FEW, "--decoder-steps", "0", "--out", str(tmp_path)]) == 0
    a, b = weights(trained, "ema"), weights(tmp_path, "ema")
    parts = {name: name.split(".")[1] for name in a if name.startswith("vae.")}
    changed = {part for name, part in parts.items() if not torch.equal(a[name], b[name])}
    assert changed == {"decoder"}       # so neither the encoder nor the latents' mean and std


def test_compile_compiles_the_unet_in_place(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda self, dynamic, mode=None: compiled.append(type(self)))
    assert train.main([*FEW, "--compile", "--out", str(tmp_path)]) == 0
    assert UNet3D in compiled and not any("_orig_mod" in k for k in weights(tmp_path))


# ---- going on ------------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [["--predict", "x0"], ["--schedule", "linear"],
                                    ["--captions", "full"], ["--preset", "base"],
                                    ["--vae-steps", "9"], ["--vae-optimizer", "adamw"],
                                    ["--decoder-steps", "0"], ["--steps", "2"]], ids=" ".join)
def test_resume_refuses_settings_that_make_another_run(trained, change, capsys):
    before = (trained / "checkpoint.pt").read_bytes()
    assert go_on(trained, *change) == 2
    assert "error: the " in capsys.readouterr().err
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_a_run_of_an_earlier_version_is_refused_in_words(trained, tmp_path, capsys):
    saved = run.read_file(trained / "checkpoint.pt")
    del saved["settings"]["vae_optimizer"]
    run.save(tmp_path / "checkpoint.pt", saved)
    assert go_on(tmp_path) == 2
    assert "another version of this program, which had no --vae-opt" in capsys.readouterr().err


def test_a_run_can_be_made_longer_and_says_what_is_new(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    assert go_on(tmp_path / "run", "--steps", "4", "--lr", "0.002") == 0
    error = capsys.readouterr().err
    assert "--clips-steps 4 (it was 3)" in error and "--lr 0.002 (it was 0.0003)" in error
    assert "--seed" not in error and rows(tmp_path / "run")[-1][:2] == ["clips", "4"]


def test_a_run_is_never_overwritten_nor_begun_anew_by_resume(trained, tmp_path, capsys):
    before = (trained / "checkpoint.pt").read_bytes()
    assert train.main([*FEW, "--out", str(trained)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (trained / "checkpoint.pt").read_bytes() == before
    shutil.copy(trained / "log.csv", tmp_path)
    assert go_on(tmp_path) == 2
    assert "no checkpoint.pt to go on from" in capsys.readouterr().err
    (tmp_path / "log.csv").write_text("my only copy of my notes")
    assert go_on(tmp_path) == train.main([*FEW, "--out", str(tmp_path)]) == 2
    assert (tmp_path / "log.csv").read_text() == "my only copy of my notes"


def test_two_runs_never_write_into_one_folder(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    saved = run.find_run(tmp_path / "run", resume=True)
    with run.Run(tmp_path / "run", {}, None, None, saved):
        assert go_on(tmp_path / "run", "--steps", "4") == 2
    assert "another run is writing" in capsys.readouterr().err
    assert go_on(tmp_path / "run", "--steps", "4") == 0


def test_a_folder_of_clips_trains_and_goes_on_where_it_was_moved(tmp_path, monkeypatch, capsys):
    """Clips in three containers, with two captions each; their words become the vocabulary."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = ["file_name,text"]
    for k, name in enumerate(("a.avi", "b.webm", "c.mp4")):
        frames = np.full((20, 64, 64, 3), 40 * k, np.uint8)
        codec = {"b.webm": "libvpx"}.get(name, "libx264")
        imageio.imwrite(folder / name, frames, plugin="FFMPEG", fps=10, codec=codec)
        rows += [f"{name},the {k}th clip", f"{name},clip number {k}"]
    (folder / "metadata.csv").write_text("\n".join(rows))
    few = [word for word in FEW if word not in ("--digits", "drawn")]
    out = tmp_path / "run"
    assert train.main([*few, "--data", str(folder), "--out", str(out)]) == 0
    assert "3 grey clips" in capsys.readouterr().err
    words = run.read_file(out / "checkpoint.pt")["config"]["vocabulary"]
    assert words == sorted("0 0th 1 1th 2 2th clip number the".split())
    folder.rename(tmp_path / "moved")
    assert go_on(out, "--steps", "4", "--data", str(tmp_path / "moved")) == 0
    (tmp_path / "moved" / "a.avi").unlink()
    assert go_on(out, "--steps", "5") == 0
    assert "this run goes on with" in capsys.readouterr().err
    shutil.copytree(tmp_path / "moved", tmp_path / "others")
    (tmp_path / "others" / "b.webm").unlink()
    assert go_on(out, "--steps", "6", "--data", str(tmp_path / "others")) == 2
    assert "cannot go on with" in capsys.readouterr().err


# ---- stopped -------------------------------------------------------------------------------------

def start(*arguments, launcher=()):
    """Run train.py's command in another process, shrunk, which prints a line at every step."""
    path = ROOT / "tests" / "conftest.py"
    code = (f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(path.parent)!r}]\n"
            "import pytest, conftest, train\nfrom support import run\n"
            "conftest.shrink(pytest.MonkeyPatch())\nlog = run.Run.log\n"
            "run.Run.log = lambda *rest: (log(*rest), print('step', flush=True))\n"
            "sys.exit(train.main(sys.argv[1:]))")
    return subprocess.Popen([sys.executable, *launcher, "-c", code, *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_nothing_is_lost(trained, tmp_path, kills):
    """kill -9, whatever the run is doing: every checkpoint loads, and the end is the same."""
    out, chance, seen = tmp_path / "killed", random.Random(kills), []
    while len(seen) < kills:
        process = start(*FEW, "--resume", "--out", str(out))
        for _ in range(1 + chance.randrange(5)):  # after 1 ... 5 of 10 steps and a moment more
            while process.stdout.readline() not in ("step\n", ""):
                pass
        time.sleep(chance.uniform(0, .2))
        process.kill()
        if process.wait() == 0:  # faster than the kill: the end is as it should be; once more
            same(trained, out)
            shutil.rmtree(out)
            continue
        saved = (out / "checkpoint.pt").exists()
        seen.append(run.read_file(out / "checkpoint.pt")["progress"] if saved else None)
    print(f"killed {kills} times, with this saved: {seen}")
    assert start(*FEW, "--resume", "--out", str(out)).wait() == 0
    assert len(set(seen) - {None}) > kills / 4
    same(trained, out)


@pytest.mark.parametrize("stage,number", [("vae", signal.SIGINT), ("decoder", signal.SIGTERM),
                                          ("stills", signal.SIGTERM), ("clips", signal.SIGINT)])
def test_asked_to_stop_it_saves_and_goes_on_exactly(trained, tmp_path, monkeypatch, capsys, stage,
                                                    number):
    real, before = train.step_loss, signal.getsignal(number)

    def stopping(now, *rest):
        if now == stage:
            os.kill(os.getpid(), number)
        return real(now, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "step_loss", stopping)
        assert train.main([*FEW, "--out", str(tmp_path)]) == 128 + number
    assert "--resume" in capsys.readouterr().out and signal.getsignal(number) is before
    assert run.read_file(tmp_path / "checkpoint.pt")["progress"] == (stage, 1)
    assert go_on(tmp_path) == 0
    same(trained, tmp_path)


def test_a_full_disk_is_said_and_the_last_checkpoint_is_intact(trained, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    before = (out / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        status = go_on(out, "--steps", "5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert status == 2 and "the disk is full" in error and "Traceback" not in error
    assert (out / "checkpoint.pt").read_bytes() == before and not list(out.glob("*.part"))


# ---- numbers and memory --------------------------------------------------------------------------

@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_going_wrong_names_stage_step_and_level_and_is_not_saved(tmp_path, monkeypatch,
                                                                          capsys, what):
    real, levels = train.diffusion_loss, []

    def poisoned(*arguments):
        losses, t = real(*arguments)
        levels.append(t)
        if len(levels) < 4:  # stills 1 and 2, clips 1
            return losses, t
        wrong = torch.nan if what == "loss" else (losses - losses.detach() + 0.).sqrt()  # slope ∞
        return torch.where(torch.arange(2) == 1, losses + wrong, losses), t

    monkeypatch.setattr(train, "diffusion_loss", poisoned)
    assert train.main([*FEW, "--out", str(tmp_path)]) == 2
    error, = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert f"the {what} is not finite at step 2 of stage clips, noise level" in error
    assert what == "gradient" or f"noise level {int(levels[3][1])}:" in error
    good = run.read_file(tmp_path / "checkpoint.pt")
    assert good["progress"] == ("clips", 1)
    assert all(v.isfinite().all() for v in good["model"].values())


def test_steps_that_fp16_skips_are_counted_until_nearly_all_are(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    saved = run.find_run(tmp_path / "run", resume=True)
    with run.Run(tmp_path / "run", {}, None, None, saved) as one:
        one.scaler, one.mark = torch.amp.GradScaler("cpu", enabled=True), time.perf_counter()
        for norm in (1., float("inf"), float("nan"), 2.):
            one.log(torch.ones(2), torch.tensor([0, 999]), torch.tensor(norm), .1)
        assert "2 skipped" in one.row("clips", 4)
        one.scaler = torch.amp.GradScaler("cpu", init_scale=.5)
        one.log(torch.ones(2), torch.tensor([0, 999]), torch.tensor(float("inf")), .1)
        with pytest.raises(UserError, match="every step .* skipped"):
            one.row("clips", 5)


def test_out_of_memory_says_to_lower_the_batch(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB")

    monkeypatch.setattr(train, "step_loss", full)
    assert train.main([*FEW, "--out", str(tmp_path)]) == 2
    assert "lower --batch-size" in capsys.readouterr().err


# ---- several processes ---------------------------------------------------------------------------

def test_two_processes_follow_one_with_the_joined_batch(trained, tmp_path):
    """And only the first writes."""
    driver = tmp_path / "driver.py"
    driver.write_text(f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
                      "import pytest, conftest, train\nconftest.shrink(pytest.MonkeyPatch())\n"
                      "sys.exit(train.main(sys.argv[1:]))")
    out = tmp_path / "two"
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc-per-node", "2", str(driver), *FEW, "--out", str(out)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(said) for said in ("done: ", "vae: PSNR", "decoder: PSNR")] == [1] * 3
    a, b = weights(trained, "ema"), weights(out, "ema")
    off = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
    # on the whole 6e-10, and 4e-6 if gradients were not averaged; but AdamW steps by the sign of a
    # gradient that is nearly 0, which rounding may turn: at most 2.4e-4 here, twice the vae's rates
    assert off.mean() < 1e-7 and off.max() < 2.5e-4
    for x, y in zip(rows(trained)[1:], rows(out)[1:], strict=True):
        assert x[:3] == y[:3] and float(x[3]) == pytest.approx(float(y[3]), rel=1e-2)


def test_each_process_draws_its_rows_of_the_same_numbers(monkeypatch):
    generator = lambda: torch.Generator().manual_seed(7)
    for draw in (torch.rand, torch.randn):
        whole, halves = processes.my_rows(draw, 6, 3, g=generator()), []
        with monkeypatch.context() as patch:
            patch.setattr(processes, "WORLD", 2)
            for rank in (0, 1):
                patch.setattr(processes, "RANK", rank)
                halves.append(processes.my_rows(draw, 3, 3, g=generator()))
        assert torch.equal(whole, torch.cat(halves))


@pytest.mark.parametrize("flag", ["--batch-size", "--vae-batch-size"])
def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch, flag):
    monkeypatch.setattr(train, "WORLD", 2)
    with pytest.raises(UserError, match=f"{flag} 3 .* multiple"):
        train.parse([*FEW, flag, "3", "--out", str(tmp_path)])
