import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

FAULTS = """
import resource
import numpy as np
from creditd.server.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        blocks = [np.ones(1 << 17) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory() is {glibc}
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_memory_of_an_answer_is_kept_for_the_next():
    """Blocks of a megabyte, allocated and freed again and again, cost no page faults once they were there."""
    glibc = platform.libc_ver()[0] == "glibc"
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS.format(glibc=glibc)], capture_output=True, text=True, check=True, timeout=60
    )
    pages = 200 * 4 * (1 << 20) // 4096
    assert not glibc or int(ended.stdout) < pages / 100
