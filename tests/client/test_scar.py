"""Token credit whose utilities a function in this process gives."""

import asyncio
import itertools
import math

import numpy as np
import pytest

from creditd.client import AsyncClient, Client, Evaluator, InvalidRequestError, PartialResultError, RaggedSpans
from creditd.client.scar_evaluation import SOLVE_PATH
from scar_completions import (
    AGREEMENT,
    COMPLETIONS,
    OFFSETS,
    PROMPTS,
    assert_returns,
    assert_same,
    judge,
    local,
    many,
)


async def awaited(prompt, text):
    """The same, to be awaited."""
    await asyncio.sleep(0)
    return judge(prompt, text)


def local_async(utility=judge, **options):
    """The same by the async client."""

    async def run():
        async with AsyncClient("local:") as client:
            return await client.scar(PROMPTS, COMPLETIONS, utility=utility, **options)

    return asyncio.run(run())


def test_units_get_what_they_are_worth():
    """A pair of words that is worth something together is shared by its two units, at their last tokens."""
    result = local(token_offsets=OFFSETS, ids=["a", "b", "c"])
    assert result.units.to_list() == [[[0, 3], [3, 6], [6, 8]], [[0, 1], [1, 3]], []]
    assert result.unit_characters.to_list() == [[[0, 9], [9, 22], [22, 38]], [[0, 3], [3, 14]], []]
    np.testing.assert_allclose(result.unit_values[0], [9 / 8, 13 / 8 + 1.5, 2 + 1.5], atol=AGREEMENT)
    np.testing.assert_allclose(result.unit_values[1], [3 / 8, 11 / 8], atol=AGREEMENT)
    assert np.flatnonzero(result.token_rewards[0]).tolist() == [2, 5, 7]
    np.testing.assert_allclose(result.token_rewards[0][[2, 5, 7]], result.unit_values[0], atol=AGREEMENT)
    assert result.utility_empty.tolist() == [0.25] * 3
    assert result.utility_grand.tolist() == [judge(*pair) for pair in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert (result.methods, result.exact.tolist()) == (("table", "table", None), [True, True, False])
    assert (result.flags[2], result.ids, result.model) == (("fallback_return",), ("a", "b", "c"), None)
    assert result.standard_errors is result.token_advantages is result.interval_low is None
    assert_returns(result)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_return_is_the_reward_but_for_a_constant_of_the_prompt(alpha):
    """Σ token rewards = Σ kl + other_reward + v(P) − α·v(∅), with every part in the ledger."""
    kl = [[-0.1] * len(row) for row in OFFSETS]
    result = local(token_offsets=OFFSETS, kl=kl, other_rewards=[0.5, None, -1], alpha=alpha)
    assert_returns(result)
    wanted = [
        sum(terms) + other + judge(prompt, text) - alpha * judge(prompt, "")
        for terms, other, prompt, text in zip(kl, [0.5, 0.0, -1.0], PROMPTS, COMPLETIONS, strict=True)
    ]
    np.testing.assert_allclose(result.ledger.total, wanted, atol=AGREEMENT)
    assert result.ledger.other_reward.tolist() == [0.5, 0.0, -1.0]
    assert result.ledger.alpha.tolist() == [alpha] * 3


WAYS = [
    judge,
    Evaluator(judge),
    Evaluator(judge, concurrency=4),
    Evaluator(many, batched=True),
    Evaluator(many, batched=True, batch_size=1),
    Evaluator(many, batched=True, batch_size=3, concurrency=2),
    Evaluator(lambda prompts, texts: np.array(many(prompts, texts)), batched=True),
    Evaluator(lambda prompts, texts: tuple(many(prompts, texts)), batched=True),
    lambda prompt, text: np.float64(judge(prompt, text)),
]


@pytest.mark.parametrize("solve", [local, local_async])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_calling_gives_the_same_bits(way, solve):
    """A function, batched or in threads, by either client."""
    assert_same(solve(way), local())


@pytest.mark.parametrize("way", [awaited, Evaluator(awaited, concurrency=5)])
def test_coroutine_functions_are_awaited(way):
    """The async client awaits; the other one says so."""
    assert_same(local_async(way), local())
    with pytest.raises(TypeError, match="use AsyncClient"):
        local(way)


def test_columns_may_be_arrays():
    """Arrays, tuples and lists say the same."""
    masks = [[True, False, *[True] * 6], [True] * 3, []]
    kl = [[0.5] * len(row) for row in OFFSETS]
    plain = local(token_offsets=OFFSETS, completion_masks=masks, kl=kl, other_rewards=[1.0, 2.0, 3.0], groups=[0, 0, 1])
    arrays = local(
        prompts=tuple(PROMPTS),
        token_offsets=[np.array(row, dtype=np.int32).reshape(-1, 2) for row in OFFSETS],
        completion_masks=[np.array(row, dtype=np.int64) for row in masks],
        kl=tuple(np.array(row, dtype=np.float32) for row in kl),
        other_rewards=np.array([1.0, 2.0, 3.0]),
        groups=np.array([0, 0, 1]),
    )
    assert_same(plain, arrays)
    assert plain.token_rewards[0][1] == 0.0


def test_each_text_is_evaluated_once():
    """Equal texts of one prompt are one call, of another prompt another; v(∅) is one call of a prompt."""
    calls = []

    def counted(prompt, text):
        calls.append((prompt, text))
        return judge(prompt, text)

    result = local(counted, ["p", "p", "q"], ["One, two.", "One, two.", "One, two."])
    assert sorted(calls) == sorted(itertools.product("pq", ["", "One,", " two.", "One, two."]))
    assert_same(result, local(judge, ["p", "p", "q"], ["One, two.", "One, two.", "One, two."]))
    assert result.unit_values[0].tobytes() == result.unit_values[1].tobytes()


@pytest.mark.parametrize(
    ("absent", "texts"),
    [
        ("delete", {"", "a,", " b,", " c.", "a, b,", "a, c.", " b, c.", "a, b, c."}),
        ("blank", {" ", "a, ", "  b, ", "  c.", "a, b, ", "a,  c.", "  b, c.", "a, b, c."}),
        (
            {"type": "mask_token", "text": "#"},
            {"#", "a,#", "# b,#", "# c.", "a, b,#", "a,# c.", "# b, c.", "a, b, c."},
        ),
    ],
)
def test_the_function_reads_what_is_left_of_a_completion(absent, texts):
    """Units stand in their order, and one filler for each run of absent ones."""
    calls = []
    local(lambda _, text: calls.append(text) or float(len(text)), ["p"], ["a, b, c."], absent=absent)
    assert set(calls) == texts
    assert len(calls) == len(texts)


def test_what_the_policy_did_not_write_is_always_there():
    """Text of masked tokens stands in every coalition; v(∅) of the prompt is the empty completion all the same."""
    calls = []
    result = local(
        lambda _, text: calls.append(text) or float(len(text)),
        ["p"],
        ["a[tool]b"],
        token_offsets=[[[0, 1], [1, 7], [7, 8]]],
        completion_masks=[[1, 0, 1]],
    )
    assert set(calls) == {"", "[tool]", "a[tool]", "[tool]b", "a[tool]b"}
    assert result.units.to_list() == [[[0, 1], [2, 3]]]
    assert result.token_rewards[0].tolist() == [1.0, 0.0, 1.0 + 6.0]
    assert result.ledger.remainder.tolist() == [6.0]


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batched", [False, True])
def test_a_refused_coalition_costs_the_decomposition_and_not_the_return(nothing, batched):
    """The completion gets its whole return on its last token, flagged; the others do not notice."""

    def sometimes(prompt, text):
        return nothing if text == "It is so." else judge(prompt, text)

    def of_many(prompts, texts):
        return [sometimes(*pair) for pair in zip(prompts, texts, strict=True)]

    way = Evaluator(of_many, batched=True) if batched else sometimes
    result, whole = local(way), local()
    assert result.flags[0] == ("fallback_return",)
    assert np.isnan(result.unit_values[0]).all()
    np.testing.assert_array_equal(result.ledger.total, whole.ledger.total)
    assert np.flatnonzero(result.token_rewards[0]).tolist() == [len(result.token_rewards[0]) - 1]
    assert result.unit_values[1].tobytes() == whole.unit_values[1].tobytes()
    assert np.isnan(result.gap[0])
    assert_returns(result)


def test_a_prompt_without_an_empty_utility_has_no_alpha():
    """Where v(∅) is refused all completions of the prompt get their whole reward at the end."""
    result = local(lambda prompt, text: None if (prompt, text) == ("why?", "") else judge(prompt, text))
    assert result.ledger.alpha.tolist() == [0.0, 0.0, 1.0]
    assert [flags[-1:] for flags in result.flags] == [("fallback_return",)] * 3
    np.testing.assert_allclose(result.ledger.total[:2], result.utility_grand[:2])
    assert np.isnan(result.utility_empty).tolist() == [True, True, False]
    assert_returns(result)


@pytest.mark.parametrize("row", [0, 2])
def test_a_completion_that_is_refused_has_no_answer(row):
    """The others have theirs; the error names the completion, with units or without."""

    def sometimes(prompt, text):
        return None if (prompt, text) == (PROMPTS[row], COMPLETIONS[row]) else judge(prompt, text)

    # The empty completion is v(∅) as well: by another text for absent units it is refused alone.
    options = {"absent": "blank", "token_offsets": OFFSETS, "ids": ["a", "b", "c"]}
    with pytest.raises(PartialResultError, match="1 of 3 rows have no answer") as caught:
        local(sometimes, **options)
    result = caught.value.result
    (error,) = result.errors
    assert (error.row, error.code) == (row, "non_finite_utility")
    assert result.ok.tolist() == [place != row for place in range(3)]
    assert np.isnan(result.token_rewards[row]).all()
    assert len(result.token_rewards[row]) == len(OFFSETS[row])
    assert np.isnan(result.ledger.total[row])
    assert result.units.to_list()[row] == []
    assert f"id {options['ids'][row]!r}" in str(caught.value)
    expected = local(**options)
    assert result.token_rewards[1].tobytes() == expected.token_rewards[1].tobytes()
    assert_same(local(sometimes, **options, on_item_error="return"), result)


def test_nothing_answered_is_an_error_of_the_request():
    """A function that refuses everything leaves no completion an answer."""
    with pytest.raises(InvalidRequestError, match="no item could be answered") as caught:
        local(lambda *_: None)
    assert caught.value.code == "non_finite_utility"


def test_advantages_come_when_asked_for():
    """Those of a group have the mean 0 over its completions, each by the mean of its tokens."""
    result = local(
        prompts=["p"] * 3,
        completions=["One, two.", "Three.", "We prove it, because we can."],
        advantage={"type": "pooled", "epsilon": 0.0},
        expect={"group_size": 3},
    )
    means = [row.mean() for row in result.token_advantages]
    assert sum(means) == pytest.approx(0.0, abs=1e-9)
    assert np.concatenate(list(result.token_advantages)).std(ddof=1) == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(InvalidRequestError, match="expected 2"):
        local(prompts=["p"] * 3, completions=["One.", "Two.", "Three."], expect={"group_size": 2})


@pytest.mark.parametrize(
    "options",
    [
        {"segmentation": "token", "token_offsets": OFFSETS},
        {"segmentation": "sentence"},
        {"segmentation": {"type": "regex", "pattern": r"\W+", "max_units": 3}},
        {"units": [[[0, 4], [4, 8]], [[0, 3]], []], "token_offsets": OFFSETS},
        {"credit": "owen", "units": [[[0, 1], [1, 4], [4, 8]], [[0, 3]], []], "trees": [[[1, 2], [0, 3]], None, None]},
        {"credit": "prefix"},
        {"credit": "leave_one_out"},
        {"credit": "uniform", "token_offsets": OFFSETS},
        {"credit": "shapley", "estimator": {"type": "permutations", "budget": 8, "seed": 3}},
        {"segmentation": "token", "token_offsets": OFFSETS, "estimator": {"budget": 40}},
    ],
)
def test_every_choice_accounts_for_its_return(options):
    """Segmentations, values and estimators of every kind, by their names."""
    if "trees" in options:
        options = options | {"token_offsets": OFFSETS}
    result = local(**options)
    assert_returns(result)
    np.testing.assert_allclose(result.ledger.total, local().ledger.total, atol=AGREEMENT)


def test_a_sample_has_standard_errors():
    """Estimated values come with their errors and intervals where there are any, exact ones without."""
    completions = ["a, b, c, d, e, f, g, h, i, j, k, l.", "a, b."]
    estimator = {"type": "permutations", "budget": 200}
    result = local(
        lambda _, text: float(len(set(text))), ["p", "p"], completions, credit="shapley", estimator=estimator
    )
    assert (result.methods, result.exact.tolist()) == (("permutations", "table"), [False, True])
    assert np.isfinite(result.standard_errors[0]).all()
    assert np.isnan(result.standard_errors[1]).all()
    assert (result.interval_low[0] <= result.unit_values[0]).all()
    assert (result.unit_values[0] <= result.interval_high[0]).all()


def test_progress_counts_what_is_known():
    """It never goes back and ends at what was planned."""
    seen = []
    evaluator = Evaluator(judge, progress=lambda done, planned: seen.append((done, planned)))
    local(evaluator)
    done = [one for one, _ in seen]
    assert done == sorted(done)
    assert all(one <= planned for one, planned in seen)
    assert seen[-1][0] == seen[-1][1]


class BoomError(Exception):
    """An exception of the caller's function."""


@pytest.mark.parametrize("solve", [local, local_async])
def test_an_exception_of_the_function_is_raised_as_it_is(solve):
    """The very object reaches the caller."""
    error = BoomError("of the caller's own")

    def failing(prompt, text):
        del prompt, text
        raise error

    with pytest.raises(BoomError) as raised:
        solve(failing)
    assert raised.value is error


@pytest.mark.parametrize(
    ("way", "kind", "sentence"),
    [
        (lambda _, text: text, TypeError, "gave str; expected a number"),
        (Evaluator(lambda _, texts: texts[0], batched=True), TypeError, "gave str; expected a list of"),
        (Evaluator(lambda _, texts: [1.0] * (len(texts) + 1), batched=True), ValueError, "numbers; expected"),
        (Evaluator(lambda *_: None, batched=True), TypeError, "gave NoneType; expected a list of"),
        (lambda _: 1.0, TypeError, "positional argument"),
    ],
)
def test_what_a_function_gives_has_to_be_numbers(way, kind, sentence):
    """Anything else is said in words."""
    with pytest.raises(kind, match=sentence):
        local(way)


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"utility": None}, "/model"),
        ({"model": "rm"}, "/model"),
        ({"deterministic": True}, "/deterministic"),
        ({"prompts": "why?"}, "/prompts"),
        ({"prompts": ["why?"]}, "/prompts"),
        ({"prompts": [object()] * 3}, "/prompts/0"),
        ({"completions": "It is."}, "/completions"),
        ({"completions": ["a", "b", 3]}, "/completions/2"),
        ({"ids": ["a"]}, "/ids"),
        ({"groups": ["a"]}, "/groups"),
        ({"token_offsets": [[[0, 1]]]}, "/token_offsets"),
        ({"token_offsets": [[[0, 1, 2]], [], []]}, "/token_offsets/0"),
        ({"token_offsets": [[[0, 1], [2]], [], []]}, "/token_offsets/0"),
        ({"token_offsets": [[[0.5, 1.5]], [], []]}, "/token_offsets/0"),
        ({"token_offsets": ["ab", [], []]}, "/token_offsets/0"),
        ({"completion_masks": [[1, 2], [], []]}, "/completion_masks/0/1"),
        ({"completion_masks": [["yes"], [], []]}, "/completion_masks/0/0"),
        ({"kl": [[0.0, None], [], []]}, "/kl/0/1"),
        ({"kl": [["x"], [], []]}, "/kl/0/0"),
        ({"other_rewards": ["x", 0.0, 0.0]}, "/other_rewards/0"),
        ({"other_rewards": [0.0]}, "/other_rewards"),
        ({"absent": {"type": "mask_token", "id": 3}}, "/absent/text"),
        ({"segmentation": "chapter"}, "/segmentation"),
        ({"credit": "attention"}, "/credit"),
        ({"alpha": 1.5}, "/alpha"),
        ({"alpha": math.nan}, "/alpha"),
        ({"segmentation": "token"}, "/items/0/token_offsets"),
        ({"kl": [[0.0] * 9] * 3}, "/items/0/kl"),
        ({"segmentation": {"type": "regex", "pattern": "("}}, "/segmentation/pattern"),
    ],
)
def test_what_is_wrong_is_said_where(options, pointer):
    """By the caller's names where columns are read, else by the request; nothing was evaluated."""
    given = {"utility": lambda *_: pytest.fail("called")} | options
    with pytest.raises(InvalidRequestError) as caught:
        local(**given)
    assert caught.value.items[0].pointer == pointer


