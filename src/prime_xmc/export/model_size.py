"""How large a model is: what it takes to predict, and what each further scorer adds."""

from pathlib import Path

from prime_xmc.export.folder import CARD, METRICS

_PARTS = {"classifiers": "classify", "neighbours": "neighbours", "lexical": "lexical"}  # folder: name in metrics.json


def describe_size(model: Path) -> dict[str, int]:
    """Return what metrics.json says of the size of a model folder, in bytes.

    `model_bytes` is what the prototypes alone take, with encoder and labels, `classify/model_bytes`,
    `neighbours/model_bytes` and `lexical/model_bytes` what the other scorers add. Model card and metrics do not count.
    """
    sizes = {"model_bytes": 0}
    for path in model.rglob("*"):
        inside = path.relative_to(model)
        if path.is_file() and inside.as_posix() not in (CARD, METRICS):
            part = _PARTS.get(inside.parts[0])
            name = "model_bytes" if part is None else f"{part}/model_bytes"
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return sizes
