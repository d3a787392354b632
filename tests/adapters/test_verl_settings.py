"""Keys of verl's sampler, rows of its batches, and what is refused before a run, without verl."""

import sys
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from adapters.verl_batches import PARSER, QUESTION, Tokenizer
from creditd.adapters.credit_config import Anneal, CreditConfig
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.verl_askers import CreditAsker, SensitivityAsker, SpanRewardAsker, asker_of
from creditd.adapters.verl_overlay import Overlay, overlaid
from creditd.adapters.verl_rows import VerlBatch, joined, sessions_of, whole_groups
from creditd.adapters.verl_seams import SeamMovedError, seam, takes
from creditd.adapters.verl_settings import CommonSettings, known_keys, named, settings_of
from creditd.client import CreditdError

SCORE = "pkg://adapters.verl_batches:score"
JUDGE = "pkg://adapters.verl_batches:judge"
KEYS = ["a_1_0", "b_0_0", "a_0_1", "a_0_0", "b_1_0"]


def batch(keys=("a_0_0", "a_1_0"), **more):
    """Two words each."""
    count = len(keys)
    given = {
        "keys": list(keys),
        "prompts": [QUESTION] * count,
        "prompt_ids": [[2, 6]] * count,
        "ids": [[2, 1], [3, 1]] * (count // 2),
        "masks": [[1, 1]] * count,
        "columns": {"data_source": ["words"] * count, "reward_model": [None] * count},
    }
    return VerlBatch(**given | more)


def asker(**keys):
    """One that knows its tokenizer."""
    made = asker_of(
        settings_of({"url": "local:", "reward": SCORE, "parser": PARSER, "thinking": "ignored"} | keys), 2, 16
    )
    made.read_by(Tokenizer())
    return made


def test_sessions_of_a_prompt_stand_next_to_each_other():
    """In the order of prompts, sessions and outputs, whatever order the rows are in."""
    found = sessions_of(KEYS)
    assert [(one.uid, one.rows) for one in found] == [("a", (3, 2)), ("a", (0,)), ("b", (1,)), ("b", (4,))]
    whole, broken = whole_groups([*found, *sessions_of(["c_0_0"])], 2)
    assert [one.uid for one in whole] == ["a", "a", "b", "b"]
    assert [one.uid for one in broken] == ["c"]


@pytest.mark.parametrize("key", ["a", "a_0", "a_0_0_0", "a_x_0", "_0_0", "a_0_"])
def test_another_form_of_keys_is_refused(key):
    """A later verl may name rows in another way one day."""
    with pytest.raises(ValueError, match="expected UID_SESSION_INDEX"):
        sessions_of([key])


def test_a_row_occurs_once():
    """A batch that has one twice is none."""
    with pytest.raises(ValueError, match="'a_0_0' twice"):
        sessions_of(["a_0_0", "a_0_0"])


def test_outputs_of_a_session_are_parted_by_the_end_of_the_later_prompt():
    """Masked, so that it is not read as the policy's."""
    keys = ("a_0_0", "a_0_1")
    (session,) = sessions_of(keys)
    found = joined(session, batch(keys))
    assert found.ids == [2, 1, 2, 6, 3, 1]
    assert found.mask == [1, 1, 0, 0, 1, 1]
    assert found.spans == ((0, 2), (4, 6))


def test_a_mask_of_another_length_is_refused():
    """By the name of the row."""
    with pytest.raises(ValueError, match="got 1 entries for row a_0_0; expected 2"):
        batch(masks=[[1], [1, 1]])


def test_keys_go_to_whoever_takes_them():
    """The configuration, the reward, or all."""
    found = settings_of(
        {
            "url": "local:",
            "reward": SCORE,
            "parser": PARSER,
            "columns": ["topic"],
            "credit": {"type": "anneal", "start": "shapley", "end": "set_reward", "steps": 9},
        }
    )
    assert found.common == CommonSettings(columns=("topic",))
    assert found.config == {"url": "local:", "credit": Anneal("shapley", "set_reward", 9)}
    assert found.reward["parser"] == PARSER
    assert found.reward["function"].__name__ == "score"
    assert settings_of({"reward": "rm", "credit": SCORE}).config["credit"].__name__ == "score"


def test_settings_show_no_key():
    """Neither in a log nor in an error."""
    assert "secret" not in repr(settings_of({"reward": "rm", "parser": PARSER, "api_key": "secret"}))


def test_every_choice_of_the_other_adapters_is_a_key():
    """But for evaluation, which verl's sampler is not asked about, and what needs the trainer's own model."""
    _, credit, _ = known_keys("candidates")
    assert {field.name for field in fields(CreditConfig)} - set(credit) == {"credit_in_eval"}
    _, sensitivity, _ = known_keys("sensitivity")
    lacking = {field.name for field in fields(SensitivityConfig)} - set(sensitivity)
    assert lacking == {"in_process", "most_tokens"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "turns"}, "got kind 'turns'; expected one of candidates, spans, span_rewards, sensitivity"),
        ({"incomplete_groups": "zero"}, "got incomplete_groups 'zero'"),
        ({"group_size": 0}, "got group_size 0"),
        ({"reward_weight": "much"}, "got reward_weight 'much'"),
        ({"columns": "topic"}, "got columns 'topic'; expected a list of names"),
        ({"columns": [1]}, "got columns"),
        ({"silent": ["<end>"]}, "got silent"),
        ({"reward": None}, "got no reward"),
        ({"credit": {"type": "anneal", "steps": 9}}, "got anneal with steps; expected start, end and steps"),
        ({"reward": "pkg://adapters.verl_batches"}, "expected pkg://MODULE:NAME"),
        ({"reward": "pkg://adapters.verl_batches:nothing"}, "there is no function nothing"),
        ({"segmentation": "token"}, "got 'segmentation'"),
        ({"kind": "span_rewards", "on_failure": "mask", "parser": None}, "got 'on_failure'|got 'parser'"),
    ],
)
def test_keys_that_are_none_are_refused(keys, words):
    """With those that there are."""
    with pytest.raises(ValueError, match=words):
        settings_of({"reward": SCORE} | keys)


