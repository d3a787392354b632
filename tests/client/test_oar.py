"""Advantages reshaped by sensitivities that the caller gives, in this process."""

import asyncio
import math

import numpy as np
import pytest

from creditd.client import AsyncClient, Client, InvalidRequestError, NotFoundError, PartialResultError
from creditd.client.exchanges import answer_of, parsed
from oar_completions import WORKED, assert_same, local

WEIGHTS = [0.087724, 0.877242, 1.056937, 1.223612, 1.754484]
"""methods.md §4: derived there to six digits."""
DIGITS = 1e-6
FORMATS = ["binary", "json"]


@pytest.mark.parametrize("wire_format", FORMATS)
def test_the_worked_numbers_come_back(wire_format):
    """Weights, their sum, their concentration, and the advantage times each weight."""
    result = local(wire_format, sensitivities=[WORKED], advantages=[-2.0], ids=["a"])
    np.testing.assert_allclose(result.weights[0], WEIGHTS, atol=DIGITS)
    np.testing.assert_array_equal(result.token_advantages[0], -2.0 * result.weights[0])
    assert result.weight_sum[0] == pytest.approx(5.0, abs=1e-12)
    assert result.effective_share[0] == pytest.approx(0.7728, abs=5e-5)
    assert result.top_share[0] == pytest.approx(0.3509, abs=5e-5)
    assert (result.n_reweighted.tolist(), result.advantages.tolist(), result.ids) == ([5], [-2.0], ("a",))
    assert (result.reasoning, result.answers, result.model, result.weight_version) == (((0, 5),), (None,), None, None)
    assert math.isnan(result.spread[0])


def test_columns_may_be_arrays():
    """Arrays, tuples, lists and the ragged rows of another result say the same."""
    rows, masks = [WORKED, [3.0, 1.0, 2.0]], [[True] * 5, [True, False, True]]
    plain = local(sensitivities=rows, rewards=[1.0, 0.0], groups=["p", "p"], completion_masks=masks)
    arrays = local(
        sensitivities=[np.array(row, dtype=np.float32 if row[0] else np.float64) for row in rows],
        rewards=np.array([1, 0]),
        groups=np.array([0, 0]),
        completion_masks=tuple(np.array(mask, dtype=np.int64) for mask in masks),
    )
    assert_same(plain, arrays)
    again = local(sensitivities=plain.sensitivities, rewards=[1.0, 0.0], groups=["p", "p"], completion_masks=masks)
    assert_same(plain, again)
    assert np.isnan(plain.sensitivities[1][1])


def test_only_the_reasoning_is_reweighted():
    """Tokens outside it weigh 1, those of others 0 exactly, and the mass stays."""
    result = local(
        sensitivities=[[None, 0.5, math.nan, 2.0, 1.0, None, None]],
        completion_masks=[[1, 1, 0, 1, 1, 1, 1]],
        reasoning=[(1, 5)],
        answers=[np.array([6, 7])],
        advantages=[1.5],
    )
    assert result.n_reweighted.tolist() == [3]
    assert result.weights[0][[0, 2, 5, 6]].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert result.token_advantages[0].sum() == pytest.approx(6 * 1.5, abs=1e-12)
    assert (result.reasoning, result.answers) == (((1, 5),), ((6, 7),))


def test_a_parser_reads_texts():
    """Ranges come from the text; without an answer the plain advantage stays, flagged."""
    texts = ["2+2 #### 4", "who knows"]
    offsets = [[[0, 1], [1, 3], [3, 8], [8, 10]], [[0, 3], [3, 9]]]
    result = local(
        sensitivities=[[1.0, 3.0, None, None], [5.0, 6.0]],
        completions=texts,
        token_offsets=offsets,
        parser="hashes",
        advantages=[1.0, -1.0],
    )
    assert result.answers == ((3, 4), None)
    assert result.reasoning[0] == (0, 2)
    assert result.flags == ((), ("answer_not_found",))
    assert result.token_advantages[1].tolist() == [-1.0, -1.0]
    tagged = local(
        sensitivities=[[1.0, 2.0, None, None, None]],
        completions=["a b<out>c</out>"],
        token_offsets=[[[0, 2], [2, 3], [3, 8], [8, 9], [9, 15]]],
        parser={"type": "tags", "answer_tag": "out"},
        advantages=[1.0],
    )
    assert (tagged.reasoning, tagged.answers) == (((0, 2),), ((3, 4),))


