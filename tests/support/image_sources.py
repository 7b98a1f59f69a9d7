"""Images, folders and archives for the tests of data, and the command that prepares them."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastgan.cli import dataset
from fastgan.data import ImageDataset, glyphs, open_dataset
from fastgan.data.readers import Item, Reader, ReaderOptions, open_reader

OUTPUTS = {
    "array": ["--out", "out"],
    "zip": ["--out", "out.zip"],
    "shards": ["--out", "out", "--shards", "1"],
}  # options for each format
ZIP_NAMES = [f"00000/img0000000{number}.png" for number in range(3)]


def make_image(value=0, width=24, height=16, mode="RGB") -> Image.Image:
    """A random image, different for each `value`; smooth, so that its file is small."""
    rng = np.random.default_rng(value)
    small = rng.integers(0, 256, (4, 4, {"L": 1, "RGB": 3, "RGBA": 4}[mode]), np.uint8).squeeze()
    return Image.fromarray(small).resize((width, height))


def encode(image: Image.Image, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def make_folder(root: Path, count=9) -> Path:
    """A folder of `count` images in two classes, and three files that cannot be used."""
    for number in range(count):
        path = root / ("cat" if number % 2 else "dog") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(make_image(number)))
    (root / "cat" / "002-bad.png").write_bytes(b"nothing like an image")
    (root / "dog" / "005-cut.jpg").write_bytes(encode(make_image(1), "JPEG")[:-40])
    (root / "dog" / "small.png").write_bytes(encode(make_image(1, 4, 4)))
    return root


def prepare_images(*argv: object) -> int:
    """Run `fastgan dataset` in this process; returns its exit status."""
    return dataset.main([str(each) for each in argv] + ["--workers", "1"])


def read_files(place: Path) -> dict[str, bytes]:
    """Content of all files in a folder, by name."""
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def open_images(path, resolution="16x8", channels=3) -> ImageDataset:
    return open_dataset(str(path), resolution, channels, progress=False)


def read_items(spec, **options) -> tuple[Reader, list[Item]]:
    """The reader of a source, and all of its items."""
    reader = open_reader(str(spec), ReaderOptions(**options))
    return reader, list(reader.items(range(reader.count) if reader.count is not None else iter([0])))


def write_tar(path: Path, members: dict[str, bytes], mode="w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


TINY = {"count": 40, "progress": False}


def make_glyphs(store, resolution=16, channels=1, **options):
    return glyphs.render(resolution, channels, cache_dir=store, **(TINY | options))


def cache_entries(store: Path) -> list[str]:
    """Names in the cache, without the lock files."""
    return sorted(p.name for p in store.glob("*") if p.suffix != ".lock") if store.exists() else []


def write_stylegan_zip(path: Path, labels, prefix="", compression=zipfile.ZIP_STORED, **more) -> Path:
    """A zip of three images in StyleGAN's format; labels "none": a dataset.json without the field."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for number in range(3):
            archive.writestr(f"{prefix}00000/img0000000{number}.png", encode(make_image(number, 8, 8)))
        archive.writestr(f"{prefix}dataset.json", json.dumps({"labels": labels} | more if labels != "none" else {}))
    return path


def zip_labels(values: list) -> list[list]:
    """The labels of `write_stylegan_zip` as [name, value] pairs."""
    return [[name, value] for name, value in zip(ZIP_NAMES, values, strict=True)]
