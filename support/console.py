"""What all commands share: an error the user can mend is one sentence and exit status 2."""

import argparse
import errno
import os
import re
import sys
import unicodedata
import warnings


class UserError(Exception):
    """Something the user can mend: commands print its one sentence and exit with status 2."""


class Stopped(Exception):
    """A run was asked to stop, has said so and has saved all; holds the exit status."""


def exit_status(work):
    """Do a command's work() and return its exit status: 0, or 2 after one sentence on stderr for
    what the user can mend (`UserError`, files that cannot be read or written, no memory left).
    Warnings become notes."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a caption's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest: print(f"note: {message}", file=sys.stderr)
            work()
        return 0
    except Stopped as stop:
        return stop.args[0]
    except KeyboardInterrupt:
        print("\nstopped at once; files written before are intact", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        sentence = in_words(error)
    except (RuntimeError, MemoryError) as error:  # devices have no common exception for it
        full = isinstance(error, MemoryError) or re.search("out of memory|can't alloc", str(error))
        if not full:
            raise
        sentence = ("out of memory: lower --batch-size (in the stages vae and decoder "
                    "--vae-batch-size), or --num where clips are made")
    print(f"error: {printable(sentence)}", file=sys.stderr)
    return 2


def write_whole(path, content):
    """Write bytes such that a crash or a full disk leaves the old file or the new one, whole."""
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if os.path.exists(part):
            os.remove(part)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def in_words(error):
    """An exception as a sentence; a full disk says that it is full."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if getattr(error, "errno", None) in full or "No space left" in str(error):
        name = getattr(error, "filename", None)
        return f"the disk is full{f' ({name})' if name else ''}: make room, then try again"
    return str(error)


def printable(text):
    """Text from files and prompts without what could command a terminal or reorder its line:
    control characters (ESC) and marks of direction become spaces; line breaks stay."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n" else c
                   for c in str(text))


def number(kind, low, high):
    """An argparse type: an int or float in low ... high, or one sentence that says so."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:  # also true of nan
            raise argparse.ArgumentTypeError(f"{text} is not in {low} ... {high}")
        return value
    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


def one_of(*names):
    """An argparse type: one of some names. Unlike argparse's choices it checks defaults, too."""
    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text
    parse.__name__ = "|".join(names)
    return parse


# flags that many commands have
SEED = ("--seed", number(int, 0, 2**63 - 1), 0, "of all that is random")
DEVICE = ("--device", one_of("auto", "cpu", "cuda", "mps"), "auto", "where to work")
DIGITS = ("--digits", one_of("auto", "mnist", "drawn"), "auto", "auto: MNIST if it can be had")
DATA_ROOT = ("--data-root", os.path.abspath, None, "folder with MNIST's .gz files")


def add_flags(parser, rows):
    """Add a command's flags to its parser and return it; a row each: names, type, default, help.
    Type bool is a switch; a default of None has its meaning in the help."""
    for names, kind, default, text in rows:
        if kind is bool:
            parser.add_argument(*names.split(), action="store_true", help=text)
        else:
            shown = "" if default is None else f" (default: {default})"
            parser.add_argument(*names.split(), type=kind, default=default, help=text + shown,
                                metavar=kind.__name__ if "|" in kind.__name__ else "X")
    return parser
