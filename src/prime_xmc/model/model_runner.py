"""Any transformer of transformers on packed tokens: its own modules, with attention that knows where texts start."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prime_xmc.model.activations import computed_again, find_activations
from prime_xmc.model.casting import cast_joined
from prime_xmc.model.frozen import FrozenLayers
from prime_xmc.model.packed_attention import (
    ATTENTION,
    PackedTexts,
    attention_within,
    current_texts,
    one_thread,
    set_texts,
)

Part = Literal["all", "below", "above"]
"""Layers that run: all, those that are frozen or those above them."""


class ModelRunner:
    """Runs the modules of a transformer in one dtype throughout.

    Where the weights have another, all are cast at once, and so are their gradients: autocast would cast each by
    itself, and everything around the norms to float32 and back. What adds positions and normalises, below the layers of
    an encoder, computes in float32 as it does by hand: few rows of its tables get the gradients of all tokens.

    Args:
        model: Transformer, without what holds adapters around it.
        frozen: Its frozen layers.
        compile: Whether to compile the layers with torch.compile; all of them share one compilation.
        keeps_activations: Whether outputs of activation functions are kept for the backward pass, which a compiler
            decides for itself. Otherwise they are computed again there.

    Raises:
        ValueError: If layers are frozen or compiled, and not found.
    """

    def __init__(self, model: Any, frozen: FrozenLayers, *, compile: bool = False, keeps_activations: bool = False):
        self.model = model
        self.frozen = frozen
        self.compile = compile
        self.layers = find_layers(model) if compile or frozen.modules else []
        self.embeddings: Any = getattr(model, "embeddings", None)
        self.activations = [] if compile or keeps_activations else find_activations(model)
        self._run_layer: Callable[..., Any] = torch.compile(_run_layer) if compile else _run_layer
        self._places = _places_of_weights(model)
        below = {id(parameter) for module in frozen.modules for parameter in module.parameters()}
        self._is_below = [id(module.get_parameter(name)) in below for (module, name), *_ in self._places]

    def needs_positions(self, part: Part) -> bool:
        """Return whether `run` needs the positions of tokens: many transformers turn by them in every layer."""
        return True

    def weights(self, dtype: torch.dtype, part: Part) -> list[Tensor | None]:
        """Return the weights of some layers in a dtype; None for those that have it, and for those of other layers."""
        result: list[Tensor | None] = [None] * len(self._places)
        trained: dict[int, Tensor] = {}
        rest: dict[int, Tensor] = {}
        with one_thread:  # in `run` the modules have other weights
            parameters = [module.get_parameter(name) for (module, name), *_ in self._places]
        for place, parameter in enumerate(parameters):
            wanted = part == "all" or self._is_below[place] == (part == "below")
            if wanted and parameter.is_floating_point() and parameter.dtype != dtype:
                (trained if parameter.requires_grad and torch.is_grad_enabled() else rest)[place] = parameter
        with torch.no_grad():
            cast = cast_joined(dtype, [[parameter] for parameter in rest.values()])
        cast += cast_joined(dtype, [[parameter] for parameter in trained.values()])
        for place, weight in zip([*rest, *trained], cast, strict=True):
            result[place] = weight
        return result

    def run(
        self,
        rows: Float[Tensor, "token d"],
        texts: PackedTexts,
        positions: Int[Tensor, " token"],
        weights: list[Tensor | None],
        dtype: torch.dtype,
        part: Part,
    ) -> Float[Tensor, "token d"]:
        """Return the output of some layers.

        Args:
            rows: Embeddings of words; where those above run, the outputs of the frozen layers.
            texts: Where the texts are.
            positions: Position of each token in its text.
            weights: What `weights` returns for these layers.
            dtype: Dtype in which they compute.
            part: Which layers.
        """
        found: list[Tensor] = []
        if self.embeddings is None or part == "above":
            rows = rows.to(dtype)
        again = self.activations and torch.is_grad_enabled()
        with ExitStack() as stack:
            stack.enter_context(attention_within(texts))  # from here on other threads wait, to the end of all contexts
            stack.enter_context(computed_again(self.activations) if again else nullcontext())
            stack.enter_context(self._weights_in_place(weights))
            self._prepare(stack, rows[None], dtype, part, found)
            output = self.model(inputs_embeds=rows[None], position_ids=positions[None]).last_hidden_state
        return (found[0] if part == "below" else output).squeeze(0)

    def _prepare(
        self, stack: ExitStack, rows: Float[Tensor, "1 token d"], dtype: torch.dtype, part: Part, found: list[Tensor]
    ) -> None:
        """Let the model use packed attention and run the wanted layers alone, and not its pooler, within a context."""
        stack.enter_context(_packed_attention_of(self.model))
        if self.embeddings is not None:
            embed = self.embeddings.forward
            above = part == "above"
            stack.enter_context(
                _forward_of(self.embeddings, lambda *args, **kw: rows if above else embed(*args, **kw).to(dtype))
            )
        for place, layer in enumerate(self.layers):
            if part != "all" and (place < self.frozen.number) != (part == "below"):
                stack.enter_context(_forward_of(layer, _stand_in(rows, found, part)))
            elif self.compile:
                stack.enter_context(_forward_of(layer, _compiled(self._run_layer, layer)))

    @contextmanager
    def _weights_in_place(self, weights: list[Tensor | None]) -> Iterator[None]:
        """Let the modules have other weights, for the duration of the context.

        As `torch.func.functional_call` does, which looks through all modules of the model in each call.
        """
        replaced = []
        try:
            for weight, places in zip(weights, self._places, strict=True):
                if weight is not None:
                    for module, name in places:
                        replaced.append((module, name, module._parameters[name]))
                        module._parameters[name] = weight  # type: ignore[assignment]
            yield
        finally:
            for module, name, parameter in replaced:
                module._parameters[name] = parameter


def _places_of_weights(model: Any) -> list[list[tuple[nn.Module, str]]]:
    """Return modules and names of each weight, more than one where it is shared, but for what is below the layers."""
    words = model.get_input_embeddings().weight
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        if not f"{prefix}.".startswith(("pooler.", "embeddings.")):
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter is not words:
                    places.setdefault(id(parameter), []).append((module, name))
    return list(places.values())


def _stand_in(rows: Tensor, found: list[Tensor], part: str) -> Callable[..., Tensor]:
    """Return what is called instead of a layer: above the wanted ones it hands on, below it returns the rows."""

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        if part == "above":
            return rows
        found.append(hidden)
        return hidden

    return forward


def _compiled(run: Callable[..., Any], layer: nn.Module) -> Callable[..., Any]:
    """Return a layer's forward by `run`, a compiled `_run_layer`, for which the number of tokens and texts is open."""

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        offsets, longest = current_texts()
        tokens = hidden.shape[1]
        torch._dynamo.maybe_mark_dynamic(offsets, 0)
        for tensor in _tensors((hidden, args, kwargs)):
            for dim, size in enumerate(tensor.shape):
                if size == tokens:
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return run(layer, offsets, longest, hidden, *args, **kwargs)

    return forward


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _run_layer(layer: nn.Module, offsets: Tensor, longest: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    # here, since a compiler takes numbers of an object for constants and arguments for variables
    set_texts(PackedTexts(offsets, longest))
    return type(layer).forward(layer, hidden, *args, **kwargs)


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else, for the duration of the context."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _packed_attention_of(model: Any) -> Iterator[None]:
    """Let a model use packed attention, for the duration of the context, and leave out its pooler."""
    before, pooler = model.config._attn_implementation, getattr(model, "pooler", None)
    model.config._attn_implementation = ATTENTION
    if pooler is not None:
        model.pooler = None
    try:
        yield
    finally:
        model.config._attn_implementation = before
        if pooler is not None:
            model.pooler = pooler


def without_adapters(backbone: Any) -> Any:
    """Return the model of transformers within one of peft, whose layers hold the adapters; another one as it is."""
    return backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone


def find_layers(model: Any) -> list[Any]:
    """Return the layers of a transformer.

    Raises:
        ValueError: If there is not one list of as many as the configuration says.
    """
    number = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ValueError(
        f"{model.config.model_type} has no list of its {number} layers: give encoder.frozen_layers=0 "
        "encoder.compile=false, or encoder.implementation=transformers"
    )
