"""The layers of BERT and DistilBERT: post-norm, self-attention and then a feed-forward part with GELU.

Queries, keys and values are one product, and what lies between attention and the next layer is one node of autograd,
whose gradient is written out: both save kernels, memory and time of the host.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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

    def behind_attention(self) -> list[Tensor]:
        """Return weights and biases in the order of `InnerParameters`, then those of the last norm."""
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


class InnerParameters(NamedTuple):
    """What a layer has between its attention and its last norm, as [out, in] weights and biases."""

    out_weight: Tensor
    out_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor
    down_bias: Tensor


class Inner(NamedTuple):
    """What `run_inner` computes on its way; of the norm also mean and 1 / standard deviation of the rows."""

    attended: Float[Tensor, "token d"]
    mean: Tensor
    rstd: Tensor
    hidden: Float[Tensor, "token d"]
    up: Float[Tensor, "token inner"]


def run_inner(
    x: Float[Tensor, "token d"],
    context: Float[Tensor, "token d"],
    p: InnerParameters,
    eps: float,
    drop_1: Callable[[Tensor], Tensor] = lambda y: y,
    drop_2: Callable[[Tensor], Tensor] = lambda y: y,
) -> tuple[Float[Tensor, "token d"], Inner]:
    """Return what a layer makes of its input and of what attention made of it, up to its last norm.

    With D for dropout:

        attended = x + D_1(context W_out^T + b_out)         hidden = norm(attended)
        up = hidden W_up^T + b_up
        output = hidden + D_2(gelu(up) W_down^T + b_down)

    Args:
        x: Input of the layer.
        context: What attention made of it, the heads side by side.
        p: Weights and biases.
        eps: Added to the variance in the norm.
        drop_1: Dropout behind attention.
        drop_2: Dropout behind the feed-forward part.
    """
    attended = drop_1(F.linear(context, p.out_weight, p.out_bias)).add_(x)
    hidden, mean, rstd = torch.native_layer_norm(attended, (x.shape[1],), p.norm_weight, p.norm_bias, eps)
    up = F.linear(hidden, p.up_weight, p.up_bias)
    output = drop_2(F.linear(F.gelu(up), p.down_weight, p.down_bias)).add_(hidden)
    return output, Inner(attended, mean, rstd, hidden, up)


def run_inner_backward(
    grad_output: Float[Tensor, "token d"],
    context: Float[Tensor, "token d"],
    i: Inner,
    p: InnerParameters,
    drop_1: Callable[[Tensor], Tensor] = lambda y: y,
    drop_2: Callable[[Tensor], Tensor] = lambda y: y,
) -> tuple[Float[Tensor, "token d"], Float[Tensor, "token d"], InnerParameters]:
    """Return the gradients of x, of the context and of the parameters of `run_inner`.

    `grad_y` stands for dL/dy of a value y of the forward pass, `d_w` for dL/dw of a parameter w. For a linear layer
    y = x W^T + b: grad_x = grad_y W, d_W = grad_y^T x, d_b = sum of grad_y over tokens. For a residual connection
    y = x + f(x): grad_x = grad_y + the gradient through f. gelu(up) is not kept but computed again.

    Args:
        grad_output: Gradient of the output; another takes its place.
        context: As it was given.
        i: What was computed.
        p: Weights and biases.
        drop_1: The same dropout, of a gradient.
        drop_2: Likewise.
    """
    # output = hidden + D_2(down), down = gelu(up) W_down^T + b_down: grad_down is grad_output, masked and scaled
    grad_down = drop_2(grad_output)
    d_down_weight, d_down_bias = grad_down.T @ F.gelu(i.up), grad_down.sum(0)
    # up -> gelu(up): grad_up = (grad_down W_down) * gelu'(up), [t, feed-forward size]
    grad_up = torch.ops.aten.gelu_backward(grad_down @ p.down_weight, i.up)
    d_up_weight, d_up_bias = grad_up.T @ i.hidden, grad_up.sum(0)
    # hidden is used twice: grad_hidden = grad_output (residual) + grad_up W_up (in place of grad_output)
    grad_hidden = grad_output.addmm_(grad_up, p.up_weight)
    # hidden = norm(attended): grad_attended [t, d], weight and bias of the norm
    grad_attended, d_norm_weight, d_norm_bias = norm_backward(
        grad_hidden, i.attended, i.mean, i.rstd, p.norm_weight, p.norm_bias
    )
    # attended = x + D_1(out), out = context W_out^T + b_out: grad_out like grad_down; grad_context = grad_out W_out
    grad_out = drop_1(grad_attended)
    gradients = InnerParameters(
        *(grad_out.T @ context, grad_out.sum(0), d_norm_weight, d_norm_bias),
        *(d_up_weight, d_up_bias, d_down_weight, d_down_bias),
    )
    return grad_attended, grad_out @ p.out_weight, gradients


def norm_backward(
    grad: Float[Tensor, "token d"],
    x: Float[Tensor, "token d"],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias of a norm, given what `torch.native_layer_norm` returned."""
    return torch.ops.aten.native_layer_norm_backward(
        grad, x, (x.shape[1],), mean, rstd, weight, bias, [True, True, True]
    )


