"""Outputs of activation functions that are computed again in the backward pass instead of being kept for it.

A feed-forward part is four times as wide as the rest of a layer, and autograd keeps it twice: before the activation
function, whose gradient needs its input, and behind it, for the gradient of the next weights. Of the memory of a layer
of DistilBERT, the latter is a quarter, and it takes one pass over the former to make it again. `PackedLayer` does the
same by hand.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# Their gradient needs the input and not the output, so that nothing more is kept where the output is not.
_NAMES = frozenset({"GELU", "GELUActivation", "GELUTanh", "PytorchGELUTanh", "SiLU", "SiLUActivation"})


class _Made(NamedTuple):
    """What an activation function has made last, as long as the model itself still has it."""

    output: weakref.ref[Tensor]
    version: int
    recipe: Callable[[], Tensor]


class _Recipe(NamedTuple):
    """What is kept of an output: how to make it again, and the shape in which it was wanted."""

    make: Callable[[], Tensor]
    shape: torch.Size


def find_activations(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model, GELU and SiLU, whose outputs need not be kept."""
    return [module for module in model.modules() if type(module).__name__ in _NAMES]


@contextmanager
def computed_again(activations: Sequence[nn.Module]) -> Iterator[None]:
    """Keep no outputs of these modules for a backward pass, but compute them again there, equal to the bit.

    An output is recognised where an operator wants to keep the whole of it, in any shape. Of one that was changed in
    place before, nothing is computed again.

    Args:
        activations: Modules without parameters and without randomness, see `find_activations`.
    """
    last: _Made | None = None

    def watched(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def activate(x: Tensor) -> Tensor:
            nonlocal last
            output = forward(x)
            source = x.detach()
            last = _Made(weakref.ref(output), output._version, lambda: forward(source))
            return output

        return activate

    def pack(tensor: Tensor) -> Tensor | _Recipe:
        output = None if last is None else last.output()
        if last is None or output is None or output._version != last.version:
            return tensor
        same = tensor.untyped_storage()._cdata == output.untyped_storage()._cdata
        # in one order: what was transposed before it was kept has other entries in the same places
        if not same or tensor.numel() != output.numel() or not (tensor.is_contiguous() and output.is_contiguous()):
            return tensor
        return _Recipe(last.recipe, tensor.shape)

    def unpack(kept: Tensor | _Recipe) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return kept.make().view(kept.shape)

    with ExitStack() as stack:
        for activation in activations:
            activation.forward = watched(activation.forward)
            stack.callback(delattr, activation, "forward")
        stack.enter_context(saved_tensors_hooks(pack, unpack))
        yield
