"""Examples run, and check themselves that fused and textbook versions agree."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_agrees_with_the_textbook(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--batch", "2", "--channels", "8", "--size", "8"])
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert "textbook" in printed and "the same" in printed


@pytest.mark.parametrize("name", ["stylegan2_block.py", "wgan_gp_discriminator.py"])
def test_imports_only_the_layers_of_fastgan(name):
    text = (EXAMPLES / name).read_text()
    assert set(re.findall(r"^\s*(?:from|import) (fastgan[\w.]*)", text, re.M)) == {"fastgan.layers"}
