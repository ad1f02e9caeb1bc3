"""PRIME: prototypical extreme multi-label classification with a dynamic margin loss."""

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prime_xmc.environment import set_defaults

if TYPE_CHECKING:
    import prime_xmc.api
    import prime_xmc.trained_model

__all__ = ["fit", "load", "train"]
__version__ = version("prime_xmc")

set_defaults(os.environ)  # before anything else of this package is imported, and torch with it


def load(
    folder: str | Path,
    device: str = "cpu",
    index: Literal["auto", "exact", "faiss"] = "auto",
    precision: str | None = None,
    scorer: str = "auto",
    classifiers: str | Path | None = None,
    prototype_dtype: str = "float32",
    *,
    revision: str | None = None,
) -> "prime_xmc.trained_model.Model":
    """Open an exported model, `<run>/model` or `<owner>/<model>` on the Hugging Face hub.

    Arguments and errors are those of `Model.load`.
    """
    from prime_xmc.trained_model import Model  # torch and transformers take seconds to import

    return Model.load(
        folder,
        device=device,
        index=index,
        precision=precision,
        scorer=scorer,
        classifiers=classifiers,
        prototype_dtype=prototype_dtype,
        revision=revision,
    )


def fit(
    queries: Iterable[str],
    positives: "prime_xmc.trained_model.Positives",
    labels: "Iterable[prime_xmc.trained_model.LabelLike]",
    *,
    test: "tuple[Iterable[str], prime_xmc.trained_model.Positives] | None" = None,
    **overrides: Any,
) -> "prime_xmc.trained_model.Model":
    """Train a model on texts and their labels; arguments and errors are those of `prime_xmc.api.fit`.

    Example:
        model = prime_xmc.fit(["red lentil soup"], [["soup", "vegan"]], ["soup", "vegan", "dessert"])
        model.predict(["tomato soup"], top_k=2)
    """
    from prime_xmc.api import fit

    return fit(queries, positives, labels, test=test, **overrides)


def train(overrides: Sequence[str] = (), **settings: Any) -> "prime_xmc.api.TrainedRun":
    """Train as `python -m prime_xmc.train` does; arguments and errors are those of `prime_xmc.api.train`.

    Example:
        trained = prime_xmc.train(["dataset=custom"], **{"dataset.dir": "my_data", "dataset.lr": 1e-4})
        trained.metrics["test/P@1"], prime_xmc.load(trained.run_dir / "model")
    """
    from prime_xmc.api import train

    return train(overrides, **settings)
