"""Credit from sets down to tokens by a client: in this process, from a service, in either format; recorded."""

import asyncio
import json
import pickle
from dataclasses import fields, replace

import httpx
import numpy as np
import pytest

from creditd.cli.__main__ import main
from creditd.client import AsyncClient, Client, ComposeResult, InvalidRequestError, PartialResultError, ResponseError
from creditd.client.compose_answers import answer_text
from creditd.client.exchanges import answer_of, parsed
from creditd.credit import MaxShare
from creditd.server.app import create_app
from creditd.server.settings import Settings

FORMATS = ["binary", "json"]
SETS = [
    {
        "id": "a",
        "group": "p",
        "n_tokens": 12,
        "set_reward": 1.0,
        "completion_mask": [True] * 4 + [False] + [True] * 7,
        "candidates": [
            {
                "reward": 0.9,
                "span": [0, 5],
                "units": [[0, 2], [2, 4]],
                "utilities": [0.0, 0.7, 0.1, 0.9],
                "tree": [[0, 1]],
            },
            {"reward": 0.6, "span": [6, 11], "units": [[6, 7], [7, 11]], "unit_values": [0.3, -0.05]},
        ],
    },
    {
        "id": 7,
        "group": "p",
        "n_tokens": 8,
        "set_reward": None,
        "candidates": [{"reward": 0.2, "span": [0, 3]}, {"reward": None, "span": None}],
    },
]
BROKEN = {"id": "c", "group": "p", "n_tokens": 3, "candidates": [{"reward": float("nan"), "span": [0, 3]}]}
CHOICES = {
    "plain": {},
    "bounded": {"inside": {"type": "bounded", "share": 0.25}, "tokens": {"length_norm": True, "other": "next"}},
    "rule": {"advantage": {"type": "centered", "baseline": "others"}, "expect": {"group_size": 2}},
}
GIVEN = [
    {
        "n_tokens": 6,
        "set_advantage": 0.1,
        "candidates": [
            {"advantage": 1.2, "span": [0, 3], "sensitivities": [0.0, 2.0, 0.5]},
            {"advantage": None, "span": [3, 6]},
        ],
    }
]


def local(sets=SETS, wire_format="binary", record=None, **options):
    """The result in this process."""
    with Client("local:", wire_format=wire_format, record=record) as client:
        return client.compose(sets, **options)


def asked(sets=SETS, wire_format="binary", record=None, **options):
    """What the client makes of the answer of a service."""

    async def call():
        app = create_app(Settings())
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://credit.test", transport=transport, wire_format=wire_format, record=record) as client,
        ):
            return await client.compose(sets, **options)

    return asyncio.run(call())


