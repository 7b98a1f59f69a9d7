"""What `mkdocs build` does with links that lead out of docs/: see mkdocs.yml."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[[^\]]+\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """A link to a file beside docs/ serves who reads it in a clone; the site, which has no such file, names it."""

    def name(match: re.Match) -> str:
        if not (ROOT / match[1]).exists():
            raise FileNotFoundError(f"{page.file.src_uri} has a link to {match[1]}, which is not there")
        return f"`{match[1]}`"

    return OUTSIDE.sub(name, markdown)
