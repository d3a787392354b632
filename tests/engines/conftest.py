import pytest

from creditd.engines.model_spec import HeadChoice, ModelSpec, RemoteChoice
from engines.vllm_answers import MODEL
from engines.vllm_server import PATIENCE_S, VllmServer


@pytest.fixture
def server():
    """A server that answers as vLLM does."""
    with VllmServer() as made:
        yield made


@pytest.fixture
def engine_of():
    """Makes engines that are closed when the test is over."""
    # A bare machine with a GPU has no httpx, and runs the other tests of this folder.
    from creditd.engines.remote import RemoteEngine

    engines = []

    def made(server, head=None, chat_template=None, max_queued_tokens=1 << 20, revision="", cache=None, **remote):
        choice = RemoteChoice(server.url, **{"model": MODEL, "timeout_s": PATIENCE_S, **remote})
        spec = ModelSpec(
            "judge", remote=choice, head=head or HeadChoice(), chat_template=chat_template,
            max_queued_tokens=max_queued_tokens, revision=revision, cache=cache,
        )  # fmt: skip
        engines.append(RemoteEngine(spec))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close(0.0)
