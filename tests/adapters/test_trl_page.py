"""TRL.md is true: its program trains, its metrics are those of real runs, and what it says is refused is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from adapters.tiny import model, tokenizer
from adapters.trainers import MARKS, PARSER, length, score, trainer_of
from creditd.adapters.trl import CandidateReward, CreditConfig, CreditMixin, SpanReward, anneal, attach
from services import running_service

pytestmark = MARKS
PAGE = (Path(__file__).parents[2] / "TRL.md").read_text(encoding="utf-8")
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHOWN = r"rewards/items/mean (-?\d\.\d\d), credit/candidates (\d\.\d\d), credit/position (\d\.\d\d)"


def table(*header):
    """Rows of the table with a header, as lists of cells."""
    line = f"| {' | '.join(header)} |\n"
    assert PAGE.count(line) == 1
    lines = PAGE.split(line)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in lines]


def judge(prompts, texts):
    """Two is good, four is not."""
    return [2.0 * text.count("two") - 0.5 * text.count("four") for _, text in zip(prompts, texts, strict=True)]


def shape(completions, **_):
    """Another reward of the whole response."""
    return [float(len(text) % 5) for text in completions]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service with models."""
    script = Path(__file__).with_name("model_service.py")
    with running_service(script=script, directory=tmp_path_factory.mktemp("service")) as address:
        yield address


def test_the_program_trains(tmp_path):
    """Beside a service, which is asked once per step; the rule moves, and each exchange is kept."""
    model().save_pretrained(tmp_path / "model", safe_serialization=True)
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.py").write_text(PROGRAM)
    with running_service(directory=tmp_path) as url:
        done = subprocess.run(
            [sys.executable, "train.py"],
            cwd=tmp_path,
            env=os.environ | {"CREDITD_URL": url},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = re.findall(rf"^{SHOWN}$", done.stdout, re.MULTILINE)
    assert [position for _, _, position in lines] == ["0.00", "0.25", "0.50", "0.75"]
    assert all(-1.0 <= float(reward) <= 1.0 and float(candidates) <= 4.0 for reward, candidates, _ in lines)
    assert done.stdout.splitlines()[-1] == "requests: 4"
    assert (tmp_path / "service.log").read_text(encoding="utf-8").count('"/v1/credit/shapley"') == 4
    assert len(list((tmp_path / "exchanges").glob("*.json"))) == 4


RUNS = {
    "candidates, a blend": lambda _: {"credit": here(credit=anneal("shapley", "leave_one_out", steps=3))},
    "candidates, a model": lambda url: {
        "rewards": [CandidateReward("rm", parser=PARSER), length],
        "credit": CreditConfig(url=url),
    },
    "spans, a sample": lambda _: {
        "rewards": SpanReward(
            judge, segmentation="token", credit="shapley", estimator={"type": "stratified", "budget": 40}
        ),
        "credit": here(),
    },
    "spans, a model": lambda url: {"rewards": SpanReward("judged"), "credit": CreditConfig(url=url)},
}


def here(**options):
    """A configuration that computes in this process."""
    return CreditConfig(url="local:", **options)


@pytest.mark.parametrize("run", RUNS)
def test_the_log_has_the_metrics_of_the_table(run, url, tmp_path):
    """Neither more nor fewer, by what a run is about."""
    rows = table("metric", "of", "what it is")
    about = {"all", *run.split(", ")}
    assert {one for _, kinds, _ in rows for one in kinds.split(", ")} >= about
    trainer = trainer_of(tmp_path, max_steps=3, **RUNS[run](url))
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry if name.startswith("credit/")}
    assert logged == {name.strip("`") for name, kinds, _ in rows if about & set(kinds.split(", "))}


@pytest.mark.parametrize("kind", ["candidates", "spans"])
def test_a_step_without_an_answer_has_what_the_page_says(kind, tmp_path):
    """Those of `all`, of schedules, and what a function of texts was asked."""
    rows = table("metric", "of", "what it is")
    nobody = {"url": "http://127.0.0.1:9", "deadline_s": 0.2, "on_failure": "mask"}
    blend = {"credit": anneal("shapley", "leave_one_out", steps=3)} if kind == "candidates" else {}
    rewards = CandidateReward(score, parser=PARSER) if kind == "candidates" else SpanReward(judge)
    trainer = trainer_of(tmp_path, rewards=rewards, credit=CreditConfig(**nobody, **blend), max_steps=2)
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry if name.startswith("credit/")}
    more = {
        "candidates": {"credit/position"},
        "spans": {"credit/alpha", "credit/evaluations", "credit/model_seconds"},
    }[kind]
    assert logged == {name.strip("`") for name, kinds, _ in rows if kinds == "all"} | more


def given(kind):
    """A trainer's settings that are refused by nothing, and what the names of the page mean."""
    words = CandidateReward(score, parser=PARSER)
    own = {
        "candidates": {"reward_funcs": [words, length], "credit": here()},
        "a model": {"reward_funcs": [CandidateReward("rm", parser=PARSER), length]},
        "spans": {"reward_funcs": [SpanReward(judge), length], "credit": here()},
    }[kind]
    names = {"words": words, "length": length, "shape": shape, "score": score, "judge": judge}
    return own, names | {"CandidateReward": CandidateReward, "CreditConfig": CreditConfig, "SpanReward": SpanReward}


def made(directory, *, reward_funcs, **settings):
    """A trainer by TRL's names."""
    return trainer_of(directory, rewards=reward_funcs, **settings)


@pytest.mark.parametrize("row", table("with", "setting", "because"), ids=lambda row: f"{row[0]} {row[1]}")
def test_what_a_row_says_is_refused(row, tmp_path):
    """When the trainer is made, saying what is expected; without the setting nothing is."""
    kind, setting, _ = row
    made(tmp_path, **given(kind)[0])
    own, names = given(kind)
    with pytest.raises(ValueError, match="expected"):
        made(tmp_path, **own | eval(f"dict({setting.strip('`')})", names))  # noqa: S307 - of our own page


@pytest.mark.parametrize(
    ("module", "name"), [("trl", "RLOOTrainer"), ("trl.experimental.async_grpo", "AsyncGRPOTrainer")]
)
def test_other_trainers_of_trl_are_refused(module, name):
    """Their advantages have one number per completion; attached, or with the mixin before them."""
    kind = getattr(pytest.importorskip(module, exc_type=ImportError), name)
    with pytest.raises(TypeError, match=f"got a {name}; expected a GRPOTrainer"):
        attach(kind.__new__(kind))
    mixed = type("Mixed", (CreditMixin, kind), {})
    with pytest.raises(ValueError, match="has a loss of its own, _compute_loss; expected that of GRPOTrainer"):
        mixed.__new__(mixed)._set_up_credit(here())
