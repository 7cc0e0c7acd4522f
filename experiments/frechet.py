"""The Frechet digit distance of samples to real clips, and its floor.

    python -m experiments.frechet --num 512 --data-root DIR

FID (Heusel et al. 2017, arXiv:1706.08500) on the features of the judge's `DigitNet`: it sees digits
that no real clip shows and digits that change on the way. It is no FVD, which needs I3D. Two finite
samples of one law have a distance above 0: compare at equal n, with the floor, that of other real
clips.
"""

import sys

import numpy as np

import metrics
from experiments.common import flags, run_parts, test_scenes
from sample import generate


def features(x, classifier):
    """Clips x (b c f h w) -> (b 256): DigitNet's 32 features, mean over a frame's digits, of eight
    evenly spaced frames side by side, so that the covariance of 512 clips still has full rank."""
    eight = np.linspace(0, x.shape[2] - 1, 8).round().astype(int)
    device, rows = next(classifier.parameters()).device, []
    for clip in x:
        _, _, seen = metrics.look(clip.to(device), classifier)                       # f k 32
        rows.append(seen[eight].mean(1).flatten().cpu().numpy())
    return np.stack(rows)


def frechet_distance(a, b):
    """Frechet distance between Gaussians fitted to features a (n d) and b (m d):

        |μa − μb|² + tr(Ca + Cb − 2 (Ca^½ Cb Ca^½)^½)                        (FID, Eq. 6)

    The symmetric form keeps every root an eigendecomposition of a symmetric matrix, in float64.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ca, cb = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    values, vectors = np.linalg.eigh(ca)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return max(0., shift + np.trace(ca + cb) - 2 * cross)


def distance(model, classifier, scenes, args):
    """Prints the distance of samples, and of as many other real clips, to real ones."""
    grammar = "full" if "standing" in model.config["vocabulary"] else "four"
    ticks = np.arange(32) * 2
    asked = test_scenes(args, args.num, grammar)
    real = features(asked.render(ticks), classifier)
    others = test_scenes(args, args.num, grammar, start=args.num).render(ticks)
    samples = generate(model, asked.captions, num_frames=32, seed=args.seed)
    print(f"\nFrechet digit distance to real clips, --captions {grammar}")
    for name, x in (("samples", samples), ("other real clips (the floor)", others)):
        print(f"{name:29s} {frechet_distance(features(x, classifier), real):7.3f}", flush=True)


def main(argv=None):
    p = flags(__doc__, num=512)
    args = p.parse_args(argv)
    if args.num <= 256:
        p.error("--num must be over 256, the features' number: else the covariance is singular")
    return run_parts({"distance": distance}, ["distance"], args)


if __name__ == "__main__":
    sys.exit(main())
