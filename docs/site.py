"""mkdocs hook: links that lead out of docs/ become plain names, since the site has no such files."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
LINK = re.compile(r"\[[^\]]+\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Replace links to files outside of docs/ by their path. Raises FileNotFoundError if there is no such file."""

    def name(match: re.Match) -> str:
        path = (DOCS / page.file.src_uri).parent.joinpath(match[1]).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {match[1]}, which does not exist")
        return match[0] if path.is_relative_to(DOCS) else f"`{path.relative_to(DOCS.parent).as_posix()}`"

    return LINK.sub(name, markdown)
