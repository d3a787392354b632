import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.cache.games import (
    MAX_PLAYERS,
    MAX_TABLE_PLAYERS,
    AskedCoalitions,
    CorruptValueError,
    KnownGame,
    header_of,
    joined,
    known_game,
    unpacked,
)
from creditd.credit.group_sums import MAX_MAGNITUDE

CHECK = bytes(range(8))
HEADER = struct.Struct("<4sIBxHI8s")
SPECIAL = [0.0, -0.0, 5e-324, -MAX_MAGNITUDE, MAX_MAGNITUDE, 1 / 3]
players = st.one_of(st.integers(0, 20), st.sampled_from([24, 25, 63, 64, 65, 128, 300]))


def all_coalitions(n):
    """Every coalition, the place of each of which has bit i set for player i."""
    return (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(np.bool_)


@st.composite
def games(draw, n=None, most=40):
    """Players, coalitions that differ, and utilities."""
    n = draw(players) if n is None else n
    numbers = draw(st.lists(st.integers(0, (1 << n) - 1), min_size=1, max_size=most, unique=True))
    values = draw(
        st.lists(
            st.one_of(st.sampled_from(SPECIAL), st.floats(-MAX_MAGNITUDE, MAX_MAGNITUDE)),
            min_size=len(numbers),
            max_size=len(numbers),
        )
    )
    return n, rows_of(numbers, n), np.array(values)


def rows_of(numbers, n):
    """Coalitions from integers whose bits are players."""
    return np.array([[number >> player & 1 for player in range(n)] for number in numbers], dtype=np.bool_).reshape(
        len(numbers), n
    )


def bits(values):
    """The bits of numbers, by which two zeros differ."""
    return np.asarray(values, dtype="<f8").tobytes()


def reason_of(value, check=CHECK, n=3):
    """Why bytes are refused."""
    with pytest.raises(CorruptValueError) as raised:
        unpacked(bytes(value), check, n)
    return raised.value.reason


def sealed(n, known, body, *, layout=1, magic=b"cru1", check=CHECK):
    """A value with a checksum that is right, whatever else is wrong."""
    rest = HEADER.pack(magic, 0, layout, n, known, check)[8:] + body
    return magic + zlib.crc32(rest).to_bytes(4, "little") + rest


@given(games())
def test_what_is_packed_is_unpacked_to_the_bit(made):
    """Players, coalitions and the bits of utilities come back, and a game that is packed again has the same bytes."""
    n, rows, values = made
    game = known_game(rows, values)
    value = game.packed(CHECK)
    found = unpacked(value, CHECK, n)
    assert (found.n_players, found.n_known) == (n, len(rows))
    assert bits(found.utilities) == bits(game.utilities)
    assert bits(found.utilities_of(rows)) == bits(values)
    assert found.coalitions().tobytes() == game.coalitions().tobytes()
    assert found.packed(CHECK) == value
    assert found.n_bytes == game.n_bytes


@given(games(), st.data())
def test_utilities_are_those_of_their_coalitions_and_nan_elsewhere(made, data):
    """Known coalitions have their utility, all others NaN, in whatever order and how often they are asked about."""
    n, rows, values = made
    known = dict(zip(map(bytes, rows), values, strict=True))
    some = st.one_of(st.sampled_from(range(len(rows))).map(rows.__getitem__), st.integers(0, (1 << n) - 1))
    drawn = data.draw(st.lists(some, max_size=20))
    asked = [rows_of([one], n)[0] if isinstance(one, int) else one for one in drawn]
    expected = [known.get(bytes(one), np.nan) for one in asked]
    wanted = np.array(asked, dtype=np.bool_).reshape(len(asked), n)
    game = known_game(rows, values)
    for one in (game, unpacked(game.packed(CHECK), CHECK, n)):
        assert bits(one.utilities_of(wanted)) == bits(expected)
        assert bits(one.utilities_of(AskedCoalitions(wanted))) == bits(expected)


@given(games(), st.randoms(use_true_random=False))
def test_the_order_of_coalitions_is_nothing_to_a_game(made, random):
    """The same coalitions in another order are the same bytes."""
    n, rows, values = made
    order = list(range(len(rows)))
    random.shuffle(order)
    assert known_game(rows[order], values[order]).packed(CHECK) == known_game(rows, values).packed(CHECK)
    assert known_game(rows, values).coalitions().shape == (len(rows), n)


@given(games(), st.data())
def test_of_a_coalition_that_stands_twice_the_first_counts(made, data):
    """Copies behind a coalition change nothing."""
    _, rows, values = made
    again = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    both, more = np.concatenate([rows, rows[again]]), np.concatenate([values, np.full(len(again), 7.5)])
    assert known_game(both, more).packed(CHECK) == known_game(rows, values).packed(CHECK)


@st.composite
def accounts(draw):
    """Two accounts of one game."""
    n = draw(st.one_of(st.integers(0, 4), players))
    return draw(games(n)), draw(games(n))


@given(accounts())
def test_two_accounts_together_are_their_union(pair):
    """All that either knows is known, the newer counts, and coalitions with two utilities are counted."""
    (n, rows, values), (_, newer_rows, newer_values) = pair
    older = dict(zip(map(bytes, rows), values, strict=True))
    newer = dict(zip(map(bytes, newer_rows), newer_values, strict=True))
    both, contradictions = joined(known_game(rows, values), known_game(newer_rows, newer_values))
    expected = older | newer
    assert both.n_known == len(expected)
    assert contradictions == sum(older[key] != newer[key] for key in older.keys() & newer.keys())
    everything = np.array([list(key) for key in expected], dtype=np.bool_).reshape(len(expected), n)
    assert bits(both.utilities_of(everything)) == bits(list(expected.values()))
    assert (both.masks is None) == (n <= MAX_TABLE_PLAYERS and len(expected) == 1 << n)


@given(games())
def test_one_account_alone_is_all_that_is_known(made):
    """Nothing before, or the same again, contradicts nothing."""
    _, rows, values = made
    game = known_game(rows, values)
    assert joined(None, game) == (game, 0)
    again, contradictions = joined(game, known_game(rows, values))
    assert (again.packed(CHECK), contradictions) == (game.packed(CHECK), 0)


@pytest.mark.parametrize("n", [*range(9), 12, MAX_TABLE_PLAYERS])
def test_a_complete_game_is_a_table_however_it_became_complete(n):
    """All coalitions at once, in any order, or the last one added later: one table, whose bytes are the same."""
    random = np.random.default_rng(n)
    rows, values = all_coalitions(n), random.normal(size=1 << n)
    table = known_game(rows, values)
    assert table.masks is None
    assert bits(table.utilities) == bits(values)
    assert table.coalitions().tobytes() == rows.tobytes()
    assert table.coalitions().shape == rows.shape
    order = random.permutation(1 << n)
    assert known_game(rows[order], values[order]).packed(CHECK) == table.packed(CHECK)
    if n:
        first, last = order[:-1], order[-1:]
        pairs = known_game(rows[first], values[first])
        assert pairs.masks is not None
        assert np.isnan(pairs.utilities_of(rows)[last]).all()
        assert bits(pairs.utilities_of(rows)[first]) == bits(values[first])
        for older, newer in [(first, last), (last, first)]:
            together, contradictions = joined(
                known_game(rows[older], values[older]), known_game(rows[newer], values[newer])
            )
            assert (together.packed(CHECK), contradictions) == (table.packed(CHECK), 0)
        together, contradictions = joined(table, known_game(rows[last], values[last] + 1.0))
        assert (together.masks, contradictions) == (None, 1)
        assert together.utilities[last] == values[last] + 1.0
        assert joined(pairs, table) == (table, 0)


def test_a_game_of_more_players_is_no_table():
    """Beyond sixteen players all utilities together are pairs as well."""
    n = MAX_TABLE_PLAYERS + 1
    rows, values = all_coalitions(n), np.arange(1.0, 1 + (1 << n))
    game = known_game(rows, values)
    assert game.masks is not None
    assert bits(unpacked(game.packed(CHECK), CHECK, n).utilities_of(rows)) == bits(values)


@pytest.mark.parametrize("n", [7, 8, 9, 15, 16, 17, 24, 33, 257])
def test_players_of_the_last_bytes_may_be_absent(n):
    """Coalitions that end in bytes of zeros, as does that of nobody, are found and told apart."""
    numbers = [0, 1, 1 << (n - 1), 128, 1 << max(n - 8, 0), (1 << n) - 1]
    rows = rows_of(dict.fromkeys(one % (1 << n) for one in numbers), n)
    values = np.arange(1.0, 1 + len(rows))
    game = known_game(rows, values)
    for one in (game, unpacked(game.packed(CHECK), CHECK, n)):
        assert bits(one.utilities_of(rows)) == bits(values)
        assert {bytes(row) for row in one.coalitions()} == {bytes(row) for row in rows}
        for absent in range(len(rows)):
            rest = known_game(np.delete(rows, absent, axis=0), np.delete(values, absent))
            assert np.isnan(rest.utilities_of(rows)).tolist() == [place == absent for place in range(len(rows))]


SMALL = [
    (0, [0]),
    (1, [1]),
    (1, [0, 1]),
    (3, [0, 5]),
    (3, range(8)),
    (9, [0, 256, 511]),
    (17, [0, 1, 1 << 16]),
]


@pytest.mark.parametrize(("n", "numbers"), SMALL)
def test_no_flipped_bit_is_a_number(n, numbers):
    """Each bit of a value that is another one makes it worthless: magic and layout tell so, or the checksum does."""
    value = known_game(rows_of(list(numbers), n), np.arange(1.0, 1 + len(numbers))).packed(CHECK)
    for place, bit in itertools.product(range(len(value)), range(8)):
        flipped = bytearray(value)
        flipped[place] ^= 1 << bit
        unknown = place < 4 or (place == 8 and bit > 0)
        assert reason_of(flipped, n=n) == ("unknown_format" if unknown else "checksum"), (place, bit)


@pytest.mark.parametrize(("n", "numbers"), SMALL)
def test_no_cut_or_longer_value_is_a_number(n, numbers):
    """A value that ends too early or too late is worthless."""
    value = known_game(rows_of(list(numbers), n), np.arange(1.0, 1 + len(numbers))).packed(CHECK)
    for stop in range(len(value)):
        assert reason_of(value[:stop], n=n) == ("truncated" if stop < HEADER.size else "checksum"), stop
    for more in (b"\0", b"\0" * 8, value):
        assert reason_of(value + more, n=n) == "checksum"


@given(games(), st.integers(0, 7), st.integers(1, 255))
def test_the_value_of_another_key_is_foreign(made, place, change):
    """Sound bytes under the wrong key are told apart by any of their check bytes."""
    n, rows, values = made
    other = bytearray(CHECK)
    other[place] ^= change
    value = known_game(rows, values).packed(bytes(other))
    assert reason_of(value, n=n) == "foreign"
    assert unpacked(value, bytes(other), n).n_known == len(rows)


@given(games(), players)
def test_a_value_of_other_players_is_of_another_shape(made, n):
    """The number of players is part of what was asked for."""
    own, rows, values = made
    value = known_game(rows, values).packed(CHECK)
    if n == own:
        assert unpacked(value, CHECK, n).n_players == n
    else:
        assert reason_of(value, n=n) == "shape"


ONES = np.ones(8).tobytes()


@pytest.mark.parametrize(
    ("value", "n", "reason"),
    [
        (sealed(3, 0, b""), 3, "shape"),
        (sealed(3, 0, b"", layout=0), 3, "shape"),
        (sealed(3, 2, ONES[:16]), 3, "shape"),
        (sealed(3, 2, ONES[:16] + b"\0\1\2"), 3, "shape"),
        (sealed(9, 2, ONES[:16] + b"\0\1"), 9, "shape"),
        (sealed(3, 7, ONES[:56], layout=0), 3, "shape"),
        (sealed(2, 8, ONES, layout=0), 2, "shape"),
        (sealed(3, 8, ONES + b"\0", layout=0), 3, "shape"),
        (sealed(17, 1 << 17, bytes(8 << 17), layout=0), 17, "shape"),
        (sealed(3, 0xFFFFFFFF, ONES), 3, "shape"),
        (sealed(0xFFFF, 1, ONES), 3, "shape"),
        (sealed(3, 8, ONES, layout=2), 3, "unknown_format"),
        (sealed(3, 8, ONES, layout=0, magic=b"cru2"), 3, "unknown_format"),
        (sealed(3, 8, ONES, layout=0, magic=b"\x80\x04\x95\x10"), 3, "unknown_format"),
        (sealed(3, 1, struct.pack("<d", float("nan")) + b"\1"), 3, "not_finite"),
        (sealed(3, 1, struct.pack("<d", float("-inf")) + b"\1"), 3, "not_finite"),
        (sealed(3, 8, ONES[:56] + struct.pack("<d", float("nan")), layout=0), 3, "not_finite"),
        (sealed(1, 2, struct.pack("<dd", float("inf"), float("-inf")), layout=0), 1, "not_finite"),
        (b"", 3, "truncated"),
        (b"1.5", 3, "truncated"),
    ],
)
def test_whoever_writes_what_does_not_fit_is_not_believed(value, n, reason):
    """A right checksum does not make a value of another shape, of another format, or without a number, one."""
    assert reason_of(value, n=n) == reason


def test_sound_values_are_as_they_are_described():
    """Values that are put together by hand as the format says are read: tables by bits, pairs by bytes."""
    table = unpacked(sealed(2, 4, struct.pack("<4d", 0.0, 1.0, 2.0, 4.0), layout=0), CHECK, 2)
    assert table.utilities_of(rows_of([3, 1, 2, 0], 2)).tolist() == [4.0, 1.0, 2.0, 0.0]
    pairs = unpacked(sealed(9, 2, struct.pack("<2d", 0.5, -1.5) + b"\x00\x01\x03\x00"), CHECK, 9)
    assert pairs.utilities_of(rows_of([256, 3], 9)).tolist() == [0.5, -1.5]
    assert np.isnan(pairs.utilities_of(rows_of([0, 259, 1], 9))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_what_is_no_finite_number_is_not_remembered(bad, place):
    """A game with an infinity or NaN anywhere is refused before it is one."""
    values = np.ones(4)
    values[place] = bad
    with pytest.raises(ValueError, match="finite"):
        known_game(all_coalitions(2), values)


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        (np.zeros((0, 3), dtype=np.bool_), np.zeros(0)),
        (np.zeros(3, dtype=np.bool_), np.zeros(3)),
        (np.zeros((2, 3), dtype=np.bool_), np.zeros(3)),
        (np.zeros((2, 3), dtype=np.bool_), np.zeros((2, 1))),
    ],
)
def test_a_game_has_a_utility_for_each_of_its_coalitions(rows, values):
    """No coalition at all, a flat one, and another number of utilities are refused."""
    with pytest.raises(ValueError, match="one per row"):
        known_game(rows, values)


