"""Real trainers of a tiny model, and eyes on what they train on."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

import torch
from datasets import Dataset
from trl import GRPOConfig

from adapters.tiny import PARSER, VOCABULARY, WORDS, model, tokenizer
from creditd.adapters.trl import CandidateReward, CreditGRPOTrainer

MARKS = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:credit took more than:RuntimeWarning"),  # of the steps of a tiny model
]
PROMPTS = ["ask one", "ask two", "ask three", "ask four"]
AGREEMENT = 1e-5
"""Gradients are float32 sums over a few dozen tokens."""
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"]


def score(prompts, candidates, completions, **columns):
    """A reward per word; `six` was not scored."""
    assert len(prompts) == len(candidates) == len(completions)
    assert "trainer_state" in columns
    values = {word: place / 5 for place, word in enumerate(WORDS)} | {"six": None}
    return [[values.get(text, -1.0) for text in row] for row in candidates]


async def score_later(prompts, candidates, completions, **columns):
    """The same as a coroutine."""
    return score(prompts, candidates, completions, **columns)


def length(completions, **_):
    """A reward of the whole response."""
    return [float(len(text) % 3) for text in completions]


def trainer_of(
    directory,
    *,
    kind=CreditGRPOTrainer,
    rewards=None,
    credit=None,
    sensitivity=None,
    peft=None,
    rollout_func=None,
    ends=None,
    more=(),
    special=(),
    columns=None,
    eval_dataset=None,
    chat_template=None,
    **options,
):
    """A trainer of a tiny model with groups of four."""
    settings = {
        "output_dir": str(directory),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "seed": 0,
        "disable_tqdm": True,
    } | options
    extra = {} if credit is None else {"credit": credit}
    extra |= {} if sensitivity is None else {"sensitivity": sensitivity}
    reader = tokenizer(more, special)
    reader.chat_template = chat_template
    net = model(more=more)
    if ends is not None:
        net.generation_config.eos_token_id = ends
    return kind(
        model=net,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4} | (columns or {})),
        eval_dataset=eval_dataset,
        processing_class=reader,
        reward_funcs=rewards or [CandidateReward(score, parser=PARSER), length],
        peft_config=peft,
        rollout_func=rollout_func,
        **extra,
    )


def scripted(completions, more=(), masks=None, prompt=None):
    """A rollout whose completions are written here, one list of words after another, and which words tools wrote."""
    number = {word: place for place, word in enumerate([*VOCABULARY, *more])}

    def rollout(prompts, trainer):
        ids = trainer.processing_class(prompts)["input_ids"]
        if prompt is not None:
            ids = [[number[word] for word in prompt] for _ in ids]
        places = [place % len(completions) for place in range(len(prompts))]
        words = [[number[word] for word in completions[place]] for place in places]
        out = {"prompt_ids": ids, "completion_ids": words, "logprobs": [[0.0] * len(row) for row in words]}
        return out if masks is None else out | {"env_mask": [list(masks[place]) for place in places]}

    return rollout


def recorded(directory):
    """Token advantages of each exchange, in the order in which they were asked for."""
    batches = []
    for path in sorted(Path(directory).glob("*.json")):
        response = json.loads(json.loads(path.read_text())["response"])
        if "items" in response:
            batches.append([item["token_advantages"] for item in response["items"]])
            continue
        ragged = response["columns"]["token_advantages"]
        values, splits = ragged["values"], ragged["row_splits"]
        batches.append([values[start:stop] for start, stop in pairwise(splits)])
    return batches


def asked(directory):
    """Bodies of the recorded requests, in order."""
    return [json.loads(json.loads(path.read_text())["request"]) for path in sorted(Path(directory).glob("*.json"))]


class Watch:
    """Sees each micro-batch of the loss: the rows it holds and the gradient of each token's log-probability."""

    def __init__(self, trainer):
        self.trainer, self.rows, self.ratios, self.generated = trainer, [], [], []
        self.loss, self.logps = trainer._compute_loss, trainer._get_per_token_logps_and_entropies
        self.generate = trainer._generate_and_score_completions
        trainer._compute_loss = self.compute_loss
        trainer._get_per_token_logps_and_entropies = self.per_token
        trainer._generate_and_score_completions = self.generate_and_score
        self.seen = None

    def generate_and_score(self, inputs):
        """Remember the completions of each generation in the order in which they were credited."""
        out = self.generate(inputs)
        masks = out["completion_mask"] * out.get("tool_mask", torch.ones_like(out["completion_mask"]))
        self.generated.append((out["completion_ids"].clone(), masks.clone(), out["advantages"].clone()))
        return out

    def per_token(self, *args, **kwargs):
        """Keep the log-probabilities that the loss will use."""
        result = self.logps(*args, **kwargs)
        if torch.is_grad_enabled() and result[0].requires_grad:
            result[0].retain_grad()
            self.seen = result[0]
        return result

    def compute_loss(self, net, inputs):
        """Differentiate by the log-probabilities, beside what the trainer does."""
        loss = self.loss(net, inputs)
        (gradient,) = torch.autograd.grad(loss, self.seen, retain_graph=True)
        self.rows.append((inputs["completion_ids"], inputs["completion_mask"], inputs["advantages"], gradient))
        before = inputs.get("old_per_token_logps")
        now = self.seen.detach()
        self.ratios.append((now - (now if before is None else before)).exp())
        return loss


