"""`POST /v1/credit/oar`: weights and advantages of tokens, from sensitivities that the tests know."""

import numpy as np
import pytest

from server.oar_calls import (
    BEFORE_MASS,
    CURSE,
    EFFECTIVE_SHARE,
    FORMATS,
    IMPORTANCE,
    TOP_SHARE,
    WORKED_WEIGHTS,
    answered,
    ask,
    given_item,
    given_request,
    item_of,
    policy,
    request_of,
    with_policies,
)

TO_SIX_DIGITS = 1e-6
TO_FOUR_DIGITS = 5e-5


@pytest.mark.parametrize("form", FORMATS)
def test_the_worked_numbers_of_the_method_come_back(form):
    """Weights, sum and concentration of the worked sensitivities, and the advantage shared out by them."""
    (found,) = answered(given_request(given_item(id="a", advantage=-2.0)), form)
    assert found["id"] == "a"
    assert found["weights"] == pytest.approx(WORKED_WEIGHTS, abs=TO_SIX_DIGITS)
    assert found["token_advantages"] == pytest.approx([-2 * w for w in WORKED_WEIGHTS], abs=2 * TO_SIX_DIGITS)
    assert (found["weight_sum"], found["n_reweighted"]) == (pytest.approx(5.0, abs=1e-12), 5)
    assert found["effective_share"] == pytest.approx(EFFECTIVE_SHARE, abs=TO_FOUR_DIGITS)
    assert found["top_share"] == pytest.approx(TOP_SHARE, abs=TO_FOUR_DIGITS)
    assert found["sensitivities"] == list(IMPORTANCE)
    assert (found["reasoning"], found["answer"], found["spread"], found["flags"]) == ([0, 5], None, None, [])


@pytest.mark.parametrize("form", FORMATS)
def test_without_preserved_mass_weights_are_what_the_formula_says(form):
    """The same before they are scaled to their number."""
    (found,) = answered(given_request(given_item(), reshape={"preserve_mass": False}), form)
    assert found["weights"] == pytest.approx(BEFORE_MASS, abs=TO_SIX_DIGITS)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("method", ["gradient", "perturbation"])
def test_a_policy_is_asked_about_the_reasoning(form, method):
    """Sensitivities of the tokens before the answer; the answer and what stands behind it weigh 1."""
    body = request_of(item_of([7, 8, 10, 13, 20, 30], answer=[4, 5]), sensitivity={"type": method})
    (found,) = answered(body, form)
    assert found["sensitivities"] == [0.0, 1.0, 3.0, 6.0, None, None]
    (alone,) = answered(given_request(given_item([0.0, 1.0, 3.0, 6.0])))
    assert found["weights"] == [*alone["weights"], 1.0, 1.0]
    assert (found["reasoning"], found["answer"]) == (None, [4, 5])


def test_masked_tokens_are_not_measured():
    """Tokens that the policy did not choose weigh 0, and are no part of the reasoning."""
    item = item_of([7, 8, 10, 13, 20], completion_mask=[True, False, True, True, False])
    (found,) = answered(request_of(item))
    assert found["sensitivities"] == [0.0, None, 3.0, 6.0, None]
    assert [found["weights"][token] for token in (1, 4)] == [0.0, 0.0]


def test_an_answer_names_the_version_of_the_weights():
    """Model, version and usage stand in the envelope."""
    found = ask(request_of(item_of([7, 8, 9])))
    assert (found["model"], found["weight_version"]) == ("policy", "v0")
    assert (found["usage"]["evaluations"], found["usage"]["tokens_computed"]) == (2, 2 * 5)
    found = ask(given_request(given_item()))
    assert (found["model"], found["weight_version"], found["usage"]["tokens_computed"]) == (None, None, 0)


def test_equal_completions_have_equal_weights():
    """Whatever else is in the request: four identical completions get four identical rows of weights."""
    items = [item_of([7, 8, 10, 13, 20]), item_of([9, 9, 3]), *[item_of([7, 8, 10, 13, 20])] * 3]
    found = answered(request_of(*items))
    assert found[0]["weights"] == found[2]["weights"] == found[3]["weights"] == found[4]["weights"]
    assert found[0]["weights"] == answered(request_of(items[0]))[0]["weights"]


