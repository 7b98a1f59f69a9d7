"""Files at URLs: opened as streams, or fetched whole into the cache. Imports no torch."""

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

from fastgan.data import cache
from fastgan.errors import UserError
from fastgan.files import file_digest, sync, sync_directory
from fastgan.version import __version__

TIMEOUT = 60  # seconds that a server may take to answer
CHUNK = 2**20
META = "meta.json"
LONGEST_NAME = 100


def is_url(text: str) -> bool:
    """Whether it is of a web server."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def has_scheme(text: str) -> bool:
    """Whether it is a URL of any kind, also one that was taken for a path and has lost a slash."""
    return re.match(r"[a-z][a-z0-9+.-]+://|(https?|file):/", text, re.IGNORECASE) is not None


class Response:
    """A server's answer, to be read from the front. A `read` that fails raises UserError: that is not taken for a
    damaged file.

    Attributes:
        length: in bytes; None if the server does not say.
        kind: the media type, like "text/html"; may be empty.
    """

    def __init__(self, response, url: str):
        self._response, self._url = response, url
        length = response.headers.get("Content-Length")
        self.length = self._left = int(length) if length and length.isdigit() else None
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
        except Exception as error:  # of sockets, TLS and HTTP
            raise self._broken(_reason(error)) from error
        if self._left is not None:
            self._left -= len(data)
            if not data and size and self._left > 0:
                raise self._broken("the connection ended early")
        return data

    def _broken(self, why: str) -> UserError:
        return UserError(f"cannot read {self._url}: {why}; run the same command again")


def open_url(url: str) -> Response:
    """What a web server has at a URL. Raises OSError, whose message is for people, if there is nothing to be had."""
    quoted = urllib.parse.quote(url, safe=":/?&=%+@~,;!$'()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": f"fastgan/{__version__}"})
    try:
        return Response(urllib.request.urlopen(request, timeout=TIMEOUT), url)
    except Exception as error:  # of sockets, TLS, HTTP and malformed URLs
        raise NoAnswer(_reason(error), getattr(error, "code", None)) from error


class NoAnswer(OSError):
    """A server has not given a file. `code` is HTTP's status, None if there was no answer at all."""

    def __init__(self, why: str, code: int | None):
        super().__init__(why)
        self.code = code


def local(spec: str | Path, in_folder: str | None = None) -> Path:
    """Where the file or folder that `spec` names is on this machine. A file at a URL is fetched, the first time.

    Args:
        spec: a path; or a URL (http, https, file), which may end in #sha256=HEX, what the file must be then. A URL
            that ends in a slash, or whose last part has no ending, may be of a folder.
        in_folder: name of the file that is meant by a folder at a URL; None: folders are not.

    Raises UserError, naming the URL, if it cannot be fetched or is another file.
    """
    text = str(spec)
    if not has_scheme(text):
        return Path(text)
    url, _, fragment = re.sub(r"^(https?):/+", r"\1://", text, flags=re.IGNORECASE).partition("#")
    given = re.fullmatch(r"(?:sha256=([0-9a-fA-F]{64}))?", fragment)
    if given is None:
        raise UserError(f"{text}: what follows # must be sha256= and 64 hexadecimal digits")
    digest = given[1].lower() if given[1] else None
    if is_url(url):
        return _fetched(url, in_folder, digest)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        raise UserError(
            f"{text}: cannot be fetched; give a path, or a URL that begins with https://, http:// or file:///"
        )
    path = Path(urllib.request.url2pathname(parts.path))
    if digest is not None:
        file = path / in_folder if in_folder and path.is_dir() else path
        try:
            _require(digest, file_digest(file), text)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
    return path


def _fetched(url: str, in_folder: str | None, digest: str | None) -> Path:
    """The file out of the cache, or put there."""
    new = damaged = False

    def load(entry: Path) -> tuple[Path, str] | None:
        nonlocal damaged
        try:
            meta = json.loads((entry / META).read_text(encoding="utf-8"))
            path = entry / meta["file"]
            if file_digest(path) == meta["sha256"]:
                return path, meta["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if not damaged:
            _say(f"{entry} is damaged: fetching {url} again")
        damaged = True
        return None

    def write(folder: Path) -> None:
        nonlocal new
        _fetch(_candidates(url, in_folder), folder, digest)
        new = True

    path, found = cache.load_or_write({"kind": "fetched", "url": url}, load, write)
    _require(digest, found, f"{path}, fetched from {url}", "; delete it to fetch it anew")
    before = "" if new else " before"
    _say(f"fetched{before}: {url}, SHA-256 {found}, kept as {path}; delete that to fetch it anew")
    return path


def _candidates(url: str, in_folder: str | None) -> list[str]:
    """The URLs at which a file may be: of itself, or of one in a folder."""
    parts = urllib.parse.urlsplit(url)
    if in_folder is None or parts.query or PurePosixPath(parts.path).suffix:
        return [url]
    inner = urllib.parse.urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{in_folder}"))
    return [inner] if parts.path.endswith("/") or not parts.path else [inner, url]


def _first_of(urls: list[str]) -> tuple[str, Response, bytes]:
    """The first of these where there is a file, and how it begins."""
    for url in urls:
        is_last = url == urls[-1]
        try:
            response = open_url(url)
        except NoAnswer as error:
            if is_last or error.code is None:
                raise UserError(f"cannot fetch {url}: {error}") from error
            continue
        start = response.read(CHUNK)
        page = re.match(rb"\s*<(!doctype\s+html|html)", start[:1000], re.IGNORECASE)
        if response.kind != "text/html" and not page:
            return url, response, start
        response.close()
        if is_last:
            raise UserError(f"{url} is a web page, not a file; give the address of the file itself")
    raise ValueError("urls is empty")


def _fetch(urls: list[str], folder: Path, digest: str | None) -> None:
    """Writes the first of these that there is, and what it is, to a new folder."""
    from fastgan.progress import ProgressBar

    folder.mkdir()
    url, response, chunk = _first_of(urls)
    path, found = folder / _name(url), hashlib.sha256()
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
            disable=not _speaks(),
        ) as bar,
    ):
        while chunk:
            found.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
            chunk = response.read(CHUNK)
        sync(file)
    _require(digest, found.hexdigest(), url)
    with open(folder / META, "w", encoding="utf-8") as file:
        json.dump({"url": url, "file": path.name, "sha256": found.hexdigest()}, file)
        sync(file)
    sync_directory(folder)


def _require(given: str | None, found: str, where: str, remedy: str = "") -> None:
    if given is not None and given != found:
        raise UserError(f"{where}: has SHA-256 {found}, not {given}{remedy}")


def _name(url: str) -> str:
    """A name for the file: the last part of the URL, if that is one."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^\w.-]", "_", last, flags=re.ASCII).lstrip(".-")[-LONGEST_NAME:]
    return name if name not in ("", META) else "file"


def _reason(error: Exception) -> str:
    """Why a server has given nothing, short and in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"[:80]
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer within {TIMEOUT} seconds"
    text = getattr(inner, "strerror", None) or " ".join(str(inner).split()) or type(inner).__name__
    return text[:80]


def _say(text: str) -> None:
    if _speaks():
        print(text, file=sys.stderr)


def _speaks() -> bool:
    """Whether this is the first of several processes, or alone."""
    return os.environ.get("RANK", "0") == "0"
