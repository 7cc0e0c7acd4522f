"""Facts of the data: captions bind to pixels, choices to (seed, index), files to what we wrote."""

import http.client
import re
import urllib.error

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import data
from support import digits, video

DIGITS = data.load_digits("train", "drawn")
N = "(?:[0-9]|zero|one|two|three|four|five|six|seven|eight|nine)"
S = f"(?:a digit|(?:a|the|digit|the digit|the number) {N})"
V, ADV, C = "(?:moving|going|sliding)", "(?:slowly|quickly)", "(?:left|right|up|down)"
D = f"(?:(?:up|down) and (?:left|right)|{C})"
M = (f"(?:{V} {D}|{V} {ADV} {D}|{V} {D} {ADV}|{V} {C} then {C}"
     "|bouncing left and right|bouncing up and down|standing still)")
CAPTION = re.compile(f"{S}|{S} {M}|{S} {M} and {S} {M}|two digits")


def scenes(n=2000, **options):
    return data.make_scenes(n, digits=DIGITS, **options)


def test_every_caption_is_in_the_grammar():
    captions = scenes().captions
    assert all(CAPTION.fullmatch(c) for c in captions)
    assert not any(re.search(rf"({C}) then \1", c) for c in captions)
    assert len(set(captions)) > 1000


def test_half_of_every_batch_is_one_digit_in_straight_motion():
    for start in (0, 64):
        kind = scenes(64, start=start).kind
        assert (kind[::2] == data.KINDS.index("straight")).all()
    assert set(scenes().kind) == set(range(len(data.KINDS)))


def test_a_clip_depends_on_seed_and_index_only():
    whole, x = scenes(12), data.captioned_clips(12, num_frames=16, digits=DIGITS)[0]
    part = scenes(5, start=7)
    assert part.captions == whole.captions[7:] and np.array_equal(part.start, whole.start[7:])
    y = data.captioned_clips(5, start=7, num_frames=16, digits=DIGITS)[0]
    assert torch.allclose(x[7:], y, atol=1 / 255)
    assert scenes(12, seed=1).captions != whole.captions
    assert scenes(12, split="test").captions != whole.captions


def test_hash_is_the_same_on_every_machine():
    """Golden values: a change here changes every clip of every seed."""
    pick = data.Chooser(3, "train", [0, 1, 10**6])
    assert pick.below("kind", 1000).tolist() == [212, 24, 317]
    assert data._mix(np.array([0], np.uint64))[0] == 0xE220A8397B1DCDAF  # SplitMix64's first output


def test_what_is_drawn_is_what_the_path_says():
    """The ink's centre of mass moves as the truth's corner does, in both sizes."""
    x, _, truth = data.captioned_clips(64, digits=DIGITS)
    one = np.flatnonzero(truth.digit[:, 1] < 0)
    ink = (x[one, 0] + 1) / 2
    pixel = torch.arange(64) + .5
    y = (ink.sum(-1) @ pixel) / ink.sum((-1, -2))
    x = (ink.sum(-2) @ pixel) / ink.sum((-1, -2))
    centre = torch.stack([y, x], -1).double()
    corner = torch.from_numpy(truth.positions(np.arange(32) * 2)[one, 0])
    moved = (centre - centre[:, :1]) - (corner - corner[:, :1])
    assert moved.abs().max() < 0.05


def test_straight_motion_travels_as_its_adverb_says_and_never_touches_a_wall():
    s = scenes()
    i = s.kind == 0
    path, room = s.positions(np.arange(65))[i, 0], 64 - s.size[i, None, None]
    travel = abs(path[:, -1] - path[:, 0]).max(-1)
    low, high = np.array([(8, 36), (8, 13), (26, 36)]).T
    assert (travel >= low[s.adverb[i, 0]] - 1e-9).all() and (travel <= high[s.adverb[i, 0]]).all()
    assert (path > 0).all() and (path < room).all()


def test_turns_and_bounces_keep_their_distances():
    s = scenes(6000)
    path, name = s.positions(np.arange(65)), np.array(data.NAMES)[s.motion]
    for i, slot in zip(*np.nonzero((s.digit >= 0))):
        p, room = path[i, slot], 64 - s.size[i]
        step = abs(np.diff(p, axis=0))
        if " then " in name[i, slot]:
            assert (p[32] >= 4).all() and (p[32] <= room - 4).all()
            for leg in (step[:32].sum(), step[32:].sum()):
                assert 12 - 1e-9 <= leg <= 28
        elif name[i, slot].startswith("bouncing"):
            axis = step.sum(0).argmax()
            assert 54 - 7 <= step[:, axis].sum() <= 108 and step[:, 1 - axis].sum() == 0
            turn = np.flatnonzero(np.diff(np.sign(np.diff(p[:, axis])))) + 1
            assert len(turn) and (np.minimum(p[turn, axis], room - p[turn, axis]) <= 1).all()


