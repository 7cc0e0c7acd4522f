"""Facts of the data: captions bind to pixels, choices to (seed, index), files to what we wrote."""

import hashlib
import http.client
import io
import os
import re
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import data
from support import choices, digits

DIGITS = data.load_digits("train", "drawn")
FULL = data.MovingMNIST(digits=DIGITS)
N = "(?:[0-9]|zero|one|two|three|four|five|six|seven|eight|nine)"
S = f"(?:a digit|(?:a|the|digit|the digit|the number) {N})"
V, ADV, C = "(?:moving|going|sliding)", "(?:slowly|quickly)", "(?:left|right|up|down)"
D = f"(?:(?:up|down) and (?:left|right)|{C})"
M = (f"(?:{V} {D}|{V} {ADV} {D}|{V} {D} {ADV}|{V} {C} then {C}"
     "|bouncing left and right|bouncing up and down|standing still)")
CAPTION = re.compile(f"{S}|{S} {M}|{S} {M} and {S} {M}|two digits")

def test_every_caption_is_in_the_grammar_and_the_vocabulary_has_its_words_and_no_other():
    for name, grammar in (("full", CAPTION), ("four", re.compile(f"a [0-9] moving {C}"))):
        source = data.MovingMNIST(name, digits=DIGITS)
        captions = source(4000).captions
        assert all(grammar.fullmatch(c) for c in captions)
        assert not any(re.search(rf"({C}) then \1", c) for c in captions)
        assert sorted({word for c in captions for word in c.split()}) == source.words
        assert max(len(c.split()) for c in captions) <= 17 < source.length

def test_kinds_and_unnamed_digits_come_as_often_as_is_said():
    some = FULL(8000)
    shares = np.bincount(some.kind) / 8000
    assert abs(shares - np.array(data.OFTEN) / 32).max() < .02
    two = some.kind == data.KINDS.index("two moving")
    assert abs(some.named[two].mean() - 7 / 8) < .02
    assert abs(some.named[some.digit[:, 1] < 0, 0].mean() - 1 / 2) < .02

def test_a_name_is_drawn_for_one_digit_without_any_and_each_is_as_likely():
    words = FULL.words
    drawn = [data.draw_unsaid(["A digit moving left"], words, 0, i)[0].split() for i in range(5000)]
    assert {" ".join([a, *rest]) for a, _, *rest in drawn} == {"a moving left"}
    counts = np.bincount([int(name) for _, name, *_ in drawn], minlength=10)
    assert abs(counts - 500).max() < 100                         # 4.7 standard deviations
    for told in (["a 3 moving left"], ["the digit seven"], ["digit 4 moving up"],
                 ["a digit moving left and a 3 moving up"],
                 ["a digit moving left", "a 3 moving up"],
                 ["a digit moving left and a digit moving up"]):
        assert data.draw_unsaid(told, words, 0, 0) == told
    one, two = data.draw_unsaid(["a digit moving left", "a digit moving up"], words, 0, 7)
    assert one.split()[1] == two.split()[1] != "digit"           # a chain keeps its name
    for told in (["a digit"], ["two digits"]):
        assert data.draw_unsaid(told, ["a", "digit", "two", "digits"], 0, 0) == told  # no names

def test_of_two_digits_names_and_motions_are_drawn_from_the_grammar_as_often_as_in_the_data():
    drawn = [data.draw_unsaid(["Two digits"], FULL.words, 0, i) for i in range(4000)]
    said = [re.fullmatch(f"a ([0-9]) ({M}) and a ([0-9]) ({M})", caption) for caption, in drawn]
    assert all(CAPTION.fullmatch(caption) for caption, in drawn)
    assert all(one[1] != one[3] for one in said)
    assert abs(np.mean([" then " in one[4] for one in said]) - 4 / 16) < .03
    assert abs(np.mean(["standing" in one[2] for one in said]) - 1 / 16) < .02
    first, second = data.draw_unsaid(["two digits", "two digits"], FULL.words, 0, 7)
    assert first == second == data.draw_unsaid(["two digits"], FULL.words, 0, 7)[0]

def test_a_clip_depends_on_seed_and_index_only():
    whole, part = FULL(12), FULL(5, start=7)
    assert part.captions == whole.captions[7:] and np.array_equal(part.start, whole.start[7:])
    assert torch.allclose(whole.render([0, 9])[7:], part.render([0, 9]), atol=1 / 255)
    assert FULL(12, seed=1).captions != whole.captions
    assert data.make_scenes(12, split="test", digits=DIGITS).captions != whole.captions

