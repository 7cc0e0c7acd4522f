"""Trains on the clips of `python data.py --export DIR`, but from memory: the other half of the
README's comparison.

    python tests/from_memory.py [--hide] --preset tiny --data-root DIR --seed 0 --out runs/memory0

Every draw takes the clip that `data.FolderClips` would take. `--hide` also hides what a folder does
not tell: a clip's subject, what its motion is, and how it could have begun.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import train
from support.own_clips import FolderClips
from tasks import choose

NUM = 2000  # as --export writes


class Shown(FolderClips):
    """What a folder of these scenes shows, without the folder: all 65 ticks, in 256 greys."""

    def __init__(self, scenes):
        ticks = np.arange(data.ACTION + 1)
        parts = [choose(scenes, range(i, i + 100)).render(ticks) for i in range(0, NUM, 100)]
        self.frames = torch.cat([((x + 1) * 127.5).round().byte() for x in parts])
        self.frames = rearrange(self.frames, "n c f h w -> n f c h w").numpy()
        self.captions = scenes.captions


def main(argv):
    hide, argv = "--hide" in argv, [word for word in argv if word != "--hide"]
    make, whole = data.make_scenes, []

    def source(n, *, seed, start, **options):
        if not whole:
            scenes = make(NUM, **options)
            whole.append(Shown(scenes) if hide else scenes)
        if hide:
            return whole[0](n, seed=seed, start=start)
        pick = data.Chooser(seed, "own clips", range(start, start + n))
        return choose(whole[0], pick.below("clip", NUM))

    data.make_scenes = source
    return train.main([*argv, "--captions", "four"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