def answering(document, **options):
    """What the client makes of an answer."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=document))
    with Client("http://credit.test", transport=transport) as client:
        return client.compose(SETS, **options)


def assert_same(one, other):
    """Equal bits in every field that says something of the sets."""
    for field in fields(ComposeResult):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name in {"request_id", "usage", "service"}:
            continue
        if hasattr(ours, "row_splits"):
            assert ours.row_splits.tolist() == theirs.row_splits.tolist(), field.name
            ours, theirs = ours.values, theirs.values
        if isinstance(ours, np.ndarray):
            assert ours.tobytes() == theirs.tobytes(), field.name
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("name", CHOICES)
def test_the_service_and_local_mode_give_the_same_bits(name, wire_format):
    """Every number of every set, and every account, in both formats."""
    here = local(wire_format=wire_format, **CHOICES[name])
    assert_same(asked(wire_format=wire_format, **CHOICES[name]), here)
    assert_same(local(wire_format="json", **CHOICES[name]), here)
    assert here.ids == ("a", 7)


def test_a_result_says_everything():
    """Tokens, candidates, units, sets and the account, row by row."""
    result = local()
    assert [len(row) for row in result.token_advantages] == [12, 8]
    assert result.credits.to_list()[0] == pytest.approx([0.6, 0.3])
    assert np.isnan(result.advantages[1]).tolist() == [False, True]
    assert [len(row) for row in result.unit_values] == [2, 2, 0, 0]
    assert [list(result.candidate_rows(row)) for row in (0, 1)] == [[0, 1], [2, 3]]
    share = MaxShare(np.array([0.6]))
    expected = share(np.array([0.7, 0.1, 0.9]))
    both = (expected[0] + expected[2] - expected[1]) / 2
    assert result.unit_values[0].tolist() == pytest.approx([both, expected[2] - both])
    assert result.token_advantages[0][4] == 0.0
    assert result.has_flag("candidate_unscored").tolist() == [False, True]
    assert result.utility_grand.tolist() == [0.9, 0.2]
    ledger = result.ledgers[0]
    assert ledger.total == pytest.approx(result.token_advantages[0].sum())
    assert ledger.candidates[0].units[0].value == result.unit_values[0][0]
    assert ledger.tokens == 11
    assert result.set_reward_advantages.tolist() == [0.0, 0.0]
    assert "2 rows, 0 errors" in repr(result)
    assert pickle.loads(pickle.dumps(result)).ledgers == result.ledgers  # noqa: S301 - our own


def test_arrays_and_tuples_are_lists():
    """Columns of any kind say the same; what a candidate has beside is sent as it is."""
    first, second = SETS
    one, two = first["candidates"]
    arrays = [
        {
            **first,
            "n_tokens": np.int64(12),
            "set_reward": np.float64(1.0),
            "completion_mask": np.array(first["completion_mask"]),
            "candidates": (
                {
                    **one,
                    "reward": np.float32(0.9).astype(np.float64) * 0 + 0.9,
                    "span": np.array(one["span"]),
                    "units": np.array(one["units"]),
                    "utilities": np.array(one["utilities"]),
                    "tree": np.array(one["tree"]),
                },
                {**two, "units": tuple(map(tuple, two["units"])), "unit_values": np.array(two["unit_values"])},
            ),
        },
        second,
    ]
    for wire_format in FORMATS:
        assert_same(local(arrays, wire_format=wire_format), local())


def test_given_advantages_have_no_credits():
    """What is computed from rewards alone is None, or NaN; sensitivities weigh tokens."""
    result = local(GIVEN, inside="sensitivity")
    assert result.credits is None
    assert np.isnan(result.utility_grand).all()
    assert result.set_reward_advantages is None
    assert result.token_advantages[0][3:].tolist() == [0.1] * 3
    assert result.token_advantages[0][:3].sum() == pytest.approx(3.6)
    assert result.ledgers[0].candidates[0].top_share is not None
    assert_same(asked(GIVEN, inside="sensitivity"), result)
    nulls = [None if value == 0.0 else value for value in (0.0, 2.0, 0.5)]
    masked = [{**GIVEN[0], "completion_mask": [False, *[True] * 5]}]
    masked[0]["candidates"] = [{**GIVEN[0]["candidates"][0], "sensitivities": nulls}, GIVEN[0]["candidates"][1]]
    assert local(masked, inside="sensitivity").token_advantages[0][0] == 0.0


@pytest.mark.parametrize("source", [local, asked])
def test_a_set_without_an_answer_has_nan(source):
    """The others are there; the error names row, candidate and place."""
    result = source([*SETS, BROKEN], on_item_error="return")
    (error,) = result.errors
    assert (error.row, error.candidate, error.code) == (2, 0, "non_finite_value")
    assert error.pointer == "/sets/2/candidates/0/reward"
    assert np.isnan(result.token_advantages[2]).tolist() == [True] * 3
    assert result.ledgers[2] is None
    assert result.ok.tolist() == [True, True, False]
    with pytest.raises(PartialResultError, match=r"1 of 3 rows.*id 'c'") as caught:
        source([*SETS, BROKEN])
    assert len(caught.value.result) == 3


@pytest.mark.parametrize("source", [local, asked])
def test_nothing_answered_is_an_error(source):
    """With the code and the place of the first set."""
    with pytest.raises(InvalidRequestError) as caught:
        source([BROKEN])
    assert caught.value.code == "non_finite_value"
    assert caught.value.items[0].row == 0
    with pytest.raises(InvalidRequestError) as caught:
        source(GIVEN, advantage="none", inside="bounded")
    assert caught.value.items[0].pointer == "/sets/0/candidates/0/sensitivities"
    with pytest.raises(InvalidRequestError):
        source(SETS, tokens={"other": "nobody"})
    with pytest.raises(InvalidRequestError) as caught:
        source([*GIVEN, SETS[0]])
    assert caught.value.items[0].pointer == "/sets/1/candidates/0/advantage"


@pytest.mark.parametrize(
    ("sets", "pointer"),
    [
        ([1], "/sets/0"),
        ([{"candidates": [1]}], "/sets/0/candidates/0"),
        ([{"candidates": 1}], "/sets/0/candidates"),
        ([{"n_tokens": 1, "candidates": [], "tokens": 1}], "/sets/0/tokens"),
        ([{"candidates": [{"unit": []}]}], "/sets/0/candidates/0/unit"),
        ([{"candidates": [{"units": [[0, 1, 2]]}]}], "/sets/0/candidates/0/units/0"),
        ([{"candidates": [{"span": [0]}]}], "/sets/0/candidates/0/span/0"),
        ([{"candidates": [{"unit_values": [None]}]}], "/sets/0/candidates/0/unit_values/0/0"),
    ],
)
def test_what_is_no_set_is_refused_before_anything_is_sent(sets, pointer):
    """Fields that nobody knows, and what arrays cannot hold."""
    with pytest.raises(InvalidRequestError) as caught:
        local(sets)
    assert caught.value.items[0].pointer == pointer


@pytest.mark.parametrize("wire_format", FORMATS)
def test_exchanges_are_recorded_and_replayed(tmp_path, wire_format, capsys):
    """A recorded call is read back, and asked again with the same bits; failures as well."""
    for folder, source in ((tmp_path / "here", local), (tmp_path / "there", asked)):
        result = source([*SETS, BROKEN], on_item_error="return", record=folder, wire_format=wire_format)
        (path,) = folder.iterdir()
        exchange = parsed(path.read_bytes())
        assert_same(answer_of(exchange), result)
        assert main(["replay", str(path), "--url", "local:"]) == 0
        told = capsys.readouterr().out
        assert "identical to the last bit" in told
        assert "error: non_finite_value" in told
    with pytest.raises(InvalidRequestError):
        local([BROKEN], record=tmp_path / "failed", wire_format=wire_format)
    (path,) = (tmp_path / "failed").iterdir()
    assert answer_of(parsed(path.read_bytes())) is None
    assert main(["replay", str(path), "--url", "local:"]) == 0


def test_a_changed_answer_is_seen_by_replay(tmp_path, capsys):
    """A number, an account and a flag that differ are named."""
    local(record=tmp_path)
    (path,) = tmp_path.iterdir()
    document = json.loads(path.read_text())
    response = json.loads(document["response"])
    response["sets"][0]["token_advantages"][0] += 1e-9
    response["sets"][0]["ledger"]["total"] += 1.0
    path.write_text(json.dumps({**document, "response": json.dumps(response)}))
    assert main(["replay", str(path), "--url", "local:"]) == 1
    told = capsys.readouterr().out
    assert "token_advantages: 1 of 20 numbers differ" in told
    assert "ledgers: 1 of 2 rows differ" in told


@pytest.mark.parametrize(
    "change",
    [
        lambda sets: sets.pop(),
        lambda sets: sets[0].update(status="odd"),
        lambda sets: sets[0].update(token_advantages=[0.0]),
        lambda sets: sets[0].update(advantages=[[0.0]]),
        lambda sets: sets[0].update(unit_values=[None]),
        lambda sets: sets[0].pop("ledger"),
        lambda sets: sets[0]["ledger"].pop("total"),
        lambda sets: sets[0]["ledger"]["candidates"][0].pop("mass"),
    ],
)
def test_answers_of_another_shape_are_no_answers(change):
    """Lengths, states and accounts are looked at; what this client does not know is passed over."""
    sound = json.loads(answer_text(local()))
    sound["sets"][0]["ledger"]["more"] = 1
    sound["sets"][0]["ledger"]["candidates"][0]["units"][0]["more"] = 1
    assert_same(answering(sound), local())
    change(sound["sets"])
    with pytest.raises(ResponseError):
        answering(sound)


def test_an_answer_of_local_mode_is_one_of_a_service():
    """What is recorded of local mode is read as what a service sends."""
    result = local([*SETS, BROKEN], on_item_error="return")
    document = json.loads(answer_text(result))
    assert document["sets"][0]["unit_values"][0] == result.unit_values[0].tolist()
    assert document["sets"][1]["unit_values"] == [None, None]
    assert document["sets"][2]["status"] == "error"
    none = replace(result, credits=None)
    assert json.loads(answer_text(none))["sets"][0]["credits"] is None


def test_scar_of_what_texts_are_worth_to_the_set_gives_credits_of_units():
    """A wrapped judge, asked by the route of token credit: exact span credits, which close on the candidate's."""
    texts = ["Paris, of course. On the Seine.", "It is Lyon."]

    def judge(_prompt, text):
        return 0.1 * len(set(text.lower()) & set("parisen")) + (0.25 if "Seine" in text else 0.0)

    rewards = [judge("", text) for text in texts]
    share = MaxShare(np.array(rewards[1:]))
    with Client("local:") as client:
        spans = client.scar(["Where?"], texts[:1], utility=share.of_texts(judge), credit="shapley")
        lengths = [len(text.split()) for text in texts]
        credit = float(share(np.array(rewards[0])))
        assert spans.unit_values[0].sum() == pytest.approx(credit, abs=1e-12)
        assert len(spans.units[0]) == 3
        result = client.compose(
            [
                {
                    "n_tokens": 3 + lengths[1],
                    "candidates": [
                        {
                            "reward": rewards[0],
                            "span": [0, 3],
                            "units": spans.units[0],
                            "unit_values": spans.unit_values[0],
                        },
                        {"reward": rewards[1], "span": [3, 3 + lengths[1]]},
                    ],
                }
            ]
        )
    account = result.ledgers[0].candidates[0]
    assert account.credit == pytest.approx(credit, abs=1e-12)
    assert account.credit_gap == pytest.approx(0.0, abs=1e-12)
