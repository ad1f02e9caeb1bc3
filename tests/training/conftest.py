"""What finds, on the CPU, operations for which the host would have to wait for a GPU."""

from typing import Any

import pytest

# what returns a number to the host, or a tensor whose size only the device knows
WAITING = {
    *("_local_scalar_dense", "nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "is_nonzero"),
    *("equal", "masked_select", "bincount", "repeat_interleave", "_coalesce"),
}


@pytest.fixture
def never_waits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A context in which such operations raise an AssertionError; `exempt(module)` leaves out a module's forward."""
    from torch.utils._python_dispatch import TorchDispatchMode  # after `pytest_configure`

    from prime_xmc.training import optimizers

    # as on a GPU
    monkeypatch.setattr(optimizers, "_knows_number_of_rows", lambda gradient: gradient.is_coalesced())

    class NeverWaits(TorchDispatchMode):
        paused = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func._schema.name.removeprefix("aten::")
            masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
                index is not None and not index.dtype.is_signed for index in args[1]
            )
            if not self.paused and (masked or name in WAITING):
                raise AssertionError(f"the host would wait for {name}")
            return func(*args, **(kwargs or {}))

        def exempt(self, module: Any) -> None:
            module.register_forward_pre_hook(lambda *_: setattr(self, "paused", True))
            module.register_forward_hook(lambda *_: setattr(self, "paused", False))

    return NeverWaits()