def test_functions_are_named_by_module_or_file(tmp_path):
    """Everything else is the id of a model."""
    (tmp_path / "mine.py").write_text("def score(prompts, candidates, completions, **_):\n    return 7\n")
    assert named(f"{tmp_path}/mine.py:score")([], [], []) == 7
    assert "creditd_verl_mine" in sys.modules
    assert named("Qwen/rm:1") == "Qwen/rm:1"
    with pytest.raises(ImportError, match="expected a file of Python"):
        named(f"{tmp_path}/other.py:score")


def test_candidates_need_a_parser():
    """There is no default for how they are written."""
    with pytest.raises(ValueError, match="got no parser"):
        asker_of(settings_of({"reward": SCORE}), 2, None)


def test_each_kind_has_its_asker():
    """And says what it wants to read."""
    candidates = asker()
    assert isinstance(candidates, CreditAsker)
    assert (candidates.columns, candidates.reads_rewards) == (("data_source", "reward_model"), False)
    rewards = asker_of(settings_of({"kind": "span_rewards", "url": "local:", "reward": JUDGE}), 2, 16)
    assert isinstance(rewards, SpanRewardAsker)
    assert rewards.writes_rewards
    reasons = asker_of(settings_of({"kind": "sensitivity", "model": "policy", "parser": "hashes"}), 2, 16)
    assert isinstance(reasons, SensitivityAsker)
    assert (reasons.reads_rewards, reasons.reads_prompts) == (True, False)
    with pytest.raises((ValueError, CreditdError)):
        asker_of(settings_of({"kind": "sensitivity", "model": "p", "parser": "hashes", "base_advantage": "no"}), 2, 16)


def test_a_batch_without_whole_groups_asks_nobody():
    """Its tokens are not trained, where that was chosen."""
    found = asker(incomplete_groups="mask").ask(batch(("a_0_0", "b_0_0")), 0)
    assert found.rows == {"a_0_0": [0.0, 0.0], "b_0_0": [0.0, 0.0]}
    assert found.metrics == {"credit/incomplete": 1.0}


def test_a_reward_model_reads_one_output():
    """Of a session that has several there is no one text."""
    made = asker_of(settings_of({"kind": "span_rewards", "url": "local:", "reward": JUDGE}), 1, 16)
    made.read_by(Tokenizer())
    with pytest.raises(ValueError, match="a session of prompt a with 2 outputs"):
        made.ask(batch(("a_0_0", "a_0_1")), 0)


