"""Files at URLs: downloaded once, checked, used like local files; every failure is a one-line error."""

import errno
import functools
import hashlib
import http.server
import json
import re
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastgan
from fastgan.cli.evaluate import main as evaluate
from fastgan.cli.export import main as export
from fastgan.cli.generate import main as generate
from fastgan.cli.train import main as train
from fastgan.data import urls
from fastgan.errors import UserError
from fastgan.export import formats, tracing
from fastgan.interop import load_official
from fastgan.runs import checkpoint
from tests.support import official
from tests.support.extras import needs_network
from tests.support.tiny_run import arguments
from tests.support.tiny_run import train as train_tiny

FILE = checkpoint.FILE_NAME


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder, and bad responses below /bad/."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if not self.path.startswith("/bad/"):
            return super().do_GET()
        what = self.path.removeprefix("/bad/")
        if what == "broken.pkl":
            return self.send_error(500)
        kind = "text/html" if what == "typed.pkl" else "application/octet-stream"
        body = b"\n <!DOCTYPE html><title>Sign in</title>" if what == "page.pkl" else b"\x80\x04" + bytes(100)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if what != "endless.pkl":
            self.send_header("Content-Length", str(len(body) + (what == "cut.pkl")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(folder, tmp_path_factory):
    """HTTP server of a folder with networks; `asked` has the paths of the requests."""
    place = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        run = train_tiny(folder, tmp_path_factory.mktemp("run") / "run", "--images", "4")
    (place / "my run").mkdir()
    shutil.copy(run / FILE, place / "my run" / FILE)
    sizes = official.Sizes(
        img_resolution=8, img_channels=1, channel_base=64, channel_max=8, z_dim=6, architecture="orig"
    )
    official.write(place / "network.pkl", official.snapshot(sizes))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(place))) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.url, server.place, server.run = f"http://127.0.0.1:{server.server_port}", place, run
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def new_cache(site, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    site.asked.clear()
    return tmp_path / "cache"


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def error_of(command, argv, capsys) -> str:
    capsys.readouterr()
    assert command([str(each) for each in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "B/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def cache_entries(folder: Path) -> list[str]:
    """Names in the cache, without lock files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")


def test_a_file_is_downloaded_once_and_its_digest_is_printed(site, new_cache, capsys):
    url = f"{site.url}/network.pkl"
    path = urls.local_path(url, FILE)
    says = capsys.readouterr().err.splitlines()[-1]
    assert says == f"downloaded: {url}, SHA-256 {digest_of(path)}, as {path}; delete that to download it again"
    assert path.name == "network.pkl" and path.read_bytes() == (site.place / "network.pkl").read_bytes()
    assert json.loads((path.parent / "meta.json").read_text()) == {
        "url": url, "file": "network.pkl", "sha256": digest_of(path),
    }  # fmt: skip
    assert urls.local_path(f"{url}#sha256={digest_of(path).upper()}", FILE) == path
    assert capsys.readouterr().err.startswith("in the cache: ") and site.asked == ["/network.pkl"]
    path.unlink()
    assert urls.local_path(url, FILE) == path and path.exists() and len(site.asked) == 2


def test_a_url_may_be_the_folder_of_a_run(site):
    for url in (f"{site.url}/my run", f"{site.url}/my%20run/", f"{site.url}/my run/{FILE}"):
        assert urls.local_path(url, FILE).read_bytes() == (site.run / FILE).read_bytes()
    assert {*site.asked} == {f"/my%20run/{FILE}"}


def test_every_command_accepts_a_url(site, tmp_path, folder, monkeypatch):
    """Results of a network at a URL are written to the current folder, not into the cache."""
    official_file, run = f"{site.url}/network.pkl", f"{site.url}/my run"
    assert generate(["--checkpoint", official_file, "--seeds", "0"]) == 0
    assert generate(["--checkpoint", str(site.place / "network.pkl"), "--seeds", "0", "--out", "here.png"]) == 0
    assert np.array_equal(np.asarray(Image.open("generated.png")), np.asarray(Image.open("here.png")))
    assert generate(["truncation", "--checkpoint", run, "--steps", "2"]) == 0 and Path("truncation.png").exists()
    assert load_official(official_file).config.z_dim == 6
    monkeypatch.setattr(tracing, "trace", lambda sampler, **options: sampler)  # takes long
    monkeypatch.setattr(tracing, "largest_difference", lambda *given, **options: 0.0)
    monkeypatch.setitem(formats.FORMATS, "torch", (lambda *given: b"network", lambda content: None, "nothing"))
    assert export(["--checkpoint", official_file, "--format", "torch"]) == 0
    assert Path("generator.pt2").read_bytes() == b"network"
    assert fastgan.load(run, "cpu").sample(1).shape == (1, 1, 8, 8)
    assert fastgan.load(Path(official_file), "cpu").sample(1).shape == (1, 1, 8, 8)  # Path drops a slash of the URL
    for number, start in enumerate((official_file, run)):
        out = tmp_path / f"run{number}"
        argv = ["--init-from", start, "--z-dim", "auto", "--images", "4", "--labels", "False"]
        assert train([*arguments(folder, out), *argv, "--channel-base", "auto", "--channel-max", "auto"]) == 0
        assert checkpoint.read_header(out).config.training.init_from == start
    assert len(site.asked) == 2


@needs_network
def test_evaluate_accepts_a_url(site):
    argv = ["--checkpoint", f"{site.url}/my run", "--samples", "4", "--metrics", "kid", "--json", "found.json"]
    assert evaluate(argv) == 0
    assert json.loads(Path("found.json").read_text())["checkpoint"] == f"{site.url}/my run"


def test_resume_refuses_a_url(site, capsys):
    error = error_of(train, ["--resume", f"{site.url}/my run"], capsys)
    assert error == f"--resume {site.url}/my run: resumes in a local folder; start a new run with --init-from that"
    assert site.asked == []


BAD = {
    "gone.pkl": r"cannot download {url}: HTTP 404 File not found",
    "bad/broken.pkl": r"cannot download {url}: HTTP 500 Internal Server Error",
    "bad/page.pkl": r"{url} is a web page, not a file; give the address of the file itself",
    "bad/typed.pkl": r"{url} is a web page, not a file; give the address of the file itself",
    "bad/cut.pkl": r"cannot read {url}: the connection ended early; run the same command again",
    "no run": r"cannot download {url}: HTTP 404 File not found",
    "network.pkl#sha256=" + "0" * 64: r"{url}: has SHA-256 [0-9a-f]{{64}}, not 0{{64}}",
    "network.pkl#md5=1": r"{url}#md5=1: what follows # must be sha256= and 64 hexadecimal digits",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_failed_download_is_one_line_and_leaves_nothing(site, new_cache, capsys, bad):
    url = f"{site.url}/{bad}"
    error = error_of(generate, ["--checkpoint", url], capsys)
    assert re.fullmatch(BAD[bad].format(url=re.escape(url.partition("#")[0])), error), error
    assert cache_entries(new_cache) == []


def test_a_response_of_unknown_length_is_read_completely(site):
    assert urls.local_path(f"{site.url}/bad/endless.pkl?download=true", FILE).stat().st_size == 102


def test_a_refused_connection(new_cache, capsys):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}/x.pkl"
        assert error_of(generate, ["--checkpoint", url], capsys) == f"cannot download {url}: Connection refused"
    assert cache_entries(new_cache) == []


def test_a_full_disk(site, new_cache, capsys, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(urls, "sync", full)
    error = error_of(generate, ["--checkpoint", f"{site.url}/network.pkl"], capsys)
    assert error.startswith(f"cannot write the data cache {new_cache}: No space left on device; free space there")
    assert cache_entries(new_cache) == []


def test_a_cached_download_is_checked_at_every_use(site, capsys):
    url = f"{site.url}/network.pkl"
    path = urls.local_path(url, FILE)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    capsys.readouterr()
    assert urls.local_path(url, FILE).read_bytes() == content
    assert f"{path.parent} is damaged: downloading {url} again" in capsys.readouterr().err and len(site.asked) == 2
    with pytest.raises(
        UserError, match=rf"{path}, downloaded from {url}: has SHA-256 .*, not 1+; delete it to download it again"
    ):
        urls.local_path(f"{url}#sha256={'1' * 64}", FILE)


def test_file_urls_are_local_paths(site):
    path = site.place / "my run" / FILE
    for given in (path, path.parent):
        assert urls.local_path(given.as_uri(), FILE) == given
        assert urls.local_path(f"{given.as_uri()}#sha256={digest_of(path)}", FILE) == given
        with pytest.raises(UserError, match=r"has SHA-256 .*, not 0"):
            urls.local_path(f"{given.as_uri()}#sha256={'0' * 64}", FILE)
    assert urls.local_path(path, FILE) == path and urls.local_path("a/b", FILE) == Path("a/b")
    for other in ("ftp://x/y.pkl", "file://elsewhere/y.pkl"):
        with pytest.raises(UserError, match=f"{other}: cannot be downloaded; give a path, or a URL with"):
            urls.local_path(other, FILE)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x.org/a/b.pkl?download=true", "b.pkl"),
        ("https://x.org/a/%2e%2e%2fb c.pkl", "b_c.pkl"),
        ("https://x.org/..", "file"),
        ("https://x.org/" + "n" * 300 + ".pkl", "n" * 96 + ".pkl"),
        ("https://x.org/meta.json", "file"),
    ],
)
def test_file_names_from_urls_are_safe(url, name):
    assert urls._file_name(url) == name


def test_only_one_module_opens_urls():
    root = Path(fastgan.__file__).parent
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "urllib.request" in path.read_text()}
    assert found == {"data/urls.py"}