def test_scenes_are_the_same_on_every_machine():
    """Golden values: a change here changes every clip of every seed."""
    assert choices.splitmix64(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF  # its first output
    pick = data.Chooser(3, "train", [0, 1, 10**6])
    assert pick.below("kind", 1000).tolist() == [212, 24, 317]
    assert zlib.crc32("\n".join(FULL(500, seed=7).captions).encode()) == 2633405997

def test_chosen_scenes_are_the_same_scenes():
    scenes = data.make_scenes(10, digits=DIGITS)
    some, ticks = data.choose(scenes, [7, 2]), np.arange(0, 64, 16)
    assert some.captions == [scenes.captions[7], scenes.captions[2]]
    assert torch.equal(some.render(ticks), scenes.render(ticks)[[7, 2]])

def test_each_kind_comes_n_times_in_the_order_of_the_language():
    each = data.make_scenes(5, digits=DIGITS, each=["still", "turn"])
    turns = [caption for caption in data.make_scenes(200, digits=DIGITS).captions
             if " then " in caption and " and " not in caption]
    assert each.kind.tolist() == [3] * 5 + [1] * 5 and each.captions[5:] == turns[:5]

def test_what_is_drawn_is_what_the_positions_say():
    x, _, truth = data.captioned_clips(64, digits=DIGITS)
    one = np.flatnonzero(truth.digit[:, 1] < 0)
    ink, pixel = (x[one, 0].double() + 1) / 2, torch.arange(64).double()
    centre = torch.stack([ink.sum(-1) @ pixel, ink.sum(-2) @ pixel], -1)             # n f yx
    centre = centre / ink.sum((-1, -2))[..., None]
    off = centre - torch.from_numpy(truth.positions(np.arange(32) * 2)[one, 0])
    assert (off - off[:, :1]).abs().max() < 0.05

def test_straight_motion_travels_as_its_adverb_says_and_never_touches_a_wall():
    s = FULL(2000)
    i, room = s.kind == 0, 64 - 28
    corner = s.positions(np.arange(65))[i, 0]
    travel = abs(corner[:, -1] - corner[:, 0]).max(-1)
    low, high = np.array([(8, 36), (8, 13), (26, 36)]).T
    assert (travel >= low[s.adverb[i, 0]] - 1e-9).all() and (travel <= high[s.adverb[i, 0]]).all()
    assert (corner > 0).all() and (corner < room).all()

def test_turns_and_bounces_keep_their_distances():
    s = FULL(3000)
    corners, name = s.positions(np.arange(65)), np.array(data.NAMES)[s.motion]
    for i, slot in zip(*np.nonzero(s.digit >= 0)):
        p, room, step = corners[i, slot], 64 - s.size[i], abs(np.diff(corners[i, slot], axis=0))
        legs = np.array([step[:32].sum(), step[32:].sum()])
        if " then " in name[i, slot]:
            assert (p[32] >= 4).all() and (p[32] <= room - 4).all()
            assert (legs >= 12 - 1e-9).all() and (legs <= 28).all()
        elif name[i, slot].startswith("bouncing"):
            axis = step.sum(0).argmax()
            assert 54 - 7 <= legs.sum() <= 108 and step[:, 1 - axis].sum() == 0
            turn = np.flatnonzero(np.diff(np.sign(np.diff(p[:, axis])))) + 1
            assert len(turn) and (np.minimum(p[turn, axis], room - p[turn, axis]) <= 1).all()

def test_steady_scenes_are_those_whose_digits_never_change_their_motion():
    s = FULL(2000)
    step = np.diff(s.positions(np.arange(65)), axis=2)
    straight = (abs(step - step[:, :, :1]).max((2, 3)) < 1e-9) | (s.digit < 0)
    assert np.array_equal(s.steady, straight.all(1)) and .3 < s.steady.mean() < .7

def test_two_digits_differ_start_apart_and_seldom_overlap():
    s = FULL.draw(np.flatnonzero(FULL(250).digit[:, 1] >= 0), seed=0)
    assert (s.digit[:, 0] != s.digit[:, 1]).all() and (s.size == 20).all()
    low, high = [], []  # of each digit's ink, drawn alone: first and last row and column
    for slot in (0, 1):
        alone = data.replace(s, digit=np.where(np.arange(2) == slot, s.digit, -1))
        on = alone.render(np.arange(32) * 2)[:, 0] > -1
        sides = torch.stack([on.any(-1), on.any(-2)]).int()                          # yx n f 64
        low.append(sides.argmax(-1))
        high.append(63 - sides.flip(-1).argmax(-1))
    gap = torch.maximum(low[0] - high[1], low[1] - high[0]).amax(0)                  # n f
    assert (gap[:, 0] > 0).all() and ((gap <= 0).float().mean(1) <= 0.25).all()

def test_continued_scenes_start_anywhere_come_from_another_motion_and_stop_at_walls():
    s, which = FULL(600), np.arange(600) % 3 > 0
    c = s.carry_on(data.Chooser(0, "clips", range(600)), which)
    alone = which & (s.size == 28)
    spread = c.start[alone, 0] / 36
    assert spread.min() < .05 and spread.max() > .95 and abs(spread.mean() - .5) < .05
    assert (c.start[~alone] == s.start[~alone]).all()
    own = (abs(c.before - c.legs[:, :, 0] * 2 / 64) < 1e-9).all((1, 2))
    assert .4 < own.mean() < .6                                  # the others come from elsewhere
    p = c.positions(np.arange(-12, 53))
    assert (p >= 0).all() and (p <= (64 - c.size)[:, None, None, None]).all()
    assert abs(np.diff(p, axis=2)).max() < 4                     # no jump, not at the seam either
    left = np.flatnonzero(alone & (s.motion[:, 0] == data.NAMES.index("left")))
    stopped = left[p[left, 0, -1, 1] == 0]                       # they met the wall and stay there
    assert len(stopped) and (np.diff(p[stopped, 0, 12:, 1], axis=-1) <= 0).all()

def test_every_number_of_frames_shows_the_whole_action():
    for f in (16, 17, 32, 33, 64, 65):
        x, captions, truth = data.captioned_clips(3, num_frames=f, digits=DIGITS)
        assert x.shape == (3, 1, f, 64, 64) and len(captions) == len(truth.kind) == 3
        assert x.min() == -1 and 0.9 < x.max() <= 1
    pytest.raises(data.UserError, data.captioned_clips, 3, num_frames=20, digits=DIGITS)

def test_drawn_digits_are_centred_stay_inside_and_differ_between_splits():
    test = data.load_digits("test", "drawn")
    for drawn in (DIGITS, test):
        ink, pixel = drawn.images.double(), torch.arange(28).double()
        mean = torch.stack([ink.sum(1) @ pixel, ink.sum(2) @ pixel]) / ink.sum((1, 2))
        assert (mean - 13.5).abs().max() < 1.5
        assert (drawn.boxes[:, 1] - drawn.boxes[:, 0]).max() <= 21
    assert len(torch.cat([DIGITS.images, test.images]).flatten(1).unique(dim=0)) == 2500

load = data.load_digits.__wrapped__  # past its memory

@pytest.fixture
def mirrors(monkeypatch, tmp_path):
    """An empty cache, mirrors that cannot be reached, and digits that need not be drawn again."""
    monkeypatch.setattr(digits.urllib.request, "urlopen", Mock(side_effect=OSError))
    monkeypatch.setattr(digits, "draw_digits", Mock(return_value=DIGITS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return digits.urllib.request.urlopen

def test_without_mnist_and_network_one_line_says_so_and_work_goes_on(mirrors, capsys):
    assert load("train", "auto") is DIGITS and DIGITS.source == "drawn"
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(data.UserError, match="MNIST was not found"):
        load("train", "mnist")

def test_damaged_mnist_is_refused(mirrors, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not MNIST")
    with pytest.raises(data.UserError, match="damaged"):
        load("train", "auto", str(tmp_path))
    with pytest.raises(data.UserError, match="no folder"):
        load("train", "auto", "")

def test_a_download_is_checked_and_kept_whole(mirrors, tmp_path):
    good, cut = b"some bytes", http.client.IncompleteRead(b"so")
    mirrors.side_effect = [cut, io.BytesIO(b"tampered"), io.BytesIO(good)]
    sha256 = hashlib.sha256(good).hexdigest()
    assert digits.mnist_file("x.gz", sha256) is None          # a cut and a tampered download
    assert digits.mnist_file("x.gz", sha256) == good          # a good one, now in the cache
    assert digits.mnist_file("x.gz", sha256) == good          # no further reply is needed
    assert os.listdir(tmp_path / "cache" / "moving_mnist") == ["x.gz"]
