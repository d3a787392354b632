"""Credit in loops written by hand: what a batch is asked, what comes back, and what happens where nothing does."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
import pytest

from creditd.adapters.loop import CandidateReward, CreditConfig, LoopCredit, SpanReward
from creditd.adapters.processes import OneProcess, by_all, by_one
from creditd.client import Client, CreditdError, TransportError

WORDS = ["<pad>", "<eos>", "one ", "two ", "three ", "; ", "<think>", "</think>"]
PARSER = {"type": "regex", "pattern": r"(\w+) ?;? ?"}
NOBODY = "http://127.0.0.1:9"
IDS = [[2, 5, 3, 1], [4, 5, 4, 5, 2], [3, 1], [2, 5, 2, 5, 4, 1]]
LENGTHS = [4, 5, 2, 6]
PADDED = [row + [0] * (6 - len(row)) for row in IDS]
PROMPTS = ["p", "p", "q", "q"]
VALUES = {"one": 0.25, "two": 1.0, "three": 0.5}


class Tokenizer:
    """Words, one token each."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids, **_):
        """Text of words."""
        return "".join(WORDS[number] for number in ids)


def score(prompts, candidates, completions, **_):
    """A number for each word."""
    assert len(prompts) == len(candidates) == len(completions)
    return [[VALUES[text] for text in row] for row in candidates]


def judge(prompts, texts):
    """Two is good."""
    pairs = zip(prompts, texts, strict=True)
    return [len(prompt) + 2.0 * text.count("two") - 0.25 * text.count("one") for prompt, text in pairs]


def made(reward=None, *, processes=None, longest=None, **config):
    """A loop's credit, in this process unless it is told otherwise."""
    reward = reward or CandidateReward(score, PARSER)
    config = CreditConfig(**{"url": "local:"} | config)
    return LoopCredit(reward, config, tokenizer=Tokenizer(), longest=longest, processes=processes)


def by_client(**options):
    """The same by the client alone."""
    with Client("local:") as client:
        return client.shapley(
            [[0.25, 1.0], [0.5, 0.5, 0.25], [1.0], [0.25, 0.25, 0.5]],
            groups=[0, 0, 1, 1],
            spans=[[(0, 1), (2, 3)], [(0, 1), (2, 3), (4, 5)], [(0, 1)], [(0, 1), (2, 3), (4, 5)]],
            n_tokens=LENGTHS,
            **{"tokens": {"other": "set"}, "expect": {"group_size": 2}} | options,
        )


def test_candidates_have_the_advantages_that_the_client_gives():
    """Token by token, to the last bit; utilities of the sets are their rewards."""
    found = made().advantages(PROMPTS, IDS, group_size=2)
    expected = by_client()
    assert found.token_advantages == expected.token_advantages.to_list()
    assert found.rewards == [1.0, 0.5, 1.0, 0.5]
    assert found.metrics["credit/fallbacks"] == found.metrics["credit/errors"] == 0.0
    assert found.metrics["credit/candidates"] == 9 / 4
    assert found.request_id is None


@pytest.mark.parametrize("form", ["lists", "arrays", pytest.param("tensors", marks=pytest.mark.models)])
def test_advantages_have_the_form_of_the_tokens(form):
    """Padding has exactly 0."""
    torch = pytest.importorskip("torch", reason="the lane `models` installs torch") if form == "tensors" else None
    expected = made().advantages(PROMPTS, IDS, group_size=2).token_advantages
    ids = {"lists": IDS, "arrays": np.array(PADDED), "tensors": torch and torch.tensor(PADDED)}[form]
    found = made().advantages(PROMPTS, ids, lengths=None if form == "lists" else LENGTHS, group_size=2).token_advantages
    if form == "lists":
        assert found == expected
        return
    assert tuple(found.shape) == (4, 6)
    for row, own in zip(found.tolist(), expected, strict=True):
        assert row == pytest.approx([*own, *[0.0] * (6 - len(own))], abs=1e-6)


def test_threads_take_turns():
    """As where a trainer generates many groups at once: nobody gets what belongs to another."""
    credit = made()
    shares = [slice(0, 2), slice(2, 4)] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda own: credit.advantages(PROMPTS[own], IDS[own], group_size=2), shares))
    expected = made().advantages(PROMPTS, IDS, group_size=2)
    for own, one in zip(shares, found, strict=True):
        assert one.token_advantages == expected.token_advantages[own]
        assert one.rewards == expected.rewards[own]
        assert one.metrics["credit/reward/mean"] == sum(one.rewards) / 2


