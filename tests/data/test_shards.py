"""Training on tar shards, in a folder and at a URL."""

import functools
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.data import ImageLoader, open_dataset, shards
from fastgan.data.image_dataset import json_digest
from fastgan.data.shards import CACHED_SHARDS, SHUFFLED_SHARDS, ShardedStream
from fastgan.errors import UserError
from fastgan.files import lock
from tests.data.test_loader import HostTransfer
from tests.support.damage import overwrite
from tests.support.image_sources import open_images, prepare_images, read_files, read_items
from tests.support.tiny_run import assert_same_checkpoint, train

pytestmark = pytest.mark.usefixtures("one_cache")


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=12), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_an_epoch_has_every_image_once_and_few_shards_at_a_time(counts, seed, epoch):
    stream, size = ShardedStream(counts, seed), sum(counts)
    order = stream.take(epoch * size, size)
    assert sorted(order) == list(range(size))
    assert (ShardedStream(counts, seed).take(epoch * size + size // 2, size - size // 2) == order[size // 2 :]).all()
    numbers = np.repeat(np.arange(len(counts)), counts)[order]
    (groups, ends), start = stream._groups(epoch), 0
    for group, following, end in zip(groups, [*groups[1:], stream._groups(epoch + 1)[0][0]], ends, strict=True):
        assert len(group) <= SHUFFLED_SHARDS and {*numbers[start:end].tolist()} == {*group.tolist()}
        for position in (start, end - 1):
            assert stream.next_group(epoch * size + position) == following.tolist()
        start = end


def test_images_are_shuffled_within_a_group_of_shards_and_anew_in_every_epoch():
    stream = ShardedStream([20, 20])
    first, second = stream.take(0, 40), stream.take(40, 40)
    assert max(np.count_nonzero(np.diff(order) == 1) for order in (first, second)) < 10
    assert not np.array_equal(first, second)


@pytest.mark.slow
def test_shards_have_the_images_of_the_source_in_random_order(sharded):
    found, plain = open_images(sharded / "out"), open_images(sharded / "in")
    counts = found.images.counts
    assert len(counts) > CACHED_SHARDS and sum(counts) == 40 == len(found)
    rows = lambda s: {
        (image.tobytes(), int(label)) for image, label in zip(s.images[np.arange(40)], s.labels, strict=True)
    }
    assert rows(found) == rows(plain)
    assert found.labels.tolist() != sorted(found.labels.tolist())
    found.images.close()


@pytest.mark.slow
def test_webdataset_reads_the_shards(sharded):
    webdataset = pytest.importorskip("webdataset")
    paths = [str(path) for path in sorted((sharded / "out").glob("*.tar"))]
    rows = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    found = open_images(sharded / "out")
    assert [label for _, label in rows] == found.labels.tolist()
    assert np.array_equal(np.asarray(rows[3][0]), found.images[3])


@pytest.mark.slow
def test_the_cache_holds_only_a_few_shards(sharded, tmp_path):
    found = open_dataset(str(sharded / "out"), "16x8", 3, cache_dir=tmp_path)
    found.images[np.arange(40)]
    assert len(list(tmp_path.rglob("*.npy"))) == CACHED_SHARDS and not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.slow
def test_batches_from_shards_do_not_depend_on_prefetching(sharded):
    found = open_images(sharded / "out")
    make = lambda transfer: ImageLoader(
        found, torch.device("cpu"), 3, lambda _: 6, labels=True, mirror=True, transfer=transfer
    )
    plain, ahead = make(None), make(HostTransfer())
    order = ShardedStream(found.images.counts, 3)
    for position in (0, 6, 12, 36, 42, 78):
        one, two = plain.batch(position), ahead.batch(position)
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
        assert one.labels.tolist() == found.labels[order.take(position, 6)].tolist()
    plain.close()
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastgan-data")]


class Server:
    """HTTP server for the files of a folder."""

    def __init__(self, folder: Path):
        asked = self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def server(sharded):
    server = Server(sharded / "out")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.mark.slow
def test_a_training_on_shards_at_a_url_resumes_exactly(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    more = ["--resolution", "16x8", "--channels", "3", "--images", "48", "--checkpoint-interval", "24"]
    spec = f"{server.url}/shards.json"
    whole = train(spec, tmp_path / "whole", *more)
    half = train(spec, tmp_path / "half", *more[:-3], "24")
    from fastgan.cli.train import main

    assert main(["--resume", str(half), "--images", "48", "--data", spec]) == 0
    assert_same_checkpoint(whole, half)


@pytest.mark.slow
def test_a_failed_download_is_retried(server, sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RETRY_PAUSES", (0, 0))
    real, failures = shards.open_path_or_url, iter([True, False, True])

    def failing(place):
        if place.endswith(".tar") and next(failures, False):
            raise OSError("connection reset")
        return real(place)

    monkeypatch.setattr(shards, "open_path_or_url", failing)
    found = open_dataset(f"{server.url}/shards.json", "16x8", 3, cache_dir=tmp_path)
    assert np.array_equal(found.images[np.arange(40)], open_images(sharded / "out").images[np.arange(40)])
    monkeypatch.setattr(shards, "open_path_or_url", lambda place: real(f"{place}.gone"))
    with pytest.raises(UserError, match=r"cannot read http.*000000\.tar"):
        open_dataset_again(server, tmp_path / "other", found)


def open_dataset_again(server, cache_dir, found):
    """The first image, read with an empty cache."""
    again = shards.ShardedImages(
        found.images._shards, found.images.counts, found.images._digests, (8, 16, 3), cache_dir
    )
    return again[0]


@pytest.mark.slow
def test_shards_at_urls_can_be_prepared_again(server, sharded, tmp_path):
    assert prepare_images(f"{server.url}/{{000000..000001}}.tar", "--resolution", "8", "--out", tmp_path / "out") == 0
    assert len(open_images(tmp_path / "out", 8)) == sum(open_images(sharded / "out").images.counts[:2])
    with pytest.raises(UserError, match=r"cannot read .*/999\.tar"):
        read_items(f"{server.url}/999.tar")


@pytest.mark.slow
def test_a_damaged_shard_is_named_before_training_uses_it(sharded, tmp_path):
    for name, content in read_files(sharded / "out").items():
        (tmp_path / name).write_bytes(content)
    changed = bytearray((tmp_path / "000002.tar").read_bytes())
    changed[700] ^= 1
    (tmp_path / "000002.tar").write_bytes(changed)
    found = open_dataset(str(tmp_path), "16x8", 3, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"000002\.tar is damaged"):
        found.images[np.arange(len(found))]


@pytest.mark.slow
@pytest.mark.parametrize("place", [20, 130, -10, -1])
def test_a_damaged_decoded_shard_is_decoded_again(sharded, tmp_path, place):
    opened = lambda: open_dataset(str(sharded / "out"), "16x8", 3, cache_dir=tmp_path).images
    before = opened()[np.arange(3)]
    decoded = sorted(tmp_path.rglob("*.npy"))[0]
    overwrite(decoded, place, b"\x99")
    assert np.array_equal(opened()[np.arange(3)], before)


@pytest.mark.slow
def test_folders_of_killed_downloads_are_removed(sharded, tmp_path):
    opened = lambda: open_dataset(str(sharded / "out"), "16x8", 3, cache_dir=tmp_path).images
    opened()[0]
    (folder,) = tmp_path.iterdir()
    for number in (1, 2, 3):
        (folder / f"{number:06}.lock").touch()
        (folder / f"{number:06}.unfinished").mkdir()
    with lock(folder / "000003.lock"):  # a process that decodes it now
        opened()[np.arange(40)[opened().counts[0]]]  # of the second shard
        assert [path.name for path in folder.glob("*.unfinished")] == ["000003.unfinished"]


@pytest.mark.slow
def test_other_labels_in_the_index_are_noticed(sharded, tmp_path):
    content = json.loads((sharded / "out" / "shards.json").read_text())
    content["labels"][0] = 1 - content["labels"][0]
    (tmp_path / "shards.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="or is damaged"):
        open_images(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"shards": []}, {"labels": [0]}, {"size": 3}, {"channels": 2}, {"class_names": ["a"]},
        {"shards": [{"file": "../evil.tar", "images": 40, "bytes": 1, "sha256": "0"}]},
    ],
)  # fmt: skip
def test_an_invalid_index_is_refused(sharded, tmp_path, change):
    content = json.loads((sharded / "out" / "shards.json").read_text()) | change
    del content["digest"]
    content["digest"] = json_digest(content)
    (tmp_path / "shards.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not an index"):
        open_images(tmp_path)
