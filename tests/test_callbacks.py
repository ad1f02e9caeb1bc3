import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")

# Forty blocks, every other one of which is freed: a heap cannot shrink below the last one.
PIECES = """
import ctypes
from prime_xmc.callbacks import ReturnMemory

if {apply}:
    ReturnMemory(min_bytes=2**20).apply()
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def use(size):
    block = malloc(size)
    ctypes.memset(block, 1, size)
    return block

free(use(2**24))  # from here on glibc's own threshold is 16 MiB
before = resident()
blocks = [use(2**21) for _ in range(40)]
for block in blocks[::2]:
    free(block)
print((resident() - before) // 2**20)
"""


class TestReturnMemory:
    @pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
    def test_large_blocks_go_back_to_the_system(self):
        growth = {}
        for apply in (True, False):
            command = [sys.executable, "-c", PIECES.format(apply=apply)]
            growth[apply] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert growth[True] == pytest.approx(40, abs=4)  # MiB
        assert growth[False] == pytest.approx(80, abs=4)
