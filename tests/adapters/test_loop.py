"""Token rewards for loops written by hand: lists, arrays and tensors."""

import numpy as np
import pytest

from creditd.adapters.loop import in_form_of, span_token_rewards
from creditd.client import Client, PartialResultError, Ragged

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
