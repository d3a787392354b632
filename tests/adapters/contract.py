"""What every adapter has to make of the same rollouts: the same advantage on every token, or the same error.

An adapter's test gives a function that takes rollouts and a `CreditConfig`, has its framework do what it does, and
returns the advantages that the loss trains on, row by row; or raises. Another one does the same where no place has a
group whole.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import pytest

from creditd.adapters.loop import CandidateReward, CreditConfig, LoopCredit, SpanReward
from creditd.client import Client, CreditdError, Ragged, ResponseError, TransportError

WORDS = ["<pad>", "<eos>", "<unk>", "ask", ";", "one", "two", "three", "four", "five", "six"]
"""As the tiny model of these tests has them, a token each."""
PARSER = {"type": "regex", "pattern": r"(\w+) ?(?:;|$)"}
VALUES = {"one": 0.25, "two": 1.0, "three": 0.5, "four": 0.125, "five": 0.75, "six": None}
GROUP, LONGEST = 4, 8
NOBODY = "http://127.0.0.1:9"
AGREEMENT = 1e-6
PROMPTS = ["ask one"] * GROUP + ["ask two"] * GROUP
LABELS = ["a"] * GROUP + ["b"] * GROUP
BONUS = {"ask one": 0.0, "ask two": 0.0625, "a": 0.0, "b": 0.03125}
"""What a prompt and what the data says beside it add to each reward, so that rows with those of others are seen."""


@dataclass(frozen=True)
class Rollouts:
    """Completions of two groups.

    Attributes:
        words: Of each completion.
        spans: By hand: where its candidates are.
        written: Whether the policy wrote each token; None: it wrote them all.
        curse: The reward of `four`.
    """

    words: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[int, ...], ...]
    written: tuple[tuple[int, ...], ...] | None = None
    curse: float | None = 0.125

    is_judged = False

    @property
    def ids(self):
        """Tokens of each completion."""
        return [[WORDS.index(word) for word in row] for row in self.words]

    @property
    def masks(self):
        """1 for a token that the policy wrote."""
        return [[1] * len(row) for row in self.words] if self.written is None else [list(row) for row in self.written]

    def scores(self, prompts, candidates, labels):
        """The rewards of candidates, by their words, by the prompts and by the labels."""
        return [
            [self._score(text, BONUS[asked_in(prompt)] + BONUS[label]) for text in row]
            for prompt, row, label in zip(prompts, candidates, labels, strict=True)
        ]

    def _score(self, word, bonus):
        value = self.curse if word == "four" else VALUES[word]
        return None if value is None else value + bonus

    @property
    def rewards(self):
        """Of the candidates of each completion."""
        candidates = [[row[place] for place in spans] for row, spans in zip(self.words, self.spans, strict=True)]
        return self.scores(PROMPTS, candidates, LABELS)

    def reward(self):
        """What a trainer is given in the place of a reward function."""

        def score(prompts, candidates, completions, **columns):
            assert len(prompts) == len(candidates) == len(completions)
            return self.scores(prompts, candidates, labels_in(columns))

        return CandidateReward(score, PARSER)


@dataclass(frozen=True)
class JudgedRollouts(Rollouts):
    """The same for a function that judges whole texts, whose spans have credit; `spans` is not looked at."""

    is_judged = True

    def judge(self, prompts, texts):
        """Two is good, four is not, and both depend on what was asked."""
        return [
            BONUS[asked_in(prompt)] + len(prompt) + 2.0 * text.count("two") - 0.5 * text.count("four")
            for prompt, text in zip(map(asked_in, prompts), texts, strict=True)
        ]

    def reward(self):
        """What a trainer is given in the place of a reward function."""
        return SpanReward(self.judge, segmentation="token")


class Tokenizer:
    """Words with blanks between them, as the tiny tokenizer of these tests writes them."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids, **_):
        """Text of words."""
        return " ".join(WORDS[number] for number in ids)


def asked_in(prompt):
    """The prompt in whatever a trainer has it."""
    (found,) = [known for known in set(PROMPTS) if known in str(prompt)]
    return found


