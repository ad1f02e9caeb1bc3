"""The layers of BERT and DistilBERT: post-norm, self-attention and then a feed-forward part with GELU.

A layer of transformers is some forty kernels forward and backward, and as many nodes of autograd. Here queries, keys
and values are one product, and all that follows attention is one node, whose gradient is written out.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

# Name of the activation in the configurations of the models that are known here.
_ACTIVATIONS = {"bert": "hidden_act", "distilbert": "activation"}


def is_known_by_hand(backbone: Any) -> bool:
    """Return whether a transformer is one whose layers are written out here."""
    config = backbone.config
    if config.model_type not in _ACTIVATIONS or getattr(config, "is_decoder", False):
        return False
    return activation_of(backbone) == "gelu"


def activation_of(backbone: Any) -> str | None:
    """Return the name of a transformer's activation function, None where its configuration does not say it."""
    config = backbone.config
    return getattr(config, _ACTIVATIONS.get(config.model_type, "hidden_act"), None)


class LayerModules(NamedTuple):
    """The modules of a layer that have parameters."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    output_norm: nn.LayerNorm

    def tail(self) -> list[Tensor]:
        """Return weights and biases in the order of `TailParameters`."""
        modules = (self.out, self.attention_norm, self.up, self.down, self.output_norm)
        return [tensor for module in modules for tensor in (module.weight, module.bias)]


def layer_list(backbone: Any) -> Iterable[Any]:
    """Return the layers of a BERT or DistilBERT model of transformers."""
    return (backbone.transformer if hasattr(backbone, "transformer") else backbone.encoder).layer


def modules_of(layer: Any) -> LayerModules:
    """Return the modules of one of its layers."""
    if hasattr(layer, "ffn"):  # DistilBERT
        attention, ffn = layer.attention, layer.ffn
        return LayerModules(
            *(attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, layer.sa_layer_norm),
            *(ffn.lin1, ffn.lin2, layer.output_layer_norm),
        )
    attention, output = layer.attention.self, layer.attention.output
    return LayerModules(
        *(attention.query, attention.key, attention.value, output.dense, output.LayerNorm),
        *(layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
    )


def dropouts_of(backbone: Any) -> tuple[float, float, float, float]:
    """Return the dropout of the embeddings, the attention weights, the attention output and the feed-forward output."""
    config = backbone.config
    if config.model_type == "distilbert":
        return config.dropout, config.attention_dropout, 0.0, config.dropout
    hidden = config.hidden_dropout_prob
    return hidden, config.attention_probs_dropout_prob, hidden, hidden


def eps_of(backbone: Any) -> float:
    """Return what the layers' norms add to the variance."""
    return 1e-12 if backbone.config.model_type == "distilbert" else backbone.config.layer_norm_eps


def embed_words(
    backbone: Any, words: Float[Tensor, "token d"], positions: Int[Tensor, " token"]
) -> Float[Tensor, "token d"]:
    """Return what the first layer gets, from the embeddings of the words and the position of each in its text."""
    embeddings = backbone.embeddings
    embedded = words + embeddings.position_embeddings(positions)
    if hasattr(embeddings, "token_type_embeddings"):
        embedded = embedded + embeddings.token_type_embeddings.weight[0]
    return embeddings.LayerNorm(embedded)


class TailParameters(NamedTuple):
    """What a layer has behind its attention, as [out, in] weights and biases."""

    out_weight: Tensor
    out_bias: Tensor
    attention_norm_weight: Tensor
    attention_norm_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor
    down_bias: Tensor
    output_norm_weight: Tensor
    output_norm_bias: Tensor


class Tail(NamedTuple):
    """What `run_tail` computes; of each norm also mean and 1 / standard deviation of the rows."""

    attended: Float[Tensor, "token d"]
    mean_1: Tensor
    rstd_1: Tensor
    hidden: Float[Tensor, "token d"]
    up: Float[Tensor, "token inner"]
    output: Float[Tensor, "token d"]
    mean_2: Tensor
    rstd_2: Tensor


def run_tail(
    x: Float[Tensor, "token d"],
    context: Float[Tensor, "token d"],
    p: TailParameters,
    eps: float,
    drop_1: Callable[[Tensor], Tensor] = lambda y: y,
    drop_2: Callable[[Tensor], Tensor] = lambda y: y,
) -> tuple[Float[Tensor, "token d"], Tail]:
    """Return what a layer makes of its input and of what attention made of it, and all on the way there.

    With D for dropout:

        attended = x + D_1(context W_out^T + b_out)         hidden = norm_1(attended)
        up = hidden W_up^T + b_up
        output = hidden + D_2(gelu(up) W_down^T + b_down)   result = norm_2(output)

    Args:
        x: Input of the layer.
        context: What attention made of it, the heads side by side.
        p: Weights and biases.
        eps: Added to the variance in both norms.
        drop_1: Dropout behind attention.
        drop_2: Dropout behind the feed-forward part.
    """
    shape = (x.shape[1],)
    attended = drop_1(F.linear(context, p.out_weight, p.out_bias)).add_(x)
    hidden, mean_1, rstd_1 = torch.native_layer_norm(
        attended, shape, p.attention_norm_weight, p.attention_norm_bias, eps
    )
    up = F.linear(hidden, p.up_weight, p.up_bias)
    output = drop_2(F.linear(F.gelu(up), p.down_weight, p.down_bias)).add_(hidden)
    result, mean_2, rstd_2 = torch.native_layer_norm(output, shape, p.output_norm_weight, p.output_norm_bias, eps)
    return result, Tail(attended, mean_1, rstd_1, hidden, up, output, mean_2, rstd_2)


