"""`open_dataset` and `import fastgan.data`."""

import os
import subprocess
import sys

import pytest

from fastgan import data
from fastgan.data import ImageLoader
from fastgan.data.detect import count_images
from fastgan.errors import UserError
from tests.support.image_sources import OUTPUTS, open_images, prepare_images

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.mark.parametrize("spec", ["set-{000..009}.tar", "x.csv", "torchvision:CIFAR10", "hf:x", "x.lmdb"])
def test_training_refers_other_sources_to_preparation(spec):
    with pytest.raises(UserError, match=r"prepare it first, with python -m fastgan.dataset"):
        open_images(spec)


@pytest.mark.parametrize("kind", ["array", "shards"])
def test_another_size_than_prepared_is_refused_with_the_options(source, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    prepare_images(source, "--resolution", "16x8", *OUTPUTS[kind])
    with pytest.raises(UserError, match="RGB images of 16x8; give --resolution 16x8 --channels 3"):
        open_images("out", 8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["meta.json", "images.npy", "labels.npy"])
def test_a_prepared_folder_with_a_named_pipe_is_refused(source, tmp_path, name):
    prepare_images(source, "--resolution", "8", "--out", tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with pytest.raises(UserError, match=r"out is damaged|no images in it"):
        open_images(tmp_path / "out", 8)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_images_are_counted_before_they_are_read(source, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    prepare_images(source, "--resolution", "8", *OUTPUTS[kind])
    out = OUTPUTS[kind][1]
    assert count_images(out) == len(open_images(out, 8)) > 0


@pytest.mark.parametrize("spec, count", [("glyphs", 20_000), ("nowhere", 0), ("https://example.org/x.zip", 0)])
def test_built_in_images_are_counted_and_others_are_left_to_be_refused(spec, count):
    assert count_images(spec) == count


def test_importing_data_loads_no_torch():
    code = "import sys, fastgan.data.prepare, fastgan.dataset; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
    assert data.ImageLoader is ImageLoader


def test_importing_data_loads_neither_pillow_nor_matplotlib():
    code = "import sys, fastgan.data; print([m for m in ('PIL', 'matplotlib') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
