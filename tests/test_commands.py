"""Facts of sampling and of the commands: what a user types, what comes back, what is refused."""

import ast
import os
import random
import re
import shlex
import subprocess
import sys
import zipfile

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import data
import metrics
import sample
import train
from conftest import ROOT
from diffusion import Diffusion
from model import TextToVideo
from support import run, video
from support.console import UserError
from text_encoder import Tokenizer

P = "a 3 moving left"
KEYS = dict(num_frames=16, steps=2)


@pytest.fixture(scope="module")
def model(trained):
    return sample.load(trained / "weights.pt", "cpu")


def make(tmp_path, *arguments, name="a.gif"):
    assert sample.main([*arguments, "--out", str(tmp_path / name), "--device", "cpu"]) == 0
    return (tmp_path / name).read_bytes()


def test_same_seed_same_video_and_every_sampling_flag_changes_something(trained, tmp_path, capsys):
    # 3 steps, because DPM-Solver++ and DDIM are one in the first and the last
    plain = [P, "--checkpoint", str(trained / "checkpoint.pt"), "--steps", "3", "--frames", "16"]
    make(tmp_path, *plain[:-2])
    assert imageio.imread(tmp_path / "a.gif", index=None).shape[0] == 32
    first = make(tmp_path, *plain)
    assert make(tmp_path, *plain) == first
    for change in (["--seed", "1"], ["--steps", "2"], ["--sampler", "ddim"], ["--sampler", "ddpm"],
                   ["--sampler", "dpm"],
                   ["--guidance", "0"], ["--guidance", "7"], ["--frames", "32"],
                   ["--frames", "64"], ["--fps", "9"], ["--num", "2"], ["--stride", "2"],
                   ["--stride", "1"], ["--extend", "1"], ["--scale", "2"]):
        assert make(tmp_path, *plain, *change) != first, change
    capsys.readouterr()
    make(tmp_path, *plain, "--best-of", "2")
    assert capsys.readouterr().out.startswith("kept [")
    assert make(tmp_path, "a 5 moving up", *plain[1:]) != first


def test_clips_are_256_pixels_wide_and_strips_1_to_1_unless_scale_says_otherwise(trained, tmp_path):
    plain = [P, "--checkpoint", str(trained / "weights.pt"), "--steps", "1", "--frames", "16"]
    for name, scale, shape in (("a.gif", [], (16, 256, 256)), ("a.mp4", [], (16, 256, 256)),
                               ("a.gif", ["--scale", "1"], (16, 64, 64)),
                               ("a.png", [], (64, 16 * 66 - 2)),
                               ("a.png", ["--scale", "2"], (128, 16 * 130 - 2))):
        make(tmp_path, *plain, *scale, name=name)
        assert imageio.imread(tmp_path / name, index=None).shape[:3] == shape, name


def test_a_clip_does_not_depend_on_its_batch(model, monkeypatch):
    prompts = [P, "a 9", "a 5 moving up"]
    together = sample.generate(model, prompts, steps=2, sampler="ddpm", seed=3)
    monkeypatch.setattr(sample, "WINDOWS_AT_ONCE", 1)
    apart = sample.generate(model, prompts, steps=2, sampler="ddpm", seed=3)
    assert together.shape == (3, 1, 32, 64, 64) and together.abs().max() <= 1
    assert torch.allclose(together, apart, atol=1e-3)


def test_fills_keep_known_frames_whatever_their_number(model):
    """And those between are the network's."""
    z = torch.randn(2, 4, 33, 8, 8)
    told = model.tokenizer([P, P])[:, None]                                          # b 1 n
    for n in (17, 33, 30):  # 30 = 17 + 13 key frames: an extended clip
        noise = sample.Noise(map(torch.Generator().manual_seed, range(2)))
        longer = sample.fill(model, z[:, :, :n], told.expand(-1, n, -1), noise, "dpm", 1., 2)
        assert longer.shape[2] == 2 * n - 1 and torch.equal(longer[:, :, ::2], z[:, :, :n])
        assert longer[:, :, 1::2].abs().amin((1, 3, 4)).max() > 0


