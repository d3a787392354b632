"""Sections of pages that demonstrations write: what stands between two marks is replaced, and nothing else."""

from __future__ import annotations

import textwrap

WIDTH = 120


def marks(script: str) -> tuple[str, str]:
    """The lines before and behind what a script writes."""
    where = f"<!-- written by trainer_adapters/demo/{script}: "
    return f"{where}begin -->", f"{where}end -->"


def replaced(text: str, section: str, begin: str, end: str) -> str:
    """A page with a new section between the marks.

    Args:
        text: The page.
        section: What is to stand there.
        begin: The mark before it.
        end: The one behind it.

    Returns:
        The new page.

    Raises:
        ValueError: If the page does not have both, in this order.
    """
    before, mark, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    if not mark or not closing:
        raise ValueError(f"the page has no {begin} with {end} behind it")
    return f"{before}{begin}\n{section}\n{end}{after}"


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of the page's width."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
