"""Facts of the commands: what a user types, what comes back, and what is refused."""

import ast
import csv
import re
import shlex
import shutil
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import data
import metrics
import sample
import train
import unet3d
import vae
from support import video

ROOT = Path(__file__).parent.parent
FEW = ["--digits", "drawn", "--device", "cpu", "--vae-steps", "3", "--image-steps", "2", "--steps",
       "3", "--batch-size", "2"]


def shrink(monkeypatch):
    """Small networks under the tiny preset's name, and small strips: minutes become seconds."""
    monkeypatch.setitem(train.PRESETS, "tiny", train.PRESETS["tiny"] | dict(
        vae=vae.VAEConfig(widths=(8, 16, 16), blocks=1),
        unet=unet3d.UNetConfig(widths=(16,), head_dim=8, emb_width=32)))
    monkeypatch.setattr(train, "PROMPTS", ("a 3 moving left",))
    monkeypatch.setattr(train, "MEASURED", 1)
    monkeypatch.setitem(sample.STEPS, "dpm", 2)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of a few steps of everything."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        assert train.main([*FEW, "--out", str(out)]) == 0
    return out


def rows(out):
    """log.csv without its time columns."""
    with open(out / "log.csv", newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def weights(out, key="model"):
    return torch.load(out / "checkpoint.pt", weights_only=True)[key]


def test_training_writes_checkpoint_weights_log_and_strips(trained):
    assert [row[:2] for row in rows(trained)[1:]] == [["vae", "3"], ["stills", "2"], ["clips", "3"]]
    names = {path.name for path in (trained / "samples").iterdir()}
    assert {"vae_000003_ema.png", "stills_000002_raw.png", "clips_000003_ema.png"} <= names
    assert not list(trained.glob("*.part"))
    half = torch.load(trained / "weights.pt", weights_only=True)
    assert {v.dtype for v in half["ema"].values()} == {torch.float16} and "optimizer" not in half


def test_resume_is_bit_exact(trained, tmp_path, monkeypatch):
    """Stop in the middle of the clips (other stages: test_promises.py), resume, and weights,
    averages and log are the same."""
    class Stop(Exception):
        pass

    real = train.save

    def save(path, content):
        real(path, content)
        if path.name == "checkpoint.pt" and content["progress"] == (2, 1):
            raise Stop

    monkeypatch.setattr(train, "LOG_EVERY", 1)
    monkeypatch.setattr(train, "write_samples", lambda *args: None)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main([*FEW, "--out", str(whole)]) == 0
    monkeypatch.setattr(train, "save", save)
    with pytest.raises(Stop):
        train.main([*FEW, "--out", str(broken)])
    monkeypatch.setattr(train, "save", real)
    assert train.main(["--resume", "--out", str(broken), "--device", "cpu"]) == 0
    for key in ("model", "ema"):
        a, b = weights(whole, key), weights(broken, key)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert rows(whole) == rows(broken)


@pytest.mark.parametrize("change", [["--predict", "x0"], ["--schedule", "linear"],
                                    ["--captions", "full"], ["--preset", "base"],
                                    ["--steps", "2"]], ids=" ".join)
def test_resume_refuses_settings_that_make_another_run(trained, change, capsys):
    before = (trained / "checkpoint.pt").read_bytes()
    assert train.main(["--resume", "--out", str(trained), "--device", "cpu", *change]) == 2
    assert capsys.readouterr().err.startswith("error: the ")
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_training_refuses_to_overwrite_without_resume(trained, capsys):
    before = (trained / "checkpoint.pt").read_bytes()
    assert train.main([*FEW, "--out", str(trained)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (trained / "checkpoint.pt").read_bytes() == before


CHANGES = [["--vae-steps", "2"], ["--image-steps", "1"], ["--steps", "2"], ["--batch-size", "1"],
           ["--lr", "0.01"], ["--seed", "5"], ["--captions", "full"], ["--schedule", "linear"],
           ["--stills-per-clip", "2"], ["--predict", "eps"], ["--predict", "x0"],
           ["--preset", "base"], ["--amp", "bf16"]]


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_every_training_flag_changes_something(trained, tmp_path, monkeypatch, change):
    monkeypatch.setitem(train.PRESETS, "base", train.PRESETS["tiny"] | dict(
        unet=unet3d.UNetConfig(widths=(24,), head_dim=8, emb_width=32)))
    monkeypatch.setattr(train, "write_samples", lambda *args: None)
    assert train.main([*FEW, *change, "--out", str(tmp_path)]) == 0
    a, b = weights(trained), weights(tmp_path)
    assert any(a[k].shape != b[k].shape or not torch.equal(a[k], b[k]) for k in a)


def test_compile_compiles_the_unet_in_place(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self)))
    assert train.main([*FEW, "--compile", "--out", str(tmp_path)]) == 0
    assert compiled == [unet3d.UNet3D] and not any("_orig_mod" in k for k in weights(tmp_path))


def make(tmp_path, *arguments, name="a.gif"):
    assert sample.main([*arguments, "--out", str(tmp_path / name), "--device", "cpu"]) == 0
    return (tmp_path / name).read_bytes()


def test_same_seed_same_video_and_every_sampling_flag_changes_something(trained, tmp_path):
    plain = ["a 3 moving left", "--checkpoint", str(trained / "checkpoint.pt"), "--steps", "2"]
    first = make(tmp_path, *plain)
    assert make(tmp_path, *plain) == first
    for change in (["--seed", "1"], ["--steps", "3"], ["--sampler", "ddim"], ["--sampler", "ddpm"],
                   ["--guidance", "0"], ["--guidance", "7"], ["--frames", "16"],
                   ["--frames", "64"], ["--fps", "5"], ["--num", "2"], ["--stride", "2"],
                   ["--stride", "1"], ["--extend", "1"], ["--known-by", "replacement"],
                   ["--known-by", "reconstruction"]):
        assert make(tmp_path, *plain, *change) != first, change
    assert make(tmp_path, "a 5 moving up", *plain[1:]) != first
    assert imageio.imread(tmp_path / "a.gif", index=None).shape[0] == 32


def test_a_clip_does_not_depend_on_its_batch(trained, monkeypatch):
    model = sample.load(trained / "weights.pt", "cpu")
    prompts = ["a 3 moving left", "two digits", "a 5 moving up"]
    together = sample.generate(model, prompts, steps=2, sampler="ddpm", seed=3)
    monkeypatch.setattr(sample, "CHUNK", 1)
    apart = sample.generate(model, prompts, steps=2, sampler="ddpm", seed=3)
    assert together.shape == (3, 1, 32, 64, 64) and together.abs().max() <= 1
    assert torch.allclose(together, apart, atol=1e-3)


def test_fill_keeps_known_frames_and_join_undoes_it():
    z = torch.randn(2, 4, 17, 8, 8)
    for n, windows in ((17, 2), (33, 4), (30, 4)):  # 30 = 17 + 13 key frames: an extended clip
        z = z[:, :, :n]
        known, mask = sample.fill(z)
        assert known.shape == (2 * windows, 4, 17, 8, 8) and mask[:, ::2].all()
        assert not mask[:, 1::2].any() and not known[:, :, 1::2].any()
        longer = sample.join(known, 2, n)
        assert longer.shape[2] == 2 * n - 1 and torch.equal(longer[:, :, ::2], z)
        z = longer


def test_the_network_sees_known_frames_noised_as_in_training(trained):
    """At every level of a fill: DDPM Eq. 4 with one and the same noise from step to step."""
    model, seen = sample.load(trained / "weights.pt", "cpu"), []
    unet = model.unet.forward

    def spy(z_t, t, *rest, known=None, known_mask=None, **options):
        if known is not None:
            a, s = model.diffusion._scales(t, z_t)
            seen.append(((z_t - a * known) / s)[:, :, ::2])
        return unet(z_t, t, *rest, known=known, known_mask=known_mask, **options)

    model.unet.forward = spy
    sample.generate(model, ["a 3 moving left"], steps=30)
    assert len(seen) == 3 and abs(seen[0].std() - 1) < .1
    assert all(torch.allclose(seen[0], eps, atol=1e-2) for eps in seen)


def test_known_frames_come_back_unchanged(trained):
    """The 32-frame clip shows the 16-frame clip's frames, at twice the rate."""
    model = sample.load(trained / "weights.pt", "cpu")
    key = sample.generate(model, ["a 3 moving left"], num_frames=16, steps=3)
    for frames in (32, 64):
        full = sample.generate(model, ["a 3 moving left"], num_frames=frames, steps=3)
        assert torch.allclose(full[:, :, ::frames // 16], key, atol=1e-4)


def test_guidance_one_is_one_conditional_pass_and_zero_ignores_the_prompt(trained):
    model = sample.load(trained / "weights.pt", "cpu")
    make = lambda prompt, scale: sample.generate(model, [prompt], num_frames=16, steps=2,
                                                 guidance_scale=scale)
    assert torch.equal(make("a 3 moving left", 0.), make("two digits", 0.))
    assert not torch.equal(make("a 3 moving left", 1.), make("two digits", 1.))
    assert torch.allclose(make("two digits", 1.), make("two digits", 1 + 1e-6), atol=1e-3)


def test_guidance_pushes_at_high_noise_only(trained):
    model = sample.load(trained / "weights.pt", "cpu")
    tokens, x = model.tokenizer(["a 3 moving left"]), torch.randn(1, 4, 17, 8, 8)
    with torch.no_grad():
        for t, pushed in ((sample.GUIDED_FROM - 1, False), (sample.GUIDED_FROM, True)):
            t = torch.tensor([t])
            plain, drop, guided = (sample.denoiser(model, tokens, scale)(x, t)
                                   for scale in (1, 0, 3))
            want = 3 * plain - 2 * drop if pushed else plain
            assert torch.allclose(guided, want, atol=1e-5)


# ---- one network, more tasks ---------------------------------------------------------------------

def test_a_picture_is_the_first_frame(trained, tmp_path, capsys):
    """Any size and colour: the clip begins with what the autoencoder makes of it."""
    model = sample.load(trained / "weights.pt", "cpu")
    picture = np.zeros((90, 45, 3), np.uint8)
    picture[30:60, 15:30] = 255
    imageio.imwrite(tmp_path / "in.png", picture)
    x, note = sample.read_picture(tmp_path / "in.png", model)
    assert x.shape == (1, 1, 64, 64) and "45x90" in note and x.min() == -1
    assert (x[..., :16] == -1).all() and (x[..., 48:] == -1).all()  # black beside a tall picture
    assert x[0, 0, 32, 32] == 1
    clip = sample.generate(model, ["a 3 moving left"], steps=2, first=x[None])
    with torch.no_grad():
        rebuilt = model.vae.decode(model.vae.encode(x[None])).clamp(-1, 1)
    assert torch.allclose(clip[:, :, :1], rebuilt, atol=1e-4)
    make(tmp_path, "a 3", "--checkpoint", str(trained / "weights.pt"), "--image",
         str(tmp_path / "in.png"))
    assert "note: " in capsys.readouterr().err


def test_what_is_transparent_in_a_picture_is_black(trained, tmp_path):
    model = sample.load(trained / "weights.pt", "cpu")
    picture = np.full((64, 64, 4), 255, np.uint8)
    picture[..., 3] = 0
    picture[20:40, 30:34, 3] = 255
    imageio.imwrite(tmp_path / "in.png", picture)
    x, _ = sample.read_picture(tmp_path / "in.png", model)
    assert ((x[0, 0] > 0).numpy() == (picture[..., 3] > 0)).all()


def test_a_chain_begins_as_its_first_prompt_and_goes_on_from_its_last_frames(trained):
    model = sample.load(trained / "weights.pt", "cpu")
    one = sample.generate(model, ["a 3 moving left"], num_frames=16, steps=2)
    seen = []
    begin = sample.begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "begin", lambda z: seen.append(z) or begin(z))
        two = sample.generate(model, ["a 3 moving left"], num_frames=16, steps=2,
                              then=[["a 3 moving up"], ["a 3 moving up"]])
    assert two.shape[2] == 16 + 2 * 13 and torch.equal(two[:, :, :16], one)
    with torch.no_grad():
        carried = model.vae.decode(seen[0]).clamp(-1, 1)
    assert seen[0].shape[2] == 4 and torch.allclose(two[:, :, 13:17], carried, atol=1e-4)


def test_key_frames_of_the_user_are_only_filled_between(trained):
    model = sample.load(trained / "weights.pt", "cpu")
    keys = data.captioned_clips(1, num_frames=17, digits=data.load_digits("train", "drawn"))[0]
    x = sample.generate(model, ["a 3 moving left"], steps=2, first=keys)
    with torch.no_grad():
        rebuilt = model.vae.decode(model.vae.encode(keys)).clamp(-1, 1)
    assert torch.allclose(x[:, :, ::2], rebuilt[:, :, :16], atol=1e-4)


def test_super_resolution_trains_on_top_and_treats_equal_frames_alike(trained, tmp_path):
    """The same noise for every frame: equal frames stay equal, and twice the size."""
    shutil.copy(trained / "checkpoint.pt", tmp_path)
    plain = ["a 3", "--checkpoint", str(tmp_path / "checkpoint.pt"), "--frames", "16"]
    assert sample.main([*plain, "--upscale", "2", "--out", str(tmp_path / "no.gif")]) == 2
    assert train.main(["--resume", "--out", str(tmp_path), "--upscale-steps", "2", "--device",
                       "cpu"]) == 0
    model = sample.load(tmp_path / "checkpoint.pt", "cpu")
    assert sum(p.numel() for p in model.upscaler.parameters()) <= 6e5
    x = (2 * torch.rand(1, 1, 1, 64, 64) - 1).expand(1, 1, 3, 64, 64)
    large = sample.upscale(model, x, steps=2)
    assert large.shape == (1, 1, 3, 128, 128) and torch.allclose(large[:, :, 1:], large[:, :, :2])
    make(tmp_path, *plain, "--upscale", "2")
    assert imageio.imread(tmp_path / "a.gif", index=None).shape[1:3] == (128, 128)


def test_best_of_prefers_a_clip_under_its_own_prompt():
    model = sample.load(device="cpu")
    prompts = ["a 1 moving left", "a 0 moving up"]
    x = sample.generate(model, prompts, num_frames=16, steps=8)
    own = sample.preference(model, prompts, x, 4, draws=4)
    other = sample.preference(model, prompts[::-1], x, 4, draws=4)
    assert (own > other).all()


def broken_files(folder):
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("hello")
    imageio.imwrite(folder / "a.png", np.zeros((64, 64), np.uint8))
    torch.save({"weights": 1}, folder / "foreign.pt")
    torch.save([1, 2], folder / "list.pt")
    return folder


BAD_SAMPLES = [
    [], [""], ["  "], ["!?"], ["a 3", "--seed", str(2**64)],
    ["a 3", "--frames", "20"], ["a 3", "--steps", "0"], ["a 3", "--steps", "-1"],
    ["a 3", "--num", "0"], ["a 3", "--guidance", "-1"], ["a 3", "--fps", "0"],
    ["a 3", "--seed", "-1"], ["a 3", "--sampler", "euler"], ["a 3", "--device", "tpu"],
    ["a 3", "--checkpoint", "nowhere.pt"], ["a 3", "--out", "a.txt"], ["a 3", "--out", "no/a.gif"],
    ["a 3", "--guidance", "nan"], ["a 3", "--steps", "many"],
    ["a 3", "--chain"], ["a 3", "a 4", "--chain", "--extend", "1"], ["a 3", "--stride", "3"],
    ["a 3", "--stride", "2", "--frames", "32"], ["a 3", "--stride", "2", "--extend", "1"],
    ["a 3", "--best-of", "2", "--num", "2"], ["a 3", "--best-of", "0"], ["a 3", "--upscale", "3"],
    ["a 3", "--image", "nowhere.png"], ["a 3", "--image", "text.pt"],
    ["a 3", "--image", "a.png", "--stride", "1"], ["a 3", "--extend", "-1"],
    ["a 3", "--known-by", "magic"],
    *(["a 3", "--checkpoint", f"{name}.pt"] for name in ("empty", "text", "foreign", "list"))]
BAD_TRAININGS = [
    ["--preset", "huge"], ["--steps", "0"], ["--batch-size", "-3"], ["--lr", "0"], ["--lr", "nan"],
    ["--data", "nothing"], ["--data-root", "nowhere"], ["--schedule", "odd"], ["--amp", "int8"],
    ["--out", "text.pt"], ["--digits", "roman"], ["--captions", "five"]]

BAD_METRICS = [["--num", "1"], ["--steps", "0"], ["--guidance", "-1"], ["--device", "tpu"],
               ["--digits", "drawn", "--checkpoint", "text.pt"], ["--data-root", "nowhere"]]


@pytest.mark.parametrize("main,arguments", [(sample.main, a) for a in BAD_SAMPLES]
                         + [(train.main, a) for a in BAD_TRAININGS]
                         + [(metrics.main, a) for a in BAD_METRICS], ids=str)
def test_bad_input_gets_one_sentence_and_status_2(main, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(broken_files(tmp_path))
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's own way
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and "Traceback" not in error
    assert len([line for line in error.splitlines() if "error: " in line]) == 1
    assert not (tmp_path / "runs").exists()


def test_a_malicious_checkpoint_is_refused_unexecuted(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    torch.save({"config": Evil(), "ema": {}}, tmp_path / "evil.pt")
    assert sample.main(["a 3", "--checkpoint", str(tmp_path / "evil.pt")]) == 2
    assert not (tmp_path / "owned").exists()


def test_unknown_words_are_named_and_the_rest_is_used(trained, tmp_path, capsys):
    make(tmp_path, "a purple 3 moving left", "--checkpoint", str(trained / "weights.pt"))
    error = capsys.readouterr().err
    assert "purple" in error and "moving" in error


# ---- the repository ------------------------------------------------------------------------------

def test_requirements_match_imports():
    files = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    stdlib = sys.stdlib_module_names | {path.stem for path in files} | {"support"}
    imported = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    listed = {re.match(r"\w+", line)[0] for line in (ROOT / "requirements.txt").read_text().split()}
    assert imported - stdlib == listed


def test_readme_names_every_flag_and_its_commands_parse(capsys):
    readme = (ROOT / "README.md").read_text()
    for show in (train.parse, sample.parse, metrics.main, data.main):
        with pytest.raises(SystemExit):
            show(["--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert len(flags) > 20 and not {flag for flag in flags if flag not in readme}
    commands = re.findall(r"^python (train|sample)\.py (.*?)(?:\s+#.*)?$", readme, re.M)
    assert len(commands) >= 4
    for script, arguments in commands:
        arguments = shlex.split(arguments)
        {"train": train.parse, "sample": lambda a: sample.parse([*a, "--out", "a.gif"])}[script](
            arguments)


def test_a_clip_is_written_whole_or_said_not_to_be(tmp_path, capsys):
    for name in ("a.gif", "a.mp4", "a.png"):
        path = tmp_path / name
        path.symlink_to("/dev/full")
        assert data.exit_status(lambda: video.write_clip(torch.zeros(1, 4, 64, 64), path)) == 2
        error = capsys.readouterr().err
        assert error.count("error: ") == 1 and "the disk is full" in error and "Trace" not in error


def test_shipped_weights_load_and_obey():
    """The four directions, one clip each, read from the ink's centre of mass alone."""
    model = sample.load(device="cpu")
    names = ("left", "right", "up", "down")
    x = sample.generate(model, [f"a 3 moving {d}" for d in names], num_frames=16, steps=20)
    ink = (x[:, 0] > 0).float()
    pixel = torch.arange(64.)
    y = (ink.sum(-1) @ pixel) / ink.sum((-1, -2))
    x = (ink.sum(-2) @ pixel) / ink.sum((-1, -2))
    moved = torch.stack([y[:, -1] - y[:, 0], x[:, -1] - x[:, 0]], -1)
    for k, d in enumerate(names):
        dy, dx = data.DIRECTIONS[d]
        assert moved[k, 0] * dy + moved[k, 1] * dx > 5, (d, moved[k])
        assert (moved[k, 1] if dy else moved[k, 0]).abs() < 3
    size = sum(path.stat().st_size for path in (ROOT / "checkpoints").iterdir())
    assert size <= 16 * 2**20