def test_a_fill_hears_the_caption_of_its_middle_frame(monkeypatch):
    heard, told = [], torch.arange(30)[None, :, None].expand(2, -1, 1)               # b f n
    monkeypatch.setattr(sample, "sample", lambda model, tokens, *rest, **named: (
        heard.append(tokens[:, 0].tolist()) or torch.zeros(len(tokens), 4, 17, 8, 8)))
    sample.fill(None, torch.zeros(2, 4, 30, 8, 8), told, None, "dpm", 1., 2)
    assert heard == [[4, 12, 20, 25] * 2]      # the last window begins earlier, to end with z


def test_the_network_sees_known_frames_noised_as_in_training(model, monkeypatch):
    """At every level of a fill: DDPM Eq. 4 with one and the same noise from step to step."""
    unet, seen = model.unet.forward, []

    def spy(z_t, t, context, mask, stride, *known):
        if known:
            a, s = model.diffusion.scales(t, z_t)
            seen.append(((z_t - a * known[0]) / s)[:, :, ::2])
        return unet(z_t, t, context, mask, stride, *known)

    monkeypatch.setattr(model.unet, "forward", spy)
    sample.generate(model, [P], steps=4)
    assert len(seen) == sample.FILL_STEPS and abs(seen[0].std() - 1) < .1
    assert all(torch.allclose(seen[0], eps, atol=1e-2) for eps in seen)


