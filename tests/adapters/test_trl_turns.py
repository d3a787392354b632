"""Several turns, thinking and special tokens: which of a completion's tokens are read, and what they are paid."""

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from trl import GRPOTrainer

from adapters.trainers import MARKS, PARSER, Watch, asked, check_alignment, recorded, score, scripted, trainer_of
from creditd.adapters.trl import CandidateReward, CreditConfig, CreditGRPOTrainer, attach

pytestmark = MARKS
MORE = ["\n1.", "\n2.", "\n3.", "result:", "<think>", "</think>", "<idea>", "</idea>"]
NUMBERED = {"type": "numbered"}


def words(_, candidates, *__, **___):
    """A reward per candidate: its words."""
    return [[float(len(text.split())) for text in texts] for texts in candidates]


class Shown:
    """A candidate reward, and the candidates that it was shown."""

    def __init__(self, parser=NUMBERED, function=words, **options):
        self.candidates = []

        def watched(prompts, candidates, completions, **columns):
            self.candidates.extend(candidates)
            return function(prompts, candidates, completions, **columns)

        self.reward = CandidateReward(watched, parser, name="watched", **options)


def trained(tmp_path, shown, rollout, **options):
    """A trainer after one step on scripted completions, with eyes on it."""
    credit = options.pop("credit", None) or CreditConfig(url="local:", record=str(tmp_path / "wire"))
    settings = {"max_completion_length": 16, "max_steps": 1, "more": MORE} | options
    trainer = trainer_of(tmp_path, rewards=shown.reward, credit=credit, rollout_func=rollout, **settings)
    watch = Watch(trainer)
    trainer.train()
    return trainer, watch


ANSWER = ["\n1.", "three", "four", "\n2.", "five", "<eos>"]
AFTER_A_TOOL = ["ask", "\n1.", "one", "\n2.", "two", *ANSWER]
TOOL = [1, 0, 0, 0, 0, *[1] * len(ANSWER)]


def test_what_a_tool_wrote_is_not_parsed(tmp_path):
    """A list that a tool returned neither plays nor changes what the policy's own list says."""
    shown = Shown()
    trainer, watch = trained(tmp_path, shown, scripted([AFTER_A_TOOL], MORE, [TOOL]))
    assert shown.candidates[0] == ["three four", "five"]
    (body,) = asked(tmp_path / "wire")
    assert body["columns"]["rewards"]["values"][:2] == [2.0, 1.0]
    assert body["columns"]["spans"]["starts"][:2] == [6, 9]
    assert trainer.state.log_history[0]["reward"] == 2.0
    check_of_tools(watch, TOOL)


def check_of_tools(watch, mask):
    """Tokens of tools have advantage exactly 0."""
    ((_, masks, advantages),) = watch.generated
    places = [place for place, kept in enumerate(mask) if not kept]
    assert not advantages[:, places].any()
    assert not masks[:, places].any()


def test_tokens_of_tools_and_padding_are_exactly_zero(tmp_path):
    """A token that a tool wrote has advantage 0, whatever stands around it, and the policy's own have theirs."""
    completions = [[*["one", ";"] * place, "two", ";", "three", ";", "four", "<eos>"] for place in range(3)]
    masks = [[*[1] * (2 * place), 0, 1, 1, 1, 1, 1] for place in range(3)]
    shown = Shown(PARSER, score)
    _, watch = trained(tmp_path, shown, scripted(completions, MORE, masks))
    ((ids, kept, advantages),) = watch.generated
    assert ids.shape == advantages.shape
    assert not advantages[kept == 0].any()
    assert advantages[kept == 1].any()