def test_choices_and_schedules_are_those_of_the_configuration():
    """A rule, its schedule by the step, a normalisation, and other rewards beside."""
    credit = made(credit=lambda step: "shapley" if step < 5 else "leave_one_out", advantage="centered")
    first = credit.advantages(PROMPTS, IDS, group_size=2, step=4).token_advantages
    later = credit.advantages(PROMPTS, IDS, group_size=2, step=5).token_advantages
    assert first == by_client(advantage="centered").token_advantages.to_list()
    assert later == by_client(advantage="centered", credit="leave_one_out").token_advantages.to_list()
    others = [1.0, 0.0, None, 0.5]
    found = made().advantages(PROMPTS, IDS, group_size=2, other_rewards=others).token_advantages
    assert found == by_client(set_rewards=others).token_advantages.to_list()


def test_columns_reach_the_reward_function():
    """One value per completion, by name."""
    seen = {}

    def with_columns(prompts, candidates, completions, *, topic, **_):
        seen.update(topic=topic, completions=completions)
        return score(prompts, candidates, completions)

    made(CandidateReward(with_columns, PARSER)).advantages(PROMPTS, IDS, group_size=2, columns={"topic": list("abcd")})
    assert seen == {
        "topic": list("abcd"),
        "completions": ["one ; two ", "three ; three ; one ", "two ", "one ; one ; three "],
    }


def test_a_coroutine_is_waited_for_also_inside_a_loop_of_events():
    """Notebooks and asynchronous trainers have one running."""

    async def later(prompts, candidates, completions, **_):
        await asyncio.sleep(0)
        return score(prompts, candidates, completions)

    expected = made().advantages(PROMPTS, IDS, group_size=2).token_advantages
    assert made(CandidateReward(later, PARSER)).advantages(PROMPTS, IDS, group_size=2).token_advantages == expected

    async def inside():
        return made(CandidateReward(later, PARSER)).advantages(PROMPTS, IDS, group_size=2).token_advantages

    assert asyncio.run(inside()) == expected


def test_tokens_of_others_are_no_candidates_and_get_nothing():
    """A tool wrote a candidate between two of the policy's: it is not read, and its tokens have exactly 0."""
    masks = [[1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1], [1] * 6]
    credit = made(CandidateReward(score, PARSER, turns="all"))
    found = credit.advantages(PROMPTS, IDS, group_size=2, completion_masks=masks)
    assert found.token_advantages[1][2:4] == [0.0, 0.0]
    assert 0.0 not in found.token_advantages[1][4:] + found.token_advantages[0]
    assert found.metrics["credit/candidates"] == 2.0


def test_a_completion_that_begins_inside_its_thinking_is_known_by_its_prompt():
    """There is no candidate before the thinking ends."""
    ids = [[2, 5, 3, 1], [4, 1]]
    plain = made().advantages("pp", ids, group_size=2)
    opened = made().advantages("pp", ids, group_size=2, prompt_ids=[[2, 6], [2, 6]])
    assert plain.rewards == [1.0, 0.5]
    assert opened.metrics["credit/malformed"] == 1.0


def test_a_completion_that_is_cut_off_has_an_open_candidate():
    """As many tokens as generation allows, and no end: the last candidate is none."""
    ids = [[2, 5, 3], [4, 1]]
    assert made(longest=4).advantages("pp", ids, group_size=2).rewards == [1.0, 0.5]
    assert made(longest=3).advantages("pp", ids, group_size=2).rewards == [0.25, 0.5]


def test_a_loop_that_knows_what_was_cut_off_says_so():
    """Whatever the length: the first one may have stopped at a string, and the second one at its limit."""
    ids = [[2, 5, 3], [4, 5, 2]]
    credit = made(longest=3)
    assert credit.advantages("pp", ids, group_size=2).rewards == [0.25, 0.5]
    assert credit.advantages("pp", ids, group_size=2, cut_off=[False, True]).rewards == [1.0, 0.5]
    assert made().advantages("pp", ids, group_size=2, cut_off=[True, False]).rewards == [0.25, 0.5]


