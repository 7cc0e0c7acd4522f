"""Facts of metrics.py: the judge finds the truth in pixels and is not easily pleased."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import metrics
from support.console import UserError
from support.digitnet import DigitNet
from vae import psnr

DIGITS = data.load_digits("test", "drawn")

@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return DigitNet().eval()  # untrained: motion and count must not hang on its labels

@pytest.fixture(scope="module")
def clips(net):
    """Drawn clips, their readings and their truths with every motion put into the caption."""
    x, _, truth = data.captioned_clips(160, split="test", digits=DIGITS)
    assert {*truth.motion[truth.motion >= 0]} == {*range(len(data.NAMES))}
    spoken = np.where(truth.digit[:, 1] >= 0, data.KINDS.index("two moving"), 0)
    truth = replace(truth, kind=spoken, named=np.zeros_like(truth.named))
    return x, metrics.read_clips(x, net, 2), truth

@pytest.fixture(scope="module")
def perfect():
    """Truths, and what an all-seeing judge would read, slots exchanged."""
    truth, flip = data.make_scenes(400, split="test", digits=DIGITS), [1, 0]
    travel, there = np.choose(truth.adverb, [20, 10, 30]), truth.digit >= 0
    return truth, metrics.Readings(there.sum(1), truth.digit[:, flip], truth.motion[:, flip],
                                   travel[:, flip], there * 1., *np.zeros((2, 400, 2, 32)))

def test_captions_match_pixels(clips):
    _, readings, truth = clips
    right, count = metrics.score(readings, truth).motion_ok, (truth.digit >= 0).sum(1)
    assert right[count == 1].all() and right[count == 2].mean() > .96  # a drawn digit may hide one
    assert (readings.count == count)[right].all()

def test_wrong_truth_scores_low(clips):
    _, readings, truth = clips
    others = data.choose(readings, np.roll(np.arange(len(truth.kind)), 1))
    assert metrics.score(others, truth).motion_ok.mean() < .1

def test_tracks_follow_the_boxes(clips):
    _, readings, truth = clips
    one = truth.digit[:, 1] < 0
    centre = truth.positions(np.arange(32) * 2)[one, 0] + 14
    assert np.abs(readings.tracks[one, 0] - centre).mean() < 1

def test_backwards_clips_read_as_the_opposite_motion(clips, net):
    x, _, _ = clips
    motion = clips[2].motion
    x = x[(motion[:, 1] < 0) & (motion[:, 0] < data.FIRST_TURN)][:50]
    there, back = metrics.read_clips(x, net), metrics.read_clips(x.flip(2), net)
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    names = [data.NAMES[m] for m in there.motion[:, 0]]
    flipped = [" ".join(opposite.get(word, word) for word in name.split()) for name in names]
    assert [data.NAMES[m] for m in back.motion[:, 0]] == flipped

@pytest.mark.parametrize("frames", [16, 64])
def test_every_frame_count_reads_the_same_motion(frames, clips, net):
    _, readings, _ = clips
    x, _, _ = data.captioned_clips(20, split="test", num_frames=frames, digits=DIGITS)
    assert (metrics.read_clips(x, net).motion == readings.motion[:20]).all()

def test_a_digit_that_vanishes_is_wrong(clips, net):
    x = clips[0][:30].clone()
    x[:, :, 12:21] = -1  # 9 of 32 frames
    assert not metrics.read_clips(x, net).count.any()

def test_three_digits_are_neither_one_nor_two(net):
    x = -torch.ones(1, 1, 32, 64, 64)
    for top, left in ((2, 2), (2, 44), (44, 22)):
        x[..., top:top + 14, left:left + 9] = 1
    assert metrics.read_clips(x, net).count[0] == 0

@pytest.mark.parametrize("x", [
    -torch.ones(2, 1, 32, 64, 64), torch.ones(2, 3, 16, 64, 64), torch.randn(2, 1, 33, 64, 64),
    torch.full((1, 1, 64, 64, 64), np.nan)])
def test_empty_and_garbage_clips_read_as_nothing(x, net):
    readings = metrics.read_clips(x, net)
    assert not readings.count.any() and (readings.motion == -1).all()
    assert all(np.isfinite(value).all() for value in vars(readings).values())
    scores = metrics.score(readings, data.make_scenes(len(x), digits=DIGITS))
    assert not (scores.digit_ok | scores.motion_ok | scores.steadiness.astype(bool)).any()

def test_score_matches_tracks_to_slots_and_digits_to_their_own_motion(perfect):
    truth, readings = perfect
    scores = metrics.score(readings, truth)
    assert scores.both_ok.all() and (scores.steadiness == 1).all()
    swapped = metrics.score(replace(readings, digit=truth.digit), truth)
    both = (truth.kind == 6) & truth.named.all(1) & (truth.motion[:, 0] != truth.motion[:, 1])
    assert swapped.digit_ok.all() and swapped.motion_ok.all() and not swapped.both_ok[both].any()

def test_adverbs_bind(perfect):
    truth, readings = perfect
    middling, said = replace(readings, travel=np.full((400, 2), 19)), truth.adverb.any(1)
    assert (metrics.score(middling, truth).motion_ok == ~said).all() and said.any()

def test_the_diagnosis_tells_right_sets_from_right_bindings(perfect, capsys):
    truth, readings = perfect
    exchanged, same = replace(readings, digit=truth.digit), readings.digit[:, [0, 0]]
    metrics.diagnose({"real clips": readings, "samples": exchanged,
                      "shuffled prompts": replace(readings, digit=same)}, truth)
    real, samples, twice = ([float(cell) for cell in re.findall(r"[\d.]+(?= \[|$)", line)]
                            for line in capsys.readouterr().out.splitlines()[-3:])
    n = ((truth.kind == 6) & truth.named.any(1) & (np.diff(truth.motion)[:, 0] != 0)).sum()
    # digits, motions, both as sets; one digit twice; bound, of n
    assert (real, samples, twice[3]) == ([100, 100, 100, 0, 100, n], [100, 100, 100, 0, 0, n], 100)

def test_agreement_counts_pairs_of_clear_frames():
    frames = np.repeat([[3, 7]], 16, axis=1)  # a 3 becomes a 7 half way, 2 ticks a frame
    assert [metrics.agreement(frames, k) for k in (4, 16, 32, 60)] == [28 / 30, 16 / 24, 0, 0]
    frames[0, 0] = -1  # one equal pair less
    assert metrics.agreement(frames, 4) == 27 / 29

def test_each_frame_is_read_for_itself(clips):
    one = np.flatnonzero(clips[2].digit[:, 1] < 0)[:20]
    x, digit = clips[0][one].clone(), clips[2].digit[one, :1]
    x[:, :, 16:], x[:, :, 5] = x.roll(1, 0)[:, :, 16:], -1  # half another clip; a black frame
    read = metrics.read_clips(x, metrics.load_classifier()).frames
    assert (read[:, 0, :16] == digit).mean() > .6 and (read[:, 0, 5] == -1).all()
    assert (read[:, 0, 16:] == np.roll(digit, 1, 0)).mean() > .6 and (read[:, 1] == -1).all()

def test_crossing_digits_keep_their_tracks():
    """Two lines that cross, hidden from each other in the middle, their parts listed at random."""
    ticks = np.delete(np.arange(32) * 2, range(14, 19))
    lines = np.stack([np.stack([ticks * .5 + 10, ticks * .6 + 8], 1),
                      np.stack([ticks * .5 + 10, 50 - ticks * .6], 1)], 1)           # m k yx
    flipped = np.random.default_rng(0).random(len(ticks)) < .5
    flipped[0] = False
    centre = np.where(flipped[:, None, None], lines[:, ::-1], lines)
    assert (metrics.follow(centre, ticks) == flipped).all()

def test_broken_strokes_stay_one_digit():
    ink = np.zeros((64, 64), np.float32)
    ink[20:38, 20:26] = ink[20:38, 28:34] = 1  # a 0 without its top and bottom, 18 x 14 pixels
    assert metrics.count_digits(ink)[0] == 1
    ink[20:38, 28:34], ink[20:38, 48:54] = 0, 1  # the same halves apart are two
    assert metrics.count_digits(ink)[0] == 2

def test_a_circle_is_no_motion_of_the_grammar():
    angle = np.arange(32) / 32 * 2 * np.pi
    track = 32 + 12 * np.stack([np.sin(angle), np.cos(angle)], 1)
    assert metrics.name_motion(track, np.arange(32) * 2, 28)[0] == -1

def test_wilson_matches_published_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert np.allclose(metrics.wilson(81, 263), (.2553, .3662), atol=1e-4)
    assert np.allclose(metrics.wilson(0, 20), (0, .1611), atol=1e-4)

def test_psnr_matches_its_definition():
    x, where = torch.zeros(1, 1, 2, 8, 8), torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    assert psnr(x, x + .2) == pytest.approx(20)  # 10 log10(4 / 0.04)
    where[..., :2] = True
    assert psnr(x, .2 * where[:, None], where) == pytest.approx(20)

@pytest.mark.parametrize("num,each,n", [("16", (), 16), ("2 --each", data.KINDS, 14)])
def test_command_prints_ceiling_and_floor(monkeypatch, capsys, net, num, each, n):
    def generate(model, prompts, **options):  # a perfect model: it renders what was asked
        scenes = data.make_scenes(int(num[:2]), seed=3, split="test", digits=DIGITS, each=each)
        assert scenes.captions == prompts and len(prompts) == n and options == dict(
            num_frames=32, steps=5, sampler="ddim", guidance_scale=2, seed=3, as_told=False)
        return scenes.render(np.arange(32) * 2)

    vae = SimpleNamespace(encode=lambda x: x, decode=lambda z: (z + .02).clamp(-1, 1))
    model = SimpleNamespace(vae=vae, device="cpu", config={"vocabulary": data.VOCABULARY["full"],
                                             "vae": {"channels": 1}})
    monkeypatch.setattr(metrics, "load", lambda checkpoint, device: model)
    monkeypatch.setattr(metrics, "generate", generate)
    monkeypatch.setattr(metrics, "load_classifier", lambda device: net)
    assert metrics.main(f"--num {num} --seed 3 --digits drawn --device cpu --steps 5 "
                        "--sampler ddim --guidance 2".split()) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " all " in line]
    motion = {row[:20].strip(): float(row.split("]")[1].split("[")[0]) for row in rows}
    assert motion["real clips"] == motion["samples"] == motion["VAE reconstructions"] == 100
    assert motion["shuffled prompts"] < 40

def test_shipped_classifier_reads_upright_digits():
    """Trained on MNIST, it reads most drawn digits; transposed crops would make it guess."""
    x, _, truth = data.captioned_clips(60, split="test", captions="four", num_frames=16,
                                       digits=DIGITS)
    readings = metrics.read_clips(x, metrics.load_classifier())
    assert (readings.digit[:, 0] == truth.digit[:, 0]).mean() > .6

def test_clips_of_another_shape_are_refused(net):
    with pytest.raises(UserError):
        metrics.read_clips(torch.zeros(1, 1, 7, 64, 64), net)
