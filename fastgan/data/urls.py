"""Files at URLs: opened as streams, or downloaded into the cache; and the networks of `fastgan.examples`. Imports no
torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fastgan import examples
from fastgan.data import hub
from fastgan.data.cache import load_or_write
from fastgan.data.images import open_regular
from fastgan.errors import UserError
from fastgan.files import file_digest, sync, sync_directory
from fastgan.version import __version__

TIMEOUT = 60  # seconds that a server may take to answer
CHUNK = 2**20
META = "meta.json"
MAX_NAME = 100


def is_url(text: str) -> bool:
    """Whether `text` is the URL of a web server."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def has_scheme(text: str) -> bool:
    """Whether `text` is a URL of any kind, also one that lost a slash because it was handled as a path; or an example's
    name."""
    return examples.is_example(text) or re.match(r"[a-z][a-z0-9+.-]+://|(https?|file):/", text, re.I) is not None


class Response:
    """A server's answer as a stream. `read` raises UserError for a failure of the network, so that it is not taken for
    a damaged file.

    Attributes:
        length: in bytes; None if the server does not say.
        kind: media type, like "text/html"; empty if the server does not say.
    """

    def __init__(self, response, url: str):
        self._response, self._url = response, url
        length = response.headers.get("Content-Length")
        self.length = self._remaining = int(length) if length and length.isdigit() else None
        self.kind = response.headers.get_content_type() if response.headers.get("Content-Type") else ""

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._response.read(size)
        except Exception as error:  # sockets, TLS and HTTP
            raise self._failed(_reason(error)) from error
        if self._remaining is not None:
            self._remaining -= len(data)
            if not data and size and self._remaining > 0:
                raise self._failed("the connection ended early")
        return data

    def _failed(self, why: str) -> UserError:
        return UserError(f"cannot read {self._url}: {why}; run the same command again")


class NoAnswer(OSError):
    """The server did not send the file. `code` is the HTTP status, None if there was no answer."""

    def __init__(self, why: str, code: int | None):
        super().__init__(why)
        self.code = code


def open_url(url: str) -> Response:
    """Request a URL. Raises NoAnswer with a message for users."""
    quoted = urllib.parse.quote(url, safe=":/?&=%+@~,;!$'()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": f"fastgan/{__version__}"})
    try:
        return Response(urllib.request.urlopen(request, timeout=TIMEOUT), url)
    except Exception as error:  # sockets, TLS, HTTP and malformed URLs
        raise NoAnswer(_reason(error), getattr(error, "code", None)) from error


def open_path_or_url(place: str) -> BinaryIO | Response:
    """Open a local file or a URL for reading. Raises OSError or ValueError."""
    return open_url(place) if is_url(place) else open_regular(Path(place).expanduser())


def local_path(spec: str | Path, file_in_folder: str | None = None) -> Path:
    """Path on this machine of the file or folder that `spec` names; a file at a URL is downloaded once.

    Args:
        spec: a path, or a URL (http, https, file), optionally with #sha256=HEX, the digest the file must have. A URL
            that ends in a slash, or whose last part has no suffix, may be a folder. Or example:NAME, or a repository
            of the Hugging Face hub, hf://USER/NAME[@REVISION], optionally with #sha256=HEX.
        file_in_folder: name of the file to take from a folder at a URL; None if folders are not accepted.

    Raises UserError, naming the URL, if the download fails or the digest differs, or there is no such example.
    """
    text = str(spec)
    if examples.is_example(text):
        return examples.path_of(text)
    if not has_scheme(text):
        return Path(text)
    url, _, fragment = re.sub(r"^(https?):/+", r"\1://", text, flags=re.IGNORECASE).partition("#")
    given = re.fullmatch(r"(?:sha256=([0-9a-fA-F]{64}))?", fragment)
    if given is None:
        raise UserError(f"{text}: what follows # must be sha256= and 64 hexadecimal digits")
    digest = given[1].lower() if given[1] else None
    if is_url(url):
        return _downloaded(url, file_in_folder, digest)
    if hub.is_hub(url):
        if file_in_folder is None:
            raise UserError(f"{text}: is a repository, not a file")
        path = hub.download(url, file_in_folder)
        _require_digest(digest, file_digest(path), text)
        _print(f"{url}: revision {path.parent.name}, as {path}")
        return path
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        raise UserError(
            f"{text}: cannot be downloaded; give a path, or a URL with https://, http://, file:/// or hf://"
        )
    path = Path(urllib.request.url2pathname(parts.path))
    if digest is not None:
        file = path / file_in_folder if file_in_folder and path.is_dir() else path
        try:
            _require_digest(digest, file_digest(file), text)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
    return path


