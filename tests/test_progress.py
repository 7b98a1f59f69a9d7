"""Progress bars in a file."""

import time

from fastgan.progress import ProgressBar


def test_progress_in_a_file_is_a_line_per_interval_and_ends_at_100_percent(capsys, monkeypatch):
    monkeypatch.setattr("fastgan.progress.INTERVAL", 0.02)
    with ProgressBar(total=10, unit="img") as bar:
        for _ in range(6):
            time.sleep(0.015)
            bar.update(2)
    with ProgressBar(total=3, leave=False) as bar:  # too quick for a line
        bar.update(3)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5 and lines[-1].startswith("100%") and "10/10" in lines[-1]
