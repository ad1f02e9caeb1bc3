"""What an encoder's folder says of how its embeddings are made: pooling, normalisation and prompts.

transformers reads none of this; sentence-transformers keeps it in files of its own, beside those of transformers.
"""

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from prime_xmc.foreign import check_links, parse_json, shown

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "last", "cls"]

# Divided by the square root of the length, a mean has the same direction, and only the direction counts here.
_POOLINGS: dict[str, Pooling] = {"mean": "mean", "mean_sqrt_len_tokens": "mean", "lasttoken": "last", "cls": "cls"}
# The flags with which sentence-transformers before version 6 named what is `pooling_mode` now.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_QUERY_PROMPTS = ("query",)
_LABEL_PROMPTS = ("label", "document", "passage", "corpus")


class Prompts(NamedTuple):
    """Texts that are put before every query and every label; empty for none."""

    query: str = ""
    label: str = ""


class _Settings(NamedTuple):
    """What a sentence-transformers folder says.

    Attributes:
        pooling: The pooling, None where it cannot be computed here.
        obstacle: What cannot be computed here, None where all can.
        prompts: Prompts by name, without those that are empty.
        default_prompt: The one for texts of which nothing else is said.
        include_prompt: Whether a prompt's tokens are pooled.
    """

    pooling: Pooling | None
    obstacle: str | None
    prompts: dict[str, str]
    default_prompt: str
    include_prompt: bool


def resolve_pooling(source: str, pooling: str, normalize: bool = True) -> Pooling:
    """Return the pooling of an encoder.

    Args:
        source: A folder that `save_pretrained` wrote, or a hub id.
        pooling: "auto" takes what the folder says, and the mean where it is none of sentence-transformers; any other
            is taken as it is, with a warning where the folder says otherwise.
        normalize: Whether the embeddings are made unit vectors; those of a folder that compares inner products are not.

    Raises:
        ValueError: If `pooling` is unknown; or if it is "auto" and the folder makes its embeddings in a way that cannot
            be computed here, with that way.
    """
    if pooling != "auto":
        if pooling not in get_args(Pooling):
            raise ValueError(f"expected encoder.pooling to be auto or one of {get_args(Pooling)}, got {pooling!r}")
        try:
            settings = _read_settings(source, normalize)
        except ValueError:  # The pooling is given, so nothing hangs on what the folder says.
            return pooling  # type: ignore[return-value]
        if settings is not None and (settings.obstacle is not None or settings.pooling != pooling):
            says = settings.obstacle or f"pools the {settings.pooling}"
            logger.warning("encoder.pooling=%s is used, although %s %s", pooling, source, says)
        return pooling  # type: ignore[return-value]
    settings = _read_settings(source, normalize)
    if settings is None:
        return "mean"
    if settings.pooling is None:
        raise ValueError(
            f"encoder.source={source} {settings.obstacle}, which prime_xmc cannot compute: take another encoder, or "
            "give encoder.pooling=mean to use its transformer with mean pooling and unit length all the same"
        )
    return settings.pooling


def resolve_prompts(source: str, query_prompt: str | None, label_prompt: str | None) -> Prompts:
    """Return what is put before the texts that an encoder reads.

    Args:
        source: A folder that `save_pretrained` wrote, or a hub id.
        query_prompt: Put before every query. "auto" takes the folder's prompt called query, else its default prompt;
            None puts nothing.
        label_prompt: Put before every label. "auto" takes the folder's prompt called label, document, passage or
            corpus, else its default prompt; None puts nothing.

    Raises:
        ValueError: If the folder has prompts of which none is known to be for queries or labels, or if it leaves
            prompts out when it pools.
    """
    settings = _read_settings(source) if "auto" in (query_prompt, label_prompt) else None
    if settings is None:
        given = (None if prompt == "auto" else prompt for prompt in (query_prompt, label_prompt))
        return Prompts(*(prompt or "" for prompt in given))
    known = {*_QUERY_PROMPTS, *_LABEL_PROMPTS} & settings.prompts.keys()
    if settings.prompts and not known and not settings.default_prompt:
        raise ValueError(
            f"encoder.source={source} has the prompts {settings.prompts}, and none of them is called query, document "
            "or passage: give encoder.query_prompt=... and encoder.label_prompt=..., or null for none"
        )
    prompts = Prompts(
        *(
            _choose(settings, names) if prompt == "auto" else prompt or ""
            for prompt, names in ((query_prompt, _QUERY_PROMPTS), (label_prompt, _LABEL_PROMPTS))
        )
    )
    if any(prompts) and not settings.include_prompt:
        raise ValueError(
            f"encoder.source={source} leaves the tokens of its prompts out when it pools (include_prompt in the "
            "configuration of its pooling), which prime_xmc cannot compute: give encoder.query_prompt=null "
            "encoder.label_prompt=null, or take another encoder"
        )
    return prompts