def test_two_digits_differ_start_apart_and_seldom_overlap():
    s = scenes(1500)
    i = np.flatnonzero(s.digit[:, 1] >= 0)
    assert (s.digit[i, 0] != s.digit[i, 1]).all() and (s.size[i] == 20).all()
    alone = []
    for slot in (0, 1):
        one = data.Scenes(**{**vars(s), "digit": np.where(np.arange(2) == slot, s.digit, -1)})
        x = data.Scenes(**{k: v if k in ("digits", "before") else
                           [v[j] for j in i] if isinstance(v, list) else v[i]
                           for k, v in vars(one).items()}).render(np.arange(32) * 2)
        on = x[:, 0] > -1
        rows, columns = on.any(-1), on.any(-2)
        alone.append([(a.int().argmax(-1), 63 - a.flip(-1).int().argmax(-1))
                      for a in (rows, columns)])
    gap = torch.stack([torch.maximum(alone[0][k][0] - alone[1][k][1],
                                     alone[1][k][0] - alone[0][k][1]) for k in (0, 1)]).amax(0)
    assert (gap[:, 0] > 0).all() and ((gap <= 0).float().mean(1) <= 0.25).all()


def test_drawn_digits_are_centred_stay_inside_and_differ_between_splits():
    test = data.load_digits("test", "drawn")
    for digits in (DIGITS, test):
        ink = digits.images.double()
        pixel = torch.arange(28).double()
        for axis in (1, 2):
            mean = (ink.sum(3 - axis) @ pixel) / ink.sum((1, 2))
            assert (mean - 13.5).abs().max() < 1.5
        assert (digits.boxes[:, 1] - digits.boxes[:, 0]).max() <= 21
    rows = {bytes(image.numpy()) for image in DIGITS.images}
    assert not any(bytes(image.numpy()) in rows for image in test.images)


def test_four_captions_are_one_named_digit_in_four_directions():
    s = scenes(400, captions="four")
    assert all(re.fullmatch(rf"a [0-9] moving {C}", c) for c in s.captions)
    assert len(set(s.captions)) == 40 and s.subjects[0] == s.captions[0][:3]


def test_pixels_and_shapes():
    for f in (16, 17, 32, 33, 64, 65):
        x, captions, truth = data.captioned_clips(3, num_frames=f, digits=DIGITS)
        assert x.shape == (3, 1, f, 64, 64) and len(captions) == len(truth.kind) == 3
        assert x.min() == -1 and 0.9 < x.max() <= 1
    with pytest.raises(data.UserError, match="num_frames"):
        data.captioned_clips(3, num_frames=20, digits=DIGITS)


# ---- MNIST ---------------------------------------------------------------------------------------

@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")
    monkeypatch.setattr(digits.urllib.request, "urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data.load_digits.cache_clear()
    yield tmp_path
    data.load_digits.cache_clear()


def test_without_mnist_and_network_one_line_says_so_and_work_goes_on(no_network, capsys):
    assert data.load_digits("train", "auto").source == "drawn"
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(data.UserError, match="MNIST was not found"):
        data.load_digits("train", "mnist")


def test_damaged_mnist_is_refused(no_network):
    (no_network / "train-images-idx3-ubyte.gz").write_bytes(b"not MNIST")
    with pytest.raises(data.UserError, match="damaged"):
        data.load_digits("train", "auto", str(no_network))
    with pytest.raises(data.UserError, match="no folder"):
        data.load_digits("train", "auto", str(no_network / "nowhere"))


def test_a_download_is_checked_and_kept_whole(no_network, monkeypatch):
    import hashlib
    import io
    good = b"some bytes"
    replies = iter([http.client.IncompleteRead(b"so"), io.BytesIO(b"tampered"), io.BytesIO(good)])

    def urlopen(url, timeout):
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(digits.urllib.request, "urlopen", urlopen)
    sha256 = hashlib.sha256(good).hexdigest()
    assert digits.mnist_file("x.gz", sha256) is None          # a cut and a tampered download
    assert digits.mnist_file("x.gz", sha256) == good          # a good one, now in the cache
    assert digits.mnist_file("x.gz", sha256) == good          # no further reply is needed
    assert [p.name for p in (no_network / "cache" / "moving_mnist").iterdir()] == ["x.gz"]


# ---- files ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [1, 3])
def test_gif_keeps_greys_frames_rate_and_loops(tmp_path, channels):
    g = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (1, 12, 32, 40), generator=g)
    video.write_clip((grey / 127.5 - 1).expand(channels, -1, -1, -1), tmp_path / "a.gif", fps=10)
    back = imageio.imread(tmp_path / "a.gif", index=None)
    meta = imageio.immeta(tmp_path / "a.gif")
    assert back.shape[:3] == (12, 32, 40) and meta["duration"] == 100 and meta["loop"] == 0
    back = back[..., 0] if back.ndim == 4 else back
    assert abs(back.astype(int) - grey[0].numpy()).max() == 0


