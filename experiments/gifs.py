"""Every task as a GIF: the shipped weights, fixed seeds, nothing chosen.

Each function makes the frames of one GIF from a model: x (c f h w) in [-1, 1], clips side by side,
and its rate in frames a second. They are 3.2 s of action at 10 frames a second, unless said.
`python -m experiments.figures` writes them with all other pictures (experiments/figures.py).
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

import data
from sample import generate

LINE = -.5  # grey between clips, in [-1, 1]
GREYS = 64  # of a GIF: without noise in the last bits files are half as large, and look the same


def beside(x):
    """Clips x (b c f h w) -> one (c f h w'), side by side with a grey pixel between."""
    x = ((x.cpu() + 1) / 2 * (GREYS - 1)).round() / (GREYS - 1) * 2 - 1
    lined = F.pad(x, (0, 1), value=LINE)
    return rearrange(lined, "b c f h w -> c f h (b w)")[..., :-1]


def drawn_picture(digit):
    """A picture (c=1 k=1 h w) to animate: a digit of pen strokes in the middle of a black frame."""
    digits = data.load_digits("test", "drawn")
    bitmap = digits.images[digits.first[digit]].float() / 127.5 - 1
    margin = (data.SIZE - len(bitmap)) // 2
    return F.pad(bitmap, [margin] * 4, value=-1)[None, None]


def text(model):
    """Text to clip."""
    return beside(generate(model, ["a digit moving left", "a 3 sliding up and right",
                                   "the number eight bouncing left and right"])), 10


def turn(model):
    """Two motions in one caption: it turns at half time."""
    return beside(generate(model, ["a 5 moving up then left", "the digit seven going right then up",
                                   "a 2 moving left then right"])), 10


def two_digits(model):
    """Two digits, each with its own motion."""
    return beside(generate(model, ["a 1 moving left and a 7 standing still",
                                   "a 4 moving up and a 9 moving down",
                                   "a 0 going right and a 6 going right"])), 10


def picture(model):
    """One picture, at the left, and what three captions make of it."""
    prompts, first = [f"a 4 moving {way}" for way in ("left", "right", "up")], drawn_picture(4)
    x = generate(model, prompts, first=repeat(first, "c k h w -> b c k h w", b=len(prompts))).cpu()
    still = repeat(first, "c 1 h w -> 1 c f h w", f=x.shape[2])
    return beside(torch.cat([still, x])), 10


def extend(model):
    """Continuation: the action, then 2.6 s more from its last four key frames, the same caption."""
    prompts = ["a 3 moving left", "a 6 moving up slowly", "the 8 bouncing up and down"]
    return beside(generate(model, prompts, then=[prompts])), 10


def chain(model):
    """Two captions, one after the other."""
    first = ["a 3 moving right", "a 7 moving down", "a 0 moving left"]
    then = ["a 3 moving up", "a 7 moving left", "a 0 moving right"]
    return beside(generate(model, first, then=[then])), 10


def fill(model):
    """The same clip of 16, 32 and 64 frames: 5, 10 and 20 a second of one action."""
    each = [generate(model, ["a 5 moving left then up"], num_frames=f) for f in (16, 32, 64)]
    shown = [repeat(x, "b c f h w -> b c (f k) h w", k=64 // x.shape[2]) for x in each]
    return beside(torch.cat(shown)), 20


GIFS = dict(text=text, turn=turn, two_digits=two_digits, picture=picture, extend=extend,
            chain=chain, fill=fill)
