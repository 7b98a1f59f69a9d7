"""`open_dataset` and `import fastgan.data`."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastgan import data
from fastgan.data import ImageLoader, image_dataset
from fastgan.data.detect import BUILT_IN, count_images, detect_format
from fastgan.errors import UserError
from tests.data.test_cache import DAMAGES
from tests.data.test_loader import HostTransfer
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
    with pytest.raises(UserError, match=rf"out: {name} cannot be read \(not a regular file\); prepare it again"):
        open_images(tmp_path / "out", 8)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if DAMAGES[name][1]])
def test_a_damaged_prepared_folder_is_one_error_that_names_the_file(source, tmp_path, damage):
    prepare_images(source, "--resolution", "16", "--channels", "1", "--out", tmp_path / "out", "--enlarge")
    change, words = DAMAGES[damage]
    change(tmp_path / "out")
    words = words.replace("38", str(len(np.load(tmp_path / "out" / "checksums.npy")) - 2))
    if damage == "other names":
        assert detect_format(str(tmp_path / "out")) == BUILT_IN["glyphs"]  # leaves the error to `open_dataset`
    with pytest.raises(UserError, match=re.escape(words) + r".*; prepare it again with") as caught:
        open_images(tmp_path / "out", 16, 1)
    assert str(caught.value).startswith(f"--data {tmp_path / 'out'}: ")


def test_a_batch_has_no_damaged_image_of_a_large_set(source, tmp_path, monkeypatch):
    monkeypatch.setattr(image_dataset, "CHECKED_AT_ONCE", 0)
    prepare_images(source, "--resolution", "16", "--channels", "1", "--out", tmp_path / "out")
    DAMAGES["pixels"][0](tmp_path / "out")
    for transfer in (None, HostTransfer()):
        loader = ImageLoader(
            open_images(tmp_path / "out", 16, 1), torch.device("cpu"), 0, lambda _: 3, transfer=transfer
        )
        with pytest.raises(UserError, match=r"out: images.npy is damaged: image \d+ has other pixels"):
            for position in range(0, 9, 3):
                loader.batch(position)
        loader.close()


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
