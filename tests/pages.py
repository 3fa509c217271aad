"""Code blocks and command lines of the README and of every page in ``docs/``, for tests that run them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
_COMMAND = re.compile(r"(\w+=\S+ )?(python|make|torchrun|pip) ")
_TEMPLATE = re.compile(r"<|\.\.\.|\b[A-Z]{3,}\b")


class Block(NamedTuple):
    """A fenced block.

    Attributes
    ----------
    page : Path
    line : int
        Of the page, counted from 1.
    language : str
        ``python``, ``yaml``, ``text`` (output), or empty: command lines.
    code : str
    not_run : str or None
        Why it cannot be run: what a comment ``<!-- not run: REASON -->`` before it says.
    """

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None

    @property
    def name(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    """Return the fenced blocks of a page from top to bottom."""
    found, reason = [], None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        marked = _NOT_RUN.search(token.content) if token.type == "html_block" else None
        if token.type == "fence":
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, reason))
        reason = marked[1] if marked else None
    return found


def code_of(page, language):
    """Return the code of a page's blocks in a language that can be run."""
    return [block.code for block in blocks_of(page) if block.language == language and block.not_run is None]


def commands_in(code):
    """Return the command lines of a block as lists of words, without comments, each with its variables."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_of(page):
    """Return the command lines of a page: those of its blocks, and those that stand in the text, templates apart."""
    found = [words for block in blocks_of(page) if not block.language for words in _runnable(block)]
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for inner in token.children or []:
            if inner.type == "code_inline" and _COMMAND.match(inner.content) and not _TEMPLATE.search(inner.content):
                found.append(shlex.split(inner.content, comments=True))
    return found


def _runnable(block):
    return [] if block.not_run else commands_in(block.code)
