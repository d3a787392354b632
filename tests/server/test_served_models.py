"""Real models behind `creditd serve`: what `save_pretrained` wrote works, and what does not is said at boot."""

import os
import subprocess
import sys
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.cli.serve import run_service  # noqa: E402
from engines.saved import saved, tokenizer  # noqa: E402
from server.model_services import columns_of, sets_of  # noqa: E402

PATIENCE_S = 120.0
AGREEMENT = 1e-5
REWARDS = {"rewards": {"type": "model", "model": "rm"}}
ROWS = [("the quick brown fox", "the lazy dog", "fox"), ("a question", "an answer", "the quick dog")]
MESSAGES = [{"role": "user", "content": "why?"}]


def environment():
    """That of the test, with its import paths and without settings."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("CREDITD_")}
    return {**found, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def command(folder, text):
    """`creditd serve` with a file of settings."""
    config = folder / "creditd.toml"
    config.write_text(f'models_root = "{folder}"\n{text}', encoding="utf-8")
    return [sys.executable, "-m", "creditd.cli", "serve", "--port", "0", "--config", str(config)]


@contextmanager
def served(folder, text):
    """The URL of a service with models; the process is ended by its own id."""
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command(folder, text), stdout=subprocess.PIPE, stderr=errors, env=environment(), cwd=folder, text=True
        ) as process,
    ):
        try:
            greeting = process.stdout.readline()
            assert "listens on" in greeting, log.read_text()
            yield greeting.split()[-1]
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with a reward model, and the model itself."""
    folder = tmp_path_factory.mktemp("models")
    model = saved(folder / "rm")
    # Without a memory, so that each request is scored.
    text = 'cache_bytes = 0\n[[models]]\nid = "rm"\npath = "rm"\nrevision = "r1"\nmax_tokens = 120\n'
    with served(folder, text) as url:
        yield url, model


def post(url, body):
    """The answer to one request."""
    return httpx.post(f"{url}/v1/credit/shapley", json=body, timeout=PATIENCE_S)


def one_by_one(model, prompt, texts):
    """The model's own scores of whole texts."""
    made = tokenizer()
    found = []
    with torch.inference_mode():
        for text in texts:
            if isinstance(prompt, str):
                whole = prompt + text
            else:
                whole = made.apply_chat_template(
                    [*prompt, {"role": "assistant", "content": text}], tokenize=False, add_generation_prompt=False
                )
            ids = made(whole, add_special_tokens=isinstance(prompt, str))["input_ids"]
            found.append(model(torch.tensor([ids])).logits.item())
    return found


@pytest.mark.parametrize("prompt", ["why? ", MESSAGES])
@pytest.mark.parametrize("form", [sets_of, columns_of])
def test_a_directory_of_save_pretrained_gives_rewards(service, form, prompt):
    """Own-reward credit times K is the model's own score of prompt and candidate."""
    url, model = service
    body = form(*ROWS, prompt=prompt, credit={"type": "own_reward"}, **REWARDS)
    found = post(url, body).json()
    if "sets" in found:
        credits_ = [one["credits"] for one in found["sets"]]
    else:
        credits_ = np.array(found["columns"]["credits"]["values"]).reshape(2, 3).tolist()
    for row, texts in zip(credits_, ROWS, strict=True):
        rewards = np.array(one_by_one(model, prompt, texts))
        assert 3 * np.array(row) == pytest.approx(rewards, abs=3 * AGREEMENT)
    assert found["usage"]["evaluations"] == 6
    assert found["usage"]["tokens_computed"] < found["usage"]["tokens_naive"]


def test_coalitions_are_scored_as_their_texts(service):
    """A utility that the model evaluates: v(N) and v(∅) are its scores of the texts."""
    url, model = service
    body = sets_of(ROWS[0], prompt="why?\n", utility={"type": "model", "model": "rm"})
    found = post(url, body).json()
    (one,) = found["sets"]
    text = "".join(f"{text}\n" for text in sorted(ROWS[0], key=str.encode))
    empty, grand = one_by_one(model, "why?\n", ["", text])
    assert (one["utility_empty"], one["utility_grand"]) == pytest.approx((empty, grand), abs=AGREEMENT)
    assert found["usage"]["evaluations"] == 8
    assert 0 < found["usage"]["tokens_spliced"] <= found["usage"]["tokens_naive"]