def test_spans_have_the_advantages_that_the_client_gives():
    """In the form of GRPO; the reward is that of the whole completion."""
    found = made(SpanReward(judge, segmentation="token")).advantages(PROMPTS, IDS, group_size=2)
    tokenizer = Tokenizer()
    texts = [tokenizer.decode([number for number in row if number > 1]) for row in IDS]
    offsets = []
    for row in IDS:
        ends = np.cumsum([len(WORDS[number]) if number > 1 else 0 for number in row]).tolist()
        offsets.append(list(zip([0, *ends[:-1]], ends, strict=True)))
    with Client("local:") as client:
        expected = client.scar(
            PROMPTS, texts, token_offsets=offsets, utility=lambda prompt, text: judge([prompt], [text])[0],
            segmentation="token", advantage="pooled", groups=[0, 0, 1, 1],
        )  # fmt: skip
    for one, other in zip(found.token_advantages, expected.token_advantages, strict=True):
        assert one == pytest.approx(other.tolist(), abs=1e-12)
    assert found.rewards == judge(PROMPTS, texts)


def plain(rewards):
    """GRPO's advantages of groups of two."""
    with Client("local:") as client:
        return client.group(rewards, advantage="grpo").advantages


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("mask", [0.0] * 4), ("group_reward", [*plain([[1.0, 0.5], [1.0, 0.5]]).to_list()[0]] * 2)],
)
def test_a_dead_service_leaves_what_the_policy_says(policy, expected):
    """The plain advantage of whole responses, or nothing; it is counted."""
    found = made(url=NOBODY, on_failure=policy, deadline_s=0.2).advantages(PROMPTS, IDS, group_size=2)
    assert [row[0] for row in found.token_advantages] == pytest.approx(expected, abs=1e-12)
    assert [len(set(row)) for row in found.token_advantages] == [1] * 4
    assert (found.metrics["credit/fallbacks"], found.metrics["credit/errors"]) == (1.0, 1.0)


def test_plain_advantages_leave_out_what_nobody_knows():
    """A completion without a reward has 0; the others of its group are compared with other rewards beside."""

    def gaps(_prompts, candidates, _completions, **_):
        return [[float("nan") if text == "three" else 1.0 for text in row] for row in candidates]

    ids = [[2, 1], [4, 1], [3, 1], [2, 1]]
    credit = made(CandidateReward(gaps, PARSER), url=NOBODY, on_failure="group_reward", deadline_s=0.2)
    found = credit.advantages(["p"] * 4, ids, group_size=4, other_rewards=[1.0, 5.0, None, 0.0])
    expected = plain([[2.0, 1.0, 1.0]]).to_list()[0]
    assert [row[0] for row in found.token_advantages] == pytest.approx([expected[0], 0.0, *expected[1:]], abs=1e-12)
    assert found.rewards == [1.0, None, 1.0, 1.0]


def test_local_credit_takes_the_place_of_a_dead_service():
    """The same numbers, from this process."""
    found = made(url=NOBODY, on_failure="local", deadline_s=0.2).advantages(PROMPTS, IDS, group_size=2)
    assert found.token_advantages == by_client().token_advantages.to_list()
    assert found.metrics["credit/local"] == 1.0


