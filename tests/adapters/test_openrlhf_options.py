"""Options of the launcher for OpenRLHF: whose each is, what they become, and what is none."""

import pickle
from dataclasses import fields
from pathlib import Path

import pytest

from creditd.adapters import openrlhf
from creditd.adapters.checkpoint_weights import CheckpointKeys
from creditd.adapters.credit_config import Anneal
from creditd.adapters.loop import CandidateReward, SpanReward
from creditd.adapters.openrlhf_no_reward import reward_func
from creditd.adapters.openrlhf_options import (
    KINDS,
    CreditChoices,
    SensitivityChoices,
    function_of,
    is_reference,
    names,
    split_arguments,
)
from creditd.adapters.openrlhf_settings import NO_REWARD
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.verl_settings import known_keys

SCORE = "adapters.openrlhf_rewards:score"
PARSER = '{"type": "numbered"}'
CANDIDATES = ["--credit.reward", SCORE, "--credit.parser", PARSER]
THEIRS = ["--actor.model_name_or_path", "m", "--reward.clip_range", "-1", "1", "--vllm.enable_sleep"]


def made(*arguments):
    """The reward, and how to ask, after a journey."""
    choices, _ = split_arguments(arguments)
    return pickle.loads(pickle.dumps(choices)).made()  # noqa: S301 - our own


def test_each_option_goes_to_whose_it_is():
    """Those of OpenRLHF keep their order, wherever creditd's stand."""
    mixed = [*THEIRS[:2], "--credit.on_failure=mask", *THEIRS[2:5], *CANDIDATES, *THEIRS[5:]]
    choices, others = split_arguments(mixed)
    assert others == THEIRS
    assert choices.reward == SCORE
    assert choices.of_reward == {"parser": {"type": "numbered"}}
    assert choices.of_config["on_failure"] == "mask"


def test_candidates_have_every_option_of_both():
    """By the names of the arguments of CandidateReward and CreditConfig."""
    reward, config = made(
        *CANDIDATES, "--credit.turns", "all", "--credit.thinking", "opened", "--credit.name", "mine",
        "--credit.url", "http://credit.test", "--credit.credit", "leave_one_out", "--credit.utility", "sum",
        "--credit.advantage", '{"type": "centered"}', "--credit.candidates", "4",
        "--credit.tokens", '{"other": "zero"}', "--credit.malformed", '{"failure_reward": -1.0}',
        "--credit.deterministic", "--credit.deadline_s", "7.5",
        "--credit.keep", "3", "--credit.max_credit_share", "0.5",
    )  # fmt: skip
    assert isinstance(reward, CandidateReward)
    assert (reward.__name__, reward.reading.turns, reward.reading.thinking) == ("mine", "all", "opened")
    assert (config.url, config.credit, config.utility) == ("http://credit.test", "leave_one_out", "sum")
    assert (config.advantage, config.tokens, config.candidates) == ({"type": "centered"}, {"other": "zero"}, 4)
    assert (config.malformed, config.deterministic, config.deadline_s) == ({"failure_reward": -1.0}, True, 7.5)
    assert (config.keep, config.max_credit_share) == (3, 0.5)


def test_spans_have_every_option_of_a_span_reward():
    """Without a parser; `credit` and `advantage` are then those of spans."""
    reward, config = made(
        "--credit.reward", "rm", "--credit.segmentation", "sentence", "--credit.absent", "blank", "--credit.credit",
        "owen", "--credit.alpha", "0.5", "--credit.estimator", '{"type": "auto", "budget": 64}', "--credit.batch_size",
        "8", "--credit.advantage", '{"type": "pooled", "ddof": 0}',
    )  # fmt: skip
    assert isinstance(reward, SpanReward)
    assert reward.model == "rm"
    assert (reward.choices.segmentation, reward.choices.absent, reward.choices.credit) == ("sentence", "blank", "owen")
    assert (reward.choices.alpha, reward.choices.batch_size) == (0.5, 8)
    assert config.credit == "shapley"


POLICY = ["--credit.model", "policy", "--credit.parser", "hashes"]


def test_a_policy_has_every_option_of_a_sensitivity_config(monkeypatch):
    """In the place of a reward; the parser is a name or a mapping, and the key is none of the options."""
    monkeypatch.setenv("CREDITD_API_KEY", "secret")
    config = made(
        "--credit.model", "policy", "--credit.parser", '{"type": "tags", "answer_tag": "final"}',
        "--credit.sensitivity", '{"type": "gradient", "noise_samples": 4}', "--credit.probe", "last",
        "--credit.reshape", '{"beta": 0.5}', "--credit.on_failure", "group_reward", "--credit.deterministic",
        "--credit.deadline_s", "7.5", "--credit.push_deadline_s", "90", "--credit.run", "night",
        "--credit.max_credit_share", "0.5", "--credit.record", "wire", "--credit.keep", "3",
        "--credit.url", "http://oar.test", "--credit.weights", "global_step{step}_hf",
    )  # fmt: skip
    assert config == SensitivityConfig(
        parser={"type": "tags", "answer_tag": "final"},
        model="policy",
        sensitivity={"type": "gradient", "noise_samples": 4},
        probe="last",
        reshape={"beta": 0.5},
        on_failure="group_reward",
        deterministic=True,
        deadline_s=7.5,
        push_deadline_s=90.0,
        run="night",
        max_credit_share=0.5,
        record="wire",
        keep=3,
        url="http://oar.test",
        api_key="secret",
    )