REWARDS = [1.0, 0.5, 0.0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [0.9998, 0.0, -0.9998]),
        ({"type": "dr_grpo"}, [0.5, 0.0, -0.5]),
        ({"type": "rloo"}, [0.75, 0.0, -0.75]),
        ({"type": "grpo", "ddof": 0, "epsilon": 0.0}, [1.224745, 0.0, -1.224745]),
        ({"type": "leave_one_out"}, [0.5, 0.0, 0.0]),
        ({"type": "pass_at_k", "k": 1, "threshold": 0.75}, [1.414214, -0.707107, -0.707107]),
    ],
)
def test_rewards_become_advantages_of_their_group(choice, expected, form):
    """Groups are those of equal prompts; each token gets the advantage times its weight."""
    items = [given_item([0.0, 1.0], reward=reward, prompt_ids=[4, 5]) for reward in REWARDS]
    other = given_item([1.0, 1.0], reward=9.0, prompt_ids=[4])
    *found, single = answered(given_request(*items, other, **({"advantage": choice} if choice else {})), form)
    assert [one["advantage"] for one in found] == pytest.approx(expected, abs=5e-5)
    assert "single_response" in single["flags"] or choice.get("type") == "leave_one_out"


def test_names_of_groups_win_over_prompts():
    """Completions of one prompt under different names are not compared."""
    items = [given_item(reward=float(number), group=f"g{number}", prompt_ids=[1]) for number in range(2)]
    found = answered(given_request(*items))
    assert [one["advantage"] for one in found] == [0.0, 0.0]


TEXT = "<think>two and two</think><answer>4</answer>"
PARSERS = {
    "tags": ({"type": "tags"}, TEXT, (7, 18), (34, 35)),
    "named tags": (
        {"type": "tags", "reasoning_tag": "r", "answer_tag": "a"},
        "<r>two</r><a>4</a>",
        (3, 6),
        (13, 14),
    ),
    "hashes": ({"type": "hashes"}, "2+2 #### 4", (0, 4), (9, 10)),
    "boxed": ({"type": "boxed"}, r"so \boxed{4}!", (0, 3), (10, 11)),
    "last_line": ({"type": "last_line"}, "2+2\n4\n", (0, 4), (4, 5)),
}


@pytest.mark.parametrize("sent", ["text", "ids"])
@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_finds_reasoning_and_answer(name, sent):
    """In the text that comes with the item, or in what the policy's tokenizer writes; a token here is a character."""
    parser, text, reasoning, answer = PARSERS[name]
    item = {"prompt_ids": [1], "completion_ids": list(map(ord, text)), "advantage": 1.0}
    if sent == "text":
        item |= {"completion": text, "token_offsets": [[place, place + 1] for place in range(len(text))]}
    (found,) = answered(request_of(item, parser=parser))
    assert (tuple(found["reasoning"]), tuple(found["answer"])) == (reasoning, answer)
    measured = [place for place, value in enumerate(found["sensitivities"]) if value is not None]
    assert measured == list(range(*reasoning))


def test_text_and_given_sensitivities_need_no_policy():
    """A parser reads the text of the item, and the sensitivities are the caller's."""
    text = "2+2 #### 4"
    item = given_item([0.0, 1.0, 2.0, 3.0, *[None] * 6], completion=text)
    item["token_offsets"] = [[place, place + 1] for place in range(len(text))]
    (found,) = answered(given_request(item, parser={"type": "hashes"}))
    assert (found["reasoning"], found["answer"], found["n_reweighted"]) == ([0, 4], [9, 10], 4)


@pytest.mark.parametrize("form", FORMATS)
def test_a_completion_without_an_answer_has_its_plain_advantage(form):
    """All of its tokens weigh 1, it is flagged, and nothing is measured."""
    engine = policy()
    items = [item_of([7, 8, 9], answer=None, advantage=2.0), item_of([7, 8, 9], answer=None, reasoning=[0, 2])]
    found = answered(request_of(*items), form, with_policies(engine))
    assert [one["flags"] for one in found] == [["answer_not_found"]] * 2
    assert found[0]["token_advantages"] == [2.0, 2.0, 2.0]
    assert (found[0]["n_reweighted"], found[0]["effective_share"], found[0]["top_share"]) == (0, None, None)
    assert engine.measured == [0]
    (found,) = answered(request_of(item_of([7, 8, 9], answer=None), parser={"type": "hashes"}), form)
    assert found["flags"] == ["answer_not_found"]


