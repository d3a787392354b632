"""What tests of adapters share: verl's queue, which takes long to start, and the end of what trainers have open."""

import sys

import pytest

from services import running_service


@pytest.fixture(autouse=True)
def _clients_of_openrlhf():
    """Where tests of OpenRLHF run, no client of theirs outlives its test."""
    yield
    world = sys.modules.get("adapters.openrlhf_world")
    if world is not None:
        world.close_clients()


@pytest.fixture(scope="session")
def started_queue():
    """A real TransferQueue. Its storage wants more processors than there may be; Ray is told of some."""
    import ray
    import transfer_queue as tq

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    tq.init()
    yield
    tq.close()
    ray.shutdown()


@pytest.fixture
def verl_queue(started_queue):
    """The queue, with nothing in it, and no advantages of another test."""
    from adapters.verl_batches import emptied
    from creditd.adapters.verl_overlay import OVERLAY

    del started_queue
    OVERLAY.keep({})
    emptied()
    emptied("val")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service of its own."""
    with running_service(directory=tmp_path_factory.mktemp("service")) as url:
        yield url