def test_known_frames_come_back_unchanged(model):
    """The 32-frame clip shows the 16-frame clip's frames, at twice the rate."""
    key = sample.generate(model, [P], num_frames=16, steps=3)
    for frames in (32, 64):
        full = sample.generate(model, [P], num_frames=frames, steps=3)
        assert torch.allclose(full[:, :, ::frames // 16], key, atol=1e-4)


def test_key_frames_take_half_of_their_steps_where_all_but_the_looks_is_settled(model, monkeypatch):
    """Above t = 850 of the cosine schedule. That is what samplers get, but not those of fills."""
    for steps in (1, 2, 3, 20, 40, 250, 1000):
        levels = sample.key_levels(Diffusion("cosine"), steps)
        assert levels[0] == 999 and levels == sorted(set(levels), reverse=True)
        assert len(levels) == steps and (steps == 1 or levels[-1] >= 0)
        assert sum(t > 850 for t in levels) == min((steps + 1) // 2, 149)
    asked, real = [], sample.SAMPLERS["ddim"]
    monkeypatch.setitem(sample.SAMPLERS, "ddim", lambda diffusion, network, x, steps, noise: (
        asked.append(steps) or real(diffusion, network, x, steps, noise=noise)))
    sample.generate(model, [P], steps=4, sampler="ddim")
    assert asked == [sample.key_levels(model.diffusion, 4), sample.FILL_STEPS]


def test_a_digit_without_a_name_gets_the_one_that_is_drawn_unless_as_told(model, monkeypatch):
    words, plain = [*model.tokenizer.words[:-1], "digit"], ["a digit moving left"]
    monkeypatch.setattr(model, "tokenizer", Tokenizer(words))
    named = data.draw_unsaid(plain, words, 0, 0)
    make = lambda prompts, **how: sample.generate(model, prompts, **KEYS, **how)
    assert torch.equal(make(plain), make(named))
    assert not torch.equal(make(plain), make(plain, as_told=True))
    assert torch.equal(make(named), make(named, as_told=True))


def test_guidance_one_is_one_conditional_pass_and_zero_ignores_the_prompt(model):
    make = lambda prompt, scale: sample.generate(model, [prompt], guidance_scale=scale, **KEYS)
    assert torch.equal(make(P, 0.), make("a 9", 0.))
    assert not torch.equal(make(P, 1.), make("a 9", 1.))
    assert torch.allclose(make("a 9", 1.), make("a 9", 1 + 1e-6), atol=1e-3)


def test_guidance_pushes_at_high_noise_only(model):
    tokens, x = model.tokenizer([P]), torch.randn(1, 4, 17, 8, 8)
    with torch.no_grad():
        for t, pushed in ((599, False), (600, True)):
            t = torch.tensor([t])
            plain, drop, guided = (sample.denoiser(model, tokens, scale)(x, t)
                                   for scale in (1, 0, 3))
            assert torch.allclose(guided, 3 * plain - 2 * drop if pushed else plain, atol=1e-5)


def test_a_guided_prediction_is_one_pass_of_twice_the_batch(model, monkeypatch):
    """Of either half its own captions, known frames and noise level."""
    unet, rows = model.unet.forward, []
    monkeypatch.setattr(model.unet, "forward",
                        lambda x, *rest: rows.append(len(x)) or unet(x, *rest))
    tokens, (x, known) = model.tokenizer([P, "a 9"]), torch.randn(2, 2, 4, 17, 8, 8)
    t, shown = torch.tensor([700, 900]), (2, known, torch.arange(17).expand(2, 17) % 2 == 0)
    with torch.no_grad():
        guided = sample.denoiser(model, tokens, 3, *shown)(x, t)
        plain, drop = (model.unet(x, t, *model.text_encoder(said), *shown)
                       for said in (tokens, torch.zeros_like(tokens)))
    assert rows == [4, 2, 2] and torch.allclose(guided, 3 * plain - 2 * drop, atol=1e-4)


# ---- one network, more tasks ---------------------------------------------------------------------

def test_a_picture_is_the_first_frame(model, trained, tmp_path, capsys):
    """Any size: the clip begins with what the autoencoder makes of it."""
    picture = np.zeros((90, 45, 3), np.uint8)
    picture[30:60, 15:30] = 255
    imageio.imwrite(tmp_path / "in.png", picture)
    x, _ = video.read_picture(tmp_path / "in.png", 64, 1)
    clip = sample.generate(model, [P], steps=2, first=x[None])
    with torch.no_grad():
        rebuilt = model.vae.decode(model.vae.encode(x[None])).clamp(-1, 1)
    assert torch.allclose(clip[:, :, :1], rebuilt, atol=1e-4)
    make(tmp_path, "a 3", "--checkpoint", str(trained / "weights.pt"), "--image",
         str(tmp_path / "in.png"))
    assert "note: " in capsys.readouterr().err


def test_a_chain_begins_as_its_first_prompt_and_goes_on_from_its_last_frames(model, monkeypatch):
    one, seen, begin_with = sample.generate(model, [P], **KEYS), [], sample.begin_with
    monkeypatch.setattr(sample, "begin_with",
                        lambda z, *step: seen.append(z) or begin_with(z, *step))
    two = sample.generate(model, [P], then=[["a 3 moving up"], ["a 3 moving up"]], **KEYS)
    assert two.shape[2] == 16 + 2 * 13 and torch.equal(two[:, :, :16], one)
    with torch.no_grad():
        carried = model.vae.decode(seen[0]).clamp(-1, 1)
    assert seen[0].shape[2] == 4 and torch.allclose(two[:, :, 13:17], carried, atol=1e-4)


# ---- files that are not what they should be ------------------------------------------------------

def flipped(content, bit):
    content = bytearray(content)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def test_every_flipped_bit_of_a_checkpoint_is_refused(trained, tmp_path):
    """Wherever it falls: weights, names, the archive's own fields."""
    content, chance = (trained / "weights.pt").read_bytes(), random.Random(0)
    for bit in [*(chance.randrange(8 * len(content)) for _ in range(60)),
                *range(8 * len(content) - 8 * 90, 8 * len(content), 37)]:
        (tmp_path / "a.pt").write_bytes(flipped(content, bit))
        with pytest.raises(UserError):
            run.read_file(tmp_path / "a.pt")


def test_shipped_weights_without_a_digest_are_checked_by_their_entries(tmp_path):
    content, chance = (ROOT / "checkpoints" / "classifier.pt").read_bytes(), random.Random(0)
    entry = content.index(b"data/0") + 200
    for _ in range(20):
        (tmp_path / "a.pt").write_bytes(flipped(content, 8 * entry + chance.randrange(800)))
        with pytest.raises(UserError, match="damaged"):
            run.read_file(tmp_path / "a.pt")


def damage(key, value):
    """Change the entry at `key` (a path) of a checkpoint's dict."""
    def change(saved):
        part = saved
        for name in key[:-1]:
            part = part[name]
        part[key[-1]] = value
    return change


def path_of(key):
    return [int(name) if name.isdigit() else name for name in key.split()]


DAMAGES = [damage(path_of(key), value) for key, value in (
    ("config", {}), ("config", 3), ("config unet", "x"), ("config unet widths", [10, 10]),
    ("config unet widths", [8192, 8192]), ("config unet head_dim", 0), ("config vae widths", []),
    ("config vae widths", [8] * 10_000), ("config vae blocks", 10**9), ("config text heads", -1),
    ("config text layers", 10**6), ("config text length", 10**9), ("config vocabulary", None),
    ("config vocabulary", []), ("config size", "64"), ("config size", 2**20),
    ("config unet emb_width", 65_536), ("config predict", "noise"), ("ema", []), ("ema", {"a": 1}),
    ("ema more", torch.ones(1).expand(2**40)),
    ("ema vae.latent_std", torch.ones(1).expand(4)), ("bytes", bytearray(1000)),
    ("ema vae.latent_std", torch.full((4,), torch.nan)))]
DAMAGED_RUNS = [damage(path_of(key), value) for key, value in (
    ("model", {}), ("progress", (-1, 1)), ("progress", ("clips", -1)), ("progress", ("clips", 99)),
    ("progress", ("odd", 1)), ("progress", ()), ("settings", {}), ("settings seed", "x"),
    ("settings batch_size", 0), ("settings lr", float("nan")), ("settings seed", 2**70),
    ("settings amp", "x"), ("settings preset", ["x"]), ("settings data_root", 5),
    ("log_bytes", 1.5),
    ("settings", {7: 7}), ("progress", ("clips", 1.5)), ("optimizer", {"a": 1}),
    ("optimizer state 0 exp_avg", torch.zeros(7)), ("optimizer state 0 step", torch.tensor(-1.)))]


@pytest.mark.parametrize("main,change", [
    *((sample.main, change) for change in DAMAGES),
    *((train.main, change) for change in [DAMAGES[0], DAMAGES[4], *DAMAGED_RUNS])])
def test_damaged_checkpoints_get_one_sentence_and_status_2(trained, small, tmp_path, capsys, main,
                                                           change):
    """Quickly, whatever sizes they claim to have."""
    saved = torch.load(trained / "checkpoint.pt", weights_only=True)
    change(saved)
    run.save(tmp_path / "checkpoint.pt", saved)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    arguments = ([P, "--checkpoint", str(tmp_path / "checkpoint.pt"), "--out",
                  str(tmp_path / "a.gif")] if main is sample.main else
                 ["--resume", "--steps", "4", "--out", str(tmp_path)])
    try:
        status = main([*arguments, "--device", "cpu"])
    except SystemExit as stop:  # argparse's own way
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and error.count("error: ") == 1 and "Traceback" not in error
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "a.gif").exists()


def test_zip_bombs_malice_and_truncation_are_refused_unexecuted(trained, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    torch.save({"config": Evil(), "ema": {}}, tmp_path / "evil.pt")
    content = (trained / "weights.pt").read_bytes()
    for share in (0, .1, .5, .99):
        (tmp_path / f"cut{share}.pt").write_bytes(content[:int(share * len(content))])
    with (zipfile.ZipFile(trained / "weights.pt") as whole,
          zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    for path in tmp_path.glob("*.pt"):
        assert sample.main([P, "--checkpoint", str(path), "--out", str(tmp_path / "a.gif")]) == 2
        assert capsys.readouterr().err.count("error: ") == 1
    assert not (tmp_path / "owned").exists()


# ---- bad input -----------------------------------------------------------------------------------

BAD_SAMPLES = [
    [], [""], ["!?"], [P, "--seed", str(2**64)], [P, "--frames", "20"], [P, "--steps", "0"],
    [P, "--num", "0"], [P, "--guidance", "-1"], [P, "--guidance", "nan"], [P, "--fps", "0"],
    [P, "--steps", "many"], [P, "--sampler", "euler"], [P, "--device", "tpu"],
    [P, "--checkpoint", "nowhere.pt"], [P, "--checkpoint", ""], [P, "--checkpoint", "."],
    [P, "--checkpoint", "pipe"], [P, "--out", "a.txt"], [P, "--out", "no/a.gif"], [P, "--out", ""],
    [P, "--out", "pipe.gif"], [P, "--chain"], [P, P, "--chain", "--extend", "1"],
    [P, "--stride", "3"], [P, "--stride", "2", "--frames", "32"], [P, "--extend", "-1"],
    [P, "--stride", "2", "--extend", "1"], [P, "--best-of", "2", "--num", "2"],
    [P, "--best-of", "0"], [P, "--scale", "0"], [P, "--scale", "17"],
    [P, "--image", "a.png", "--stride", "1"],
    *([P, "--checkpoint", f"{name}.pt"] for name in ("empty", "text", "foreign", "list"))]
BAD_PICTURES = ["nowhere.png", "text.pt", "", "pipe.png", "."]
BAD_TRAININGS = [
    ["--preset", "huge"], ["--steps", "0"], ["--batch-size", "-3"], ["--lr", "0"], ["--lr", "nan"],
    ["--data", "nothing"], ["--data", ""], ["--data", "text.pt"], ["--data-root", "nowhere"],
    ["--schedule", "odd"], ["--amp", "int8"], ["--out", "text.pt"], ["--digits", "roman"],
    ["--captions", "five"], ["--data", "empty", "--out", "new"],
    *(["--data", "empty", *flags] for flags in (["--captions", "four"], ["--digits", "drawn"],
                                                ["--data-root", "."]))]
BAD_METRICS = [["--num", "1"], ["--steps", "0"], ["--guidance", "-1"], ["--device", "tpu"],
               ["--digits", "drawn", "--checkpoint", "text.pt"], ["--data-root", "nowhere"]]


@pytest.mark.parametrize("main,arguments", [
    *((sample.main, a) for a in BAD_SAMPLES), *((train.main, a) for a in BAD_TRAININGS),
    *((metrics.main, a) for a in BAD_METRICS)], ids=str)
def test_bad_input_gets_one_sentence_and_status_2(main, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("pipe", "pipe.gif"):
        os.mkfifo(tmp_path / name)
    before = {*tmp_path.iterdir()}
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and "Traceback" not in error
    assert len([line for line in error.splitlines() if "error: " in line]) == 1
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_get_one_sentence_and_status_2(name, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    assert sample.main([P, "--image", name, "--checkpoint", str(trained / "weights.pt")]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


def test_unknown_words_are_named_and_the_rest_is_used(trained, tmp_path, capsys):
    make(tmp_path, "a purple 3 moving left", "--checkpoint", str(trained / "weights.pt"),
         "--frames", "16", "--steps", "1")
    error = capsys.readouterr().err
    assert "purple" in error and "moving" in error


STRANGE = ["\t\n", "\0", "\x1b[31mred", "a 3\x00moving\x07left", "😀 moving left", "数字が左に動く",
           "رقم ثلاثة", "é" * 500, "a " * 10_000, "x" * 100_000, "$(rm -rf /)", "; ls", "%s%n%x",
           "{0.__class__}", "' OR 1=1 --", "\\", "--", "a 3 --steps", "nan", "-1", "ⅷ", "３ moving",
           "a\u202e3 moving left", "\ufeffa 3", "\ud7ff", "a.3.left", "A 3 MOVING LEFT"]


def test_strange_prompts_make_a_clip_or_one_sentence(model, tmp_path, monkeypatch, capsys):
    chance = random.Random(0)
    monkeypatch.setattr(sample, "load", lambda *arguments: model)
    prompts = [*STRANGE, *("".join(chr(chance.randrange(1, 0xd800)) for _ in range(
        chance.randrange(1, 60))) for _ in range(60 - len(STRANGE)))]
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


# ---- the repository ------------------------------------------------------------------------------

def test_requirements_match_imports():
    files = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]
    ours = {path.stem for path in files} | {path.parent.name for path in files}
    imported = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    listed = {re.match(r"\w+", line)[0] for path in ROOT.glob("requirements*.txt")
              for line in path.read_text().split()}
    imageio_extra = {"imageio_ffmpeg"}  # imageio[ffmpeg]
    assert imported - sys.stdlib_module_names - ours - imageio_extra == listed


def test_the_docs_name_every_flag_and_no_other(capsys):
    for show in (train.main, sample.main, metrics.main, data.main):
        with pytest.raises(SystemExit):
            show(["--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "flags.md").read_text()))
    torchruns = {"--nproc-per-node"}
    assert len(flags) > 20 and named - torchruns == flags


def test_commands_of_the_readme_and_docs_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/flags.md"):
        text = (ROOT / page).read_text()
        commands = re.findall(r"^python (train|sample)\.py (.*?)(?:\s+#.*)?$", text, re.M)
        commands += re.findall(r"`python (train|sample)\.py ([^`]*)`", text)
        assert len(commands) >= 4
        for script, arguments in commands:
            if script == "train" and "--resume" not in arguments:
                train.parse(shlex.split(arguments))
            elif script == "sample":
                sample.parse(["--out", "a.gif", *shlex.split(arguments)])


def test_links_and_pictures_of_the_readme_and_docs_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r'src="([^"]+)"|\]\((?!https:)([^)#]+)', page.read_text())
        assert not [link for link in map("".join, links) if not (page.parent / link).exists()], page


def test_the_paths_through_the_code_name_what_is_there():
    files = (*ROOT.glob("*.py"), *ROOT.glob("support/*.py"))
    source = "\n".join(path.read_text() for path in files)
    for named in re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "paths.md").read_text()):
        path = ROOT / named
        words = re.findall(r"[A-Za-z_]\w*", named)
        assert path.is_file() or all(re.search(rf"\b{word}\b", source) for word in words), named


def test_a_clip_is_made_without_loading_a_compiler():
    """Importing torch's takes a second of three, and many an operation imports it unasked."""
    code = ("import sys, sample; sample.generate(sample.load(device='cpu'), ['a 3'], steps=2); "
            "sys.exit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_shipped_weights_load_and_obey():
    """Four directions and two turns, one clip each, read from the ink's centre of mass alone."""
    model = sample.load(device="cpu")
    assert isinstance(model, TextToVideo)
    ways = ("left", "right", "up", "down", "up then left", "left then up")
    x = sample.generate(model, [f"a 3 moving {way}" for way in ways], num_frames=16, steps=8)
    ink = (x[:, 0] > 0).float()
    pixel = torch.arange(64.)
    centre = torch.stack([ink.sum(-1) @ pixel, ink.sum(-2) @ pixel], -1)      # b f yx
    half = (centre / ink.sum((-1, -2))[..., None])[:, [0, 8, 15]].diff(dim=1)  # b half yx
    for way, moved in zip(ways, half):
        told = way.split(" then ")
        for name, (y, x) in zip((told[0], told[-1]), moved):
            dy, dx = data.DIRECTIONS[name]
            assert y * dy + x * dx > 2.5, (way, moved)
            assert (x if dy else y).abs() < 1.5, (way, moved)
    size = sum(path.stat().st_size for path in (ROOT / "checkpoints").glob("*.pt"))
    assert size <= 20 * 2**20