def test_token_rewards_sum_to_what_the_text_is_worth():
    """v(P) − v(∅), whatever the unit."""
    made = asker_of(
        settings_of({"kind": "span_rewards", "url": "local:", "reward": JUDGE, "reward_weight": 0.5}), 2, 16
    )
    made.read_by(Tokenizer())
    found = made.ask(batch(rewards=[1.0, 0.0]), 0)
    assert {key: sum(row) for key, row in found.rows.items()} == pytest.approx({"a_0_0": 0.25, "a_1_0": 2.0})
    assert found.metrics["credit/reward/mean"] == pytest.approx(0.875)
    assert [found.metrics[f"credit/{name}"] for name in ("fallbacks", "errors", "alpha")] == [0.0, 0.0, 1.0]


def test_without_contrast_no_policy_is_asked():
    """Equal rewards: all advantages are 0."""
    made = asker_of(
        settings_of({"kind": "sensitivity", "model": "p", "parser": "hashes", "url": "http://127.0.0.1:9"}), 2, 16
    )
    made.read_by(Tokenizer())
    found = made.ask(batch(rewards=[1.0, 1.0]), 0)
    assert found.rows == {"a_0_0": [0.0, 0.0], "a_1_0": [0.0, 0.0]}
    assert found.metrics["credit/without_contrast"] == 1.0


def test_without_a_policy_there_is_the_plain_advantage_where_that_was_chosen():
    """And it is counted; earlier outputs of a session have the plain one always."""
    keys = {"kind": "sensitivity", "model": "p", "parser": "hashes", "url": "http://127.0.0.1:9", "deadline_s": 0.2}
    made = asker_of(settings_of(keys | {"on_failure": "group_reward"}), 2, 16)
    made.read_by(Tokenizer())
    given = batch(
        ("a_0_0", "a_0_1", "a_1_0"),
        ids=[[3], [2, 1], [3, 1]],
        masks=[[1], [1, 1], [0, 1]],
        rewards=[9.0, 1.0, 0.0],
        columns={},
    )
    found = made.ask(given, 0)
    assert found.rows["a_0_0"] == found.rows["a_0_1"][:1]
    assert found.rows["a_1_0"] == [0.0, -found.rows["a_0_1"][0]]
    assert found.metrics["credit/fallbacks"] == found.metrics["credit/errors"] == 1.0
    raising = asker_of(settings_of(keys), 2, 16)
    raising.read_by(Tokenizer())
    with pytest.raises(CreditdError):
        raising.ask(given, 0)


def test_seams_that_moved_are_named():
    """A module, an attribute, an argument."""
    for module, name in (("creditd.nowhere", "x"), ("creditd.adapters.verl_rows", "nothing")):
        with pytest.raises(SeamMovedError, match=f"{module}.{name} of verl"):
            seam(module, name)
    with pytest.raises(SeamMovedError, match="joined of verl, which takes no argument tokens"):
        takes(joined, ["session", "tokens"])
    assert seam("creditd.adapters.verl_rows", "joined", ["batch"]) is joined


@pytest.mark.trainer
def test_the_overlay_holds_one_batch_and_each_row_to_its_length():
    """Ragged rows in padded tensors; tokens beyond those that were answered are an error."""
    torch = pytest.importorskip("torch")
    overlay = Overlay()
    overlay.keep({"a_0_0": [1.0, 2.0], "a_1_0": [3.0, 4.0, 5.0]})
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    found, known = overlay.laid_over({"response_mask": mask}, ["a_0_0", "a_1_0", "pad_0_0"], whole=True)
    assert found.tolist() == [[1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 5.0, 0.0], [0.0] * 4]
    assert known[:, 0].tolist() == [True, True, False]
    with pytest.raises(
        ValueError, match="has 3 of 4 tokens up to the last one that is trained, and creditd answered 2"
    ):
        overlay.laid_over({"response_mask": mask[1:2]}, ["a_0_0"], whole=True)
    with pytest.raises(ValueError, match="has 2 of 2 tokens"):
        overlay.laid_over({"response_mask": mask[:1, :2]}, ["a_1_0"], whole=True)
    data = SimpleNamespace(batch={"response_mask": mask})

    def original(data, batch_keys, adv_estimator):
        del batch_keys, adv_estimator
        data.batch |= {"advantages": torch.full((3, 4), 7.0), "returns": torch.full((3, 4), 8.0)}
        return data

    keys = ["a_0_0", "x_0_0", "pad_0_0"]
    laid = overlaid(original, overlay)(data, batch_keys=keys, adv_estimator="grpo").batch
    assert laid["advantages"].tolist() == [[1.0, 2.0, 0.0, 0.0], [7.0] * 4, [7.0] * 4]
    assert laid["returns"].tolist()[1] == [8.0] * 4
    assert np.isfinite(laid["advantages"].numpy()).all()
