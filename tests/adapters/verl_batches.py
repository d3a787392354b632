"""Batches of verl as its agent loops put them into the queue, and its trainer without workers."""

from pathlib import Path

import numpy as np

WORDS = ["<pad>", "<eos>", "one ", "two ", "three ", "; ", "<think>", "</think>"]
PARSER = {"type": "regex", "pattern": r"(\w+) ?;? ?"}
VALUES = {"one": 0.25, "two": 1.0, "three": 0.5}
IDS = {
    "a_0_0": [2, 5, 3, 1],
    "a_1_0": [4, 5, 4, 5, 2],
    "b_0_0": [3, 1],
    "b_1_0": [2, 5, 2, 5, 4, 1],
}
"""Response tokens by the key of a row; no two groups are next to each other in the queue."""
QUESTION = [{"role": "user", "content": "which?"}]


class Tokenizer:
    """Words, one token each."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids, **_):
        """Text of words."""
        return "".join(WORDS[number] for number in ids)


def score(prompts, candidates, completions, **columns):
    """A number for each word."""
    del prompts, completions, columns
    return [[VALUES[text] for text in row] for row in candidates]


def judge(prompts, texts):
    """Two is good."""
    return [2.0 * text.count("two") - 0.25 * text.count("one") for _, text in zip(prompts, texts, strict=True)]


def configured(*overrides):
    """The configuration of verl's own trainer, as its command line composes it."""
    import verl
    from hydra import compose, initialize_config_dir

    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    with initialize_config_dir(config_dir=folder, version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                "actor_rollout_ref.rollout.n=2",
                "data.max_response_length=16",
                "data.train_batch_size=2",
                *overrides,
            ],
        )


def with_credit(estimator="creditd_shapley", name="CreditReplayBuffer", **keys):
    """Overrides that take the sampler of creditd, with its keys."""
    return [
        f"algorithm.adv_estimator={estimator}",
        "trainer.v1.sampler.custom_sampler.path=pkg://creditd.adapters.verl",
        f"trainer.v1.sampler.custom_sampler.name={name}",
        *(f"+trainer.v1.sampler.sampler_kwargs.{key}={value}" for key, value in keys.items()),
    ]


def of_candidates(**keys):
    """Keys of candidates that are words, credited in this process unless told otherwise."""
    return {
        "url": "'local:'",
        "reward": "'pkg://adapters.verl_batches:score'",
        "parser.type": "regex",
        "parser.pattern": "'(\\w+) ?;? ?'",
    } | keys


def trainer(config):
    """The trainer of verl as far as it runs without workers: its sampler, and its advantages."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    made = PPOTrainerSync.__new__(PPOTrainerSync)
    made.config, made.trainer_mode = config, config.trainer.v1.trainer_mode
    made.tokenizer = Tokenizer()
    made.replay_buffer = made._build_replay_buffer()
    return made


def put(ids=IDS, *, masks=None, rewards=None, status="finished", prompt=(2, 3), partition="train", **fields):
    """Rows in the queue, as an agent loop leaves them there; rewards of None are left out."""
    import torch
    import transfer_queue as tq
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    rows, tags = [], []
    for place, (key, row) in enumerate(ids.items()):
        output = AgentLoopOutput(
            prompt_ids=list(prompt),
            response_ids=row,
            response_mask=(masks or {}).get(key, [1] * len(row)),
            response_logprobs=[-1.0] * len(row),
            reward_score=0.5 * place if rewards is None else rewards[key],
            num_turns=2,
            metrics=AgentLoopMetrics(),
        ).as_dict()
        uid = key.split("_")[0]
        whole = torch.tensor([*prompt, *row])
        output |= {
            "uid": uid,
            "raw_prompt": QUESTION,
            "data_source": "words",
            "reward_model": {"ground_truth": "two"},
            "loss_mask": output["response_mask"],
            "input_ids": whole,
            "position_ids": torch.arange(len(whole)),
            "old_log_probs": torch.full((len(row),), -1.0),
            "multi_modal_inputs": {},
            **{name: values[key] for name, values in fields.items()},
        }
        rows.append(output)
        tags.append(
            {
                "status": "success",
                "prompt_len": len(prompt),
                "response_len": len(row),
                "seq_len": len(whole),
                "global_steps": 1,
            }
        )
    tq.kv_batch_put(keys=list(ids), fields=list_of_dict_to_tensordict(rows), tags=tags, partition_id=partition)
    uids = list(dict.fromkeys(key.split("_")[0] for key in ids))
    tq.kv_batch_put(
        keys=uids,
        tags=[{"is_prompt": True, "status": status, "global_steps": 1} for _ in uids],
        partition_id=partition,
    )


def emptied(partition="train"):
    """Nothing left in the queue."""
    import transfer_queue as tq

    keys = list((tq.kv_list(partition) or {}).get(partition, {}))
    if keys:
        tq.kv_clear(keys=keys, partition_id=partition)


def advantages(made, meta):
    """Rows that verl's own method leaves in the queue for the loss, by key."""
    import transfer_queue as tq

    made._compute_advantage(meta, {})
    data = tq.kv_batch_get(keys=meta.keys, partition_id=meta.partition_id, select_fields=["advantages"])
    return {key: row.tolist() for key, row in zip(meta.keys, data["advantages"].unbind(), strict=True)}


def as_float32(rows):
    """What rows are in the type that a trainer holds them in."""
    return {key: np.array(row, dtype=np.float32).tolist() for key, row in rows.items()}


def unscored(prompts, candidates, completions, **_):
    """Nobody knows what three is worth."""
    del prompts, completions
    return [[None if text == "three" else VALUES[text] for text in row] for row in candidates]


def unsound(prompts, candidates, completions, **_):
    """What three is worth is no number."""
    del prompts, completions
    return [[float("nan") if text == "three" else VALUES[text] for text in row] for row in candidates]


def sampled(made, step=1, partition="train"):
    """A batch, and the metrics that come with it."""
    return made.replay_buffer.sample(global_steps=step, partition_id=partition, batch_size=2)
