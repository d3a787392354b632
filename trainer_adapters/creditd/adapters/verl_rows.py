"""Rows of a batch of verl: which of them are one session, which sessions are one group, and back.

A key is `{uid}_{session}_{index}`: a prompt, one of its `rollout.n` sessions, and which of the outputs of that session
the row is. Most sessions have one output; where an agent loop returns several, the last one is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_TAIL_TOKENS = 16
"""Of the prompt of a later output: as many as tell whether it begins inside its thinking."""


@dataclass(frozen=True)
class Session:
    """One rollout: the rows that its outputs are.

    Attributes:
        uid: The prompt.
        rows: Places in the batch, in the order of the outputs.
    """

    uid: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class VerlBatch:
    """What the queue holds of the B rows of a batch.

    Attributes:
        keys: Their names.
        prompts: What each answers, as messages; empty if nobody reads them.
        prompt_ids: Tokens before each.
        ids: Response tokens.
        masks: Per response token 1 if the policy wrote it, else 0.
        rewards: What verl's own reward gave; empty if nobody reads it.
        columns: One value per row by name.
    """

    keys: Sequence[str]
    prompts: Sequence[Any]
    prompt_ids: Sequence[list[int]]
    ids: Sequence[list[int]]
    masks: Sequence[list[int]]
    rewards: Sequence[float] = ()
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, ids, mask in zip(self.keys, self.ids, self.masks, strict=True):
            if len(ids) != len(mask):
                raise ValueError(f"response_mask: got {len(mask)} entries for row {key}; expected {len(ids)}")


@dataclass(frozen=True)
class Joined:
    """The outputs of a session as one completion.

    Attributes:
        ids: Their tokens, one output after another, with the end of its prompt before each later one.
        mask: 1 where the policy wrote.
        spans: Where the tokens of each output are, half open.
    """

    ids: list[int]
    mask: list[int]
    spans: tuple[tuple[int, int], ...]


def sessions_of(keys: Sequence[str]) -> list[Session]:
    """The sessions of a batch, those of a prompt next to each other.

    Args:
        keys: Names of rows, in any order.

    Returns:
        Sessions in the order in which their prompts first occur, and within a prompt by their number.

    Raises:
        ValueError: If a key is not of this form, or occurs twice.
    """
    found: dict[str, dict[int, dict[int, int]]] = {}
    for row, key in enumerate(keys):
        uid, _, rest = key.partition("_") if key.count("_") == 2 else (key, "", "")
        session, _, index = rest.partition("_")
        if not uid or not session.isdecimal() or not index.isdecimal():
            raise ValueError(f"got the key {key!r} of a row; expected UID_SESSION_INDEX, as verl 0.9 names rows")
        outputs = found.setdefault(uid, {}).setdefault(int(session), {})
        if int(index) in outputs:
            raise ValueError(f"got the key {key!r} twice; expected each row once")
        outputs[int(index)] = row
    return [
        Session(uid, tuple(outputs[index] for index in sorted(outputs)))
        for uid, of_uid in found.items()
        for _, outputs in sorted(of_uid.items())
    ]


def whole_groups(sessions: Sequence[Session], group_size: int) -> tuple[list[Session], list[Session]]:
    """Sessions whose prompts have all of theirs, and the others.

    Args:
        sessions: Those of a prompt next to each other.
        group_size: Sessions of a whole group.

    Returns:
        Whole groups one after another, and the sessions of prompts that have fewer, or more.
    """
    sizes: dict[str, int] = {}
    for session in sessions:
        sizes[session.uid] = sizes.get(session.uid, 0) + 1
    whole = [session for session in sessions if sizes[session.uid] == group_size]
    return whole, [session for session in sessions if sizes[session.uid] != group_size]


def joined(session: Session, batch: VerlBatch) -> Joined:
    """The outputs of a session as one completion, so that its earlier outputs have the advantages of its tokens too."""
    ids: list[int] = []
    mask: list[int] = []
    spans: list[tuple[int, int]] = []
    for row in session.rows:
        between = batch.prompt_ids[row][-_TAIL_TOKENS:] if spans else []
        ids += between
        mask += [0] * len(between)
        spans.append((len(ids), len(ids) + len(batch.ids[row])))
        ids += batch.ids[row]
        mask += batch.masks[row]
    return Joined(ids, mask, tuple(spans))
