"""`/v1/credit/oar` with a real policy: sensitivities are those of its own logits."""

import httpx
import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from creditd.cli.serve import run_service  # noqa: E402
from creditd.wire import codec  # noqa: E402
from engines.saved import saved, tokenizer  # noqa: E402
from server.oar_calls import assert_lawful, item_of, request_of  # noqa: E402
from server.running import OAR  # noqa: E402
from server.test_binary import plain  # noqa: E402
from server.test_served_models import PATIENCE_S, served  # noqa: E402

AGREEMENT = 1e-5
"""Of sensitivities of a float32 model, relative to the largest."""
PAD, EOS = 0, 2
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
}
PROMPT, COMPLETION = [1, 17, 40, 61], [33, 52, 71, 90, 12, 200, 201, 202]
ANSWER = [5, 7]
ITEM = item_of(COMPLETION, prompt_ids=PROMPT, answer=ANSWER)
PERTURBATION = {"sensitivity": {"type": "perturbation"}}


def policy(folder, seed=0, **changes):
    """A directory with a policy of random weights, far from its initialisation, and its tokenizer."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    made = tokenizer()
    for name, value in changes.items():
        setattr(made, name, value)
    made.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with two policies, one of which pads with the end of a text, and the first model itself."""
    folder = tmp_path_factory.mktemp("models")
    model = policy(folder / "policy")
    policy(folder / "ends", pad_token="<eos>")  # noqa: S106 - a token
    text = '[[models]]\nid = "policy"\npath = "policy"\nkind = "policy"\nrevision = "r1"\nmax_tokens = 64\n'
    with served(folder, f'{text}[[models]]\nid = "ends"\npath = "ends"\nkind = "policy"\n') as url:
        yield url, model


def post(url, body):
    """The response to one request."""
    return httpx.post(f"{url}{OAR}", json=body, timeout=PATIENCE_S)


def answered(url, body):
    """The answer, each of whose items keeps the law."""
    response = post(url, body)
    assert response.status_code == 200, response.text
    document = response.json()
    for item, result in zip(body["items"], document["items"], strict=True):
        if result["status"] == "ok":
            assert_lawful(item, result)
    return document


def by_full_forwards(model, probe="answer_mean", prompt=PROMPT, completion=COMPLETION, answer=ANSWER, replaced=PAD):
    """Sensitivities of the tokens before the answer, from one forward pass over the whole text for each."""
    places = range(len(prompt) + answer[0] - 1, len(prompt) + answer[1] - 1)

    def outcome(ids):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0].double()
        rows = logits[list(places)]
        if probe == "answer_joint":
            known = torch.log_softmax(rows, dim=-1)
            return known[range(len(known)), completion[slice(*answer)]].mean()
        return torch.log_softmax(rows[0] if probe == "last" else rows.mean(dim=0), dim=-1)

    clean, found = outcome(completion), []
    for token in range(answer[0]):
        changed = outcome([*completion[:token], replaced, *completion[token + 1 :]])
        difference = clean - changed
        found.append(float(difference if probe == "answer_joint" else (clean.exp() * difference).sum()))
    return found


@pytest.mark.parametrize("probe", ["last", "answer_mean", "answer_joint"])
def test_perturbations_are_those_of_full_forward_passes(service, probe):
    """Every sensitivity is what a plain loop over whole texts says, and so are the weights made of them."""
    url, model = service
    document = answered(url, request_of(ITEM, **PERTURBATION, probe={"type": probe}))
    (found,) = document["items"]
    expected = by_full_forwards(model, probe)
    assert found["sensitivities"][:5] == pytest.approx(expected, abs=AGREEMENT * max(map(abs, expected)))
    assert found["sensitivities"][5:] == [None, None, None]
    usage = document["usage"]
    assert usage["evaluations"] == 6
    assert usage["tokens_computed"] <= usage["tokens_naive"] == 6 * (len(PROMPT) + ANSWER[1] - 1)


def test_a_named_token_takes_the_place_of_padding(service):
    """The token of the request is what stands there."""
    url, model = service
    named = {"sensitivity": {"type": "perturbation", "token_id": 99}}
    (found,) = answered(url, request_of(ITEM, **named))["items"]
    expected = by_full_forwards(model, replaced=99)
    assert found["sensitivities"][:5] == pytest.approx(expected, abs=AGREEMENT * max(expected))


