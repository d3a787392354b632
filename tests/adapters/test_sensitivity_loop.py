"""Reshaped advantages for loops written by hand: lists, arrays and tensors."""

from pathlib import Path

import numpy as np
import pytest

from adapters.policy_service import sensed
from adapters.test_sensitivity import Cost
from creditd.adapters.loop import sensitivity_advantages
from creditd.adapters.sensitivity import CurrentWeights
from creditd.client import Client, PartialResultError
from services import running_service

SERVICE = Path(__file__).with_name("policy_service.py")
TEXTS = ["ab ca #### 7", "b #### 3", "abc"]
IDS = [list(map(ord, text)) for text in TEXTS]
LENGTHS = [len(row) for row in IDS]
WIDTH = max(LENGTHS)
PADDED = np.array([[*row, *[0] * (WIDTH - len(row))] for row in IDS])
PROMPTS = [[5, 6], [7], [8, 9]]
LEFT = np.array([[5, 6], [0, 7], [8, 9]])
ADVANTAGES = [0.5, -1.5, 2.0]


def decode(ids):
    """Text of code points; padding is none."""
    return "".join(chr(number) for number in ids if number)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service with a policy whose sensitivities are known."""
    with running_service(script=SERVICE, directory=tmp_path_factory.mktemp("policy")) as address:
        yield address


@pytest.fixture
def client(url):
    """A client of it."""
    with Client(url) as made:
        yield made


def found(client, prompts=PROMPTS, ids=IDS, advantages=ADVANTAGES, **options):
    """What a loop gets."""
    return sensitivity_advantages(client, prompts, ids, advantages, **{"model": "policy", "parser": "hashes"} | options)


def by_hand(row, version="v0"):
    """Token advantages from the known sensitivities."""
    with Client("local:") as local:
        return local.oar(
            sensitivities=[[sensed(version, token) for token in IDS[row]]],
            completions=[TEXTS[row]],
            token_offsets=[[[place, place + 1] for place in range(LENGTHS[row])]],
            advantages=[ADVANTAGES[row]],
            parser="hashes",
        ).token_advantages[0]


def test_lists_come_back_as_lists(client):
    """One advantage per token, with and without texts of the caller's."""
    for options in ({}, {"decode": decode}):
        answer = found(client, **options)
        for row, values in enumerate(answer.token_advantages):
            assert values == by_hand(row).tolist()
        assert answer.weights[2] == [1.0] * 3
        assert answer.result.flags[2] == ("answer_not_found",)


def test_arrays_come_back_as_arrays(client):
    """Padded on the right, prompts on the left; there is 0 behind each row."""
    answer = found(
        client,
        LEFT,
        PADDED,
        np.array(ADVANTAGES, dtype=np.float32),
        lengths=np.array(LENGTHS),
        prompt_lengths=[2, 1, 2],
        completion_masks=np.ones_like(PADDED),
        decode=decode,
    )
    assert answer.token_advantages.shape == answer.weights.shape == PADDED.shape
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(answer.token_advantages[row, :length], by_hand(row))
        assert not answer.token_advantages[row, length:].any()


def test_tensors_come_back_as_tensors(client):
    """Of float32, in their shape."""
    torch = pytest.importorskip("torch", reason="the lane `models` installs torch")
    answer = found(
        client,
        torch.tensor(LEFT),
        torch.tensor(PADDED),
        torch.tensor(ADVANTAGES),
        lengths=torch.tensor(LENGTHS),
        prompt_lengths=torch.tensor([2, 1, 2]),
    )
    assert answer.token_advantages.dtype == answer.weights.dtype == torch.float32
    np.testing.assert_allclose(answer.token_advantages[0, : LENGTHS[0]].numpy(), by_hand(0), rtol=1e-6)


def test_ranges_may_be_the_callers(client):
    """Nothing is parsed then."""
    answer = found(client, parser="given", reasoning=[[0, 4], None, [0, 1]], answers=[[11, 12], [7, 8], [2, 3]])
    assert answer.result.n_reweighted.tolist() == [4, 7, 1]


def test_masked_tokens_get_nothing(client):
    """Exactly 0."""
    masks = [[place != 1 for place in range(length)] for length in LENGTHS]
    assert [row[1] for row in found(client, completion_masks=masks).token_advantages] == [0.0] * 3


def test_weights_are_handed_over_with_the_step(client):
    """Each step is answered by its own; the answer says so."""
    pushed = []

    def push(version):
        pushed.append(version)
        client.push_weights("policy", [shard()], weight_version=version)
        return Cost()

    weights = CurrentWeights(push)
    for step in (0, 0, 1):
        answer = found(client, weights=weights, step=step)
        assert answer.result.weight_version == pushed[-1] == weights.version_at(step)
        assert answer.token_advantages[0] == by_hand(0, pushed[-1]).tolist()
    assert len(pushed) == 2


def test_nobody_is_asked_about_completions_whose_advantage_is_zero(client):
    """Rows stay where they are; the others have what they have beside anybody."""
    answer = found(client, advantages=[0.5, 0.0, 2.0], expect={"group_size": 3}, groups=[0, 0, 0])
    assert answer.token_advantages[0] == by_hand(0, answer.result.weight_version).tolist()
    assert answer.token_advantages[1] == [0.0] * LENGTHS[1]
    assert answer.weights[1] == [1.0] * LENGTHS[1]
    assert answer.result.n_reweighted[1] == 0
    assert answer.result.usage.evaluations < found(client).result.usage.evaluations


def test_without_any_advantage_there_is_no_request_and_no_push():
    """Nor a service; masked tokens have no weight."""
    weights = CurrentWeights(lambda _: pytest.fail("pushed"))
    masks = [[place != 1 for place in range(length)] for length in LENGTHS]
    with Client("http://127.0.0.1:9", deadline_s=0.2) as nobody:
        options = {"weights": weights, "completion_masks": masks, "expect": {"group_size": 1}, "reshape": {"beta": 2.0}}
        answer = found(nobody, advantages=[0.0, -0.0, 0.0], **options)
    assert answer.token_advantages == [[0.0] * length for length in LENGTHS]
    assert answer.weights == [[float(kept) for kept in row] for row in masks]
    assert answer.result.weight_version is None


def shard():
    """A safetensors file with one number."""
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + b"\0" * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"advantages": [1.0]}, "advantages: got 1; expected 3, one per completion"),
        ({"lengths": [1, 2]}, "lengths: got 2; expected 3, one per completion"),
        ({"prompt_lengths": [1, 1, 3]}, "prompt_lengths: got 3 for prompt 2, which has 2 tokens"),
        ({"completion_masks": [[1], [1], [1]]}, "completion_masks: got 1 entries"),
    ],
)
def test_what_does_not_fit_the_tokens_is_refused(client, options, words):
    """By name."""
    with pytest.raises(ValueError, match=words):
        found(client, **options)


def test_a_completion_that_fails_is_said(client):
    """The others come with the error, or with NaN in its place."""
    options = {"parser": "given", "answers": [[11, 12], [7, 8], [2, 9]]}
    with pytest.raises(PartialResultError):
        found(client, **options)
    answer = found(client, on_item_error="return", **options)
    assert np.isnan(answer.token_advantages[2]).all()