def test_options_of_a_policy_are_the_fields_of_its_configuration():
    """All but the key, and what is for the trainer's own model; and the names of the keys of verl beside them."""
    own = {name for name, kinds in KINDS.items() if "sensitivity" in kinds}
    never = {"api_key", "in_process", "most_tokens"}
    beside = {"weight_version", "weights", "initial_weights", "max_weights_age"}
    assert own == {one.name for one in fields(SensitivityConfig) if one.name not in never} | beside
    assert beside <= set(known_keys("sensitivity")[2])


def test_weights_are_pinned_or_handed_over():
    """A version is a name, and checkpoints have a path, an age and a beginning."""
    pinned, _ = split_arguments([*POLICY, "--credit.weight_version", "run:{step}"])
    assert isinstance(pinned, SensitivityChoices)
    assert pinned.checkpoints is None
    assert pinned.of_weights == {"weight_version": "run:{step}"}
    age = ["--credit.max_weights_age", "3", "--credit.initial_weights", "base"]
    choices, others = split_arguments([*THEIRS, *POLICY, "--credit.weights", "7/{step}", *age])
    assert others == THEIRS
    assert isinstance(choices, SensitivityChoices)
    assert pickle.loads(pickle.dumps(choices)).checkpoints == CheckpointKeys("7/{step}", "base", 3)  # noqa: S301 - our own


def test_schedules_are_functions_or_a_way():
    """Of the step; found in the process that trains."""
    _, config = made(*CANDIDATES, "--credit.credit", "adapters.openrlhf_rewards:rule_at")
    assert config.rule_at(5) == "leave_one_out"
    _, config = made(
        *CANDIDATES, "--credit.credit", '{"type": "anneal", "start": "set_reward", "end": "shapley", "steps": 9}'
    )
    assert config.credit == Anneal("set_reward", "shapley", 9)


def test_a_function_may_stand_in_a_file(tmp_path, monkeypatch):
    """Its path is made absolute, because other processes have other directories."""
    (tmp_path / "rewards.py").write_text("def score(prompts, candidates, completions, **_):\n    return []\n")
    monkeypatch.chdir(tmp_path)
    choices, _ = split_arguments(["--credit.reward", "rewards.py:score", "--credit.parser", PARSER])
    assert choices.reward == f"{tmp_path / 'rewards.py'}:score"
    assert choices.made()[0].__name__ == "score"