def labels_in(columns):
    """What the data says beside the prompt, under the name that a trainer has for it."""
    if "env_extras" in columns:
        return [extra["label"] for extra in columns["env_extras"]]
    return columns["label"] if "label" in columns else columns["labels"]


RAGGED = Rollouts(
    (
        ("one", ";", "two", "<eos>"), ("three", ";", "three", ";", "one", "<eos>"), ("two", "<eos>"),
        ("five", ";", "four", ";", "two", "<eos>"), ("one", "<eos>"), ("one", ";", "four", "<eos>"),
        ("five", ";", "five", "<eos>"), ("two", ";", "three", ";", "one", ";", "four"),
    ),
    ((0, 2), (0, 2, 4), (0,), (0, 2, 4), (0,), (0, 2), (0, 2), (0, 2, 4, 6)),
)  # fmt: skip
HOLES = replace(
    RAGGED,
    words=(*RAGGED.words[:3], ("one", ";", "ask", "three", ";", "two", "<eos>"), *RAGGED.words[4:]),
    spans=(*RAGGED.spans[:3], (3, 5), *RAGGED.spans[4:]),
    written=tuple(
        (1, 1, 0, 1, 1, 1, 1) if place == 3 else (1,) * len(row) for place, row in enumerate(RAGGED.words)
    ),
)  # fmt: skip
"""A tool wrote `ask`: the candidates are those of the last stretch."""
UNSCORED = replace(
    RAGGED, words=(("one", ";", "six", "<eos>"), *RAGGED.words[1:]), spans=((0, 2), *RAGGED.spans[1:])
)  # fmt: skip
JUDGED = JudgedRollouts(HOLES.words, HOLES.spans, HOLES.written)
CURSED = replace(
    RAGGED, words=(*RAGGED.words[:3], ("five", ";", "three", ";", "two", "<eos>"), *RAGGED.words[4:]), curse=math.nan
)
"""Two completions of the second group have a candidate whose reward is no number."""
SOUND = (0, 1, 2, 3)
"""Rows of the group without it."""


