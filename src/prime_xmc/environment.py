"""Environment variables that libraries read once, when they are loaded; `import prime_xmc` sets them first of all."""

from collections.abc import MutableMapping

# By any of these a user says how threads of OpenMP wait: in all libraries of OpenMP, in GNU's (libgomp, which the
# wheels of torch and Faiss carry), and in Intel's and LLVM's (libiomp5 and libomp).
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def set_defaults(environment: MutableMapping[str, str]) -> None:
    """Set the variables that the user has not set; child processes inherit them.

    They have no effect on a library that this process has loaded already.

    Args:
        environment: `os.environ`, which is changed.
    """
    # A training step touches GBs of fresh memory, a fault for each 4 KB page of it: huge pages spare a tenth of its
    # time. Read at torch's first allocation.
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # A thread that has finished its share of a loop otherwise spins for milliseconds until the next one, on a core that
    # another process could use, and the thread that it waits for may be the one without a core. For libgomp this is
    # GOMP_SPINCOUNT=0, for libiomp5 and libomp KMP_BLOCKTIME=0; each lets its own variable go before this one.
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
