import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from transformers import LlamaForSequenceClassification  # noqa: E402

from creditd.engines.chat import ChatText  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.loading import load_reward  # noqa: E402
from creditd.engines.model_spec import HeadChoice, ModelSpec  # noqa: E402
from creditd.engines.reward_scorers import Variants  # noqa: E402
from engines.architectures import BIDIRECTIONAL, CAUSAL, EXPERTS, POSITIONS, WINDOWED, made  # noqa: E402
from engines.saved import TEMPLATE, saved, tokenizer  # noqa: E402

AGREEMENT = 1e-5
SPEC = ModelSpec("rm", Path("rm"))


def ignore():
    """Nobody waits for a sign of life."""


@pytest.mark.parametrize("name", [*CAUSAL, *EXPERTS, *WINDOWED, *BIDIRECTIONAL])
def test_a_saved_model_is_served(tmp_path, name):
    """What save_pretrained wrote needs no step of ours; how it is asked follows from what it can."""
    original = saved(tmp_path / "rm", name)
    loaded = load_reward(SPEC, tmp_path)
    assert loaded.reads_tries is (name in {**CAUSAL, **EXPERTS})
    assert (loaded.check is None) is (name in BIDIRECTIONAL)
    assert loaded.max_tokens == POSITIONS
    assert loaded.n_bytes == 4 * sum(parameter.numel() for parameter in original.parameters())
    tokens = loaded.text.tokens("the quick brown", " fox jumps")
    with torch.inference_mode():
        expected = original(torch.from_numpy(tokens)[None]).logits[0, 0].item()
    assert loaded.scorer.score([Variants((tokens,))], ignore)[0] == pytest.approx([expected], abs=AGREEMENT)


def test_dtypes_and_limits_are_those_of_the_registration(tmp_path):
    """Weights take the registered type, and a shorter limit than the model's own holds."""
    saved(tmp_path / "rm")
    loaded = load_reward(ModelSpec("rm", Path("rm"), dtype="bfloat16", max_tokens=9), tmp_path)
    assert (loaded.model.dtype, loaded.max_tokens) == (torch.bfloat16, 9)


def broken(folder, change):
    """A saved model, changed."""
    saved(folder)
    change(folder)


def of_config(**changes):
    """A change of the configuration."""

    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def without_safetensors(folder):
    """Weights in a format that can run code."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def leading_outside(folder):
    """A link out of the directory for models."""
    (folder / "extra.json").symlink_to(Path(__file__))


def a_folder_leading_outside(folder):
    """The same, further down."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "template.jinja").symlink_to(Path(__file__))


def shards(name):
    """An index of weights that names a file."""
    index = json.dumps({"weight_map": {"score.weight": name}})
    return lambda folder: (folder / "model.safetensors.index.json").write_text(index)


def of_nan(folder):
    """Weights that are no numbers."""
    model = made("llama")
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(folder)


def several_templates(folder):
    """Chat templates of which none is the default."""
    (folder / "chat_template.jinja").unlink()
    made_here = tokenizer()
    made_here.chat_template = {"long": TEMPLATE, "short": TEMPLATE}
    made_here.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_safetensors, r"got pytorch_model\.bin, which can run code; expected weights as safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json; expected what save_pretrained wrote"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
        (of_config(auto_map={"AutoModel": "evil.Model"}), "code of its own"),
        (of_config(architectures=["LlamaForCausalLM"]), "LlamaForCausalLM; a reward model is one for sequence"),
        (of_config(architectures=None), "got the architecture none"),
        (leading_outside, r"extra\.json leads outside"),
        (a_folder_leading_outside, r"template\.jinja leads outside"),
        (shards("../model.safetensors"), "names a file that is not beside it"),
        (shards(7), "names a file that is not beside it"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "names no files"),
        (of_nan, "its scores are no finite numbers"),
        (several_templates, "has the chat templates long, short; expected one called default"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"rubbish"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
    ],
)
def test_an_unsuitable_directory_says_at_boot_why(tmp_path, change, sentence):
    """The model is named, and what is wrong with it, before any request is taken."""
    broken(tmp_path / "rm", change)
    with pytest.raises(ModelUnsuitableError, match=rf"^model rm.*{sentence}"):
        load_reward(SPEC, tmp_path)


@pytest.mark.parametrize("path", ["../elsewhere", "/", "nothing"])
def test_a_path_is_inside_the_root(tmp_path, path):
    """No registration reaches outside the directory for models."""
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelUnsuitableError, match=r"outside the directory for models|no directory"):
        load_reward(ModelSpec("rm", Path(path)), tmp_path / "models")