def credited(rollouts):
    """By the client alone: NaN where it has no answer."""
    with Client("local:") as client:
        return client.shapley(
            rollouts.rewards,
            groups=[row // GROUP for row in range(len(rollouts.words))],
            spans=[[(place, place + 1) for place in spans] for spans in rollouts.spans],
            n_tokens=[len(row) for row in rollouts.words],
            tokens={"other": "set"},
            expect={"group_size": GROUP},
            malformed={"candidates": 256},
            on_item_error="return",
        ).token_advantages


def judged(rollouts):
    """By a loop written by hand, which has tests of its own."""
    loop = LoopCredit(rollouts.reward(), here(), tokenizer=Tokenizer(), longest=LONGEST)
    found = loop.advantages(PROMPTS, rollouts.ids, group_size=GROUP, completion_masks=rollouts.masks)
    return found.token_advantages


def wanted(rollouts):
    """The same, exactly 0 on tokens that the policy did not write."""
    return [
        [value * kept for value, kept in zip(row, mask, strict=True)]
        for row, mask in zip(credited(rollouts).to_list(), rollouts.masks, strict=True)
    ]


def plain(rollouts):
    """GRPO's advantages of the sets' rewards among those that are known, 0 for the others, on every token."""
    known = [[value for value in row if value is not None] for row in rollouts.rewards]
    best = [math.nan if any(map(math.isnan, row)) else max(row, default=0.0) for row in known]
    found = [0.0] * len(best)
    with Client("local:") as client:
        for start in range(0, len(best), GROUP):
            rows = [row for row in range(start, start + GROUP) if not math.isnan(best[row])]
            values = client.group([[best[row] for row in rows]]).advantages[0].tolist()
            for row, value in zip(rows, values, strict=True):
                found[row] = value
    return [[value] * len(row) for value, row in zip(found, rollouts.words, strict=True)]


def here(**options):
    """A configuration that computes in this process."""
    return CreditConfig(**{"url": "local:"} | options)


def nobody(**options):
    """A configuration whose service is not there."""
    return CreditConfig(**{"url": NOBODY, "deadline_s": 0.2} | options)


def same(found, expected):
    """Row by row and token by token, to 1e-6."""
    assert [len(row) for row in found] == [len(row) for row in expected]
    for own, other in zip(found, expected, strict=True):
        assert list(own) == pytest.approx(list(other), abs=AGREEMENT)


class AdapterContract:
    """The tests; a subclass has `advantages(…, rollouts, config)` and `split(…)`, as the module says."""

    @abstractmethod
    def advantages(self, tmp_path, rollouts, config):
        """What the framework trains on."""

    @abstractmethod
    def split(self, tmp_path, rollouts, config):
        """The same where groups are spread over ranks, micro-batches or calls, as the framework spreads them."""

    @pytest.mark.parametrize("name", ["ragged", "holes", "unscored"])
    def test_tokens_have_what_the_client_answers(self, tmp_path, name):
        """Ragged rows, tokens of tools, a candidate without a reward."""
        rollouts = {"ragged": RAGGED, "holes": HOLES, "unscored": UNSCORED}[name]
        expected = wanted(rollouts)
        assert all(any(row) for row in expected)
        same(self.advantages(tmp_path, rollouts, here()), expected)

    @pytest.mark.parametrize("name", ["ragged", "holes"])
    def test_tokens_have_the_same_however_groups_are_spread(self, tmp_path, name):
        """Baselines are those of whole groups, wherever their rows are trained."""
        rollouts = {"ragged": RAGGED, "holes": HOLES}[name]
        same(self.split(tmp_path, rollouts, here()), wanted(rollouts))

    def test_spans_have_what_a_loop_has(self, tmp_path):
        """Judged as whole texts, what tools wrote included, whose tokens have nothing."""
        expected = judged(JUDGED)
        assert all(any(row) for row in expected)
        same(self.advantages(tmp_path, JUDGED, here()), expected)

    def test_a_reward_that_is_no_number_is_an_error(self, tmp_path):
        """By default it ends the step."""
        with pytest.raises(CreditdError):
            self.advantages(tmp_path, CURSED, here())

    def test_a_reward_that_is_no_number_costs_its_group(self, tmp_path):
        """Under `mask` the group is not trained; the other one is as ever."""
        found = self.advantages(tmp_path, CURSED, here(on_failure="mask"))
        expected = wanted(CURSED)
        same(found, [row if place in SOUND else [0.0] * len(row) for place, row in enumerate(expected)])

    def test_a_reward_that_is_no_number_leaves_plain_advantages(self, tmp_path):
        """Under `group_reward` those of the rows that are known; the unknown ones have 0."""
        found = self.advantages(tmp_path, CURSED, here(on_failure="group_reward"))
        expected, fallback = wanted(CURSED), plain(CURSED)
        assert [row[0] for row in fallback[4:]].count(0.0) >= 2
        same(found, [expected[place] if place in SOUND else fallback[place] for place in range(len(expected))])

    def test_a_dead_service_is_an_error(self, tmp_path):
        """By default it ends the step."""
        with pytest.raises(TransportError):
            self.advantages(tmp_path, RAGGED, nobody())

    @pytest.mark.parametrize("policy", ["mask", "group_reward", "local"])
    def test_a_dead_service_leaves_what_the_policy_says(self, tmp_path, policy):
        """Nothing, plain advantages, or the same numbers from this process."""
        expected = {
            "mask": [[0.0] * len(row) for row in RAGGED.words],
            "group_reward": plain(RAGGED),
            "local": wanted(RAGGED),
        }[policy]
        same(self.advantages(tmp_path, RAGGED, nobody(on_failure=policy)), expected)

    def test_an_answer_of_another_length_is_an_error(self, tmp_path, monkeypatch):
        """Nothing is cut or filled up."""
        ask = Client.shapley

        def short(client, *args, **options):
            result = ask(client, *args, **options)
            if result.token_advantages is None or len(result) != len(RAGGED.words):
                return result
            cut = Ragged.from_rows([row[:-1] for row in result.token_advantages])
            return replace(result, token_advantages=cut)

        monkeypatch.setattr(Client, "shapley", short)
        with pytest.raises(ResponseError, match="which has 4 tokens"):
            self.advantages(tmp_path, RAGGED, here())
