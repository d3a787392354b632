import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from engines.process_pairs import in_two_processes  # noqa: E402


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp1 with parameters", "fsdp2"])
def test_measuring_between_passes_leaves_gathered_gradients_alone(kind):
    """Losses and norms of gradients keep every bit, whichever passes bring those of both processes together."""
    for told in in_two_processes("two_accumulators.py", kind):
        assert len(told) == 6
        for name, (plain, measured) in told.items():
            assert measured == plain, name