def check_alignment(watch, batches):
    """Every generation's advantages are the recorded ones, and 0 on all other positions."""
    assert len(batches) == len(watch.generated) > 0
    for (ids, mask, advantages), batch in zip(watch.generated, batches, strict=True):
        assert advantages.shape == ids.shape
        for row, values in enumerate(batch):
            expected = torch.zeros(ids.shape[1])
            expected[: len(values)] = torch.tensor(values)
            torch.testing.assert_close(advantages[row], expected * mask[row], rtol=0, atol=1e-6)
            assert len(values) == int(mask[row].sum())


def slope(trainer, level, ratios, mask, advantages):
    """What the gradient by a token's log-probability multiplies its advantage with, up to a factor of row and sign.

    With r the ratio of the policies: r where it is not clipped; CISPO: min(r, ε), a constant; SAPO: 4·σ(1 − σ)·r with
    σ = sigmoid(τ(r − 1)); VESPO: one weight for each row and sign.
    """
    loss = trainer.args.loss_type
    if loss == "vespo":
        return torch.ones_like(ratios)
    if loss == "sapo":
        settings = trainer.args
        heat = torch.where(advantages > 0, settings.sapo_temperature_pos, settings.sapo_temperature_neg)
        soft = torch.sigmoid(heat * (ratios - 1))
        return 4 * soft * (1 - soft) * ratios
    if level == "sequence":
        means = (ratios.log() * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        ratios = means.exp().expand_as(ratios)
    if loss == "cispo":
        return ratios.clamp(max=trainer.epsilon_high)
    clipped = torch.where(advantages > 0, ratios > 1 + trainer.epsilon_high, ratios < 1 - trainer.epsilon_low)
    return torch.where(clipped, 0.0, ratios)


def check_gradients(trainer, watch, level="token"):
    """The gradient by a token's log-probability is −A_t times its slope times one factor, on and off policy.

    For a training of two micro-batches per step and two steps per generation.
    """
    checked = dict.fromkeys(("on", "off"), 0)
    for number, ((ids, mask, advantages, gradient), ratios) in enumerate(zip(watch.rows, watch.ratios, strict=True)):
        policy = "off" if number // 2 % 2 else "on"
        assert ((ratios - 1).abs()[mask == 1] > 1e-3).any() == (policy == "off")
        assert torch.isfinite(gradient).all()
        expected = slope(trainer, level, ratios, mask, advantages) * advantages * mask
        assert not gradient[expected == 0].any()
        for row in range(len(ids)):
            for sign in (1, -1):
                places = torch.sign(expected[row]) == sign
                if not places.any():
                    continue
                factors = -gradient[row, places] / expected[row, places]
                assert (factors > 0).all()
                torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=AGREEMENT, atol=0)
                checked[policy] += int(places.sum())
    assert min(checked.values()) > 10