def test_the_largest_utilities_are_those_of_the_arithmetic():
    """What the arithmetic takes is remembered; what it would refuse is neither remembered nor read."""
    values = np.array([MAX_MAGNITUDE, -MAX_MAGNITUDE])
    found = unpacked(known_game(all_coalitions(1), values).packed(CHECK), CHECK, 1)
    assert bits(found.utilities) == bits(values)
    larger = np.nextafter(values, np.inf * values)
    for wrong in larger:
        with pytest.raises(ValueError, match="finite number of magnitude"):
            known_game(all_coalitions(1), np.array([0.0, wrong]))
        value = KnownGame(1, np.array([0.0, wrong]), None).packed(CHECK)
        with pytest.raises(CorruptValueError, match="not_finite"):
            unpacked(value, CHECK, 1)


def test_so_many_players_have_no_game():
    """A game of more players than a value has room for is refused before it is remembered."""
    n = MAX_PLAYERS + 1
    with pytest.raises(ValueError, match=f"got {n} players"):
        known_game(np.zeros((1, n), dtype=np.bool_), np.zeros(1))


@given(games())
def test_what_a_game_takes_covers_its_numbers(made):
    """The size that is counted is at least that of the value in Redis without its header, and not much more."""
    _, rows, values = made
    game = known_game(rows, values)
    least = len(game.packed(CHECK)) - HEADER.size
    assert least < game.n_bytes <= least + 1024