def test_gradients_depend_on_seed_and_tokens_alone(service):
    """The same completion has the same weights wherever it stands; another seed has others; draws have a spread."""
    url, _ = service
    other = item_of([9, 8, 7, 120, 121, 122, 123, 124, 125, 60], prompt_ids=[5, 6])
    items = answered(url, request_of(ITEM, other, ITEM, ITEM, ITEM))["items"]
    rows = [items[place]["weights"] for place in (0, 2, 3, 4)]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert len(set(rows[0][:5])) > 1
    (alone,) = answered(url, request_of(ITEM, deterministic=True))["items"]
    assert alone["weights"] == pytest.approx(rows[0], abs=1e-3)
    (again,) = answered(url, request_of(ITEM, deterministic=True))["items"]
    assert again["weights"] == alone["weights"]
    (seeded,) = answered(url, request_of(ITEM, sensitivity={"type": "gradient", "seed": 1}))["items"]
    assert seeded["weights"] != pytest.approx(rows[0], abs=1e-3)
    assert seeded["spread"] is None
    (drawn,) = answered(url, request_of(ITEM, sensitivity={"type": "gradient", "noise_samples": 8}))["items"]
    assert 0.0 < drawn["spread"] < 1.0


def test_the_tokenizer_of_the_policy_writes_what_a_parser_reads(service):
    """Reasoning and answer of token ids alone are found in their text."""
    url, _ = service
    text = "the quick brown fox #### 42"
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    body = request_of({"prompt_ids": PROMPT, "completion_ids": ids, "advantage": 1.0}, parser={"type": "hashes"})
    (found,) = answered(url, body)["items"]
    start, stop = found["answer"]
    made = tokenizer()
    assert made.decode(ids[start:stop]).strip() == "42"
    assert made.decode(ids[slice(*found["reasoning"])]) == "the quick brown fox "
    assert found["n_reweighted"] == found["reasoning"][1]


def test_padding_that_ends_texts_needs_a_named_token(service):
    """A policy that pads with the end of a text is not perturbed with it in silence."""
    url, _ = service
    body = {**request_of(ITEM, **PERTURBATION), "model": "ends"}
    refused = post(url, body).json()
    assert (refused["code"], refused["errors"][0]["pointer"]) == ("invalid_request", "/sensitivity/token_id")
    named = {**body, "sensitivity": {"type": "perturbation", "token_id": EOS}}
    assert answered(url, named)["items"][0]["status"] == "ok"
    assert answered(url, {**request_of(ITEM), "model": "ends"})["items"][0]["status"] == "ok"


def test_what_the_policy_cannot_read_fails_alone(service):
    """Too long, or a token that there is not: the item fails, and the others have their numbers."""
    url, _ = service
    long, unknown = item_of([5] * 80), item_of([5, 299, 300, 7])
    found = answered(url, request_of(ITEM, long, unknown, **PERTURBATION))["items"]
    assert [one["error"]["code"] if one["status"] == "error" else None for one in found] == [
        None,
        "context_exceeded",
        "invalid_request",
    ]


def test_versions_start_with_the_files(service):
    """The first version of a policy is the digest of its files; another one is unknown."""
    url, _ = service
    (_, told) = httpx.get(f"{url}/v1/models").json()["models"]
    version = answered(url, request_of(ITEM))["weight_version"]
    assert (told["id"], told["kind"], told["weight_version"], told["fingerprint"]) == (
        "policy",
        "policy",
        version,
        version,
    )
    assert answered(url, request_of(ITEM, weight_version=version))["weight_version"] == version
    assert answered(url, request_of(item_of([5, 6], answer=None)))["weight_version"] == version
    for item in (ITEM, item_of([5, 6], answer=None)):
        refused = post(url, request_of(item, weight_version="run:7"))
        assert (refused.status_code, refused.json()["code"]) == (409, "weight_version_unknown")


@pytest.mark.parametrize("sensitivity", [{"type": "perturbation"}, {"type": "gradient", "noise_samples": 2}])
def test_a_dry_run_costs_what_the_answer_does(service, sensitivity):
    """Evaluations and tokens, told before any forward pass."""
    url, _ = service
    body = request_of(ITEM, item_of([5, 6, 7, 8]), sensitivity=sensitivity)
    dry, spent = post(url, {**body, "dry_run": True}).json(), answered(url, body)
    assert "items" not in dry
    for name in ("evaluations", "tokens_computed", "tokens_naive"):
        assert dry["usage"][name] == spent["usage"][name] > 0


def test_a_reward_model_is_no_policy(tmp_path, capsys):
    """Said at boot, with the id of the model."""
    saved(tmp_path / "rm")
    file = tmp_path / "creditd.toml"
    file.write_text(f'models_root = "{tmp_path}"\n[[models]]\nid = "rm"\npath = "rm"\nkind = "policy"\n', "utf-8")
    assert run_service(file, host=None, port=0) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("creditd: model rm")


def test_both_formats_say_the_same(service):
    """Sensitivities of a request in the binary format are those of JSON, to the last bit."""
    url, _ = service
    body = request_of(ITEM, **PERTURBATION)
    (told,) = answered(url, body)["items"]
    columns = {name: np.array(ITEM[name]) for name in ("prompt_ids", "completion_ids")}
    headers = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
    content = codec.encode({**body, "items": [{**ITEM, **columns}]})
    response = httpx.post(f"{url}{OAR}", content=content, headers=headers, timeout=PATIENCE_S)
    (found,) = plain(codec.decode(response.content))["items"]
    assert found == told
