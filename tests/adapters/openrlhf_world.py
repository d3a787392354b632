"""A training of OpenRLHF without GPUs: its own command line, experience maker, trainer and loss; models are made up."""

import contextlib
import importlib
import json
import runpy
import sys
from types import SimpleNamespace

import pytest
import ray

from adapters import tiny
from creditd.adapters import openrlhf as launcher
from creditd.adapters.openrlhf_options import split_arguments
from creditd.adapters.openrlhf_settings import CLI
from creditd.adapters.openrlhf_trainer import credit_class
from openrlhf_here import without_a_gpu

with without_a_gpu():
    trainers = importlib.import_module("openrlhf.trainer.ppo_trainer")
    experiences = importlib.import_module("openrlhf.trainer.ppo_utils.experience")
    generators = importlib.import_module("openrlhf.trainer.ppo_utils.samples_generator")
    buffers = importlib.import_module("openrlhf.trainer.ppo_utils.replay_buffer")
    losses = importlib.import_module("openrlhf.models.loss")
    maker_kind = importlib.import_module("openrlhf.trainer.ppo_utils.experience_maker").RemoteExperienceMaker

PROMPTS = ["ask one", "ask two ; three"]
TEXTS = [
    ["one ; two <eos>", "three ; three ; one <eos>", "four <eos>"],
    ["two ; one <eos>", "five <eos>", "one ; one ; three <eos>"],
]
GROUP_SIZE = 3
CANDIDATES = ["--credit.reward", "adapters.openrlhf_rewards:score", "--credit.parser", json.dumps(tiny.PARSER)]
SPANS = ["--credit.reward", "adapters.openrlhf_rewards:judge"]
LOCAL = ["--credit.url", "local:"]
MARK = "####"
SENSITIVITY = ["--credit.model", "policy", "--credit.parser", "hashes"]
REASONED = [
    ["one two three #### four <eos>", "six six one five #### two <eos>", "two one <eos>"],
    ["; three four two one six #### one", "five two #### six <eos>", "four three four #### five <eos>"],
]
"""Completions with an answer behind the mark, and one without; one is cut off."""
REMOTE = ["--reward.remote_url", "http://reward.test/get"]
WITH_LOSS = ["--algo.kl.use_loss", "--algo.kl.estimator", "k2"]
GROUPS = ["--algo.advantage.estimator", "group_norm", *WITH_LOSS]
GAE = ["--algo.advantage.estimator", "gae"]
THEIRS = [
    *("--actor.model_name_or_path", "nobody/tiny", "--rollout.n_samples_per_prompt", str(GROUP_SIZE)),
    *("--rollout.batch_size", "2", "--train.batch_size", "6", "--rollout.micro_batch_size", "2"),
    *("--actor.num_gpus_per_node", "1", "--vllm.num_engines", "1", "--ds.attn_implementation", "eager"),
]


class Parsed(Exception):  # noqa: N818 - it is no error
    """The command line was read; nothing else is to happen."""


def arguments_of(arguments):
    """What OpenRLHF's own command line makes of arguments, up to where it starts Ray."""
    read = []

    def stop(*_, **__):
        read.append(sys._getframe(1).f_locals["args"])
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, without_a_gpu(), contextlib.suppress(Parsed):
        patch.setattr(ray, "init", stop)
        patch.setattr(ray, "is_initialized", lambda: False)
        patch.setattr(sys, "argv", [CLI, *launcher.with_a_source(arguments)])
        runpy.run_module(CLI, run_name="__main__", alter_sys=True)
    return read[0]


def chosen(*arguments):
    """Choices of creditd, and OpenRLHF's own arguments."""
    choices, others = split_arguments([*arguments, *THEIRS])
    return choices, arguments_of(others)


class Group:
    """Models of one kind: numbers that depend on the tokens, and what is handed to them."""

    def __init__(self, scale):
        self.scale, self.appended = scale, []

    def async_run_method_batch(self, method_name, **columns):
        """One model, which answers all."""
        if method_name == "append":
            self.appended += columns["experience"]
            return [ray.put([None])]
        if "pad_sequence" in columns:  # a reward model
            return [ray.put([self.scale * (ids % 5).sum(dim=1).float() for ids in columns["sequences"]])]
        return [ray.put([self.scale * mask * (1 + ids[:, 1:] % 3) for ids, mask in _pairs(columns)])]

    def async_run_method(self, method_name, **_):
        """Training, and new weights for generation."""
        assert method_name in {"fit", "broadcast_to_vllm"}
        return [ray.put({"kl": 0.0})]


