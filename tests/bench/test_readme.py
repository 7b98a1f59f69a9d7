"""The README claims nothing that was not measured."""

import json

import pytest

from bench import readme


def test_its_figures_are_those_of_committed_results():
    text = readme.README.read_text()
    assert [name for _, name, _ in readme.MEASURED.findall(text)] == list(readme.BLOCKS)
    assert text == readme.rendered(text), "`python -m bench.readme` writes what bench/results has"


def test_there_are_no_other_figures():
    assert readme.figures_elsewhere(readme.README.read_text()) == []


@pytest.mark.parametrize("claim", ["3.2x", "twice: 2 times", "80 % of", "80% of", "in 4 min", "12 ms", "300 images/s"])
def test_a_figure_that_nothing_backs_is_found(claim):
    assert readme.figures_elsewhere(f"It takes {claim} this.")
    assert not readme.figures_elsewhere(f"`{claim}`")


def test_a_changed_result_is_found(monkeypatch, tmp_path):
    for file in readme.RESULTS.glob("*.json"):
        content = json.loads(file.read_text())
        if file.name == "training_step_cpu_avx512.json":
            content[0]["vs_textbook"] += 1
        (tmp_path / file.name).write_text(json.dumps(content))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    text = readme.README.read_text()
    assert text != readme.rendered(text)
