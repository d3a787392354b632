"""What is known of one game, in memory and as the bytes that Redis keeps.

Legend: `n` players, `R` known coalitions. A coalition is a boolean row; True means that the player is in. A game of
which all 2ⁿ utilities are known is a table, bit i of whose index is player i; of any other game there are pairs of
coalition and utility.

    value = magic, CRC-32 of what follows, layout, n, R, the first bytes of the digest in its key, then numbers:
            table: 2ⁿ float64; pairs: R float64, R coalitions of ⌈n/8⌉ bytes each, ascending

Numbers are little-endian. The check bytes tell a value that belongs to another key from one that belongs here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.cache.keys import CHECK_BYTES
from creditd.credit.group_sums import MAX_MAGNITUDE

Booleans: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Masks: TypeAlias = NDArray[np.bytes_]
Integers: TypeAlias = NDArray[np.int64]
Corruption: TypeAlias = Literal["truncated", "unknown_format", "checksum", "foreign", "shape", "not_finite"]

MAX_TABLE_PLAYERS = 16
MAX_PLAYERS = 65_535
_MAGIC = b"cru1"
_TABLE, _PAIRS = 0, 1
_CHECKED = struct.Struct(f"<4sIBxHI{CHECK_BYTES}s")
_FLOATS = np.dtype("<f8")
_OBJECT_BYTES, _PAIRS_BYTES = 470, 230
"""What the objects around the numbers of a game take in memory, about, and what more where it has coalitions."""


class CorruptValueError(Exception):
    """Bytes that are not what is known of the game that was asked for.

    Attributes:
        reason: What is wrong with them.
    """

    def __init__(self, reason: Corruption) -> None:
        super().__init__(reason)
        self.reason: Corruption = reason


@dataclass(frozen=True, eq=False)
class AskedCoalitions:
    """Coalitions that several games are asked about, made ready once for all of them.

    Attributes:
        rows: Shape (Q, n), bool.
    """

    rows: Booleans

    @cached_property
    def masks(self) -> Masks:
        """Shape (Q,), bytes: as games of pairs have them."""
        return _masks(self.rows)

    @cached_property
    def ascending(self) -> tuple[bytes, Integers]:
        """The masks of a game of pairs that knows exactly these coalitions, and the place of each of them there."""
        order = np.argsort(self.masks)
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        return self.masks[order].tobytes(), places

    @cached_property
    def numbers(self) -> Integers:
        """Shape (Q,): places in a table."""
        return _numbers(_packed(self.rows))


# Not frozen, which makes one in a third of the time; hundreds are made of one answer of Redis.
@dataclass(eq=False, slots=True)
class KnownGame:
    """Utilities of some coalitions of a game, which nobody changes. Made by `known_game`, `joined` and `unpacked`.

    Attributes:
        n_players: n.
        utilities: Shape (R,), float64, reward units, finite.
        masks: Shape (R,), bytes: the coalitions, ascending; None for a table.
    """

    n_players: int
    utilities: Floats
    masks: Masks | None

    @property
    def n_known(self) -> int:
        """Number of known coalitions R."""
        return len(self.utilities)

    @property
    def is_table(self) -> bool:
        """Whether all 2ⁿ utilities are known."""
        return self.masks is None

    @property
    def n_bytes(self) -> int:
        """What it takes in memory, about."""
        pairs = 0 if self.masks is None else _PAIRS_BYTES + self.masks.nbytes
        return _OBJECT_BYTES + self.utilities.nbytes + pairs

    def utilities_of(self, coalitions: Booleans | AskedCoalitions) -> Floats:
        """Utilities of coalitions.

        Args:
            coalitions: Shape (Q, n), bool; whoever asks several games for the same ones has them made ready once.

        Returns:
            Shape (Q,), float64; NaN where a coalition is not known.

        Cost:
            O(Q · n) to make coalitions ready; O(Q) where the game is a table or knows exactly these, and O(Q log R)
            comparisons otherwise.
        """
        asked = coalitions if isinstance(coalitions, AskedCoalitions) else AskedCoalitions(coalitions)
        if self.masks is None:
            return self.utilities[asked.numbers]
        wanted = asked.masks
        if len(wanted) == len(self.masks) and asked.ascending[0] == self.masks.tobytes():
            return self.utilities[asked.ascending[1]]
        places = np.minimum(np.searchsorted(self.masks, wanted), len(self.masks) - 1)
        return np.where(self.masks[places] == wanted, self.utilities[places], np.nan)

    def coalitions(self) -> Booleans:
        """Shape (R, n), bool: the known coalitions, in the order of the utilities."""
        n = self.n_players
        if self.masks is None:
            return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.bool_)
        packed = self.masks.view(np.uint8).reshape(len(self.masks), -1)
        return np.unpackbits(packed, axis=1, count=n, bitorder="little").astype(np.bool_)

    def packed(self, check: bytes) -> bytes:
        """As Redis keeps it.

        Args:
            check: Of the game's key.
        """
        layout = _TABLE if self.masks is None else _PAIRS
        head = _CHECKED.pack(_MAGIC, 0, layout, self.n_players, self.n_known, check)
        masks = b"" if self.masks is None else self.masks.tobytes()
        value = bytearray(b"".join([head, self.utilities.astype(_FLOATS, copy=False).tobytes(), masks]))
        value[4:8] = zlib.crc32(memoryview(value)[8:]).to_bytes(4, "little")
        return bytes(value)


def known_game(coalitions: Booleans, utilities: Floats) -> KnownGame:
    """A game of which some utilities are known.

    Args:
        coalitions: Shape (R, n), bool, R ≥ 1; of one that stands twice the first counts.
        utilities: Shape (R,), float64, reward units.

    Returns:
        What is known of it.

    Raises:
        ValueError: If shapes do not fit, there are too many players, or a utility is not `usable`.
    """
    if coalitions.ndim != 2 or not len(coalitions) or utilities.shape != coalitions.shape[:1]:
        raise ValueError(f"got coalitions {coalitions.shape} and utilities {utilities.shape}; expected one per row")
    if not usable(utilities).all():
        raise ValueError(f"a utility that is remembered is a finite number of magnitude {MAX_MAGNITUDE:g} or less")
    if coalitions.shape[1] > MAX_PLAYERS:
        raise ValueError(f"got {coalitions.shape[1]} players; expected at most {MAX_PLAYERS}")
    if len(coalitions) == 1 and coalitions.shape[1]:
        return KnownGame(coalitions.shape[1], utilities, _masks(coalitions))
    return _game(coalitions.shape[1], _masks(coalitions), utilities)


def joined(game: KnownGame | None, newer: KnownGame) -> tuple[KnownGame, int]:
    """What two accounts know of the same game.

    Args:
        game: One account; None if there is none.
        newer: The other, which counts where the two contradict each other.

    Returns:
        Both together, and how many coalitions have two utilities that differ.
    """
    if game is None:
        return newer, 0
    own, others = game.utilities_of(newer.coalitions()), newer.utilities
    contradictions = int(np.count_nonzero((own != others) & ~np.isnan(own)))
    if newer.masks is None:
        return newer, contradictions
    masks = np.concatenate([newer.masks, _masks(game.coalitions()) if game.masks is None else game.masks])
    both = np.concatenate([others, game.utilities])
    return _game(game.n_players, masks, both), contradictions


def unpacked(value: bytes, check: bytes, n_players: int) -> KnownGame:
    """What the bytes of a value say of a game.

    Args:
        value: From Redis.
        check: Of the game's key.
        n_players: Of the game.

    Returns:
        What is known of it; its numbers lie in `value`.

    Raises:
        CorruptValueError: If the bytes are anything else.

    Cost:
        Two microseconds for 2 KB.
    """
    if len(value) < _CHECKED.size:
        raise CorruptValueError("truncated")
    magic, checksum, layout, n, n_known, belongs_to = _CHECKED.unpack_from(value)
    if magic != _MAGIC or layout not in (_TABLE, _PAIRS):
        raise CorruptValueError("unknown_format")
    if zlib.crc32(memoryview(value)[8:]) != checksum:
        raise CorruptValueError("checksum")
    if belongs_to != check:
        raise CorruptValueError("foreign")
    n_mask_bytes = _mask_bytes(n) if layout == _PAIRS else 0
    if n != n_players or not n_known or len(value) != _CHECKED.size + n_known * (_FLOATS.itemsize + n_mask_bytes):
        raise CorruptValueError("shape")
    if layout == _TABLE and (n > MAX_TABLE_PLAYERS or n_known != 2**n):
        raise CorruptValueError("shape")
    utilities = np.frombuffer(value, _FLOATS, n_known, _CHECKED.size)
    if np.count_nonzero(usable(utilities)) != n_known:
        raise CorruptValueError("not_finite")
    masks = None
    if layout == _PAIRS:
        masks = np.frombuffer(value, f"S{n_mask_bytes}", n_known, _CHECKED.size + utilities.nbytes)
    return KnownGame(n, utilities, masks)


def usable(utilities: Floats) -> Booleans:
    """Which utilities the arithmetic takes: finite ones that are not too large."""
    return np.abs(utilities) <= MAX_MAGNITUDE


def header_of(value: bytes) -> dict[str, Any]:
    """What the header of a value claims, for people; nothing of it is checked but that there is one.

    Raises:
        CorruptValueError: If the bytes are no value of this format.
    """
    if len(value) < _CHECKED.size:
        raise CorruptValueError("truncated")
    magic, _, layout, n, n_known, check = _CHECKED.unpack_from(value)
    if magic != _MAGIC:
        raise CorruptValueError("unknown_format")
    return {"layout": "table" if layout == _TABLE else "pairs", "n_players": n, "n_known": n_known, "check": check}


def _game(n: int, masks: Masks, utilities: Floats) -> KnownGame:
    """A game from coalitions in any order, of which the first of equal ones counts."""
    kept, first = np.unique(masks, return_index=True)
    found = utilities[first]
    if n <= MAX_TABLE_PLAYERS and len(kept) == 2**n:
        table = np.empty(2**n)
        table[_numbers(kept.view(np.uint8).reshape(len(kept), -1))] = found
        return KnownGame(n, table, None)
    return KnownGame(n, found, kept)


def _masks(coalitions: Booleans) -> Masks:
    """Coalitions as bytes, bit i of which is player i."""
    packed = _packed(coalitions)
    return packed.view(f"S{packed.shape[1]}")[:, 0]


def _packed(coalitions: Booleans) -> NDArray[np.uint8]:
    """Shape (R, bytes of a coalition), contiguous; that of nobody has a byte as well."""
    if not coalitions.shape[1]:
        return np.zeros((len(coalitions), 1), dtype=np.uint8)
    # Columns that somebody picked lie one after another, and so would the bytes.
    return np.packbits(np.ascontiguousarray(coalitions), axis=1, bitorder="little")


def _mask_bytes(n: int) -> int:
    """Bytes of a coalition of n players."""
    return max(-(-n // 8), 1)


def _numbers(packed: NDArray[np.uint8]) -> Integers:
    """Rows of at most two bytes as numbers."""
    low = packed[:, 0].astype(np.int64)
    return low if packed.shape[1] == 1 else low | packed[:, 1].astype(np.int64) << 8
