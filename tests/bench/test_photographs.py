"""The photographic data set: what is taken from the package, how it is framed and split."""

import io

import numpy as np
from PIL import Image

from bench import photographs
from fastgan.data import open_dataset
from tests.support.commands import error_of


def png(size=(40, 20), box=(10, 5, 30, 15)) -> bytes:
    """A red picture with a transparent border."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), box)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_drawings_and_other_subjects_are_left_out():
    names = ("animals/birds/owl.png", "animals/cat.png", "animals/cat.svg", "food/cartoon/pie.png", "vehicles/car.png")
    assert list(photographs.photographs(dict.fromkeys(names, b""))) == ["animals/birds/owl.png"]


def test_photographs_fill_a_white_square():
    image = photographs.framed(png())
    assert image.mode == "RGB" and image.width == image.height
    pixels = np.asarray(image)
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert (pixels[image.height // 2] == (255, 0, 0)).all(1).sum() == 20  # of 22 pixels


def test_a_fifth_is_held_out_and_numbered_ones_stay_together():
    held_out = [
        photographs.is_held_out(f"animals/{chr(97 + i)}{chr(97 + j)}.png") for i in range(26) for j in range(26)
    ]
    assert 0.15 < np.mean(held_out) < 0.25
    for name in ("rabbit", "lion", "cep", "owl", "bear"):
        assert len({photographs.is_held_out(f"animals/{name}{end}.png") for end in ("", "1", "-2", "_3")}) == 1


def test_the_sets_open_and_are_split(tmp_path, monkeypatch, capsys):
    names = [f"food/{letter}.png" for letter in "abcdefghijklmnopqrstuvwxyz"]
    monkeypatch.setattr(photographs, "content", lambda deb: dict.fromkeys(names, png()))
    assert photographs.main([str(tmp_path / "out"), "--resolution", "16", "--deb", "x.deb"]) == 0
    sizes = [len(open_dataset(str(tmp_path / "out" / part), 16, 3)) for part in ("train", "heldout")]
    assert sum(sizes) == 26 and min(sizes) > 0
    printed = capsys.readouterr().out
    assert f"26 photographs, 0 of animals, 26 of food, 0 of plants; {sizes[1]} of them held out" in printed
    assert "GPL-2" in printed


def test_another_package_is_refused(tmp_path, capsys):
    (tmp_path / "x.deb").write_bytes(b"x")
    line = error_of(photographs.main, [str(tmp_path / "out"), "--deb", str(tmp_path / "x.deb")], capsys)
    assert "not 6312d03a" in line and "tuxpaint-stamps-default" in line


def test_without_apt_the_package_is_asked_for(tmp_path, monkeypatch, capsys):
    def run(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "apt-get")

    monkeypatch.setattr(photographs.subprocess, "run", run)
    assert "give the .deb by --deb" in error_of(photographs.main, [str(tmp_path / "out")], capsys)