def test_queries_are_scored_as_the_server_of_openrlhf_scores_them(service):
    """By the logit of their own tokens, special ones as they are written out, and none added."""
    url, model = service
    made, prompt = tokenizer(), "<bos><user>why?<eos><assistant>"
    queries = [f"{prompt}{text}" for text in ("the quick fox<eos>", "a", "")] + ["of another prompt<eos>"]
    body = {"query": queries, "prompts": [prompt] * len(queries), "labels": [None] * len(queries)}
    found = httpx.post(f"{url}/get_reward", json=body, timeout=PATIENCE_S).json()
    with torch.inference_mode():
        ids = [made(query, add_special_tokens=False)["input_ids"] for query in queries]
        theirs = [model(torch.tensor([row])).logits.item() for row in ids]
    assert made("<eos>", add_special_tokens=False)["input_ids"] == [made.eos_token_id]
    assert found["rewards"] == pytest.approx(theirs, abs=AGREEMENT)


def test_vllm_s_shape_has_the_rewards_of_whole_texts_and_of_conversations(service):
    """`/classify` gives the model's own scores."""
    url, model = service
    texts = {"input": [f"why? {text}" for text in ROWS[0]]}
    found = httpx.post(f"{url}/classify", json=texts, timeout=PATIENCE_S).json()
    rewards = [row["probs"][0] for row in found["data"]]
    assert rewards == pytest.approx(one_by_one(model, "why? ", ROWS[0]), abs=AGREEMENT)
    body = {"messages": [*MESSAGES, {"role": "assistant", "content": "a fox"}], "use_activation": False}
    found = httpx.post(f"{url}/classify", json=body, timeout=PATIENCE_S).json()
    assert found["data"][0]["probs"] == pytest.approx(one_by_one(model, MESSAGES, ["a fox"]), abs=AGREEMENT)
    assert found["usage"]["prompt_tokens"] > 0


def test_what_is_too_long_is_said(service):
    """An item beyond the model's limit is an error of its own."""
    url, _ = service
    found = post(url, sets_of(("a", "b" * 200), ("a",), prompt="why? ", **REWARDS)).json()
    assert found["sets"][0]["error"]["code"] == "context_exceeded"
    assert found["sets"][1]["status"] == "ok"


def test_the_same_request_alone_and_with_others_has_equal_bits(service):
    """`deterministic` makes the answer a function of the set."""
    url, _ = service
    both = post(url, sets_of(*ROWS, prompt="why? ", deterministic=True, advantage={"type": "none"}, **REWARDS)).json()
    for one, texts in zip(both["sets"], ROWS, strict=True):
        alone = post(url, sets_of(texts, prompt="why? ", deterministic=True, advantage={"type": "none"}, **REWARDS))
        assert alone.json()["sets"][0]["credits"] == one["credits"]


def test_the_service_says_what_is_loaded(service):
    """Memory, limits, attention and queue of the model."""
    url, model = service
    (one,) = httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).json()["models"]
    assert (one["id"], one["backend"], one["revision"], one["max_tokens"]) == ("rm", "local", "r1", 120)
    assert one["weight_bytes"] == sum(parameter.numel() * 4 for parameter in model.parameters())
    assert one["reads_tries"] is True
    assert (len(one["fingerprint"]), one["cached"]) == (32, True)
    assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).text == "ready\n"


@pytest.mark.parametrize(
    ("entry", "config", "sentence"),
    [
        ('path = "nowhere"', {}, "there is no directory nowhere among the models"),
        ('path = "../elsewhere"', {}, "its path is outside the directory for models"),
        (
            'path = "rm"',
            {"num_labels": 2},
            "the head has 2 labels; expected one, or a choice: head.index, or head.margin",
        ),
        ('path = "rm"\nhead = { index = 1 }', {}, "the head has 1 labels; got the labels [1]"),
        ('path = "rm"\nchat_template = "{{ 1 / 0 }}"', {}, "the chat template cannot render"),
        ('path = "rm"\nchat_template = "{{ messages[0].content }}"', {}, "leaves out the messages of assistant"),
        ('path = "rm"\nkind = "embedding"', {}, "pooling"),
    ],
)
def test_an_unsuitable_directory_is_said_at_boot(tmp_path, capsys, entry, config, sentence):
    """The process ends with 2 and one sentence that says what is wrong."""
    saved(tmp_path / "rm", **config)
    file = tmp_path / "creditd.toml"
    file.write_text(f'models_root = "{tmp_path}"\n[[models]]\nid = "rm"\n{entry}\n', encoding="utf-8")
    assert run_service(file, host=None, port=0) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("creditd: model rm")
    assert sentence in said