def test_on_item_error_is_one_of_two():
    """Another word is refused before anything happens."""
    with pytest.raises(ValueError, match="on_item_error"):
        local(on_item_error="ignore")


def test_calls_with_a_function_are_not_recorded(tmp_path):
    """Nobody could repeat them without it."""
    with Client("local:", record=tmp_path) as client:
        client.scar(PROMPTS, COMPLETIONS, utility=judge)
    assert list(tmp_path.iterdir()) == []
    assert SOLVE_PATH == "/v1/credit/scar/solve"


def test_messages_are_prompts():
    """The function gets them as they are, and equal ones are one prompt."""
    prompts = [[{"role": "user", "content": "why?"}] for _ in range(3)]
    seen = []
    result = local(lambda prompt, text: seen.append(prompt) or float(len(text)), prompts)
    assert all(prompt is prompts[0] or prompt == prompts[0] for prompt in seen)
    assert result.utility_empty.tolist() == [0.0] * 3


def test_ragged_spans_are_rows_of_pairs():
    """They are indexed and walked by row; what does not fit is refused."""
    spans = RaggedSpans(np.array([[0, 2], [2, 3], [0, 1]]), np.array([0, 2, 2, 3]))
    assert [row.tolist() for row in spans] == spans.to_list() == [[[0, 2], [2, 3]], [], [[0, 1]]]
    assert spans[-1].tolist() == [[0, 1]]
    assert repr(spans) == "RaggedSpans(3 rows, 3 ranges)"
    with pytest.raises(IndexError, match="one of 3 rows"):
        spans[3]
    for values, splits in (
        (np.zeros((2, 3), dtype=np.int64), [0, 2]),
        (np.zeros((2, 2)), [0, 2]),
        (np.zeros((2, 2), dtype=np.int64), [0, 1]),
        (np.zeros((2, 2), dtype=np.int64), [0, 3, 2]),
    ):
        with pytest.raises(ValueError, match="expected"):
            RaggedSpans(values, np.array(splits))