def _choose(settings: _Settings, names: tuple[str, ...]) -> str:
    return next((settings.prompts[name] for name in names if name in settings.prompts), settings.default_prompt)


def _read_settings(source: str, normalize: bool = True) -> _Settings | None:
    modules = _read_json(source, "modules.json")
    if modules is None:
        return None
    try:
        by_kind = {str(module["type"]).rpartition(".")[2]: module for module in modules}
    except (KeyError, TypeError) as error:
        raise ValueError(f"modules.json of {source} is damaged ({error!r}); get the encoder again") from error
    about = _read_json(source, "config_sentence_transformers.json") or {}
    pooling_config = None
    if "Pooling" in by_kind:
        place = by_kind["Pooling"].get("path")
        if not isinstance(place, str) or Path(place).name != place:
            raise ValueError(f"modules.json of {source} names the folder {shown(place)}, expected one beside it")
        pooling_config = _read_json(source, f"{place}/config.json")
    similarity = about.get("similarity_fn_name") if normalize else None
    pooling, obstacle = _pooling_of(list(by_kind), pooling_config, similarity)
    prompts = {name: prompt for name, prompt in (about.get("prompts") or {}).items() if prompt}
    return _Settings(
        pooling,
        obstacle,
        prompts,
        default_prompt=prompts.get(about.get("default_prompt_name"), ""),
        include_prompt=(pooling_config or {}).get("include_prompt", True),
    )


def _pooling_of(
    kinds: list[str], pooling_config: dict[str, Any] | None, similarity: str | None
) -> tuple[Pooling | None, str | None]:
    """Return the pooling of a chain of modules, or what it is that cannot be computed here."""
    others = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if others:
        return None, f"has the modules {', '.join(kinds)} (modules.json), of which {', '.join(others)}"
    if pooling_config is None:
        return None, f"has the modules {', '.join(kinds)} (modules.json) and no configuration of a Pooling"
    if "Normalize" not in kinds and similarity not in (None, "cosine"):
        return None, f"compares embeddings that are not normalised by their {similarity} similarity"
    modes = pooling_config.get("pooling_mode") or [name for flag, name in _FLAGS.items() if pooling_config.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]  # without any, it is the mean
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        return None, f"pools {' and '.join(modes)}"
    return _POOLINGS[modes[0]], None


def _read_json(source: str, name: str) -> Any:
    """Return the content of a file of an encoder's folder, None where the folder has no such file."""
    path = Path(source, name) if Path(source).is_dir() else _find_on_hub(source, name)
    if path is None or not path.is_file():
        return None
    if Path(source).is_dir():
        check_links(Path(source), [name])
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); get the encoder again") from error


def _find_on_hub(source: str, name: str) -> Path | None:
    """Return the local copy of a file on the hub, None where the hub has no such file, now or when it was last seen."""
    try:
        known = try_to_load_from_cache(source, name)
        if known is not None:
            return Path(known) if isinstance(known, str) else None  # otherwise it is known not to exist
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            return None
        cause: Exception = error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        cause = error
    raise ValueError(
        f"encoder.source={source}: whether it has {name} cannot be seen ({str(cause).splitlines()[0]}). Give a folder, "
        "or a hub id on a machine that reaches the hub, or say how its embeddings are made: encoder.pooling=mean "
        "encoder.query_prompt=null encoder.label_prompt=null"
    ) from cause
