"""Trains on the clips of `python data.py --export DIR`, but from memory: the other half of the
README's comparison.

    python tests/from_memory.py [--hide] --preset tiny --data-root DIR --seed 0 --out runs/memory0

Every draw takes the clip that `data.FolderClips` would take. `--hide` also hides what a folder does
not tell: a clip's subject, what its motion is, and how it could have begun.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import train
from tasks import choose

NUM = 2000  # as --export writes


@dataclass
class Hidden(data.Scenes):
    """Scenes that tell no more than `data.FolderClips` does."""

    def told(self):
        """These scenes as a source's draw: motions unknown, captions in place of subjects."""
        self.shown = replace(self)
        self.motion, self.subjects = np.full((len(self.kind), 1), -2), self.captions
        return self

    def carry_on(self, pick, which):
        return self

    def render(self, ticks, device="cpu", scale=1):
        ticks = ticks - np.min(ticks, -1, keepdims=True).clip(max=0)
        x = data.Scenes.render(self.shown, ticks, device, scale)
        return ((x + 1) * 127.5).round() / 127.5 - 1  # a file has 256 greys


def main(argv):
    hide, argv = "--hide" in argv, [word for word in argv if word != "--hide"]
    make, whole = data.make_scenes, []

    def source(n, *, seed, start, **options):
        if not whole:
            whole.append(make(NUM, **options))
        pick = data.Chooser(seed, "own clips", range(start, start + n))
        scenes = choose(whole[0], pick.below("clip", NUM))
        return Hidden(**vars(scenes)).told() if hide else scenes

    data.make_scenes = source
    return train.main([*argv, "--captions", "four"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
