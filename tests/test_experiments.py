"""Facts of what experiments/ measures with: closed forms, and commands that find what is there."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange

import data
import metrics
from diffusion import PREDICTIONS, Diffusion
from conftest import ROOT
from experiments import (audit, best_of, figures, frechet, gifs, inside, papers, reconstruction,
                         tasks, train_digitnet)
from unet3d import Attention

DIGITS = data.load_digits("test", "drawn")

def test_reconstruction_guidance_lets_the_known_half_speak_and_replacement_does_not():
    """x = (a, b) Gaussian with correlation 0.8 and a known: E[b | a] = 0.8 a, in closed form."""
    diffusion, rho, n = Diffusion("cosine", "v"), .8, 4000
    cov = torch.tensor([[1., rho], [rho, 1.]], dtype=torch.float64)

    def ideal(x, t):  # v of E[x0 | xt] = a C (a^2 C + s^2)^-1 xt
        alpha_bar = diffusion.alpha_bar[t[0]]
        noisy = alpha_bar * cov + (1 - alpha_bar) * torch.eye(2)
        gain = alpha_bar.sqrt() * cov @ torch.linalg.inv(noisy)
        return reconstruction.from_x0(diffusion, x @ gain.T, x, t)

    torch.manual_seed(0)
    x_T, eps = torch.randn(2, n, 2, dtype=torch.float64)
    known = torch.tensor([1.5, 0.], dtype=torch.float64).expand(n, 2)
    mask = torch.tensor([True, False]).expand(n, 2)

    def mean_b(way):  # ancestral steps, for each forgets a part of what half-deaf ones decided
        return diffusion.ddpm(way(diffusion, ideal, known, mask, eps), x_T, 50)[:, 1].mean()

    assert abs(mean_b(reconstruction.reconstruction) - rho * 1.5) < .2
    assert abs(mean_b(reconstruction.replacement) - rho * 1.5) > .2
    assert abs(diffusion.ddpm(ideal, x_T, 50)[:, 1].mean()) < .06

@pytest.mark.parametrize("predict", PREDICTIONS)
def test_from_x0_undoes_to_x0_eps(predict):
    diffusion, t = Diffusion("linear", predict), torch.tensor([3, 500, 900])
    x, prediction = torch.randn(2, 3, 4, dtype=torch.float64)
    x0, _ = diffusion.to_x0_eps(prediction, x, t)
    assert torch.allclose(reconstruction.from_x0(diffusion, x0, x, t), prediction)

def test_frechet_distance_matches_two_gaussians_however_turned():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (50_000, 3)) * [1, 2, 3]
    b = rng.normal(0, 1, (50_000, 3)) * [2, 2, 1] + [0, 1, 2]
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    # axes apart: |difference of means|^2 + sum of (difference of standard deviations)^2
    found = frechet.frechet_distance(a, b)
    assert found == pytest.approx(5 + 1 + 4, rel=.03)
    assert frechet.frechet_distance(a @ turn, b @ turn) == pytest.approx(found)
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)

def test_audit_finds_every_motion_of_drawn_clips(capsys):
    assert audit.main("--num 60 --seed 4 --digits drawn --device cpu".split()) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all"))
    assert float(row.split()[2]) > 98

def test_best_of_keeps_each_prompts_own_best(monkeypatch):
    x = torch.arange(6.)[:, None, None, None, None].expand(6, 1, 32, 2, 2)
    saved = torch.tensor([0., 2., 1., 5., 3., 4.])
    monkeypatch.setattr(best_of, "preference", lambda model, prompts, keys, stride: (
        saved if keys.shape[2] == 16 and len(prompts) == 6 else None))
    kept = best_of.keep_best(None, ["a"] * 3 + ["b"] * 3, x, 3, 4)
    assert kept[:, 0, 0, 0, 0].tolist() == [1, 3]

def test_classifiers_training_crops_stand_upright_in_the_middle():
    """The shipped classifier reads most of them; turned or misplaced ones would make it guess."""
    rng, labels = torch.Generator().manual_seed(0), np.repeat(np.arange(10), DIGITS.count)
    index = torch.randperm(len(labels), generator=rng)[:200]
    crops, target = train_digitnet.training_batch(DIGITS, torch.from_numpy(labels), index, rng)
    with torch.no_grad():
        read = metrics.load_classifier()(crops).argmax(1)
    assert crops.shape == (200, 1, 28, 28) and (read == target).float().mean() > .6

def test_a_clip_denoised_by_an_ideal_network_comes_back_from_any_level(monkeypatch):
    z, tokens = torch.randn(2, 4, 17, 8, 8), torch.zeros(2, 1)
    model = SimpleNamespace(diffusion=Diffusion("cosine", "x0"), tokenizer=lambda prompts: tokens)
    monkeypatch.setattr(tasks, "denoiser", lambda *args, **window: lambda x, t: z)
    monkeypatch.setattr(tasks, "decode", lambda model, z: z)
    for level in tasks.LEVELS:
        assert torch.allclose(tasks.denoise_from(model, z, ["", ""], level, 0), z[:, :, :16])

def test_words_seen_are_the_weights_that_attention_sums_values_by():
    torch.manual_seed(0)
    module, x, context = Attention(8, 8, 6), torch.randn(2, 5, 8), torch.randn(2, 4, 6)
    torch.nn.init.normal_(module.out.weight)
    mask = torch.arange(4) < torch.tensor([[3], [4]])
    weight = inside.words_seen(module, x, context, mask)        # of its one head
    v = module.kv(context)[..., 8:]
    assert torch.allclose(module(x, context, mask), x + module.out(weight @ v), atol=1e-5)
    assert (weight[0, :, 3] == 0).all()

def test_clips_beside_each_other_keep_their_places_and_greys():
    x = 2 * torch.rand(3, 1, 2, 4, 5) - 1
    y = gifs.beside(x)
    assert y.shape == (1, 2, 4, 3 * 6 - 1) and abs(y[..., 6:11] - x[1]).max() < 1 / 60
    assert (y[..., 5] == gifs.LINE).all()

def test_strips_are_cut_into_the_frames_they_were_made_of_with_lines_or_without():
    x = 2 * torch.rand(2, 1, 16, 64, 64) - 1
    frames = (x[:, 0, :, None] + 1) * 127.5                                      # b f 1 h w
    assert torch.equal(inside.cut(inside.tiles(x)), frames)
    bare = rearrange(frames, "b f 1 h w -> (b h) (f w)")
    assert torch.equal(inside.cut(bare), frames)

def test_every_picture_is_there_and_small():
    pictures = ROOT / "docs" / "pictures"
    sizes = [(pictures / f"{name}.gif").stat().st_size for name in gifs.GIFS]
    assert max(sizes) <= 500_000 and sum(sizes) <= 6_000_000
    assert all((pictures / f"{name}.png").is_file() for name in figures.FIGURES)

def test_figures_come_out_the_same_every_time(tmp_path):
    """Those that need no sampling."""
    pytest.importorskip("matplotlib")
    names = "schedules circle windows timeline waves latents unet training".split()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert figures.main([*names, "--out", str(tmp_path / name)]) == 0
    for name in names:
        one, two = ((tmp_path / run / f"{name}.png").read_bytes() for run in ("one", "two"))
        assert one == two and len(one) > 10_000, name

@pytest.mark.parametrize("arguments,why", [
    (["circle"], "pip install -r requirements-figures.txt"), (["odd"], "no picture odd"),
    (["text", "--out", "nowhere"], "nowhere is no folder")])
def test_pictures_that_cannot_be_made_are_refused_in_one_sentence(monkeypatch, capsys, arguments,
                                                                  why):
    found = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert figures.main(arguments) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("error: ") == 1

def test_a_failure_is_named_by_what_the_judge_read():
    """Of two moving digits: right, exchanged, a wrong digit, a wrong motion, only one digit."""
    left, up, down = (data.NAMES.index(way) for way in ("left", "up", "down"))
    shown = SimpleNamespace(
        count=np.array([2, 2, 2, 2, 1]), travel=np.zeros((5, 2)), steady=np.ones((5, 2)),
        digit=np.array([[3, 4], [3, 4], [3, 9], [3, 4], [3, -1]]),
        motion=np.array([[left, up], [up, left], [left, up], [left, down], [left, -1]]))
    scenes = SimpleNamespace(
        digit=np.array([[3, 4]] * 5), named=np.ones((5, 2), bool), adverb=np.zeros((5, 2), int),
        motion=np.array([[left, up]] * 5), kind=np.full(5, data.KINDS.index("two moving")))
    said = [inside.two_wrong(shown, scenes, i) for i in range(5)]
    assert said[0] is None and [line.split("\n")[0] for line in said[1:]] == [
        "the motions are exchanged", "wrong digit", "wrong motion", "not two digits"]
    assert said[1].endswith("(read: 3 up and 4 left)")

def test_what_is_held_out_is_never_shown_and_no_clip_depends_on_its_batch():
    source, plain = papers.HeldOut(digits=DIGITS), data.MovingMNIST(digits=DIGITS)
    scenes, other = source(5000), plain(5000)
    assert papers.held(other).mean() > .1 and not papers.held(scenes).any()
    for digit, way in ((0, "left"), (1, "right"), (2, "up"), (3, "down"), (7, "down")):
        goes = scenes.motion[:, 0] == data.NAMES.index(way)
        assert not (goes & (scenes.digit == [digit, -1]).all(1)).any(), digit
    assert not {(0, 3), (3, 0), (9, 2), (5, 8)} & set(map(tuple, scenes.digit))
    kept = ~papers.held(other)
    assert all(a == b for a, b, same in zip(scenes.captions, other.captions, kept) if same)
    assert source(40, start=30).captions + source(30, start=70).captions == scenes.captions[30:100]

def test_few_captions_recur_and_all_other_clips_are_fresh_and_silent():
    plain = data.MovingMNIST("four", digits=DIGITS)
    few = papers.FewCaptions("four", digits=DIGITS, few=8)(64)
    assert few.captions[::2] == plain(8).captions * 4 and set(few.captions[1::2]) == {""}
    assert few.bitmap[::2, 0].tolist() == plain(8).bitmap[:, 0].tolist() * 4
    assert len({*few.bitmap[1::2, 0].tolist()}) > 28 and "" not in few.subjects
    assert papers.FewCaptions("four", digits=DIGITS, few=0)(8).captions == [""] * 8
