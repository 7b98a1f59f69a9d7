"""Every measured figure on a page comes from a committed result."""

import json

import pytest

from bench import publish


@pytest.mark.parametrize("page", publish.PAGES, ids=lambda page: page.name)
def test_figures_equal_the_committed_results(page):
    text = page.read_text()
    assert text == publish.rendered(text), "run `python -m bench.publish`"


def test_every_block_is_on_a_page():
    used = [name for page in publish.PAGES for _, name, _ in publish.MEASURED.findall(page.read_text())]
    assert sorted(used) == sorted(publish.BLOCKS)


@pytest.mark.parametrize("page", [publish.README, publish.PERFORMANCE], ids=lambda page: page.name)
def test_no_figure_stands_outside_of_a_block(page):
    assert publish.figures_elsewhere(page.read_text()) == []


@pytest.mark.parametrize("claim", ["3.2x", "twice: 2 times", "80 % of", "80% of", "in 4 min", "12 ms", "300 images/s"])
def test_an_unmeasured_figure_is_found(claim):
    assert publish.figures_elsewhere(f"It takes {claim} this.")
    assert not publish.figures_elsewhere(f"`{claim}`")


def test_a_changed_result_is_found(monkeypatch, tmp_path):
    for file in publish.RESULTS.glob("*.json"):
        content = json.loads(file.read_text())
        if file.name == "training_step_cpu_avx512.json":
            content[0]["vs_textbook"] += 1
        (tmp_path / file.name).write_text(json.dumps(content))
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    text = publish.README.read_text()
    assert text != publish.rendered(text)