def _downloaded(url: str, file_in_folder: str | None, digest: str | None) -> Path:
    """The file in the cache, after downloading it if it is absent or damaged."""
    new = damaged = False

    def load(entry: Path) -> tuple[Path, str] | None:
        nonlocal damaged
        try:
            with open_regular(entry / META) as file:
                meta = json.loads(file.read())
            path = entry / meta["file"]
            open_regular(path).close()
            if file_digest(path) == meta["sha256"]:
                return path, meta["sha256"]
        except FileNotFoundError:
            return None
        except Exception:  # not JSON, or other fields
            pass
        if not damaged:
            _print(f"{entry} is damaged: downloading {url} again")
        damaged = True
        return None

    def write(folder: Path) -> None:
        nonlocal new
        _download(_candidates(url, file_in_folder), folder, digest)
        new = True

    path, found = load_or_write({"kind": "download", "url": url}, load, write)
    _require_digest(digest, found, f"{path}, downloaded from {url}", "; delete it to download it again")
    done = "downloaded" if new else "in the cache"
    _print(f"{done}: {url}, SHA-256 {found}, as {path}; delete that to download it again")
    return path


def _candidates(url: str, file_in_folder: str | None) -> list[str]:
    """The URLs where the file may be: `url` itself, or the file in the folder `url`."""
    parts = urllib.parse.urlsplit(url)
    if file_in_folder is None or parts.query or PurePosixPath(parts.path).suffix:
        return [url]
    inner = urllib.parse.urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{file_in_folder}"))
    return [inner] if parts.path.endswith("/") or not parts.path else [inner, url]


def _first_file(urls: list[str]) -> tuple[str, Response, bytes]:
    """The first of `urls` that is a file and not a web page: its URL, the response, and the first chunk."""
    for url in urls:
        is_last = url == urls[-1]
        try:
            response = open_url(url)
        except NoAnswer as error:
            if is_last or error.code is None:
                raise UserError(f"cannot download {url}: {error}") from error
            continue
        start = response.read(CHUNK)
        page = re.match(rb"\s*<(!doctype\s+html|html)", start[:1000], re.IGNORECASE)
        if response.kind != "text/html" and not page:
            return url, response, start
        response.close()
        if is_last:
            raise UserError(f"{url} is a web page, not a file; give the address of the file itself")
    raise ValueError("urls is empty")


def _download(urls: list[str], folder: Path, digest: str | None) -> None:
    """Write the first file of `urls`, and META with its digest, to a new folder."""
    from fastgan.progress import ProgressBar

    folder.mkdir()
    url, response, chunk = _first_file(urls)
    path, found = folder / _file_name(url), hashlib.sha256()
    with (
        response,
        open(path, "wb") as file,
        ProgressBar(
            total=response.length,
            desc=path.name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            delay=0.5,
            disable=not _is_first_process(),
        ) as bar,
    ):
        while chunk:
            found.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
            chunk = response.read(CHUNK)
        sync(file)
    _require_digest(digest, found.hexdigest(), url)
    with open(folder / META, "w", encoding="utf-8") as file:
        json.dump({"url": url, "file": path.name, "sha256": found.hexdigest()}, file)
        sync(file)
    sync_directory(folder)


def _require_digest(given: str | None, found: str, where: str, remedy: str = "") -> None:
    if given is not None and given != found:
        raise UserError(f"{where}: has SHA-256 {found}, not {given}{remedy}")


def _file_name(url: str) -> str:
    """A safe file name: the last part of the URL, without characters that mean something to a shell or file system."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^\w.-]", "_", last, flags=re.ASCII).lstrip(".-")[-MAX_NAME:]
    return name if name not in ("", META) else "file"


def _reason(error: Exception) -> str:
    """Why a request failed, in one short line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"[:80]
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer within {TIMEOUT} seconds"
    text = getattr(inner, "strerror", None) or " ".join(str(inner).split()) or type(inner).__name__
    return text[:80]


def _print(text: str) -> None:
    if _is_first_process():
        print(text, file=sys.stderr)


def _is_first_process() -> bool:
    """Whether this is the only process, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
