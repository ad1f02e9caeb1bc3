"""The siamese text encoder: token ids to L2-normalised embeddings, pooled over the tokens."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prime_xmc.foreign import ATTENTION, check_encoder_files
from prime_xmc.model.banks import RowBank
from prime_xmc.model.encoder_folder import Pooling, Prompts, resolve_pooling, resolve_prompts
from prime_xmc.model.frozen import FrozenOutputs, send, token_rows
from prime_xmc.model.lora import add_adapters
from prime_xmc.model.packed import PackedBackbone
from prime_xmc.model.post_norm import is_known_by_hand
from prime_xmc.model.varlen import VarlenBackbone, check_packable, first_position

Implementation = Literal["packed", "transformers", "auto"]
# Tokens that go through the layers at once, where the configuration leaves it to the device: on a CPU as many as its
# caches like, on a GPU so many that it is busy.
CHUNK_TOKENS = {"cpu": 4096, "cuda": 65536}
# What a transformer's configuration says of the file itself.
_NOT_COMPUTED = ("_name_or_path", "architectures", "dtype", "transformers_version")
# The names of dropout in the configurations of the various transformers.
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
)


def load_backbone(
    source: str,
    *,
    pretrained: bool = True,
    num_layers: int | None = None,
    intermediate_size: int | None = None,
    dropout: float = 0.0,
    attention: str = "eager",
) -> transformers.PreTrainedModel:
    """Load a transformer: safetensors only, and no code from the folder or the hub is run.

    Args:
        source: A folder that `save_pretrained` wrote, or a hub id.
        pretrained: Whether to load the weights; otherwise they are drawn from torch's global generator, and only the
            configuration is loaded.
        num_layers: Number of layers to keep, counted from the first one; None keeps all.
        intermediate_size: Inner dimension of the feed-forward layers where `pretrained` is false; None keeps that of
            the configuration.
        dropout: Dropout of hidden states and attention while training, in [0, 1).
        attention: Value of transformers' `attn_implementation`.

    Raises:
        ValueError: If nothing can be loaded from there, with what to do; if weights are missing; if it is an encoder
            with a decoder; if there are not so many layers, or the intermediate size cannot be set.
    """
    if pretrained and intermediate_size is not None:
        raise ValueError(f"encoder.intermediate_size={intermediate_size} needs encoder.pretrained=false")
    if attention not in ATTENTION:  # of a repository of kernels, whose code would be run
        raise ValueError(f"expected encoder.attention to be one of {', '.join(ATTENTION)}, got {attention!r}")
    if Path(source).is_dir():
        check_encoder_files(Path(source))
    config = _load_config(source, num_layers, intermediate_size, dropout)
    try:
        with quiet_transformers():
            if pretrained:
                backbone, report = transformers.AutoModel.from_pretrained(
                    source,
                    config=config,
                    attn_implementation=attention,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
                _check_complete(source, report["missing_keys"])
            else:
                backbone = transformers.AutoModel.from_config(
                    config, attn_implementation=attention, trust_remote_code=False, dtype=torch.float32
                )
    except (OSError, ValueError) as error:  # ValueError: a folder without a model
        raise _cannot_load(source, error) from error
    if getattr(backbone, "pooler", None) is not None:
        # The pooler has no part in an embedding. It is kept for the export, and no gradient ever reaches it.
        backbone.pooler.requires_grad_(False)
    return backbone


def _check_complete(source: str, missing: Collection[str]) -> None:
    """Refuse weights that transformers has drawn at random because the file does not hold them."""
    # A pooler is no part of an embedding here, and many encoders are published without one.
    absent = sorted(name for name in missing if not name.startswith("pooler."))
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise ValueError(
            f"{len(absent)} weights that its config.json asks for are missing from its model.safetensors ({shown}): "
            "the two files do not belong together"
        )


def _load_config(
    source: str, num_layers: int | None, intermediate_size: int | None, dropout: float
) -> transformers.PretrainedConfig:
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load(source, error) from error
    if config.is_encoder_decoder:
        raise ValueError(f"encoder.source={source}: expected an encoder or a decoder, {config.model_type} is both")
    config.use_cache = False  # the cache serves generation, and nothing is generated
    for key in _DROPOUTS:
        if isinstance(getattr(config, key, None), float | int):
            setattr(config, key, dropout)
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ValueError(
                f"encoder.num_layers={num_layers}: expected 1 to {config.num_hidden_layers}, the layers of {source}"
            )
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:num_layers]
        config.num_hidden_layers = num_layers
    if intermediate_size is not None:
        if not hasattr(config, "intermediate_size"):
            raise ValueError(f"encoder.intermediate_size={intermediate_size}: {config.model_type} has no such setting")
        config.intermediate_size = intermediate_size
    return config


def _cannot_load(source: str, error: Exception) -> ValueError:
    return ValueError(
        f"encoder.source={source} cannot be loaded: {error}\nGive a folder that transformers' save_pretrained "
        "wrote (config.json, model.safetensors, tokenizer.json), or a hub id on a machine that reaches the hub"
    )


class quiet_transformers:
    """Keeps transformers' report on unused weights and its progress bar off the screen."""

    def __enter__(self) -> None:
        self.verbosity = transformers.logging.get_verbosity()
        self.progress_bar = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self.verbosity)
        if self.progress_bar:
            transformers.logging.enable_progress_bar()