def _pairs(columns):
    return zip(columns["sequences"], columns["action_mask"], strict=True)


def sample(generator, tokenizer, prompt, label, text, *, reward=0.0, holes=(), extra=None, truncated=False):
    """One completion by OpenRLHF's own way from a response of its engines."""
    before = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    ranges, start = [], 0
    for hole in [*sorted(holes), len(after)]:
        ranges += [(len(before) + start, len(before) + hole)] if hole > start else []
        start = hole + 1
    response = {
        "prompt": prompt, "label": label, "observation_tokens": before + after, "action_ranges": ranges,
        "rollout_log_probs": None, "truncated": truncated, "reward": reward, "scores": reward,
        "extra_logs": (extra or {"length": float(len(after))}) if reward is not None else {},
    }  # fmt: skip
    return generators.SamplesGenerator._process_response_into_experience(generator, response)


def samples(tokenizer, rewards=None, labels=None, holes=None, texts=None, truncated=()):
    """A batch of two groups."""
    generator = generators.SamplesGenerator.__new__(generators.SamplesGenerator)
    texts, made = texts or TEXTS, []
    for group, prompt in enumerate(PROMPTS):
        for row, text in enumerate(texts[group]):
            place = group * GROUP_SIZE + row
            made.append(
                sample(
                    generator, tokenizer, prompt, (labels or {}).get(place, "l"), text,
                    reward=0.0 if rewards is None else rewards[place], holes=(holes or {}).get(place, ()),
                    truncated=place in truncated,
                )
            )  # fmt: skip
    return made


def trainer_of(*arguments, reference=None, critic=None, judge=None, more=()):
    """OpenRLHF's own trainer, around models that are made up, with credit; its tokenizer may know more words."""
    return trainer_with(*chosen(*arguments), reference=reference, critic=critic, judge=judge, more=more)


_MADE = []
"""Experience makers of a test."""


def trainer_with(choices, args, *, reference=None, critic=None, judge=None, more=()):
    """The same for choices that are made already; for none it is OpenRLHF's own, without credit."""
    kind = type("PPOTrainer", (trainers.BasePPOTrainer,), {})
    kind = kind if choices is None else credit_class(kind, choices)
    made = kind(SimpleNamespace(args=args), Group(-0.5), critic, judge, reference, None, tiny.tokenizer(more))
    made.seen = made.actor_model_group.appended
    _MADE.append(made.experience_maker)
    return made


def close_clients():
    """End what the trainers of a test have open to a service; a training leaves that to the end of its process."""
    while _MADE:
        maker = _MADE.pop()
        credit = getattr(maker, "_credit", None)
        client = getattr(maker, "_client", None) if credit is None else credit.reward.creditor.client
        if client is not None:
            client.close()


def by_rows(trained, name="advantages"):
    """Of each completion, in the order of generation, the numbers of its tokens, holes included, from its first one."""
    rows = {}
    for experience in trained:
        for row, index in enumerate(experience.index):
            mask = experience.action_mask[row].bool()
            own = mask.nonzero().reshape(-1)
            if len(own):
                last = int(experience.attention_mask[row].sum()) - 1
                rows[index] = getattr(experience, name)[row, int(own[0]) : last].tolist()
            else:
                rows[index] = []
    return [rows[index] for index in sorted(rows)]


def shuffled(trained, order, size):
    """Batches as the processes of the policy take them from OpenRLHF's own buffer, and which completion each row is."""
    buffer = buffers.NaiveReplayBuffer.__new__(buffers.NaiveReplayBuffer)  # it asks for a GPU when it is made
    buffer.cpu_offload, buffer.packing_samples, buffer.dynamic_batch, buffer.limit = False, False, False, 0
    buffer.items, indices = [], [index for experience in trained for index in experience.index]
    for experience in trained:
        buffer.append(experience)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    batches = [buffer.collate_fn([buffer[place] for place in part]) for part in parts]
    return batches, [[indices[place] for place in part] for part in parts]


def gradients(trained):
    """Per experience what OpenRLHF's own loss pulls at each log-probability, before it is divided by the tokens."""
    found = []
    for experience in trained:
        logps = experience.action_log_probs.clone().requires_grad_()
        loss, *_ = losses.PolicyLoss()(
            logps, experience.action_log_probs, experience.advantages, experience.action_mask, batch_num_tokens=1.0
        )
        loss.backward()
        found.append(-logps.grad)
    return found
