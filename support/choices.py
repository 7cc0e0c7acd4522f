"""Choices that are hashes, where others have a random generator.

Clip i is chosen by (seed, i) alone: the same on every machine, alone or in a batch, after a resume
and in each of several processes, with no state to keep. All is done in integers, which no machine
rounds.

    pick = Chooser(seed=0, stream="train", index=range(100, 200))       # 100 clips
    pick.below("digit", 10)                                             # (100,) integers 0 ... 9
    pick.below("digit*", 10)                                            # (100, 2), one each for two
"""

import zlib

import numpy as np


def splitmix64(h):
    """SplitMix64's output (Steele et al. 2014) for each state in h, uint64, which wraps at 2^64."""
    h = h + 0x9E3779B97F4A7C15
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB
    return h ^ (h >> 31)


class Chooser:
    """Choices for n clips, each a function of (seed, stream, the clip's index, field) alone.

    stream names who chooses: a split of the data, a stage of training. field names what is chosen;
    a star in it stands for 0 and 1, the two digits of a clip, and makes (n 2) choices of (n,).
    important: both names are hashed, so that a renamed field changes every clip.
    """

    def __init__(self, seed, stream, index):
        key = np.array([seed % 2**63], np.uint64) ^ zlib.crc32(stream.encode())
        self.state = splitmix64(splitmix64(key) + np.asarray(index).astype(np.uint64))

    def bits(self, field):
        """24 random bits a choice, few enough for `below` to multiply them within 64."""
        if "*" in field:
            return np.stack([self.bits(field.replace("*", digit)) for digit in "01"], -1)
        return splitmix64(self.state ^ zlib.crc32(field.encode())) >> 40

    def below(self, field, n):
        """Integers 0 ... n - 1; n may be an array."""
        return (self.bits(field) * np.asarray(n).astype(np.uint64) >> 24).astype(int)

    def weighted(self, field, weights):
        """Integers k, each as often as the integer weights[k] says."""
        return np.searchsorted(np.cumsum(weights), self.below(field, sum(weights)), side="right")

    def between(self, field, low, high):
        """Floats in [low, high)."""
        return low + self.bits(field).astype(float) / 2**24 * (high - low)