def test_a_game_does_not_change_with_the_arrays_that_it_was_made_of():
    """Who gave arrays may write to them afterwards."""
    rows, values = rows_of([1, 2], 2), np.array([1.0, 2.0])
    for wanted, game in [(2, known_game(rows, values)), (4, known_game(all_coalitions(2), np.arange(4.0)))]:
        before = game.packed(CHECK)
        rows[:], values[:] = False, 9.0
        assert game.packed(CHECK) == before
        assert isinstance(game, KnownGame)
        assert game.n_known == wanted


def test_headers_are_for_people():
    """A header says what is in a value without the game that it belongs to; what has none is refused."""
    value = known_game(rows_of([1, 2], 9), np.ones(2)).packed(CHECK)
    assert header_of(value) == {"layout": "pairs", "n_players": 9, "n_known": 2, "check": CHECK}
    table = known_game(all_coalitions(2), np.ones(4)).packed(CHECK)
    assert header_of(table[: HEADER.size]) == {"layout": "table", "n_players": 2, "n_known": 4, "check": CHECK}
    for bad, reason in [(value[: HEADER.size - 1], "truncated"), (b"x" * 99, "unknown_format")]:
        with pytest.raises(CorruptValueError) as raised:
            header_of(bad)
        assert raised.value.reason == reason
