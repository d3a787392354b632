"""A policy on a GPU: sensitivities by plain transformers, the same noise as on a processor, and weights that change."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="tests on a GPU need torch and transformers")
pytestmark = pytest.mark.gpu

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from benchmarks.oar_peer import PeerModel  # noqa: E402
from benchmarks.oar_workload import PAD, Shape, saved_policy, workload  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.noise import normal_noise  # noqa: E402
from creditd.engines.policy_engine import PolicyEngine  # noqa: E402
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityOptions  # noqa: E402

SIZE = "9 M"
SHAPE = Shape(prompt=40, reasoning=64, conclusion=5, answer=6)
WAIT_S = 120
AGREEMENT = 1e-3
"""As a share of the largest sensitivity of a completion: both are small differences of float32."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory with a policy of nine million parameters."""
    folder = tmp_path_factory.mktemp("models")
    saved_policy(folder / "policy", SIZE)
    return folder


@pytest.fixture(scope="module")
def work():
    """Completions of one shape."""
    return workload(SIZE, SHAPE, 3)


def options_of(method, **more):
    """What is measured."""
    return SensitivityOptions(method, perturbation_id=PAD if method == "perturbation" else None, **more)


def loaded(root, **choices):
    """The policy on a GPU."""
    return PolicyEngine.load(ModelSpec("policy", Path("policy"), kind="policy", **{"device": "cuda"} | choices), root)


def asked(engine, work, options, **how):
    """What an engine says of completions."""
    places = np.arange(work.shape.reasoning, dtype=np.int64)
    items = [
        ReasonedTokens(prompt, completion, places, work.shape.answer_range)
        for prompt, completion in zip(work.prompts, work.completions, strict=True)
    ]
    return engine.sensitivities(engine.prepared_sensitivities(items, options, **how)).result(timeout=WAIT_S)


def by_transformers(root, work, method, dtype="float32"):
    """What plain transformers says, in float32 with weights that were rounded to a type."""
    model = AutoModelForCausalLM.from_pretrained(root / "policy", dtype=getattr(torch, dtype))
    model = model.float().to("cuda").eval().requires_grad_(requires_grad=False)
    if method == "perturbation":
        return PeerModel(model).perturbed(work, 64)
    options = options_of(method)

    def noise(count, width):
        return options.noise_std * torch.from_numpy(normal_noise(options.seed, 0, count, width))

    return PeerModel(model).gradients(work, 3, noise)


def difference(found, expected):
    """The largest difference, as a share of the largest sensitivity of its completion."""
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("method", "dtype"), [("perturbation", "float32"), ("gradient", "float32"), ("gradient", "bfloat16")]
)
def test_sensitivities_are_those_of_plain_transformers(root, work, method, dtype):
    """One row per token, or two forward passes and a backward; the gradient in float32 whatever the weights' type."""
    engine = loaded(root, dtype=dtype)
    try:
        found = asked(engine, work, options_of(method))
        assert not found.failures
        assert difference(found.sensitivities, by_transformers(root, work, method, dtype)) <= AGREEMENT
    finally:
        engine.close()


def test_noise_is_the_same_on_every_device(root, work):
    """Gradients of one seed on a GPU and on a processor agree within rounding; another seed gives others."""
    gpu, cpu = loaded(root), loaded(root, device="cpu")
    try:
        here, there = (asked(engine, work, options_of("gradient")).sensitivities for engine in (gpu, cpu))
        other = asked(gpu, work, options_of("gradient", seed=1)).sensitivities
        assert difference(here, there) <= AGREEMENT
        assert difference(other, there) > 100 * AGREEMENT
    finally:
        gpu.close()
        cpu.close()


@pytest.mark.parametrize("method", ["perturbation", "gradient"])
def test_company_changes_nothing_but_rounding(root, work, method):
    """A completion that is read by itself has the sensitivities that it has beside others."""
    engine = loaded(root)
    try:
        together = asked(engine, work, options_of(method)).sensitivities
        alone = asked(engine, work, options_of(method), alone=True).sensitivities
        assert difference(together, alone) <= AGREEMENT
    finally:
        engine.close()


def test_weights_have_no_gradient(root, work):
    """What is left on the GPU after a request is what was there before it."""
    engine = loaded(root)
    try:
        asked(engine, work, options_of("gradient"))
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        asked(engine, work, options_of("gradient"))
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before
    finally:
        engine.close()
