"""Recipes: the table of docs/models.md has their numbers."""

import ast
import re
from pathlib import Path

import pytest

from fastgan.training.recipes import recipe

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize(("column", "resolutions"), [(0, [8, 32]), (1, [64, 128]), (2, [256, 1024])])
def test_the_numbers_of_r3gan_are_those_of_the_page(column, resolutions):
    section = PAGE.read_text().split("## R3GAN in numbers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.M)
    assert len(rows) == 12
    for names, values in rows:
        value = values.split(" | ")[column]
        expected = value if value.islower() else ast.literal_eval(re.sub(r"(?<=\d),(?=\d{3})", "", value))
        for name in re.findall("`(.*?)`", names):
            assert [recipe("r3gan", resolution)[name] for resolution in resolutions] == [expected] * 2, name
