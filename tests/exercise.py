"""Exercises that grade themselves: blank a function, write it yourself, let its own tests judge.

    python -m tests.exercise                    lists the ten, and which are done
    python -m tests.exercise q_sample           writes exercises/q_sample/diffusion.py for you
    python -m tests.exercise q_sample --check   runs the repository's tests of it on your version

docs/exercises.md has the tasks. Each has its own copy of one file, so that what you have not yet
written fails no other. The repository is never changed: a check runs in a copy, with your file in.
"""

import argparse
import ast
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder
from support.console import UserError, add_flags, exit_status, one_of

YOUR_TURN = 'raise NotImplementedError("your turn: docs/exercises.md")'


@dataclass
class Exercise:
    file: str         # the chapter
    functions: tuple  # whose bodies are blanked; a method as Class.method
    tests: str        # the file of the tests that judge it,
    judges: tuple     # and their names
    only: tuple = ()  # blank only the assignments to these names


EXERCISES = {  # in the order of docs/exercises.md
    "q_sample": Exercise("diffusion.py", ("Diffusion.q_sample",), "test_diffusion.py", (
        "test_q_sample_matches_ddpm_eq4", "test_one_jump_equals_many_small_steps")),
    "v": Exercise("diffusion.py", ("Diffusion.target", "Diffusion.to_x0_eps"), "test_diffusion.py",
                  ("test_eps_v_x0_round_trip", "test_every_prediction_is_undone_on_the_line_too",
                   "test_samplers_find_the_distribution_whatever_is_predicted")),
    "posterior": Exercise("diffusion.py", ("Diffusion.posterior",), "test_diffusion.py", (
        "test_posterior_matches_ddpm_eq7", "test_last_step_adds_no_noise",
        "test_posterior_of_flow_is_bayes_rule")),
    "ddim": Exercise("diffusion.py", ("Diffusion.ddim",), "test_diffusion.py", (
        "test_ddim_lands_on_the_exact_gaussian", "test_ddim_eta_one_matches_ddpm_variance")),
    "guide": Exercise("diffusion.py", ("guide",), "test_diffusion.py", (
        "test_scale_one_is_conditional_scale_zero_is_unconditional",)),
    "rotary": Exercise("unet3d.py", ("rotary",), "test_models.py", (
        "test_rotary_makes_products_know_how_far_apart_two_frames_are",)),
    "windows": Exercise("train.py", ("draw_windows",), "test_models.py", (
        "test_clip_windows_teach_every_task",), only=("random", "unsteady", "known_mask")),
    "fill": Exercise("sample.py", ("fill",), "test_commands.py", (
        "test_a_fill_hears_the_caption_of_its_middle_frame",
        "test_fills_keep_known_frames_whatever_their_number")),
    "kl": Exercise("vae.py", ("kl_to_standard_normal",), "test_models.py", (
        "test_kl_matches_torch_distributions",)),
    "ema": Exercise("train.py", ("update_ema",), "test_models.py", (
        "test_the_moving_average_follows_its_equation_where_weights_are_trained",))}


def blank(text, name, only=()):
    """A module's text with the body of function `name`, or its assignments to the names `only`,
    left to the student. Signature, decorators and docstring stay."""
    node = ast.parse(text)
    for part in name.split("."):  # a class, then its method
        node, = (inner for inner in node.body
                 if isinstance(inner, (ast.ClassDef, ast.FunctionDef)) and inner.name == part)
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if only:
        body = [line for line in body
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) in only]
    lines = text.split("\n")
    lines[body[0].lineno - 1:body[-1].end_lineno] = [" " * body[0].col_offset + YOUR_TURN]
    return "\n".join(lines)


def begin(exercise, path, again):
    """Write the student's file. Work that is there is kept, unless `again` asks to lose it."""
    if path.exists() and not again:
        raise UserError(f"{os.path.relpath(path)} exists: edit it, or overwrite it by --again")
    text = (ROOT / exercise.file).read_text(encoding="utf-8")
    for name in exercise.functions:
        text = blank(text, name, exercise.only)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"edit {os.path.relpath(path)}: {' and '.join(exercise.functions)}, where it says \"your "
          "turn\" (the task is in docs/exercises.md); then the same command with --check")


def check(exercise, path):
    """Judge the student's file by the repository's tests, in a copy of it; True if all pass."""
    if not path.exists():
        raise UserError(f"there is no {os.path.relpath(path)} to check: leave out --check first")
    with tempfile.TemporaryDirectory() as tree:
        for file in (*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")):
            copy = tree / file.relative_to(ROOT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file, copy)
        shutil.copy(path, tree)
        judges = [f"tests/{exercise.tests}::{name}" for name in exercise.judges]
        told = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", *judges],
                              cwd=tree, capture_output=True, text=True)
    if told.returncode:
        print(told.stdout + told.stderr)
        print(f"failed: {os.path.relpath(path)}; above is the first test that it does not pass")
    else:
        shutil.copy(path, path.with_suffix(".passed"))
        print(f"passed: {os.path.relpath(path)}: {', '.join(exercise.judges)}")
    return told.returncode == 0


def overview(folder):
    """Prints the exercises, [x] before those whose file has passed and not changed since."""
    for name, exercise in EXERCISES.items():
        path = folder / name / exercise.file
        passed = path.with_suffix(".passed")
        done = path.exists() and passed.exists() and filecmp.cmp(path, passed, shallow=False)
        print(f"[{'x' if done else ' '}] {name:9s} {exercise.file:12s}", *exercise.functions)


def work(argv, failed):
    """What the command does; the name of an exercise that fails goes into the list `failed`."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("name", nargs="?", type=one_of(*EXERCISES), help="without one, all are listed")
    args = add_flags(p, (
        ("--folder", Path, ROOT / "exercises", "where your versions are"),
        ("--check", bool, False, "run the tests that judge it on your version"),
        ("--again", bool, False, "start afresh: overwrites your version"))).parse_args(argv)
    if args.name is None and (args.check or args.again):
        raise UserError(f"--check and --again need an exercise: {', '.join(EXERCISES)}")
    if args.name is None:
        return overview(args.folder)
    exercise = EXERCISES[args.name]
    path = args.folder / args.name / exercise.file
    if not args.check:
        begin(exercise, path, args.again)
    elif not check(exercise, path):
        failed.append(args.name)


def main(argv=None):
    """Runs the command; returns its exit status, 1 for an exercise that fails its check."""
    failed = []
    return exit_status(lambda: work(argv, failed)) or len(failed)


if __name__ == "__main__":
    sys.exit(main())
