"""The text encoder: words -> tokens -> context vectors, trained together with the U-Net.

The captions' language has about forty words, so a token is a word and the vocabulary comes from the
data (it travels in the checkpoint). A transformer (Vaswani et al. 2017, arXiv:1706.03762) lets
words bind: in "a 3 moving left and a 5 moving up" each digit must find its own direction.

    tokens (b n) int, 0 = padding  ->  context (b n d), context_mask (b n), True = a real token

Classifier-free guidance (Ho & Salimans 2022, 2207.12598) needs a prompt that says nothing. That is
one learned vector here, trained by dropping captions; never a context with every token masked,
whose softmax would be NaN. For open language Imagen takes a large frozen encoder (T5) instead;
CogVideo has none, its caption's tokens stand in one sequence with those of the frames.
Run `python text_encoder.py` to see the tokens and that padding is invisible.
"""

import re
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

PADDING = 0


def words_of(caption):
    """A caption's words in lower case, in its order."""
    return re.findall(r"\w+", caption.lower())


class Tokenizer:
    """Lower-case words -> integers 1 ... len(words); 0 is padding.

    words: the vocabulary; length: tokens a caption is padded or cut to.
    """

    def __init__(self, words, length=20):
        self.words, self.length = list(words), length
        self.index = {word: i for i, word in enumerate(self.words, start=1)}

    def __call__(self, captions):
        """List of b strings -> tokens (b n) int64. Unknown words are left out, with a warning."""
        split = [words_of(caption) for caption in captions]
        unknown = sorted({word for words in split for word in words} - self.index.keys())
        if unknown:
            some = ", ".join(word[:30] for word in unknown[:20])
            warnings.warn(f"words the model never saw are left out: {some}; it knows: "
                          f"{' '.join(self.words)}", stacklevel=2)
        rows = [[self.index[word] for word in words if word in self.index] for words in split]
        longest = max(map(len, rows), default=0)
        if longest > self.length:
            warnings.warn(f"a caption of {longest} words is cut to {self.length}", stacklevel=2)
        rows = [row[:self.length] + [PADDING] * (self.length - len(row)) for row in rows]
        return torch.tensor(rows).reshape(-1, self.length)


class Layer(nn.Module):
    """Pre-norm transformer layer: attention among the real tokens, then a two-layer perceptron."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x, mask):
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (three h e) -> three b h n e",
                            three=3, h=self.heads)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=rearrange(mask, "b n -> b 1 1 n"))
        x = x + self.out(rearrange(a, "b h n e -> b n (h e)"))
        return x + self.mlp(self.norm2(x))


@dataclass
class TextConfig:
    vocabulary: int = 39   # words, without padding
    length: int = 20       # tokens a caption; the grammar's longest has 17
    width: int = 96
    layers: int = 2
    heads: int = 4


class TextEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, d = config, config.width
        # important: words and positions have one scale at birth. With torch's N(0, 1) words,
        # positions are 2 % of the sum, "left then down" is "down then left", and training never
        # mends it: turns stay a coin toss.
        self.word = nn.Embedding(config.vocabulary + 1, d)
        self.position = nn.Parameter(torch.empty(config.length, d))
        for table in (self.word.weight, self.position):
            nn.init.normal_(table, std=0.02)
        self.layers = nn.ModuleList(Layer(d, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)
        self.null = nn.Parameter(0.02 * torch.randn(d))

    def forward(self, tokens, drop=None):
        """tokens (b n) -> context (b n d), context_mask (b n).

        drop (b,) True replaces a caption by the null prompt, as does one without any known word.
        """
        mask = tokens != PADDING                                                    # b n
        null = ~mask.any(1) if drop is None else drop | ~mask.any(1)                # b
        # the null prompt is one token in the first place; it never goes through the layers
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0            # n
        mask = torch.where(null[:, None], first, mask)
        x = self.word(tokens) + self.position[:tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return torch.where(null[:, None, None], self.null.to(x.dtype), self.norm(x)), mask


if __name__ == "__main__":
    from data import VOCABULARY

    words = VOCABULARY["full"]
    torch.manual_seed(0)
    tokenizer = Tokenizer(words)
    model = TextEncoder(TextConfig(vocabulary=len(words)))
    print(f"{len(words)} words, {sum(p.numel() for p in model.parameters()):,} parameters")
    for caption in ("a 3 moving left", "the digit seven going up then right"):
        tokens = tokenizer([caption])
        print(f"{caption!r} -> {tokens[tokens > 0].tolist()}")
        context, mask = model(tokens)
        n = int(mask.sum())
        alone, _ = model(tokens[:, :n])  # without any padding
        print(f"  context {tuple(context.shape)}, {n} real tokens; padding changes them by "
              f"{(alone - context[:, :n]).abs().max():.0e}")
    context, mask = model(tokens, drop=torch.tensor([True]))
    print(f"dropped -> {int(mask.sum())} token, the learned null: "
          f"{torch.equal(context[0, 0], model.null)}")