@pytest.mark.parametrize("options", [{}, {"reshape": {"quantile": 0.5, "beta": 0.5, "floor": 0.0}}])
def test_both_clients_and_formats_give_the_same_bits(options):
    """Whatever the format, and whoever waits."""
    asked = {
        "sensitivities": [WORKED, [0.1 + 0.2, 5e-324, None]],
        "advantages": [0.1, -0.3],
        "reasoning": [None, [0, 2]],
    }

    async def run():
        async with AsyncClient("local:") as client:
            return await client.oar(**asked, **options)

    plain = local(**asked, **options)
    assert_same(plain, local("json", **asked, **options))
    assert_same(plain, asyncio.run(run()))


def test_one_wrong_completion_does_not_spoil_the_others():
    """Its error says where and why; its rows are NaN, as long as its tokens."""
    options = {"sensitivities": [WORKED, [1.0, None, 2.0]], "advantages": [1.0, 1.0], "ids": ["a", "b"]}
    with pytest.raises(PartialResultError, match="'b'") as caught:
        local(**options)
    result = local(**options, on_item_error="return")
    assert caught.value.result.ok.tolist() == result.ok.tolist() == [True, False]
    error = result.errors[0]
    assert (error.row, error.code, error.pointer) == (1, "non_finite_value", "/items/1/sensitivities/1")
    assert np.isnan(result.token_advantages[1]).all()
    assert len(result.token_advantages[1]) == 3
    with pytest.raises(InvalidRequestError, match="no item could be answered"):
        local(sensitivities=[[None]], advantages=[1.0])


REFUSED = {
    "/items": {"advantages": [1.0]},
    "/advantages": {"sensitivities": [WORKED], "advantages": [1.0, 2.0]},
    "/sensitivities": {"sensitivities": 3, "advantages": [1.0]},
    "/sensitivities/0/1": {"sensitivities": [[0.0, "a"]], "advantages": [1.0]},
    "/reasoning/0": {"sensitivities": [WORKED], "advantages": [1.0], "reasoning": [[1, 2, 3]]},
    "/answers/0/1": {"sensitivities": [WORKED], "advantages": [1.0], "answers": [[1, 2.5]]},
    "/completion_ids/0/1": {"completion_ids": [[1, True]], "prompt_ids": [[1]], "advantages": [1.0], "model": "m"},
    "/completion_ids/0": {"completion_ids": [[1 << 70]], "prompt_ids": [[1]], "advantages": [1.0], "model": "m"},
    "/reshape/quantile": {"sensitivities": [WORKED], "advantages": [1.0], "reshape": {"quantile": 1.0}},
    "/sensitivity": {"sensitivities": [WORKED], "advantages": [1.0], "sensitivity": "guess"},
}


@pytest.mark.parametrize("pointer", REFUSED)
def test_what_cannot_be_meant_is_refused(pointer):
    """By name, before anything is computed."""
    with pytest.raises(InvalidRequestError) as caught:
        local(**REFUSED[pointer])
    assert any(item.pointer == pointer for item in caught.value.items), caught.value


def test_local_mode_has_no_policy():
    """As a service says that has none."""
    with pytest.raises(NotFoundError) as caught:
        local(prompt_ids=[[1]], completion_ids=[[2, 3]], answers=[[1, 2]], advantages=[1.0], model="policy")
    assert caught.value.items[0].pointer == "/model"


def test_an_unknown_way_to_report_errors_is_refused():
    """`on_item_error` is raise or return."""
    with pytest.raises(ValueError, match="on_item_error"):
        local(sensitivities=[WORKED], advantages=[1.0], on_item_error="hide")


@pytest.mark.parametrize("wire_format", FORMATS)
def test_exchanges_are_recorded(wire_format, tmp_path):
    """With the answer of local mode, rows without an answer included; a repetition gives the same bits."""
    options = {"sensitivities": [WORKED, [1.0, None, 2.0]], "advantages": [1.0, 1.0], "ids": ["a", 7]}
    with Client("local:", record=tmp_path, wire_format=wire_format) as client:
        result = client.oar(**options, on_item_error="return")
        (path,) = tmp_path.glob("*-oar-*.json")
        exchange = parsed(path.read_bytes())
        assert_same(answer_of(exchange), result)
        assert_same(client.repeat(exchange), result)
