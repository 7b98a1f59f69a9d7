"""Networks on the Hugging Face hub, `hf://USER/NAME[@REVISION]`, through huggingface_hub (extra "huggingface").

One file is taken from a repository, whatever else is in it, and nothing of it is executed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from fastgan.data.images import reason
from fastgan.errors import UserError, readable
from fastgan.version import __version__

PREFIX = "hf://"
_NAME = r"[\w.-]{1,96}/[\w.-]{1,96}"
_LIBRARY = {"library_name": "fastgan", "library_version": __version__}  # for the hub's log


def is_hub(text: str) -> bool:
    """Whether `text` names a repository of the hub, an impossible one included."""
    return text.lower().startswith(PREFIX)


def is_repository(text: str) -> bool:
    """Whether `text` is a repository's name, USER/NAME."""
    return re.fullmatch(_NAME, text, re.ASCII) is not None


def download(text: str, file: str) -> Path:
    """Path of `file` of the repository that `text` names, in huggingface_hub's cache; downloaded if it is not there.

    Raises UserError, naming the repository, if there is none of that name or no such file, or the download fails.
    """
    match = re.fullmatch(rf"({_NAME})(?:@([\w./-]+))?", text[len(PREFIX) :], re.ASCII)
    if match is None:
        raise UserError(f"{readable(text)}: must be {PREFIX}USER/NAME, or {PREFIX}USER/NAME@REVISION")
    hub = _import(text)
    try:
        return Path(hub.hf_hub_download(match[1], file, revision=match[2], **_LIBRARY))
    except Exception as error:
        _fail(text, error, f"holds no {file}: no network of fastgan")


def require_upload(repository: str) -> None:
    """Raise UserError if `upload` to a repository would fail for its name, for a missing package or login."""
    if not is_repository(repository):
        raise UserError(f"--push {readable(repository)}: must be USER/NAME, as on the Hugging Face hub")
    if _import(f"--push {repository}").get_token() is None:
        raise UserError(f"--push {repository}: nobody is logged in; run hf auth login, or set HF_TOKEN")


def upload(folder: Path, repository: str, private: bool) -> str:
    """Add the files of a folder to a repository in one commit, and return its address.

    Creates the repository if there is none, private or as the user's new ones are. Raises UserError if that fails.
    """
    hub = _import(f"--push {repository}")
    try:
        api = hub.HfApi(**_LIBRARY)
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UserError(f"--private: {repository} is there already, and public; leave it out, or name another")
        files = sorted(path for path in folder.iterdir() if path.is_file())
        added = [hub.CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in files]
        if "metrics.json" not in {path.name for path in files} and api.file_exists(repository, "metrics.json"):
            added.append(hub.CommitOperationDelete("metrics.json"))  # of an earlier network
        api.create_commit(repository, added, commit_message=f"fastgan share, version {__version__}")
    except UserError:
        raise
    except Exception as error:
        _fail(f"--push {repository}", error)
    return str(address)


def _import(what: str):
    from fastgan.data.readers.base import import_extra  # whose package imports this module

    return import_extra("huggingface_hub", "huggingface", "huggingface-hub", what)


def _fail(what: str, error: Exception, no_file: str | None = None) -> NoReturn:
    """Raise UserError for an error of huggingface_hub. no_file: message for a file that the repository lacks."""
    from huggingface_hub import errors

    kinds = {  # the special ones first
        errors.GatedRepoError: "its owner has to admit you: ask on its page, then run hf auth login",
        errors.RepositoryNotFoundError: "there is no such repository, or it is private: then run hf auth login",
        errors.RevisionNotFoundError: "has no such revision",
        errors.LocalEntryNotFoundError: "the hub cannot be reached, and the file is not in the cache",
        errors.EntryNotFoundError: no_file,
    }
    why = next((text for kind, text in kinds.items() if isinstance(error, kind)), None)
    raise UserError(f"{what}: {why or reason(error)}") from error
