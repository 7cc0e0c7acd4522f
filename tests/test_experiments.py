"""Facts of what experiments/ measures with: closed forms, and commands that find what is there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import metrics
from diffusion import PREDICTIONS, Diffusion
from experiments import audit, best_of, frechet, reconstruction, tasks, train_digitnet

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