@pytest.mark.parametrize(
    ("turns", "expected"), [("last", ["five"]), ("all", ["one", "two", "five"])], ids=["last", "all"]
)
def test_turns_are_parsed_one_by_one(turns, expected, tmp_path):
    """The last turn with candidates is the answer, unless every turn is asked for; no candidate spans two turns."""
    completion = ["\n1.", "one", "\n2.", "two", "result:", "six", "six", "\n3.", "five", "<eos>"]
    mask = [1, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    shown = Shown(turns=turns)
    _, watch = trained(tmp_path, shown, scripted([completion], MORE, [mask]))
    assert shown.candidates[0] == expected
    check_of_tools(watch, mask)


def test_a_turn_without_candidates_leaves_the_answer_to_the_one_before(tmp_path):
    """A last word such as a thanks does not take the list away."""
    completion = [*ANSWER[:-1], "result:", "six", "ask", "<eos>"]
    shown = Shown()
    trained(tmp_path, shown, scripted([completion], MORE, [[1, 1, 1, 1, 1, 0, 0, 1, 1]]))
    assert shown.candidates[0] == ["three four", "five"]


def test_the_plain_advantage_is_that_of_what_plays(tmp_path):
    """Without a service, `group_reward` uses what TRL made of the policy's own candidates."""
    completions = [AFTER_A_TOOL, ["ask", "\n1.", "one", "one", "one", "\n1.", "two", "<eos>"]]
    masks = [TOOL, [1, 0, 0, 0, 0, 1, 1, 1]]
    credit = CreditConfig(url="http://127.0.0.1:9", deadline_s=0.2, on_failure="group_reward")
    _, watch = trained(tmp_path, Shown(), scripted(completions, MORE, masks), credit=credit)
    ((_, kept, advantages),) = watch.generated
    for row, (mask, values) in enumerate(zip(kept, advantages, strict=True)):
        (value,) = set(values[mask == 1].tolist())
        assert (value > 0) == (row % 2 == 0)


@pytest.mark.parametrize("masked", [False, True])
def test_masked_truncated_completions_keep_their_candidates(masked, tmp_path):
    """TRL takes a cut-off completion out of the loss; its candidates still stand in the baseline, tools or not."""
    completions = [["one", ";", "two", ";", "three", ";", "four", ";"], ["two", ";", "three", "<eos>"]]
    counts = []
    for masks in (None, [[1] * 8, [1] * 4]):
        shown = Shown(PARSER, score)
        trained(
            tmp_path / str(len(counts)),
            shown,
            scripted(completions, MORE, masks),
            max_completion_length=8,
            mask_truncated_completions=masked,
        )
        counts.append([len(texts) for texts in shown.candidates])
    assert counts[0] == counts[1]
    assert counts[0][:2] == [3, 2]  # the fourth item was cut off


OPEN = ["ask", "one", "<think>"]
CUT_OFF = ["\n1.", "one", "\n2.", "two", "\n3.", "six"]
THOUGHT = ["\n1.", "six", "</think>", *ANSWER]


@pytest.mark.parametrize(
    ("prompt", "thinking", "expected"),
    [
        (OPEN, "detect", [[], ["three four", "five"]]),
        (OPEN, "ignored", [["one", "two"], ["six </think> \n1. three four", "five"]]),
        (["ask", "one"], "detect", [["one", "two"], ["three four", "five"]]),
        (["ask", "one"], "opened", [[], ["three four", "five"]]),
        ([*OPEN, "</think>"], "detect", [["one", "two"], ["three four", "five"]]),
    ],
)
def test_thoughts_that_the_prompt_opened_are_no_answer(prompt, thinking, expected, tmp_path):
    """Where the template opens the thinking, a completion that was cut off inside it has no candidate."""
    shown = Shown(thinking=thinking)
    rollout = scripted([CUT_OFF, THOUGHT], MORE, prompt=prompt)
    trained(tmp_path, shown, rollout, max_completion_length=len(CUT_OFF))
    assert shown.candidates[:2] == expected


def test_a_turn_whose_thinking_the_template_opened_is_known_too(tmp_path):
    """After a tool the template opens the thinking again, with tokens that the policy did not write."""
    completion = [*ANSWER[:-1], "result:", "<think>", *CUT_OFF]
    mask = [1, 1, 1, 1, 1, 0, 0, *[1] * len(CUT_OFF)]
    shown = Shown()
    trained(tmp_path, shown, scripted([completion], MORE, [mask]), max_completion_length=len(completion))
    assert shown.candidates[0] == ["three four", "five"]


@pytest.mark.parametrize("special", [(), ("<idea>", "</idea>")], ids=["ordinary", "special"])
def test_tags_are_found_however_they_are_registered(special, tmp_path):
    """A tag that is a special token of the tokenizer is still text; only ends and padding are none."""
    completion = ["<idea>", "one", "</idea>", "<idea>", "two", "</idea>", "<eos>"]
    shown = Shown({"type": "tags", "name": "idea"}, score)
    _, watch = trained(tmp_path, shown, scripted([completion], MORE), special=special)
    assert shown.candidates[0] == ["one", "two"]
    check_alignment(watch, recorded(tmp_path / "wire"))


def test_every_end_token_ends_a_completion(tmp_path):
    """A list that ends with any of the model's end tokens is complete, its last candidate too."""
    completions = [["five", ";", "one", "<unk>"], ["five", ";", "one", "<eos>"], ["three", "<eos>"], ["two", "<unk>"]]
    shown = Shown(PARSER, score)
    trained(tmp_path, shown, scripted(completions), ends=[1, 2])
    assert [len(texts) for texts in shown.candidates[:4]] == [2, 2, 1, 1]


def changing(change):
    """A subclass of TRL's trainer that changes what a generation comes back with."""

    def generate(self, inputs):
        return change(GRPOTrainer._generate_and_score_completions(self, inputs))

    return type("Changing", (GRPOTrainer,), {"_generate_and_score_completions": generate})


def reordered(out):
    """Rows from the last to the first."""
    return {key: value.flip(0) if getattr(value, "ndim", 0) else value for key, value in out.items()}


def halved(out):
    """Half of the rows."""
    return {key: value[:4] if getattr(value, "ndim", 0) else value for key, value in out.items()}


@pytest.mark.parametrize(
    ("change", "said"), [(reordered, "Changing returned other tokens in row 0"), (halved, "Changing returned 4 compl")]
)
def test_rows_that_are_not_those_that_were_scored_are_refused(change, said, tmp_path):
    """A subclass that reorders or drops completions would train them on the advantages of others."""
    completions = [["one", ";", "two", "<eos>"], ["three", "<eos>"], ["four", ";", "<eos>"]]
    trainer = trainer_of(tmp_path, kind=changing(change), rollout_func=scripted(completions), max_steps=1)
    attach(trainer, CreditConfig(url="local:"))
    with pytest.raises(ValueError, match=said):
        trainer.train()


def test_completions_that_were_not_generated_are_refused(tmp_path):
    """Of completions that a subclass puts in the place of the generated ones nobody knows what the policy wrote."""

    class Swapping(CreditGRPOTrainer):
        def _generate(self, prompts):
            prompt_ids, completion_ids, *rest = super()._generate(prompts)
            return (prompt_ids, [[*row[:-1], 2] for row in completion_ids], *rest)

    trainer = trainer_of(tmp_path, kind=Swapping, credit=CreditConfig(url="local:"), max_steps=1)
    with pytest.raises(ValueError, match="Swapping has completions scored"):
        trainer.train()