def run_tail_backward(
    grad: Float[Tensor, "token d"],
    context: Float[Tensor, "token d"],
    t: Tail,
    p: TailParameters,
    drop_1: Callable[[Tensor], Tensor] = lambda y: y,
    drop_2: Callable[[Tensor], Tensor] = lambda y: y,
) -> tuple[Float[Tensor, "token d"], Float[Tensor, "token d"], TailParameters]:
    """Return the gradients of x, of the context and of the parameters of `run_tail`.

    `grad_y` stands for dL/dy of a value y of the forward pass, `d_w` for dL/dw of a parameter w. For a linear layer
    y = x W^T + b: grad_x = grad_y W, d_W = grad_y^T x, d_b = sum of grad_y over tokens. For a residual connection
    y = x + f(x): grad_x = grad_y + the gradient through f. gelu(up) is not kept but computed again.

    Args:
        grad: Gradient of the result.
        context: As it was given.
        t: What was computed.
        p: Weights and biases.
        drop_1: The same dropout, of a gradient.
        drop_2: Likewise.
    """
    norm_backward = torch.ops.aten.native_layer_norm_backward
    shape, all_three = (grad.shape[1],), [True, True, True]
    # result = norm_2(output): grad_output [t, d], weight and bias of the norm
    grad_output, d_output_norm_weight, d_output_norm_bias = norm_backward(
        grad, t.output, shape, t.mean_2, t.rstd_2, p.output_norm_weight, p.output_norm_bias, all_three
    )
    # output = hidden + D_2(down), down = gelu(up) W_down^T + b_down: grad_down is grad_output, masked and scaled
    grad_down = drop_2(grad_output)
    d_down_weight, d_down_bias = grad_down.T @ F.gelu(t.up), grad_down.sum(0)
    # up -> gelu(up): grad_up = (grad_down W_down) * gelu'(up), [t, feed-forward size]
    grad_up = torch.ops.aten.gelu_backward(grad_down @ p.down_weight, t.up)
    d_up_weight, d_up_bias = grad_up.T @ t.hidden, grad_up.sum(0)
    # hidden is used twice: grad_hidden = grad_output (residual) + grad_up W_up (in place of grad_output)
    grad_hidden = grad_output.addmm_(grad_up, p.up_weight)
    # hidden = norm_1(attended): grad_attended [t, d], weight and bias of the norm
    grad_attended, d_attention_norm_weight, d_attention_norm_bias = norm_backward(
        grad_hidden, t.attended, shape, t.mean_1, t.rstd_1, p.attention_norm_weight, p.attention_norm_bias, all_three
    )
    # attended = x + D_1(out), out = context W_out^T + b_out: grad_out like grad_down; grad_context = grad_out W_out
    grad_out = drop_1(grad_attended)
    gradients = TailParameters(
        *(grad_out.T @ context, grad_out.sum(0), d_attention_norm_weight, d_attention_norm_bias),
        *(d_up_weight, d_up_bias, d_down_weight, d_down_bias, d_output_norm_weight, d_output_norm_bias),
    )
    return grad_attended, grad_out @ p.out_weight, gradients


class LayerTail(torch.autograd.Function):
    """`run_tail` without dropout. What norm_1 returns is not kept either, but computed again."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "token d"], context: Float[Tensor, "token d"], eps: float, *parameters: Tensor
    ) -> Float[Tensor, "token d"]:
        """Return the layer's result.

        Args:
            ctx: Context of autograd.
            x: Input of the layer.
            context: What attention made of it.
            eps: Added to the variance in both norms.
            parameters: Tensors in the order of `TailParameters`.
        """
        result, tail = run_tail(x, context, TailParameters(*parameters), eps)
        ctx.eps = eps
        kept = (part for name, part in tail._asdict().items() if name != "hidden")
        ctx.save_for_backward(context, *kept, *parameters)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "token d"]) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the context, None for eps, and those of the parameters."""
        context, attended, mean_1, rstd_1, up, output, mean_2, rstd_2, *parameters = ctx.saved_tensors
        p = TailParameters(*parameters)
        hidden = torch.native_layer_norm(
            attended, (attended.shape[1],), p.attention_norm_weight, p.attention_norm_bias, ctx.eps
        )[0]
        tail = Tail(attended, mean_1, rstd_1, hidden, up, output, mean_2, rstd_2)
        grad_x, grad_context, gradients = run_tail_backward(grad, context, tail, p)
        return (grad_x, grad_context, None, *gradients)
