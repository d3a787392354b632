r"""Parsers that find, in the text of one completion, the reasoning and the answer that a policy wrote there.

A completion is reasoning, then a conclusion, then an answer: in tags, behind "####", in \boxed{…}, or on its last line.
The set of parsers is closed and named, so that a request can choose one without code.

Reference: OAR, arXiv:2601.07408, which reweights the reasoning by what it means for the answer.
Differs from the paper: how the paper cuts a completion is not published; these rules are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from creditd.credit.segments import Ranges, token_spans

Span: TypeAlias = tuple[int, int]
AnswerParser: TypeAlias = Literal["tags", "hashes", "boxed", "last_line"]

ANSWER_PARSERS: tuple[AnswerParser, ...] = ("tags", "hashes", "boxed", "last_line")

_TAG_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_MARK = "####"
_BRACES = re.compile(r"(?P<boxed>\\boxed\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


@dataclass(frozen=True)
class ParserOptions:
    """Which parser, and what it looks for.

    Attributes:
        type: Name of the parser.
        reasoning_tag: Name of the tag around the reasoning (`tags`), case-sensitive.
        answer_tag: Name of the tag around the answer (`tags`), case-sensitive.

    Raises:
        ValueError: If there is no such parser, or a name is not one of a tag.
    """

    type: AnswerParser
    reasoning_tag: str = "think"
    answer_tag: str = "answer"

    def __post_init__(self) -> None:
        """Refuse what is no parser and no tag."""
        if self.type not in ANSWER_PARSERS:
            raise ValueError(f"parser: got {self.type!r}, expected one of {', '.join(ANSWER_PARSERS)}")
        for field, name in (("reasoning_tag", self.reasoning_tag), ("answer_tag", self.answer_tag)):
            if not _TAG_NAME.fullmatch(name):
                raise ValueError(f"{field}: got {name!r}, expected a letter, then letters, digits, '_', '.' or '-'")
        if self.reasoning_tag == self.answer_tag:
            raise ValueError(f"answer_tag: got {self.answer_tag!r} for both tags, expected two names")


def find_reasoning(text: str, offsets: npt.ArrayLike, parser: ParserOptions) -> tuple[Span, Span] | tuple[None, None]:
    r"""Tokens of the reasoning and of the answer of one completion.

        tags        the answer stands in the last complete pair of answer tags; the reasoning in the last complete pair
                    of reasoning tags before it. A closing reasoning tag alone has its opening one in the prompt. With
                    neither, everything before the answer tag is reasoning
        hashes      the answer is the rest of the line behind the last "####" that has something behind it on its line,
                    up to a "####" that has nothing; everything before the first of the two is reasoning
        boxed       the answer is the content of the last \boxed{…} whose braces are balanced; everything before that
                    \boxed is reasoning. \{ and \} count as letters
        last_line   the answer is the last line that is not blank; everything before that line is reasoning

    White space around an answer does not belong to it. A token belongs where most of its characters are, white space
    at its ends not counted unless there is nothing else; at a tie to the answer, else to what stands first.

    Args:
        text: N characters (code points): the completion, without special tokens that stand for no text.
        offsets: (T, 2) integers, characters [start, stop) of each token, as `token_spans` takes them.
        parser: Which parser.

    Returns:
        Two half-open token ranges, the reasoning and the answer; the reasoning stops where the answer starts, or before
        it, and may be empty. (None, None): there is no answer, or no token has most of its characters in it.

    Raises:
        ValueError: The offsets go backwards or beyond the text, or are not (·, 2) integers.

    Cost:
        O(N + T log T).

    Reference:
        OAR, arXiv:2601.07408.

    Differs from the paper:
        How the paper finds the parts of a completion is not published.
    """
    found = reasoning_characters(text, parser)
    places = _within(text, offsets)
    if found is None:
        return None, None
    (start, stop), (answer, end) = found
    # In half characters, the answer half a one longer: it has more of a token than an equal part before it.
    bounds = 2 * np.array([0, start, stop, answer, end, len(text)], dtype=np.int64)
    bounds[3] = max(int(bounds[3]) - 1, 0)
    bounds[:3] = np.minimum(bounds[:3], bounds[3])
    pieces = np.stack([bounds[:-1], bounds[1:]], axis=1)
    _, (first, last), _, (begin, close), _ = token_spans(pieces, 2 * _without_blanks(text, places)).tolist()
    if begin == close:
        return None, None
    return (first, last), (begin, close)


def reasoning_characters(text: str, parser: ParserOptions) -> tuple[Span, Span] | None:
    """Characters of the reasoning and of the answer of one completion, as `find_reasoning` says.

    Args:
        text: N characters (code points).
        parser: Which parser.

    Returns:
        Two half-open ranges, the reasoning and the answer; the reasoning stops where the answer starts, or before it,
        and may be empty; the answer is not empty and neither begins nor ends with white space. None: no answer.

    Cost:
        O(N).
    """
    if parser.type == "tags":
        found = _in_tags(text, parser)
    elif parser.type == "hashes":
        found = _behind_hashes(text)
    elif parser.type == "boxed":
        found = _in_box(text)
    else:
        found = _on_last_line(text)
    if found is None:
        return None
    reasoning, (start, stop) = found
    answer = text[start:stop].strip()
    if not answer:
        return None
    start += len(text[start:stop]) - len(text[start:stop].lstrip())
    return reasoning, (start, start + len(answer))


def _in_tags(text: str, parser: ParserOptions) -> tuple[Span, Span] | None:
    """Return the reasoning, and the contents of the last complete pair of answer tags."""
    answer = _last_pair(text, parser.answer_tag, len(text))
    if answer is None:
        return None
    opening, start, stop, _ = answer
    reasoning = _last_pair(text, parser.reasoning_tag, opening)
    if reasoning is not None:
        return (reasoning[1], reasoning[2]), (start, stop)
    name = re.escape(parser.reasoning_tag)
    tags = list(re.finditer(rf"<(?P<closing>/)?{name}\s*>", text[:opening]))
    closing = tags[-1].start() if tags and all(tag["closing"] for tag in tags) else opening
    return (0, closing), (start, stop)


def _last_pair(text: str, tag: str, limit: int) -> tuple[int, int, int, int] | None:
    """Return where the last complete pair of tags below `limit` opens, contents begin and end, and it is closed.

    An opening tag before the closing one replaces an earlier one.
    """
    found: tuple[int, int, int, int] | None = None
    opening: Span | None = None
    for match in re.compile(rf"<(?P<closing>/)?{re.escape(tag)}\s*>").finditer(text, 0, limit):
        if match["closing"] is None:
            opening = match.span()
        elif opening is not None:
            found = (*opening, *match.span())
            opening = None
    return found


def _behind_hashes(text: str) -> tuple[Span, Span] | None:
    """Return what stands before the last mark that has something behind it, and the rest of its line."""
    end = len(text)
    while (mark := text.rfind(_MARK, 0, end)) >= 0:
        start = mark + len(_MARK)
        newline = text.find("\n", start, end)
        stop = end if newline < 0 else newline
        if not text[start:stop].isspace() and start < stop:
            return (0, mark), (start, stop)
        # More hashes in a row are the same mark.
        while mark and text[mark - 1] == _MARK[0]:
            mark -= 1
        end = mark
    return None


def _in_box(text: str) -> tuple[Span, Span] | None:
    """Return what stands before the last box whose braces are balanced, and its contents."""
    best: tuple[int, int, int] | None = None
    opened: list[Span | None] = []
    for match in _BRACES.finditer(text):
        if match["boxed"] is not None:
            opened.append(match.span())
        elif match["open"] is not None:
            opened.append(None)
        elif match["close"] is not None and opened:
            box = opened.pop()
            if box is not None and (best is None or box[0] > best[0]):
                best = (*box, match.start())
    return None if best is None else ((0, best[0]), (best[1], best[2]))


def _on_last_line(text: str) -> tuple[Span, Span] | None:
    """Return what stands before the last line that is not blank, and that line."""
    stop = len(text.rstrip())
    start = text.rfind("\n", 0, stop) + 1
    return (0, start), (start, stop)


def _within(text: str, offsets: npt.ArrayLike) -> Ranges:
    """Return the offsets as an array; refuse those that are not within the text."""
    places = np.asarray(offsets)
    if places.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if places.ndim != 2 or places.shape[1] != 2 or places.dtype.kind not in "iu":
        raise ValueError(f"token_offsets: got shape {places.shape} of {places.dtype}, expected (n, 2) of integers")
    wrong = (places[:, 0] < 0) | (places[:, 1] > len(text))
    if wrong.any():
        t = int(np.argmax(wrong))
        start, stop = places[t].tolist()
        raise ValueError(f"offsets of token {t}: got [{start}, {stop}), expected a range within [0, {len(text)})")
    token_spans([], places)  # Refuses those that go backwards.
    return places.astype(np.int64)


def _without_blanks(text: str, places: Ranges) -> Ranges:
    """Return the offsets without the white space at both ends of tokens that have something else."""
    filled = np.array([not character.isspace() for character in text], dtype=np.bool_)
    number = np.arange(len(text))
    # The next character that is not white space, and the end of the last one.
    following = np.append(np.where(filled, number, len(text)), len(text))
    following = np.minimum.accumulate(following[::-1])[::-1]
    ending = np.maximum.accumulate(np.append(0, np.where(filled, number + 1, 0)))
    starts, stops = places.T
    some = following[np.minimum(starts, len(text))] < stops
    starts = np.where(some, following[np.minimum(starts, len(text))], starts)
    stops = np.where(some, ending[np.maximum(stops, 0)], stops)
    # A token of no width may stand in the white space that was taken off the token before it.
    reached = np.maximum.accumulate(starts)
    return np.stack([reached, np.maximum(stops, reached)], axis=1)
