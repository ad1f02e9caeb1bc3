import subprocess
import sys
from pathlib import Path

import pytest

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import prime_xmc.train, re, torch
tensor = torch.ones(2**26)
print(re.search(r"AnonHugePages:\\s+(\\d+) kB", open("/proc/self/smaps_rollup").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not SWITCH.is_file() or "[never]" in SWITCH.read_text(), reason="the system has no huge pages")
def test_large_tensors_are_on_huge_pages():
    kilobytes = int(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout)
    assert kilobytes > 2**17  # half of the tensor at least: the rest is up to what memory the system has in pieces
