"""The judge itself, on real test clips: how often does it find the truth in their pixels?

    python -m experiments.audit --num 5000 --data-root DIR

Motion, adverb and count of every clip are asked for, also where its caption is silent, and all its
digits. You should see 99.5 % or more in the first column, 99 % in each kind: what the judge itself
gets wrong bounds what its table can say of a model. Needs no checkpoint.
"""

import sys
from dataclasses import replace

import numpy as np
from tqdm import tqdm

import metrics
from data import KINDS, choose
from experiments.common import flags, judge, test_scenes
from model import pick_device
from support.console import exit_status


def outspoken(scenes):
    """The same scenes as if their captions said everything."""
    kind = np.where(scenes.size == 20, KINDS.index("two moving"), KINDS.index("straight"))
    return replace(scenes, kind=kind, named=np.ones_like(scenes.named))


def audit(args):
    """Prints a row for all clips and one for each kind of caption."""
    device = pick_device(args.device)
    classifier = metrics.load_classifier(device=device)
    scenes, found = test_scenes(args, args.num, args.captions), []
    for start in tqdm(range(0, args.num, 250), desc="reading"):
        some = choose(scenes, range(start, min(start + 250, args.num)))
        scores = judge(some.render(np.arange(32) * 2, device), classifier, outspoken(some))
        found.append(np.stack([scores.motion_ok, scores.digit_ok]))
    motion, digit = 100 * np.concatenate(found, axis=1)
    print(f"the judge on real {scenes.digits.source} test clips, seed {args.seed}, n {args.num}\n\n"
          f"{'captions':13s} {'n':>5s}  motion and count %  all digits %")
    for kind in ("all", *KINDS):
        chosen = np.array([kind in ("all", KINDS[k]) for k in scenes.kind])
        if chosen.any():
            print(f"{kind:13s} {chosen.sum():5d}  {motion[chosen].mean():18.2f}  "
                  f"{digit[chosen].mean():12.2f}")


def main(argv=None):
    p = flags(__doc__, num=5000)
    p.add_argument("--captions", choices=["full", "four"], default="full")
    args = p.parse_args(argv)
    return exit_status(lambda: audit(args))


if __name__ == "__main__":
    sys.exit(main())