class TextEncoder(nn.Module):
    """f_theta: texts of any lengths to embeddings, L2-normalised unless one says otherwise.

    Args:
        source: A folder that `save_pretrained` wrote, or a hub id.
        pretrained: Whether to load the weights; otherwise they are drawn from torch's global generator.
        num_layers: Number of layers to keep, counted from the first one; None keeps all.
        intermediate_size: Inner dimension of the feed-forward layers where `pretrained` is false; None keeps that of
            the configuration.
        dropout: Dropout of the transformer while training, in [0, 1).
        frozen_layers: Number of layers, from the first one on, that stay as they are, as do the embeddings below
            them; the last layer is trained in any case. They have no dropout and are packed. See
            `keep_frozen_outputs`.
        implementation: "packed" computes without padding, see `VarlenBackbone`; there are layers of our own for BERT
            and DistilBERT with mean pooling, see `PackedBackbone` and `LayerRunner`. "transformers" runs any encoder or
            decoder of that library in length-sorted padded chunks. "auto" packs on a GPU what can be packed and pads
            the rest, and everything on a CPU unless layers are frozen.
        pooling: Part of the last layer that becomes the embedding: the "mean" over the tokens, the "last" token (the
            only one of a decoder that has seen all others) or the first ("cls"). "auto" takes what the folder says,
            see `resolve_pooling`.
        query_prompt: Text that belongs before every query; "auto" takes the folder's, see `resolve_prompts`. Whoever
            tokenises texts puts it there.
        label_prompt: Text that belongs before every label, likewise.
        normalize: Whether embeddings are unit vectors, whose inner product is the cosine.
        lora: Settings of `add_adapters`, whose adapters are trained instead of the transformer. None trains the
            transformer itself.
        attention: Value of transformers' `attn_implementation` where texts are padded.
        chunk_tokens: Number of tokens that go through the transformer at once, where it pads with the padding; "auto"
            for 4,096 on a CPU and 65,536 on a GPU.
        recompute: Whether the backward pass computes each chunk again instead of keeping it. The memory of a step is
            then that of one chunk, so that any batch fits, for a third more time. Gradients are the same (GradCache,
            Gao et al. 2021).
        compile: Whether to compile transformers' layers with torch.compile. The first steps then take up to minutes.
            Layers of our own are not used then.

    Raises:
        ValueError: If a setting is none of those above; if the encoder cannot be packed and has to be; or if the folder
            makes its embeddings in a way that cannot be computed here.

    Source: section 3; mean pooling over tokens, section 4.2.
    """

    def __init__(
        self,
        source: str,
        *,
        pretrained: bool = True,
        num_layers: int | None = None,
        intermediate_size: int | None = None,
        dropout: float = 0.0,
        frozen_layers: int = 0,
        implementation: Implementation = "packed",
        pooling: Pooling | Literal["auto"] = "auto",
        query_prompt: str | None = None,
        label_prompt: str | None = None,
        normalize: bool = True,
        lora: Mapping[str, Any] | None = None,
        attention: str = "eager",
        chunk_tokens: int | Literal["auto"] = "auto",
        recompute: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        if implementation not in get_args(Implementation):
            raise ValueError(f"expected encoder.implementation packed, transformers or auto, got {implementation!r}")
        if implementation == "transformers" and frozen_layers:
            raise ValueError(
                f"encoder.frozen_layers={frozen_layers} needs encoder.implementation=packed: give "
                "encoder.frozen_layers=0, and encoder.lora to train adapters alone"
            )
        if lora is not None and frozen_layers:
            raise ValueError(
                f"encoder.frozen_layers={frozen_layers}: adapters leave all layers as they are, so give "
                "encoder.frozen_layers=0 with encoder.lora"
            )
        if not (chunk_tokens == "auto" or (isinstance(chunk_tokens, int) and chunk_tokens > 0)):
            raise ValueError(f"expected encoder.chunk_tokens to be a positive number or auto, got {chunk_tokens!r}")
        self.source = source
        self.backbone: Any = load_backbone(
            source,
            pretrained=pretrained,
            num_layers=num_layers,
            intermediate_size=intermediate_size,
            dropout=dropout,
            attention=attention,
        )
        self.pooling: Pooling = resolve_pooling(source, pooling, normalize)
        self.prompts: Prompts = resolve_prompts(source, query_prompt, label_prompt)
        self.implementation: Implementation = implementation
        self.normalize = normalize
        self.recompute = recompute
        self.packed: VarlenBackbone | None = None
        self.frozen: FrozenOutputs | None = None
        self._chunk_tokens = chunk_tokens
        self._pads_on_cpu = implementation == "auto" and not frozen_layers and not compile
        by_hand = is_known_by_hand(self.backbone)
        if implementation != "transformers" and not by_hand:
            packs = self._can_be_packed(required=implementation == "packed" or frozen_layers > 0)
        else:
            packs = implementation != "transformers"
        if lora is not None:
            self.backbone = add_adapters(self.backbone, **lora)
        if packs:
            settings: dict[str, Any] = {"recompute": recompute, "num_frozen": frozen_layers}
            own = None
            if by_hand and self.pooling == "mean" and lora is None and not compile:
                own = PackedBackbone(self.backbone, chunk_tokens=self.budget(torch.device("cpu")), **settings)
            self.packed = VarlenBackbone(
                self.backbone, pooling=self.pooling, chunk_tokens=self.budget, compile=compile, by_hand=own, **settings
            )
        elif compile:
            self.backbone.compile(dynamic=True)

    def _can_be_packed(self, required: bool) -> bool:
        """Return whether the transformer can be packed.

        Raises:
            ValueError: If it cannot and is required to.
        """
        try:
            check_packable(self.backbone)
        except ValueError as error:
            if required:
                raise ValueError(f"encoder.source={self.source}: {error}") from error
            return False
        return True

    def budget(self, device: torch.device) -> int:
        """Return the number of tokens that go through the transformer at once on a device."""
        chunk_tokens = self._chunk_tokens
        return CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cpu"]) if chunk_tokens == "auto" else chunk_tokens

    @property
    def chunk_tokens(self) -> int:
        """Number of tokens that go through the transformer at once, on the device where it is now."""
        return self.budget(self.backbone.get_input_embeddings().weight.device)

    @property
    def num_tokens(self) -> int:
        """Number of tokens that have an embedding: ids run from 0 to one less."""
        return self.backbone.get_input_embeddings().num_embeddings

    @property
    def dim(self) -> int:
        """d, the size of an embedding."""
        return self.backbone.config.hidden_size

    @property
    def architecture(self) -> str:
        """What its config.json says of how it computes, as JSON: without it, equal weights may be another encoder."""
        config = self.backbone.config.to_dict()
        said = {key: value for key, value in config.items() if key not in _NOT_COMPUTED}
        return json.dumps(said, sort_keys=True, default=str)

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens that the transformer has positions for; None where it has no such limit."""
        positions = getattr(self.backbone.config, "max_position_embeddings", None)
        if positions is None or positions == -1:
            return None
        # RoBERTa and its kin number positions from padding_idx + 1 on, so that 514 rows serve 512 positions.
        return positions - first_position(self.backbone)

    def keep_frozen_outputs(
        self, lengths: Int64[np.ndarray, " text"], make_bank: Callable[..., RowBank], dtype: str
    ) -> None:
        """Compute the frozen layers once for each of these texts, from now on, if there are frozen layers.

        Args:
            lengths: Number of tokens of every text that may come again.
            make_bank: Maker of the table of outputs, which has 2 d or 4 d bytes for every token.
            dtype: Dtype of the table, "float16" or "float32"; see `FrozenOutputs`.
        """
        if self.packed is not None and self.packed.num_frozen:
            self.frozen = FrozenOutputs(lengths, self.dim, make_bank, dtype)

    def keep_layers(self, dtype: torch.dtype) -> None:
        """Cast weights once for all calls without gradients, where layers of our own run; see `PackedBackbone`.

        Args:
            dtype: Dtype in which the layers will compute.
        """
        if self.packed is not None and self.packed.by_hand is not None:
            self.packed.by_hand.keep_layers(dtype)

    def forward(
        self,
        token_ids: Int[Tensor, " token"],
        lengths: Int[Tensor, " text"],
        text_ids: Int64[Tensor, " text"] | None = None,
    ) -> Float[Tensor, "text d"]:
        """Encode texts of any lengths in any order.

        Args:
            token_ids: Ids of all texts behind one another, special tokens included, on the encoder's device.
            lengths: Tokens of each text, at least 1, on the CPU.
            text_ids: Places of the texts among those of `keep_frozen_outputs`, whose outputs of the frozen layers are
                then used again. None: all layers are computed.

        Returns:
            Unit vectors, unless `normalize` is false, float32. The layers compute in the dtype of the surrounding
            autocast, if there is one.
        """
        if len(lengths) == 0:
            return token_ids.new_empty((0, self.dim), dtype=torch.float32)
        device = token_ids.device
        packed = None if device.type == "cpu" and self._pads_on_cpu else self.packed
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.backbone.dtype
        sorts = packed is None or packed.needs_order(device, dtype)
        if sorts:
            order = lengths.argsort(stable=True)
            token_ids = token_ids[send(gather_rows(lengths, order), device)]
            lengths = lengths[order]
            text_ids = None if text_ids is None else text_ids.cpu()[order]
        if packed is None:
            pooled = self._encode_padded(token_ids, lengths)
        else:
            with torch.autocast(device.type, enabled=False):
                frozen = None
                if self.frozen is not None and text_ids is not None and packed.num_frozen:
                    frozen = self.frozen.take(
                        text_ids, token_ids, lengths, lambda ids, own: packed.frozen_outputs(ids, own, dtype)
                    )
                pooled = packed(token_ids, lengths, dtype, frozen)
        embeddings = F.normalize(pooled.float(), dim=1) if self.normalize else pooled.float()
        if not sorts:
            return embeddings
        original = torch.empty_like(order)
        original[order] = torch.arange(len(order))
        return embeddings[send(original, device)]

    def _encode_padded(
        self, token_ids: Int[Tensor, " token"], lengths: Int[Tensor, " text"]
    ) -> Float[Tensor, "text d"]:
        pooled = []
        chunk_tokens = self.budget(token_ids.device)
        start = first = 0
        while first < len(lengths):
            # Lengths ascend, so a chunk of n texts is padded to the last of them.
            padded = lengths[first:] * torch.arange(1, len(lengths) - first + 1)
            count = max(1, int((padded <= chunk_tokens).sum()))
            chunk = lengths[first : first + count]
            filled = torch.arange(int(chunk[-1])) < chunk[:, None]
            places = send(filled.flatten().nonzero().flatten(), token_ids.device)
            mask = send(filled, token_ids.device)
            input_ids = token_ids.new_zeros(mask.numel())
            input_ids[places] = token_ids[start : start + int(chunk.sum())]
            input_ids = input_ids.view(mask.shape)
            if self.recompute and torch.is_grad_enabled():
                pooled.append(checkpoint(self._encode_chunk, input_ids, mask, use_reentrant=False))
            else:
                pooled.append(self._encode_chunk(input_ids, mask))
            start += int(chunk.sum())
            first += count
        return torch.cat(pooled)

    def _encode_chunk(
        self, input_ids: Int[Tensor, "text length"], mask: Bool[Tensor, "text length"]
    ) -> Float[Tensor, "text d"]:
        hidden = self.backbone(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return pool(hidden, mask, self.pooling)


def pool(
    hidden: Float[Tensor, "text length d"], mask: Bool[Tensor, "text length"], pooling: Pooling
) -> Float[Tensor, "text d"]:
    """Return the mean of each text's tokens, its last or its first token ("cls"), float32.

    Args:
        hidden: Hidden states of all tokens, with padding behind each text.
        mask: False at padding; each text has a token that is none.
        pooling: Kind of pooling.
    """
    if pooling == "mean":
        return (hidden.float() * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    if pooling == "cls":
        return hidden[:, 0].float()
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1].float()


def gather_rows(lengths: Int[Tensor, " text"], order: Int[Tensor, " wanted"]) -> Int[Tensor, " token"]:
    """Return the index of the tokens of some texts, in the given order, among the packed tokens of all texts."""
    return token_rows((lengths.cumsum(0) - lengths)[order], lengths[order])
