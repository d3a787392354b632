"""Token rewards for loops written by hand: lists, arrays and tensors."""

import itertools

import numpy as np
import pytest

from creditd.adapters.loop import causal_units, in_form_of, span_token_rewards
from creditd.client import Client, CreditdError, PartialResultError, Ragged

WORDS = ["<pad>", "<eos>", " the", " sun", " rain", ",", "."]
IDS = [[2, 3, 5, 4, 6, 1], [4, 1], [1]]
PADDED = [[2, 3, 5, 4, 6, 1], [4, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
LENGTHS = [6, 2, 1]
PROMPTS = ["?"] * 3
AGREEMENT = 1e-12


def decode(ids):
    """Text of words; the end and padding are none."""
    return "".join(WORDS[number] for number in ids if number > 1)


def judge(prompt, text):
    """Sun is good and rain is not, but both together are a rainbow."""
    return len(prompt) + 2.0 * ("sun" in text) - 1.0 * ("rain" in text) + 3.0 * ("sun" in text and "rain" in text)


def rewards(ids=IDS, **options):
    """What a loop gets in this process."""
    with Client("local:") as client:
        return span_token_rewards(client, PROMPTS, ids, decode, **{"utility": judge} | options)


def test_lists_come_back_as_lists():
    """One reward per token, at the end of its unit, and their sum is the return."""
    found = rewards()
    assert found.texts == [" the sun, rain.", " rain", ""]
    assert found.token_rewards == [[0.0, 0.0, 3.5, 0.0, 0.0, 0.5], [0.0, -1.0], [0.0]]
    assert [len(row) for row in found.token_rewards] == LENGTHS
    assert found.token_advantages is None
    np.testing.assert_allclose([sum(row) for row in found.token_rewards], found.result.ledger.total, atol=AGREEMENT)
    assert found.result.units.to_list() == [[[0, 3], [3, 6]], [[0, 2]], []]


def test_a_kl_term_is_in_every_token():
    """It is added where it belongs, and nothing else changes."""
    kl = [[-0.25] * length for length in LENGTHS]
    plain, found = rewards(), rewards(kl=kl, other_rewards=[1.0, 0.0, 0.0])
    for one, other, terms in zip(found.token_rewards, plain.token_rewards, kl, strict=True):
        assert one[:-1] == pytest.approx([a + b for a, b in zip(other, terms, strict=True)][:-1])
    assert found.token_rewards[0][-1] == pytest.approx(plain.token_rewards[0][-1] - 0.25 + 1.0)


def test_arrays_come_back_as_arrays():
    """Padded on the right, with 0 there, whatever stands in masks and KL terms behind a completion."""
    kl = np.full((3, 6), -0.5)
    for row, length in enumerate(LENGTHS):
        kl[row, length:] = np.nan
    masks = np.ones((3, 6), dtype=np.int64)
    masks[0, 1] = 0
    options = {"kl": kl, "completion_masks": masks, "advantage": "pooled"}
    found = rewards(np.array(PADDED), lengths=np.array(LENGTHS), **options)
    assert found.token_rewards.shape == found.token_advantages.shape == (3, 6)
    assert found.token_rewards.dtype == np.float64
    expected = rewards(
        kl=[[-0.5] * length for length in LENGTHS],
        completion_masks=[[1, 0, 1, 1, 1, 1], [1, 1], [1]],
        advantage="pooled",
    )
    for row, length in enumerate(LENGTHS):
        assert found.token_rewards[row, :length].tolist() == expected.token_rewards[row]
        assert found.token_advantages[row, :length].tolist() == expected.token_advantages[row]
        assert not found.token_rewards[row, length:].any()
    assert found.token_rewards[0, 1] == 0.0


def test_padded_lists_need_lengths_and_stay_unpadded():
    """Rows come back as long as their completions."""
    assert rewards(PADDED, lengths=LENGTHS).token_rewards == rewards().token_rewards


@pytest.mark.models
def test_tensors_come_back_as_tensors():
    """Of the same shape, float32, without a gradient, wherever the terms came from."""
    torch = pytest.importorskip("torch", reason="the lane `models` installs torch")
    kl = torch.full((3, 6), -0.5, requires_grad=True) * 1.0
    found = rewards(torch.tensor(PADDED), lengths=torch.tensor(LENGTHS), kl=kl, advantage="pooled")
    expected = rewards(np.array(PADDED), lengths=LENGTHS, kl=np.full((3, 6), -0.5), advantage="pooled")
    for one, other in (
        (found.token_rewards, expected.token_rewards),
        (found.token_advantages, expected.token_advantages),
    ):
        assert (one.dtype, one.requires_grad) == (torch.float32, False)
        np.testing.assert_array_equal(one.numpy(), other.astype(np.float32))
    listed = rewards([torch.tensor(row) for row in IDS], kl=[torch.full((length,), -0.5) for length in LENGTHS])
    assert isinstance(listed.token_rewards, list)


@pytest.mark.parametrize(
    ("ids", "options", "said"),
    [
        (np.zeros((3, 6, 1), dtype=int), {}, r"completion_ids: got shape \(3, 6, 1\); expected \(B, T\)"),
        (np.zeros(6, dtype=int), {}, r"completion_ids: got shape \(6,\)"),
        (IDS, {"lengths": [1]}, r"lengths: got 1; expected 3, one per completion"),
        (IDS, {"lengths": [6, 3, 1]}, r"lengths: got 3 for completion 1, which has 2 tokens"),
        (IDS, {"lengths": [6, -1, 1]}, r"lengths: got -1 for completion 1"),
        (IDS, {"kl": [[0.0]]}, r"kl: got 1 rows; expected 3"),
        (IDS, {"kl": [[0.0] * 6, [0.0], [0.0]]}, r"kl: got 1 entries for completion 1; expected 2, one per token"),
        (IDS, {"completion_masks": [[1] * 5, [1] * 2, [1]]}, r"completion_masks: got 5 entries for completion 0"),
    ],
)
def test_what_does_not_fit_the_tokens_is_refused(ids, options, said):
    """Before anything is judged."""
    with pytest.raises(ValueError, match=said):
        rewards(ids, utility=lambda *_: pytest.fail("called"), **options)


def test_what_the_client_raises_is_raised():
    """A completion without a reward stops the loop, unless told otherwise: then it has no number."""

    def picky(_, text):
        return None if text == " rain" else 1.0

    with pytest.raises(PartialResultError):
        rewards(utility=picky)
    found = rewards(np.array(PADDED), lengths=LENGTHS, utility=picky, on_item_error="return")
    assert np.isnan(found.token_rewards[1, :2]).all()
    assert not np.isnan(found.token_rewards[0]).any()


def test_any_other_array_gets_one_of_numpy():
    """What has a shape and is no tensor of torch is treated as an array."""

    class Other:
        shape = (1, 3)

    assert in_form_of(Other(), Ragged.from_rows([[1.0, 2.0]])).tolist() == [[1.0, 2.0, 0.0]]


LETTERS = ["<end>", " a", ".", "3", "\n", '"']
EVERYTHING = [[*body, 0] for n in range(4) for body in itertools.product(range(1, len(LETTERS)), repeat=n)]
"""Every completion of at most three tokens and an end."""


def paid_before_the_end(**options):
    """Sums of the rewards up to each token, of all completions that begin with the same tokens."""
    chance, values = np.random.default_rng(5), {}

    def drawn(_, text):
        return values.setdefault(text, float(chance.random()))

    with Client("local:") as client:
        found = span_token_rewards(
            client,
            ["?"] * len(EVERYTHING),
            EVERYTHING,
            lambda ids: "".join(LETTERS[number] for number in ids if number),
            utility=drawn,
            alpha=0.75,
            other_rewards=[float(len(ids)) for ids in EVERYTHING],
            **options,
        )
    paid = {}
    for ids, rewards in zip(EVERYTHING, found.token_rewards, strict=True):
        for place, total in enumerate(np.cumsum(rewards[:-1]).tolist()):
            paid.setdefault(tuple(ids[: place + 1]), set()).add(round(total, 9))
    return paid, values


@pytest.mark.parametrize("marks", [{}, {"marks": ""}, {"marks": "."}])
def test_what_prefix_has_paid_depends_on_nothing_behind_it(marks):
    """Of all completions that begin alike the same, at random utilities: a potential of what is written."""
    paid, values = paid_before_the_end(credit="prefix", **marks)
    assert all(len(sums) == 1 for sums in paid.values())
    if marks == {"marks": ""}:
        for ids, sums in paid.items():
            written = "".join(LETTERS[number] for number in ids)
            assert sums == {round(0.75 * (values[written] - values[""]), 9)}


@pytest.mark.parametrize(
    "options",
    [
        {"credit": "shapley"},
        {"credit": "shapley", "causal": True},
        {"credit": "prefix", "segmentation": "token"},
        {"credit": "prefix", "segmentation": "span"},
        {"credit": "prefix", "segmentation": "lines"},
        {"credit": "prefix", "causal": False},
    ],
)
def test_what_others_have_paid_depends_on_what_comes(options):
    """Another value looks behind a unit, and units of the service end where only the next token tells."""
    paid, _ = paid_before_the_end(**options)
    assert any(len(sums) > 1 for sums in paid.values())


@pytest.mark.parametrize(
    ("pieces", "written", "marks", "expected"),
    [
        ([" a", ".", " b", ""], None, ".", [[0, 2], [2, 4]]),
        ([" a", ".", ""], None, ".", [[0, 2], [2, 3]]),
        ([" a.", '"', "\n", " b"], None, ".\n", [[0, 1], [1, 3], [3, 4]]),
        ([" a", " b", ""], None, "", [[0, 1], [1, 2], [2, 3]]),
        (["", "\N{GRINNING FACE}", ""], None, "", [[0, 2], [2, 3]]),
        ([" a", " b", " c.", " d"], [1, 0, 1, 1], ".", [[0, 1], [2, 3], [3, 4]]),
        ([" a.", " b."], [0, 0], ".", []),
        (["", ""], None, ".", [[0, 2]]),
        ([], None, ".", []),
    ],
)
def test_causal_units_end_at_marks(pieces, written, marks, expected):
    """At the token that writes the mark, before what others wrote, and at the end; they hold every own token."""
    ends = list(itertools.accumulate(map(len, pieces)))
    offsets = list(zip([0, *ends], ends, strict=False))
    found = causal_units("".join(pieces), offsets, written, marks=marks)
    assert [list(unit) for unit in found] == expected


def test_causal_units_are_for_prefix_and_on_demand():
    """They are not merged, however many, and stand beside no other choice of units."""
    many = rewards([[3, 6] * 300 + [1], [4, 1], [1]], credit="prefix")
    assert len(many.result.units[0]) == 301
    assert many.result.flags[0] == ()
    assert rewards(credit="prefix").result.units.to_list() == [[[0, 3], [3, 5], [5, 6]], [[0, 2]], []]
    assert rewards(credit={"type": "prefix"}, marks="").result.units.to_list()[0] == [[at, at + 1] for at in range(6)]
    assert rewards(credit="owen", causal=True).result.units.to_list()[0] == [[0, 3], [3, 5], [5, 6]]
    given = rewards(credit="prefix", units=[[[0, 6]], [[0, 2]], [[0, 1]]])
    assert given.result.units.to_list()[0] == [[0, 6]]
    long = [[3, 6] * 300 + [1], [4, 1], [1]]
    for estimator in ({"seed": 1}, "auto", None):
        again = rewards(long, credit="prefix", estimator=estimator)
        assert again.token_rewards == many.token_rewards
    with pytest.raises(CreditdError, match="budget"):
        rewards(long, credit="prefix", estimator={"budget": 100})
    for options in ({"units": [[], [], []]}, {"segmentation": "span"}):
        with pytest.raises(ValueError, match="causal: got True beside units or a segmentation"):
            rewards(causal=True, **options)