@pytest.mark.parametrize("fps", [5, 12, 30, 100])
def test_a_gif_lasts_as_long_as_its_rate_says(tmp_path, fps):
    """Although its frames can only stand for whole hundredths of a second."""
    x = torch.rand(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    video.write_clip(x, tmp_path / "a.gif", fps=fps)
    times = [imageio.immeta(tmp_path / "a.gif", index=k)["duration"] for k in range(16)]
    assert abs(sum(times) - 16_000 / fps) <= 5


def test_mp4_keeps_frames_and_rate(tmp_path):
    x, _, _ = data.captioned_clips(1, digits=DIGITS)
    video.write_clip(x, tmp_path / "a.mp4", fps=10)
    back = imageio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert back.shape == (32, 64, 64, 3)
    assert imageio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")["fps"] == 10
    truth = ((x[0, 0] + 1) * 127.5).numpy()
    assert abs(back[..., 0] - truth).mean() < 3


def test_png_is_a_strip_and_several_clips_are_a_grid(tmp_path):
    x, _, _ = data.captioned_clips(3, num_frames=16, digits=DIGITS)
    video.write_clip(x, tmp_path / "a.png")
    strip = imageio.imread(tmp_path / "a.png")
    assert strip.shape == (3 * 64, 16 * 64)
    frame = ((x[1, 0, 2] + 1) * 127.5).round().numpy()
    assert (strip[64:128, 128:192] == frame).all()
    video.write_clip(x, tmp_path / "b.gif", fps=5)
    assert imageio.imread(tmp_path / "b.gif", index=None).shape[:3] == (16, 132, 132)


@pytest.mark.parametrize("name", ["a.txt", "a", "nowhere/a.gif", "."])
def test_paths_that_cannot_be_written_are_refused(tmp_path, name):
    with pytest.raises(data.UserError):
        video.check_clip_path(tmp_path / name)


def test_continued_scenes_start_anywhere_come_from_another_motion_and_stop_at_walls():
    s = scenes(600)
    which = np.arange(600) % 3 > 0
    c = s.carry_on(data.Chooser(0, "clips", range(600)), which)
    assert (c.start[~which] == s.start[~which]).all()
    alone = which & (s.size == 28)
    spread = c.start[alone, 0] / (64 - 28)
    assert spread.min() < .05 and spread.max() > .95 and abs(spread.mean() - .5) < .05
    ticks = np.arange(-12, 53)
    p = c.positions(ticks)
    room = (64 - c.size)[:, None, None, None]
    assert (p >= 0).all() and (p <= room).all()
    assert abs(np.diff(p, axis=2)).max() < 4                     # no jump, not at the seam either
    # half of them come as their own motion begins, the others from elsewhere
    own = (abs(c.before - c.legs[:, :, 0] * 2 / 64) < 1e-9).all((1, 2))
    assert .4 < own.mean() < .6
    # a straight motion that meets a wall stays there
    left = np.flatnonzero(alone & (s.motion[:, 0] == data.NAMES.index("left")))
    stopped = left[p[left, 0, -1, 1] == 0]
    assert len(stopped) and (np.diff(p[stopped, 0, 12:, 1], axis=-1) <= 0).all()


def test_sharp_truth_is_the_same_picture_with_steeper_edges():
    s = scenes(12)
    x, large = s.render(np.zeros(1)), s.render(np.zeros(1), scale=2)
    assert large.shape[-2:] == (128, 128)
    small = torch.nn.functional.avg_pool2d(large[:, 0], 2)
    assert (small - x[:, 0]).abs().mean() < .03
    again = torch.nn.functional.interpolate(x[:, 0], scale_factor=2, mode="bicubic")
    assert large.diff(dim=-1).square().mean() > 1.3 * again.diff(dim=-1).square().mean()