@pytest.mark.parametrize("sensitivities", [[0.5, 0.5, 0.5], [-1.0, -2.0], [7.0], [1.0, 1.0 + 1e-6]])
def test_flat_sensitivities_weigh_nothing(sensitivities):
    """What tells no token from another leaves weights of 1, flagged."""
    (found,) = answered(given_request(given_item(sensitivities)))
    assert found["weights"] == [1.0] * len(sensitivities)
    assert found["flags"] == ["flat_sensitivity"]


def test_an_empty_reasoning_is_no_fault():
    """An answer at the beginning leaves nothing to reweight."""
    (found,) = answered(request_of(item_of([7, 8], answer=[0, 1])))
    assert (found["weights"], found["flags"], found["weight_sum"]) == ([1.0, 1.0], [], 0.0)


def test_the_spread_of_the_draws_is_told():
    """With several draws of noise there is a spread; with one there is none."""
    several = {"type": "gradient", "noise_samples": 4, "noise_std": 1e-2, "seed": 7}
    (found,) = answered(request_of(item_of([7, 8, 9]), sensitivity=several))
    assert found["spread"] == 0.0
    (found,) = answered(request_of(item_of([7, 8, 9])))
    assert found["spread"] is None


def test_choices_reach_the_policy():
    """Method, probe, noise, seed and the token to perturb with are those of the request."""
    seen = []

    def heard(_, item, options):
        seen.append(options)
        return np.arange(len(item.positions)).tolist()

    engine = policy(measured=heard)
    noisy = {"type": "gradient", "noise_samples": 2, "noise_std": 0.5, "seed": 7}
    answered(request_of(item_of([7, 8, 9]), sensitivity=noisy, probe={"type": "last"}), resources=with_policies(engine))
    (options,) = seen
    assert (options.method, options.probe, options.seed) == ("gradient", "last", 7)
    assert (options.noise_samples, options.noise_std) == (2, 0.5)
    seen.clear()
    perturbed = {"type": "perturbation", "token_id": 5}
    engine = policy(measured=heard)
    answered(
        request_of(item_of([7, 8, 9]), sensitivity=perturbed, probe={"type": "answer_joint"}),
        resources=with_policies(engine),
    )
    (options,) = seen
    assert (options.method, options.probe, options.perturbation_id) == ("perturbation", "answer_joint", 5)


def test_a_failed_completion_flags_its_group_or_takes_it_along():
    """What happens to the others of a group, by choice."""
    bad = item_of([7, 8], reward=1.0, answer=[5, 6], group="a")
    items = [bad, *[item_of([7, 8], reward=float(one), group="a") for one in range(2)]]
    other = item_of([7, 8], reward=1.0, group="b")
    found = answered(request_of(*items, other))
    assert [one["status"] for one in found] == ["error", "ok", "ok", "ok"]
    assert all("group_incomplete" in one["flags"] for one in found[1:3])
    assert "group_incomplete" not in found[3]["flags"]
    found = answered(request_of(*items, other, incomplete_group="error"))
    assert [one.get("error", None) and one["error"]["code"] for one in found] == [
        "shape_mismatch",
        "group_incomplete",
        "group_incomplete",
        None,
    ]


def test_what_the_policy_cannot_measure_takes_its_group_along_as_well():
    """A completion that fails in the policy is as incomplete as one that is wrong."""
    bad, good = item_of([CURSE, 8], reward=1.0, group="a"), item_of([7, 8], reward=0.0, group="a")
    found = answered(request_of(bad, good, item_of([7, 8], reward=0.0, group="b"), incomplete_group="error"))
    assert [one["error"]["code"] if one["status"] == "error" else None for one in found] == [
        "non_finite_utility",
        "group_incomplete",
        None,
    ]


def test_a_group_of_another_size_is_an_error():
    """What the caller is sure of holds, or the group fails."""
    items = [item_of([7, 8], reward=float(one), group="a") for one in range(2)]
    found = answered(request_of(*items, item_of([7, 8], reward=1.0, group="b"), expect={"group_size": 2}))
    assert [one["status"] for one in found] == ["ok", "ok", "error"]
    assert found[2]["error"]["code"] == "group_size_mismatch"
