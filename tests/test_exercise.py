"""Facts of the exercises: every one can be begun, and its judges tell right from wrong."""

import ast

import pytest

import exercise
from conftest import ROOT
from exercise import EXERCISES, YOUR_TURN

WRONG = {  # a mistake that is easily made in each: what the repository has -> what a student might
    "q_sample": ("return a * x0 + s * eps", "return a ** 2 * x0 + s ** 2 * eps"),  # no roots
    "v": ("(s * xt + a * prediction) / power", "(s * xt - a * prediction) / power"),
    "posterior": ("return mean, s_prev ** 2 / s ** 2 * beta", "return mean, beta"),
    "ddim": ("max(0.0, s_prev ** 2 - sigma ** 2) ** 0.5 * eps", "s_prev * eps"),
    "guide": ("scale * (conditional - unconditional)", "scale * conditional"),
    "rotary": ("two * cos + one * sin", "two * cos - one * sin"),
    "windows": ("np.where(unsteady[:, None], random, KNOWN[task])", "KNOWN[task]"),
    "fill": ("[i + ends // 2 for i in starts]", "starts"),
    "kl": ("log_var.exp() - 1 - log_var)", "log_var.exp() - 1 + log_var)"),
    "ema": ("get_ema_multi_avg_fn(decay)", "get_ema_multi_avg_fn(1 - decay)")}
QUICK = ("guide",)                      # the others take a minute together: they run with --slow


@pytest.mark.parametrize("name", EXERCISES)
def test_blanking_takes_the_body_alone(name):
    """All that is left of the file is as it was, and parses; of the function, its docstring."""
    one = EXERCISES[name]
    text = (ROOT / one.file).read_text()
    for function in one.functions:
        left = exercise.blank(text, function, one.only)
        ast.parse(left)
        before, after = left.split(YOUR_TURN)
        assert text.startswith(before.rstrip(" ")) and text.endswith(after)
        assert f"def {function.split('.')[-1]}(" in before and len(before + after) < len(text)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXERCISES])
def test_its_judges_pass_the_right_body_and_neither_a_blank_nor_a_wrong_one(name, tmp_path, capsys):
    one, argv = EXERCISES[name], [name, "--folder", str(tmp_path)]
    path, right = tmp_path / name / one.file, (ROOT / one.file).read_text()
    assert exercise.main(argv) == 0
    assert exercise.main([*argv, "--check"]) == 1                       # blank
    assert "NotImplementedError: your turn" in capsys.readouterr().out
    old, new = WRONG[name]
    assert right.count(old) == 1
    path.write_text(right.replace(old, new))
    assert exercise.main([*argv, "--check"]) == 1
    out = capsys.readouterr().out
    assert "NotImplementedError" not in out and "1 failed" in out       # by a fact, not by a crash
    path.write_text(right)
    assert exercise.main([*argv, "--check"]) == 0
    exercise.main(argv[1:])
    assert f"[x] {name} " in capsys.readouterr().out
    path.write_text(right + "\n")                                       # changed since it passed
    exercise.main(argv[1:])
    assert "[x]" not in capsys.readouterr().out


def test_work_is_overwritten_only_when_asked_to(tmp_path, capsys):
    argv, path = ["kl", "--folder", str(tmp_path)], tmp_path / "kl" / "vae.py"
    assert exercise.main([*argv, "--check"]) == 2                       # nothing to check yet
    assert exercise.main(argv) == 0
    path.write_text("mine")
    assert exercise.main(argv) == 2 and path.read_text() == "mine"
    assert "--again" in capsys.readouterr().err
    assert exercise.main([*argv, "--again"]) == 0 and YOUR_TURN in path.read_text()
    assert exercise.main(["--check"]) == 2                              # of which exercise?


def test_the_page_names_every_exercise_its_functions_and_its_judges():
    page = (ROOT / "docs" / "exercises.md").read_text()
    for name, one in EXERCISES.items():
        assert f"python -m tests.exercise {name}\n" in page and f"`{one.file}`" in page
        for word in (*(function.split(".")[-1] for function in one.functions), *one.judges):
            assert f"`{word}`" in page, word
