"""Facts of the walk-through's form; .ci/run runs it whole."""

import re

from conftest import ROOT


def test_the_walkthrough_compiles_and_explains_every_cell():
    """Each of its seven stops is a cell of words, then one of code that prints and shows."""
    text = (ROOT / "walkthrough.py").read_text(encoding="utf-8")
    compile(text, "walkthrough.py", "exec")
    before, *cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    words, code = cells[::2], cells[1::2]
    assert before == "" and len(words) == len(code) == 7
    for number, (said, done) in enumerate(zip(words, code), 1):
        lines = said.strip().splitlines()
        assert lines[0] == "[markdown]" and all(line.startswith("#") for line in lines[1:])
        assert f"\n# ## {number}. " in said and not done.startswith(" [markdown]")
        assert "print(" in done and f'folder / "{number}_' in done
