import numpy as np
import pytest

from creditd.credit.sensitivity_credit import SensitivityBatch, SensitivityCreditOptions
from creditd.credit.sensitivity_items import SensitivityError, SensitivityItem
from creditd.engines.policy_protocol import MeasuredTokens, ReasonedTokens, SensitivityOptions
from creditd.engines.protocol import EngineUsage, TextFailure
from creditd.scoring.model_questions import CostExceededError
from creditd.scoring.sensitivity import PolicyQuestions, tokens_read

GRADIENT, PERTURBATION = SensitivityOptions("gradient"), SensitivityOptions("perturbation")


def ids(*values):
    """Token ids."""
    return np.array(values, dtype=np.int64)


def item_of(n_tokens, *, answer=True, reasoning=None):
    """A completion whose last token is its answer, if it has one."""
    found = (n_tokens - 1, n_tokens) if answer else None
    return SensitivityItem(n_tokens, np.ones(n_tokens, dtype=np.bool_), reasoning, found, 1.0, None)


def questions(*items, prompts=None, options=PERTURBATION, most=10**6, tries=True, rejected=()):
    """Questions about completions, each a group of its own, after prompts of two tokens."""
    tokens = [(ids(1, 2), np.arange(9 if one is None else one.n_tokens)) for one in items]
    if prompts is not None:
        tokens = [(prompt, completion) for prompt, (_, completion) in zip(prompts, tokens, strict=True)]
    groups = np.arange(len(items))
    batch = SensitivityBatch(items, groups, len(items), SensitivityCreditOptions(), rejected)
    return PolicyQuestions(batch, items, tokens, options, most_tokens=most, reads_tries=tries)


def told(asked, failures=None):
    """An answer in which each token is as sensitive as its place says."""
    values = tuple(one.positions.astype(np.float64) for one in asked.items)
    return MeasuredTokens(values, (0.5,) * len(values), "v0", failures or {})


def test_only_completions_with_something_to_measure_are_asked_about():
    """Not those that are rejected, have no answer, or nothing before it."""
    error = SensitivityError(1, "invalid_request", "answer", None, "expected one")
    asked = questions(item_of(4), None, item_of(3, answer=False), item_of(1), item_of(3), rejected=[error])
    assert [one.positions.tolist() for one in asked.items] == [[0, 1, 2], [0, 1]]
    asked.tell(told(asked))
    answer = asked.answer()
    assert [None if one is None else one.n_reweighted for one in answer.items] == [3, None, 0, 0, 2]
    assert answer.items[4].spread == 0.5
    assert answer.errors == (error,)


def test_what_the_policy_cannot_measure_fails_its_completion():
    """By its code and sentence, under the tokens of the completion; the others have their numbers."""
    asked = questions(item_of(4), item_of(3))
    asked.tell(told(asked, {0: TextFailure("context_exceeded", "too long")}))
    answer = asked.answer()
    assert [one is None for one in answer.items] == [True, False]
    (error,) = answer.errors
    assert (error.row, error.code, error.field, error.detail) == (0, "context_exceeded", "completion_ids", "too long")


def test_a_measured_token_has_one_before_it():
    """A completion without a prompt is asked about where its first token is not measured."""
    asked = questions(item_of(4), item_of(4, reasoning=(1, 3)), prompts=[ids(), ids()])
    assert [one.positions.tolist() for one in asked.items] == [[1, 2]]
    asked.tell(told(asked))
    (error,) = asked.answer().errors
    assert (error.row, error.code, error.field) == (0, "shape_mismatch", "prompt_ids")


READ = ReasonedTokens(ids(1, 2), np.arange(6), ids(0, 2, 3), (4, 6))
"""Seven tokens before the last one of the answer, three of them measured, which stand at 2, 4 and 5."""


@pytest.mark.parametrize(
    ("options", "tries", "expected"),
    [
        (GRADIENT, True, 2 * 7),
        (SensitivityOptions("gradient", noise_samples=8), True, 9 * 7),
        (PERTURBATION, False, 4 * 7),
        (PERTURBATION, True, 7 + (7 - 2) + (7 - 4) + (7 - 5)),
    ],
)
def test_tokens_are_counted_from_lengths(options, tries, expected):
    """Once and for each draw; once and from each measured token on, or all of them for each."""
    assert tokens_read([READ], options, tries=tries) == expected
    assert tokens_read([READ, READ], options, tries=tries) == 2 * expected
    assert tokens_read([], options, tries=tries) == 0


@pytest.mark.parametrize("tries", [True, None])
def test_what_costs_too_much_is_refused_before_it_is_prepared(tries):
    """The limit itself is affordable; a policy of which it is not known is taken to read tries."""
    cost = 5 + (3 + 2 + 1)
    questions(item_of(4), most=cost, tries=tries)
    with pytest.raises(CostExceededError, match=f"would read {cost} tokens; expected at most {cost - 1}"):
        questions(item_of(4), most=cost - 1, tries=tries)
    with pytest.raises(CostExceededError, match="would read 20 tokens"):
        questions(item_of(4), most=19, tries=False)


def test_what_the_policy_itself_says_counts_as_well():
    """It may read more than lengths tell."""
    asked = questions(item_of(4), most=50)
    asked.check(EngineUsage(tokens_computed=50))
    with pytest.raises(CostExceededError, match="would read 51 tokens; expected at most 50"):
        asked.check(EngineUsage(tokens_computed=51))
