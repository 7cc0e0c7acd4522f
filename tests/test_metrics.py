"""Facts of metrics.py: the judge finds the truth in pixels and is not easily pleased."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import metrics


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return metrics.DigitNet().eval()  # untrained: motion and count must not hang on its labels


@pytest.fixture(scope="module")
def clips(net):
    """200 drawn clips, their readings and their truths with every motion put into the caption."""
    x, _, truth = data.captioned_clips(200, split="test", digits=data.load_digits("test", "drawn"))
    spoken = np.where(truth.digit[:, 1] >= 0, data.KINDS.index("two moving"), 0)
    truth = replace(truth, kind=spoken, named=np.zeros_like(truth.named))
    return x, metrics.read_clips(x, net, 2), truth


def test_captions_match_pixels(clips):
    _, readings, truth = clips
    assert metrics.score(readings, truth).motion_ok.mean() >= .99
    assert (readings.count == (truth.digit >= 0).sum(1)).mean() >= .99


def test_wrong_truth_scores_low(clips):
    _, readings, truth = clips
    others = metrics.reorder(readings, np.roll(np.arange(200), 1))
    assert metrics.score(others, truth).motion_ok.mean() < .1


def test_tracks_follow_the_boxes(clips):
    _, readings, truth = clips
    one = truth.digit[:, 1] < 0
    centre = truth.positions(np.arange(32) * 2)[one, 0] + 14
    assert np.abs(readings.tracks[one, 0] - centre).mean() < 1


def test_backwards_clips_read_as_the_opposite_motion(clips, net):
    x, _, _ = clips
    there, back = metrics.read_clips(x[:100:2], net), metrics.read_clips(x[:100:2].flip(2), net)
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    names = [data.NAMES[m] for m in there.motion[:, 0]]
    flipped = [" ".join(opposite.get(word, word) for word in name.split()) for name in names]
    assert [data.NAMES[m] for m in back.motion[:, 0]] == flipped


@pytest.mark.parametrize("frames", [16, 64])
def test_every_frame_count_reads_the_same_motion(frames, clips, net):
    _, readings, _ = clips
    x, _, _ = data.captioned_clips(20, split="test", num_frames=frames,
                                   digits=data.load_digits("test", "drawn"))
    assert (metrics.read_clips(x, net).motion == readings.motion[:20]).all()


def test_a_digit_that_vanishes_is_wrong(clips, net):
    x = clips[0][:30].clone()
    x[:, :, 12:21] = -1  # 9 of 32 frames
    assert not metrics.read_clips(x, net).count.any()


def test_three_digits_are_neither_one_nor_two(clips, net):
    x = clips[0][:1].clone()
    x[:] = -1
    for corner in ((2, 2), (2, 44), (44, 22)):
        x[..., corner[0]:corner[0] + 14, corner[1]:corner[1] + 9] = 1
    assert metrics.read_clips(x, net).count[0] == 0


@pytest.mark.parametrize("x", [
    -torch.ones(2, 1, 32, 64, 64), torch.ones(2, 3, 16, 64, 64), torch.randn(2, 1, 33, 64, 64),
    torch.full((1, 1, 64, 64, 64), np.nan)])
def test_empty_and_garbage_clips_read_as_nothing(x, net):
    readings = metrics.read_clips(x, net)
    assert not readings.count.any() and (readings.motion == -1).all()
    assert all(np.isfinite(value).all() for value in vars(readings).values())
    truth = data.make_scenes(len(x), digits=data.load_digits("test", "drawn"))
    scores = metrics.score(readings, truth)
    assert not (scores.digit_ok | scores.motion_ok | scores.steadiness.astype(bool)).any()


def perfect(truth):
    """What an all-seeing judge would read, slots exchanged."""
    n, flip = len(truth.digit), [1, 0]
    travel = np.choose(truth.adverb, [20, 10, 30])
    steady = (truth.digit >= 0).astype(float)
    return metrics.Readings((truth.digit >= 0).sum(1), truth.digit[:, flip], truth.motion[:, flip],
                            travel[:, flip], steady, np.zeros(n), np.zeros(n))


def test_score_matches_tracks_to_slots_and_digits_to_their_own_motion():
    truth = data.make_scenes(400, split="test", digits=data.load_digits("test", "drawn"))
    readings = perfect(truth)
    scores = metrics.score(readings, truth)
    assert scores.both_ok.all() and (scores.steadiness == 1).all()
    swapped = metrics.score(replace(readings, digit=truth.digit), truth)
    both = (truth.kind == 6) & truth.named.all(1) & (truth.motion[:, 0] != truth.motion[:, 1])
    assert swapped.digit_ok.all() and swapped.motion_ok.all() and not swapped.both_ok[both].any()


def test_adverbs_bind():
    truth = data.make_scenes(400, split="test", digits=data.load_digits("test", "drawn"))
    readings = perfect(truth)
    middling = replace(readings, travel=np.full_like(readings.travel, 19))
    said = truth.adverb.any(1)
    assert (metrics.score(middling, truth).motion_ok == ~said).all() and said.any()


def test_wilson_matches_published_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert np.allclose(metrics.wilson(81, 263), (.2553, .3662), atol=1e-4)
    assert np.allclose(metrics.wilson(0, 20), (0, .1611), atol=1e-4)


def test_frechet_distance_matches_two_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (50_000, 3)) * [1, 2, 3]
    b = rng.normal(0, 1, (50_000, 3)) * [2, 2, 1] + [0, 1, 2]
    # axes apart: |difference of means|^2 + sum of (difference of standard deviations)^2
    assert metrics.frechet_distance(a, b) == pytest.approx(5 + 1 + 4, rel=.03)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert metrics.frechet_distance(a @ turn, b @ turn) == pytest.approx(
        metrics.frechet_distance(a, b))
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_psnr_matches_its_definition():
    x = torch.zeros(1, 1, 2, 8, 8)
    assert metrics.psnr(x, x + .2) == pytest.approx(20)  # 10 log10(4 / 0.04)
    where = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    where[..., :2] = True
    y = x.clone()
    y[..., :2] = .2
    assert metrics.psnr(x, y, where) == pytest.approx(20)


def test_classifier_keeps_its_budget(net):
    assert sum(p.numel() for p in net.parameters()) <= 150_000
    assert net.features(torch.zeros(1, 1, 28, 28)).shape == (1, 32)


def test_command_prints_ceiling_and_floor(monkeypatch, capsys, net):
    def generate(model, prompts, **options):  # a perfect model: it renders what was asked
        x, captions, _ = data.captioned_clips(
            len(prompts), seed=3, split="test", digits=data.load_digits("test", "drawn"))
        assert captions == prompts and options["steps"] == 5 and options["guidance_scale"] == 2
        return x

    vae = SimpleNamespace(encode=lambda x: x, decode=lambda z: (z + .02).clamp(-1, 1))
    monkeypatch.setitem(sys.modules, "sample", SimpleNamespace(
        load=lambda checkpoint, device: SimpleNamespace(
            vae=vae, config={"vocabulary": data.VOCABULARY["full"], "vae": {"channels": 1}}),
        generate=generate, device_for=torch.device))
    monkeypatch.setattr(metrics, "load_classifier", lambda device: net)
    assert metrics.main("--num 24 --seed 3 --digits drawn --device cpu --steps 5 "
                        "--guidance 2".split()) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " all " in line]
    motion = {row[:20].strip(): float(row.split("]")[1].split("[")[0]) for row in rows}
    assert motion["real clips"] == motion["samples"] == motion["VAE reconstructions"] == 100
    assert motion["shuffled prompts"] < 40


def test_shipped_classifier_reads_upright_digits():
    """Trained on MNIST, it reads most drawn digits; transposed crops would make it guess."""
    x, _, truth = data.captioned_clips(60, split="test", captions="four", num_frames=16,
                                       digits=data.load_digits("test", "drawn"))
    readings = metrics.read_clips(x, metrics.load_classifier())
    assert (readings.digit[:, 0] == truth.digit[:, 0]).mean() > .6


def test_audit_finds_every_motion_of_drawn_clips(capsys):
    assert metrics.main("--audit --num 60 --seed 4 --digits drawn --device cpu".split()) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all"))
    assert float(row.split()[2]) > 98


def test_clips_of_another_shape_are_refused():
    with pytest.raises(data.UserError):
        metrics.read_clips(torch.zeros(1, 1, 7, 64, 64), metrics.DigitNet())