def test_service_and_key_come_from_the_environment(monkeypatch):
    """They are read where the command is given; the key is in no command line."""
    monkeypatch.setenv("CREDITD_URL", "http://elsewhere.test")
    monkeypatch.setenv("CREDITD_API_KEY", "secret")
    _, config = made(*CANDIDATES)
    assert (config.url, config.api_key) == ("http://elsewhere.test", "secret")
    _, config = made(*CANDIDATES, "--credit.url", "http://here.test")
    assert config.url == "http://here.test"
    with pytest.raises(SystemExit):
        split_arguments([*CANDIDATES, "--credit.api_key", "secret"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--credit.reward"),
        ([*CANDIDATES, "--credit.rewards", "x"], "unknown option --credit.rewards"),
        ([*CANDIDATES, "--credit.credit_in_eval"], "unknown option --credit.credit_in_eval"),
        ([*CANDIDATES, "--credit.cred=owen"], "unknown option --credit.cred;"),
        ([*CANDIDATES, "--credit.on_failure", "ignore"], "on_failure 'ignore'"),
        ([*CANDIDATES, "--credit.alpha", "0.5"], "--credit.alpha, which is for spans"),
        (["--credit.reward", "rm", "--credit.turns", "all"], "--credit.turns, which is for candidates"),
        (["--credit.reward", "rm", "--credit.utility", "max"], "--credit.utility, which is for candidates"),
        (["--credit.reward", "rm", "--credit.alpha", "many"], "got 'many'"),
        (["--credit.reward", "rm", "--credit.parser", "numbered"], "which is no JSON"),
        (["--credit.reward", "rm", "--credit.parser", "[1]"], "expected a mapping"),
        (["--credit.reward", "rm", "--credit.parser", '{"type": "roman"}'], "roman"),
        (["--credit.reward", "no_such_module:score", "--credit.parser", PARSER], "no module no_such_module"),
        (["--credit.reward", "/no/such/file.py:score", "--credit.parser", PARSER], "expected a file"),
        (["--credit.reward", "adapters.openrlhf_rewards:scores", "--credit.parser", PARSER], "no function scores"),
        ([*CANDIDATES, "--credit.credit", '{"type": "anneal", "start": "shapley"}'], "start, end and steps"),
        ([*CANDIDATES, "--credit.kl_in_reward", "drop"], "invalid choice"),
        ([], "got neither --credit.reward nor --credit.model; expected one of them"),
        ([*POLICY, "--credit.reward", "rm"], "got both --credit.reward and --credit.model; expected one of them"),
        (POLICY[:2], "got --credit.model without --credit.parser"),
        ([*POLICY, "--credit.kl_in_reward", "keep"], "--credit.kl_in_reward, which is for candidates and spans"),
        ([*POLICY, "--credit.advantage", "grpo"], "expected options of sensitivity, which --credit.model asks for"),
        ([*POLICY, "--credit.turns", "all"], "--credit.turns, which is for candidates;"),
        ([*POLICY, "--credit.alpha", "0.5"], "--credit.alpha, which is for spans;"),
        ([*CANDIDATES, "--credit.probe", "last"], "--credit.probe, which is for sensitivity;"),
        (["--credit.reward", "rm", "--credit.weights", "{step}"], "--credit.weights, which is for sensitivity;"),
        ([*POLICY, "--credit.in_process"], "unknown option --credit.in_process"),
        ([*POLICY, "--credit.most_tokens", "9"], "unknown option --credit.most_tokens"),
        ([*POLICY, "--credit.on_failure", "mask"], "got on_failure 'mask'"),
        ([*POLICY, "--credit.url", "local:"], "where there is no policy"),
        ([*POLICY, "--credit.sensitivity", "given"], "expected another one: nobody gives them here"),
        ([*POLICY, "--credit.probe", "first"], "the choices are refused"),
        ([*POLICY, "--credit.weights", "run/actor"], "expected a path of the service with {step} in it"),
        ([*POLICY, "--credit.weights", "{step}", "--credit.weight_version", "mine"], "expected one of the two"),
        ([*POLICY, "--credit.weights", "{step}", "--credit.max_weights_age", "-1"], "got max_weights_age -1"),
        ([*POLICY, "--credit.max_weights_age", "1"], "--credit.max_weights_age without --credit.weights"),
        ([*POLICY, "--credit.run", "night"], "--credit.run without --credit.weights"),
    ],
)
def test_what_is_none_is_an_error(arguments, words, capsys):
    """As of every command line, with the reason."""
    with pytest.raises(SystemExit) as stopped:
        split_arguments([*arguments, *THEIRS])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_help_names_every_option(capsys):
    """Those of creditd; `--help` is OpenRLHF's."""
    with pytest.raises(SystemExit) as stopped:
        split_arguments(["--credit.help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name in names():
        assert name in shown
    _, others = split_arguments([*CANDIDATES, "--help"])
    assert others == ["--help"]


def test_what_a_module_raises_is_raised(tmp_path, monkeypatch):
    """A module that another one wants, or a bug in it, is not taken for a wrong name."""
    (tmp_path / "broken_rewards.py").write_text("import no_such_thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        function_of("broken_rewards:score")


@pytest.mark.parametrize(
    ("name", "is_one"), [("a.b:c", True), ("/x/y.py:c", True), ("rm", False), ("rm:", False), (":c", False)]
)
def test_names_of_functions_have_a_colon(name, is_one):
    """Anything else is the id of a model."""
    assert is_reference(name) is is_one


@pytest.mark.parametrize(
    "source",
    [
        ["--reward.remote_url", "u"],
        ["--reward.remote_url=u"],
        ["--reward.remote_u", "u"],
        ["--reward.model_name_or_path", "m"],
        ["--train.agent_func_path", "a.py"],
    ],
)
def test_a_source_of_rewards_is_kept(source):
    """Where OpenRLHF has one of its own."""
    assert openrlhf.with_a_source([*THEIRS, *source]) == [*THEIRS, *source]


def test_where_there_is_no_source_openrlhf_gets_one_that_gives_nothing():
    """It wants one; the trainer replaces its rewards."""
    assert openrlhf.with_a_source(THEIRS) == [*THEIRS, "--reward.remote_url", NO_REWARD]
    assert Path(NO_REWARD).is_file()
    assert reward_func(["q", "r"], ["", ""], [None, None]) == {"rewards": [0.0, 0.0]}


def test_choices_show_no_key():
    """Neither in a log nor in an error."""
    for choices in (CreditChoices("rm", {}, {"api_key": "secret"}), SensitivityChoices({"api_key": "secret"})):
        assert "secret" not in repr(choices)
