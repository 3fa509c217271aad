"""What mkdocs asks while it builds the documentation site: links that leave ``docs/``, and the reference of keys.

On a git host a page of ``docs/`` links to a figure or a page elsewhere in the repository by a relative path. The site
holds copies of these files, each at its path in the repository, and links lead to the copies; Markdown becomes a page.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_DOCS = "docs"
_REFERENCE = "<!-- every key -->"
_FENCED = re.compile(r"^(```|~~~).*?^\1", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside ``docs/`` that pages link to."""
    from mkdocs.structure.files import File

    waiting = sorted((ROOT / _DOCS).rglob("*.md"))
    while waiting:
        page = waiting.pop()
        for target in _targets(page):
            place = _place(target)
            if place is None or files.get_file_from_path(place) is not None or not target.is_file():
                continue
            files.append(File.generated(config, place, abs_src_path=str(target)))
            waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links of a page at the places that the files have in the site."""
    markdown = _with_reference(markdown)
    source = Path(page.file.abs_src_path or "")

    def placed(match: re.Match[str]) -> str:
        target = _resolved(source, match["target"])
        place = _place(target) if target.exists() else None
        if place is None:
            return match[0]  # left for mkdocs to complain about
        link = os.path.relpath(place, PurePosixPath(page.file.src_uri).parent)
        return f"{match['before']}{link}{match['anchor'] or ''}"

    return _outside_code(markdown, placed)


def _with_reference(markdown: str) -> str:
    if _REFERENCE not in markdown:
        return markdown
    sys.path.insert(0, str(ROOT / "tools"))
    return markdown.replace(_REFERENCE, importlib.import_module("key_reference").reference())


def _outside_code(markdown: str, replace: Any) -> str:
    parts, end = [], 0
    for fenced in _FENCED.finditer(markdown):
        parts += [_LINK.sub(replace, markdown[end : fenced.start()]), fenced[0]]
        end = fenced.end()
    return "".join([*parts, _LINK.sub(replace, markdown[end:])])


def _targets(page: Path) -> Iterator[Path]:
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    for match in _LINK.finditer(text):
        target = _resolved(page, match["target"])
        yield target / "README.md" if target.is_dir() else target


def _resolved(page: Path, link: str) -> Path:
    return Path(os.path.normpath(page.parent / link))


def _place(target: Path) -> str | None:
    """Return where a file of the repository lies in the site; None for one that is not of the repository."""
    if target.is_dir():
        target = target / "README.md"
    if not target.is_relative_to(ROOT):
        return None
    place = target.relative_to(ROOT).as_posix()
    return place.removeprefix(f"{_DOCS}/")
