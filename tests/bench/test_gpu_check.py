"""bench/gpu_check.sh selects tests by parts of their names, which exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_name_filters_match_tests():
    script = (ROOT / "bench" / "gpu_check.sh").read_text()
    filters = re.findall(r'^(?:sanitized|in_tables)="(.*)"$', script, re.M)
    words = {word for each in filters for word in re.findall(r"\w*_\w*", each)}
    names = re.findall(r"def (test_\w+)", "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py")))
    assert "values_and_derivatives" in words
    assert [word for word in words if not any(word in name for name in names)] == []
