"""What the tests share: small networks under the tiny preset's name, and one run of everything."""

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from support import run
from unet3d import UNetConfig
from vae import VAEConfig

torch.set_num_threads(1)  # tests are many small things; a second thread only waits
ROOT = Path(__file__).parent.parent
FEW = ["--digits", "drawn", "--device", "cpu", "--vae-steps", "3", "--decoder-steps", "2",
       "--image-steps", "2", "--steps", "3", "--vae-batch-size", "4", "--batch-size", "2"]


def shrink(patch):
    """Minutes become seconds: small networks, a checkpoint every step, no strips of samples."""
    patch.setitem(train.SIZES, "tiny", (
        VAEConfig(widths=(8, 16, 16), blocks=1),
        UNetConfig(widths=(16,), head_dim=8, emb_width=32)))
    patch.setattr(train, "MEASURED", 16)
    patch.setattr(run, "LOG_EVERY", 1)
    patch.setattr(run, "APART", 0)
    patch.setattr(train, "write_samples", lambda *arguments: None)


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run of a few steps of everything, which no test may change."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert train.main([*FEW, "--out", str(out)]) == 0
    return out


def rows(out):
    """log.csv without its time columns."""
    with open(out / "log.csv", newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def weights(out, key="model"):
    return torch.load(out / "checkpoint.pt", weights_only=True)[key]


def same(a, b):
    """Bit for bit the same weights, averages and log, and whole files only."""
    for key in ("model", "ema"):
        one, two = weights(a, key), weights(b, key)
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert rows(a) == rows(b) and not list(b.glob("*.part"))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: add --slow"))