class LayerInner(torch.autograd.Function):
    """`run_inner` without dropout. What its norm returns is not kept either, but computed again."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "token d"], context: Float[Tensor, "token d"], eps: float, *parameters: Tensor
    ) -> Float[Tensor, "token d"]:
        """Return the output.

        Args:
            ctx: Context of autograd.
            x: Input of the layer.
            context: What attention made of it.
            eps: Added to the variance in the norm.
            parameters: Tensors in the order of `InnerParameters`.
        """
        output, inner = run_inner(x, context, InnerParameters(*parameters), eps)
        ctx.eps = eps
        ctx.save_for_backward(context, inner.attended, inner.mean, inner.rstd, inner.up, *parameters)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "token d"]) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the context, None for eps, and those of the parameters."""
        context, attended, mean, rstd, up, *parameters = ctx.saved_tensors
        p = InnerParameters(*parameters)
        hidden = F.layer_norm(attended, (attended.shape[1],), p.norm_weight, p.norm_bias, ctx.eps)
        inner = Inner(attended, mean, rstd, hidden, up)
        # not the gradient itself, which belongs to autograd
        grad_x, grad_context, gradients = run_inner_backward(grad.clone(), context, inner, p)
        return (grad_x, grad_context, None, *gradients)


class NormAndProject(torch.autograd.Function):
    """The last norm of a layer, and queries, keys and values of the next one.

    Of the two, the norm's result would be kept for the product, and its input for the norm: here it is the input alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Float[Tensor, "token d"],
        eps: float,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Float[Tensor, "projected d"],
        bias: Float[Tensor, " projected"],
    ) -> tuple[Float[Tensor, "token d"], Float[Tensor, "token projected"]]:
        """Return the norm's result, and its product.

        Args:
            ctx: Context of autograd.
            output: Input of the norm.
            eps: Added to the variance.
            norm_weight: Weight of the norm.
            norm_bias: Bias of the norm.
            weight: Weight of the product.
            bias: Bias of the product.
        """
        x, mean, rstd = torch.native_layer_norm(output, (output.shape[1],), norm_weight, norm_bias, eps)
        ctx.eps = eps
        ctx.save_for_backward(output, mean, rstd, norm_weight, norm_bias, weight)
        return x, F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_x: Float[Tensor, "token d"], grad: Float[Tensor, "token projected"]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, None for eps, and those of the parameters."""
        output, mean, rstd, norm_weight, norm_bias, weight = ctx.saved_tensors
        x = F.layer_norm(output, (output.shape[1],), norm_weight, norm_bias, ctx.eps)
        d_weight, d_bias = grad.T @ x, grad.sum(0)
        grad_output, d_norm_weight, d_norm_bias = norm_backward(
            torch.addmm(grad_x, grad, weight), output, mean, rstd, norm_weight, norm_bias
        )
        return grad_output, None, d_norm_weight, d_norm_bias, d_weight, d_bias