def test_several_labels_need_a_choice(tmp_path):
    """A head with two labels is refused without a choice and served with one."""
    original = saved(tmp_path / "rm", num_labels=2)
    with pytest.raises(ModelUnsuitableError, match=r"^model rm: the head has 2 labels"):
        load_reward(SPEC, tmp_path)
    loaded = load_reward(ModelSpec("rm", Path("rm"), head=HeadChoice(margin=(1, 0))), tmp_path)
    tokens = loaded.text.tokens("a", "b")
    with torch.inference_mode():
        logits = original(torch.from_numpy(tokens)[None]).logits[0]
    found = loaded.scorer.score([Variants((tokens,))], ignore)[0]
    assert found == pytest.approx([(logits[1] - logits[0]).item()], abs=AGREEMENT)


def test_messages_go_through_the_template():
    """A prompt of messages is rendered with the completion as the last one; a string is read as it is."""
    made_here = tokenizer()
    text = ChatText(made_here, None)
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    rendered = "<system>be brief</system><user>why?</user><assistant>so</assistant>"
    assert made_here.decode(text.tokens(prompt, "so").tolist()) == rendered
    assert made_here.decode(text.tokens("why? ", "so").tolist()) == "why? so"
    assert text.tokens("why? ", "so").dtype == np.int64


def test_the_default_of_several_templates_is_taken():
    """As transformers takes it."""
    made_here = tokenizer()
    made_here.chat_template = {"default": TEMPLATE, "tool_use": "{{ 1 / 0 }}"}
    prompt = [{"role": "user", "content": "why?"}]
    assert made_here.decode(ChatText(made_here, None).tokens(prompt, "so").tolist()).startswith("<user>why?")


def test_a_template_may_want_a_system_message_first():
    """Such a template is no reason to refuse the model; a conversation without one is."""
    wants = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + TEMPLATE
    text = ChatText(tokenizer(), wants)
    prompt = [{"role": "user", "content": "why?"}]
    assert len(text.tokens([{"role": "system", "content": "s"}, *prompt], "so"))
    with pytest.raises(ModelUnsuitableError, match="refuses these messages"):
        text.tokens(prompt, "so")


def test_a_model_with_more_between_its_states_and_its_head_is_refused(tmp_path, monkeypatch):
    """What the model's own forward pass says is what it is asked for; another number is never served."""
    saved(tmp_path / "rm")
    original = LlamaForSequenceClassification.forward

    def scaled(*arguments, **options):
        found = original(*arguments, **options)
        found.logits = found.logits * 1.5
        return found

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", scaled)
    with pytest.raises(ModelUnsuitableError, match="its own forward pass scores texts otherwise"):
        load_reward(SPEC, tmp_path)


def test_an_architecture_that_is_asked_otherwise_is_one_sentence(tmp_path, monkeypatch):
    """Whatever a model raises when it is tried becomes the reason at boot."""
    saved(tmp_path / "rm")

    def broken_forward(*_, **__):
        raise KeyError("decoder")

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", broken_forward)
    with pytest.raises(ModelUnsuitableError, match="a LlamaForSequenceClassification cannot be asked here"):
        load_reward(SPEC, tmp_path)


def test_a_template_of_another_kind_is_another_identity():
    """The override counts, and is hashed into what utilities are remembered by."""
    made_here = tokenizer()
    own, other = ChatText(made_here, None), ChatText(made_here, TEMPLATE.replace("<", "["))
    assert own.identity == ChatText(tokenizer(), None).identity
    assert other.identity != own.identity
    assert "[user>" in made_here.decode(other.tokens([{"role": "user", "content": "q"}], "a").tolist())


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('no assistant') }}", "cannot render a user's and an assistant's message"),
        ("{{ messages[0]['content'] }}", "leaves out the messages of assistant"),
        ("{% for", "cannot render"),
    ],
)
def test_a_template_without_the_needed_roles_is_refused(template, sentence):
    """The lack of a role is found out at boot."""
    with pytest.raises(ModelUnsuitableError, match=sentence):
        ChatText(tokenizer(), template)


def test_a_model_without_a_template_takes_strings_alone():
    """Messages without a template are an error that says what is expected; strings are read as they are."""
    text = ChatText(tokenizer(template=None), None)
    assert not text.has_template
    assert len(text.tokens("a", "b"))
    with pytest.raises(ModelUnsuitableError, match="expected a prompt that is a string"):
        text.tokens([{"role": "user", "content": "q"}], "a")