def test_a_dead_service_is_raised_by_default():
    """Nothing is made up."""
    with pytest.raises(TransportError):
        made(url=NOBODY, deadline_s=0.2).advantages(PROMPTS, IDS, group_size=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": ["p"]}, "prompts: got 1; expected 4"),
        ({"other_rewards": [1.0]}, "other_rewards: got 1; expected 4"),
        ({"columns": {"topic": ["a"]}}, "topic: got 1; expected 4"),
        ({"prompt_ids": [[1]]}, "prompt_ids: got 1; expected 4"),
        ({"completion_masks": [[1]]}, "completion_masks: got 1 rows"),
        ({"lengths": [1]}, "lengths: got 1; expected 4"),
        ({"cut_off": [True]}, "cut_off: got 1; expected 4"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, words):
    """With what it is, and what was expected."""
    arguments = {"prompts": PROMPTS, "completion_ids": IDS, "group_size": 2, **changes}
    with pytest.raises(ValueError, match=words):
        made().advantages(**arguments)


def test_a_split_group_is_an_error():
    """Three of four, say: nothing is compared with half of its group."""
    with pytest.raises(CreditdError, match="expected 2"):
        made().advantages(PROMPTS[:3], IDS[:3], group_size=2)


@pytest.mark.parametrize("prompts", [["p", "q", "p", "q"], [["p", {"a": 1}], ["p", {"a": 2}], "q", "q"]])
def test_a_group_of_several_prompts_is_an_error(prompts):
    """As of rows that are in another order than the loop believes."""
    with pytest.raises(ValueError, match="got 2 prompts in the group of the rows 0 to 1"):
        made().advantages(prompts, IDS, group_size=2)
    with pytest.raises(ValueError, match="got 2 prompts in the group of the rows 0 to 3"):
        made().advantages(PROMPTS, IDS, group_size=4)


def test_a_loop_may_say_what_answers_which_prompt():
    """As where an environment has changed the prompts of some rows."""
    expected = made().advantages(PROMPTS, IDS, group_size=2).token_advantages
    found = made().advantages(["p", "r", "q", "q"], IDS, group_size=2, groups=[7, 7, 8, 8])
    assert found.token_advantages == expected
    assert made().advantages(PROMPTS, IDS, group_size=2, groups=np.array([1, 1, 0, 0])).token_advantages == expected
    for groups in (np.arange(4), [b"a", b"b", b"a", b"b"]):
        with pytest.raises(ValueError, match=r"got 2 prompts in the group .* or groups, which says"):
            made().advantages(PROMPTS, IDS, group_size=2, groups=groups)
    with pytest.raises(ValueError, match="groups: got 1; expected 4"):
        made().advantages(PROMPTS, IDS, group_size=2, groups=[7])
    with pytest.raises(ValueError, match="groups: got something else than texts and numbers"):
        made().advantages(PROMPTS, IDS, group_size=2, groups=[object()] * 4)


def test_pictures_are_not_compared():
    """Each row has an object of its own."""
    prompts = [[{"role": "user", "content": [{"type": "image", "image": object()}]}] for _ in IDS]
    expected = made().advantages(["p"] * 4, IDS, group_size=4).token_advantages
    assert made().advantages(prompts, IDS, group_size=4).token_advantages == expected


def test_arrays_of_tokens_are_compared():
    """By what they hold."""
    prompts = [np.array([1, 2]), np.array([1, 2]), np.array([3]), np.array([3])]
    assert made().advantages(prompts, IDS, group_size=2).rewards == [1.0, 0.5, 1.0, 0.5]
    with pytest.raises(ValueError, match="got 2 prompts"):
        made().advantages(prompts[::2] * 2, IDS, group_size=2)


def test_what_a_reward_began_may_ask_when_it_is_over():
    """A call that is done holds nobody up."""
    contexts = []

    def remembers(prompts, candidates, completions):
        contexts.append(copy_context())
        return score(prompts, candidates, completions)

    credit = made(CandidateReward(remembers, PARSER))
    first = credit.advantages(PROMPTS, IDS, group_size=2)
    again = contexts[0].run(credit.advantages, PROMPTS, IDS, group_size=2)
    assert again.token_advantages == first.token_advantages


@pytest.mark.parametrize("is_async", [False, True])
def test_a_reward_that_asks_its_own_loop_is_an_error(is_async):
    """It would wait for itself."""

    def again(prompts, candidates, completions):
        del candidates, completions
        credit.advantages(prompts, IDS, group_size=2)

    async def later(prompts, candidates, completions):
        again(prompts, candidates, completions)

    credit = made(CandidateReward(later if is_async else again, PARSER))
    with pytest.raises(RuntimeError, match="same LoopCredit"):
        credit.advantages(PROMPTS, IDS, group_size=2)


def test_a_loop_has_no_evaluation():
    """It asks when it calls."""
    with pytest.raises(ValueError, match="credit_in_eval"):
        made(credit_in_eval=True)


def test_a_reward_beside_that_is_no_number_costs_its_completion():
    """Under `group_reward` it counts for nothing, and the others of its group are compared without it."""
    credit = made(on_failure="group_reward")
    found = credit.advantages(["p"] * 4, IDS, group_size=4, other_rewards=[1.0, float("nan"), 0.0, 0.0])
    expected = plain([[2.0, 1.0, 0.5]]).to_list()[0]
    assert [row[0] for row in found.token_advantages] == pytest.approx([expected[0], 0.0, *expected[1:]], abs=1e-12)


def test_a_reward_belongs_to_one_loop():
    """It keeps what it found until it is asked."""
    reward = CandidateReward(score, PARSER)
    made(reward)
    with pytest.raises(ValueError, match="of another trainer"):
        made(reward)


class Threads:
    """Processes that are threads, with collectives that wait for all."""

    def __init__(self, count):
        self._slots, self._barrier = [None] * count, threading.Barrier(count, timeout=60)
        self.members = [Member(self, rank, count) for rank in range(count)]

    def exchanged(self, rank, own):
        """What each has put down."""
        self._slots[rank] = own
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def run(self, work):
        """What each returns or raises, work being called with its processes."""
        found = [None] * len(self.members)

        def attempt(rank):
            try:
                found[rank] = work(self.members[rank])
            except Exception as error:  # noqa: BLE001 - the test looks at it
                found[rank] = error

        threads = [threading.Thread(target=attempt, args=(rank,)) for rank in range(len(self.members))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Member:
    """One of them."""

    def __init__(self, threads, rank, count):
        self._threads, self.rank, self.count = threads, rank, count

    def gathered(self, own):
        """What each has."""
        return self._threads.exchanged(self.rank, own)

    def of_first(self, own):
        """What the first one has."""
        return self._threads.exchanged(self.rank, own)[0]


SHARES = [slice(0, 1), slice(1, 4)]
"""Rows of two processes, which split the first group."""


def test_groups_may_span_processes():
    """One of them asks for all; each gets its own rows."""
    expected = made().advantages(PROMPTS, IDS, group_size=2)
    calls = []

    def work(member):
        share = SHARES[member.rank]
        credit = made(processes=member)
        creditor, ask = credit.reward.creditor, credit.reward.creditor.answer
        creditor.answer = lambda *args, **more: calls.append(member.rank) or ask(*args, **more)
        return credit.advantages(PROMPTS[share], IDS[share], group_size=2)

    first, second = Threads(2).run(work)
    assert [*first.token_advantages, *second.token_advantages] == expected.token_advantages
    assert [*first.rewards, *second.rewards] == expected.rewards
    assert calls == [0]


@pytest.mark.parametrize("broken", [0, 1])
def test_where_one_process_fails_all_raise(broken):
    """None waits for ever; what went wrong is said everywhere."""

    def work(member):
        def fail(prompts, candidates, completions, **_):
            if member.rank == broken:
                raise KeyError("no such topic")
            return score(prompts, candidates, completions)

        share = SHARES[member.rank]
        credit = made(CandidateReward(fail, PARSER), processes=member)
        return credit.advantages(PROMPTS[share], IDS[share], group_size=2)

    for error in Threads(2).run(work):
        assert isinstance(error, RuntimeError)
        assert "no such topic" in str(error)


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize(
    ("changes", "words"), [({"lengths": [99]}, "lengths: got"), ({"columns": {"topic": []}}, "topic: got 0")]
)
def test_where_one_process_hands_in_what_does_not_fit_all_raise(broken, changes, words):
    """Before anything is asked: the others do not wait for a process that has gone."""

    def work(member):
        share = SHARES[member.rank]
        mine = changes if member.rank == broken else {}
        return made(processes=member).advantages(PROMPTS[share], IDS[share], group_size=2, **mine)

    for error in Threads(2).run(work):
        assert isinstance(error, RuntimeError)
        assert words in str(error)


@pytest.mark.parametrize("broken", [0, 1])
def test_what_cannot_travel_is_an_error_in_every_process(broken):
    """A process that cannot send its part would leave the others waiting for it."""

    def work(member):
        def make():
            return [threading.Lock() if member.rank == broken else 1]

        return by_all(member, make)

    for error in Threads(2).run(work):
        assert isinstance(error, RuntimeError)
        assert "cannot pickle '_thread.lock'" in str(error)


def test_what_the_first_process_cannot_send_is_an_error_in_all():
    """Of what one makes for all likewise."""
    for error in Threads(2).run(lambda member: by_one(member, threading.Lock)):
        assert isinstance(error, RuntimeError)
        assert "cannot pickle '_thread.lock'" in str(error)


def test_other_rewards_of_some_processes_alone_are_refused():
    """They would count, or not, by which process asks."""

    def work(member):
        share = SHARES[member.rank]
        others = [1.0] * len(IDS[share]) if member.rank else None
        return made(processes=member).advantages(PROMPTS[share], IDS[share], group_size=2, other_rewards=others)

    for error in Threads(2).run(work):
        assert isinstance(error, ValueError)
        assert "of some processes alone" in str(error)


def test_a_dead_service_is_raised_in_every_process():
    """As what it is."""

    def work(member):
        share = SHARES[member.rank]
        return made(processes=member, url=NOBODY, deadline_s=0.2).advantages(PROMPTS[share], IDS[share], group_size=2)

    assert [type(error) for error in Threads(2).run(work)] == [TransportError] * 2


def test_one_process_needs_nobody():
    """What it makes is what there is."""
    alone = OneProcess()
    assert by_all(alone, lambda: [1, 2]) == [1, 2]
    assert by_one(alone, lambda: 3) == 3
    assert (alone.gathered(4), alone.of_first(5)) == ([4], 5)
