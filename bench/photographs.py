"""Makes a data set of photographs: `python -m bench.photographs OUT`.

Photographs of animals, food and plants, each cut out and on white, from a package of Debian's: the stamps of Tux Paint
(GPL-2). Drawings are left out. They are as few as the sets that few-shot GANs are published with, and no two are parts
of one picture: a test of learning from little data.

Writes OUT/train and OUT/heldout, which `fastgan train --data OUT/train` and `fastgan evaluate --heldout OUT/heldout`
take, and the photographs at full size, OUT/pictures. About a fifth is held out; photographs whose names differ by a
number only stay together. `apt-get download` fetches the package; on other systems, fetch it and give it by --deb.
"""

import argparse
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from PIL import Image

from fastgan.cli import dataset
from fastgan.errors import UserError, command_line

PACKAGE, VERSION = "tuxpaint-stamps-default", "2025.03.31-1"
SHA256 = "6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb"
LICENCE = "GPL-2, by Bill Kendrick and the authors of Tux Paint's stamps"
SUBJECTS = ("animals", "food", "plants")
# Folders and files of drawings, and of things that are neither animals nor food nor plants. Other drawings have an SVG
# of the same name beside them.
LEFT_OUT = ("cartoon", "toys", "plastic", "hedgehog.png", "pizza.png")
HELD_OUT = 5  # one in so many
MARGIN = 0.04  # on each side of the longer one, as a fraction of it


def fetched(folder: Path) -> Path:
    """The package, downloaded into `folder`. Raises UserError if there is no apt-get, or it fails."""
    try:
        subprocess.run(["apt-get", "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"apt-get download {PACKAGE}={VERSION}: {' '.join(last)}; give the .deb by --deb") from None
    return next(folder.glob("*.deb"))


def content(deb: Path) -> dict[str, bytes]:
    """Files of the package's stamps, by path from their folder on. Raises UserError for another package."""
    found = hashlib.sha256(deb.read_bytes()).hexdigest()
    if found != SHA256:
        raise UserError(f"{deb} has SHA-256 {found}, not {SHA256}, that of {PACKAGE} {VERSION}")
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    start = "./usr/share/tuxpaint/stamps/"
    with tarfile.open(fileobj=io.BytesIO(tar)) as files:
        return {
            member.name.removeprefix(start): files.extractfile(member).read()  # type: ignore[union-attr]
            for member in files
            if member.isfile() and member.name.startswith(start) and member.name.endswith((".png", ".svg"))
        }


def photographs(files: dict[str, bytes]) -> dict[str, bytes]:
    """The photographs among the package's files, in the order of their names."""
    return {
        name: files[name]
        for name in sorted(files)
        if name.endswith(".png")
        and PurePosixPath(name).parts[0] in SUBJECTS
        and not set(PurePosixPath(name).parts) & set(LEFT_OUT)
        and name.removesuffix(".png") + ".svg" not in files
    }


def is_held_out(name: str) -> bool:
    """Whether a photograph is held out, which only its name without numbers decides."""
    stem = re.sub(r"[-_\d]", "", name)
    return int(hashlib.sha256(stem.encode()).hexdigest(), 16) % HELD_OUT == 0


def framed(png: bytes) -> Image.Image:
    """The photograph on white without its transparent border, square, with a margin."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    box = image.getchannel("A").getbbox()
    image = image.crop(box)
    side = round(max(image.size) * (1 + 2 * MARGIN))
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGB")


@command_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--resolution", default="64", help="as for fastgan dataset")
    parser.add_argument("--deb", type=Path, help=f"the package, {PACKAGE} {VERSION}; default: apt-get downloads it")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        found = photographs(content(given.deb or fetched(Path(temporary))))
    for part in ("train", "heldout"):
        pictures = given.out / "pictures" / part
        pictures.mkdir(parents=True, exist_ok=True)
        for name, png in found.items():
            if is_held_out(name) == (part == "heldout"):
                framed(png).save(pictures / name.replace("/", "-"))
        options = ["--out", str(given.out / part), "--resolution", given.resolution, "--enlarge", "--workers", "1"]
        if dataset.main([str(pictures), *options]):
            return 2
    subjects = ", ".join(f"{sum(name.startswith(each) for name in found)} of {each}" for each in SUBJECTS)
    print(f"{len(found)} photographs, {subjects}; {sum(map(is_held_out, found))} of them held out")
    print(f"source: {PACKAGE} {VERSION} (Debian), SHA-256 {SHA256}; {LICENCE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
