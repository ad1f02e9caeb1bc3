"""Which files of a folder are the queries, their labels and the texts of the labels, in the formats of the field."""

from pathlib import Path
from typing import NamedTuple

_POSITIVES = {
    "train": ("trn_X_Y.txt", "Y.trn.npz", "train_labels.txt"),
    "test": ("tst_X_Y.txt", "Y.tst.npz", "test_labels.txt"),
}
_TEXTS = {
    "train": (
        "train.raw.txt",
        "trn.raw.txt",
        "raw_data/train.raw.txt",
        "X.trn.txt",
        "train_raw_texts.txt",
        "trn_X.txt",
    ),
    "test": ("test.raw.txt", "tst.raw.txt", "raw_data/test.raw.txt", "X.tst.txt", "test_raw_texts.txt", "tst_X.txt"),
}
_LABELS = ("label.raw.txt", "lbl.raw.txt", "raw_data/label.raw.txt", "Y.txt", "Yf.txt", "output-items.txt", "lbl_X.txt")


class Inputs(NamedTuple):
    """The files of a data set.

    Attributes:
        queries: Training queries, with their labels or without.
        labels: Texts of the labels.
        test: Test queries.
        positives: Labels of the training queries by number, where they are in a file of their own.
        test_positives: Labels of the test queries.
    """

    queries: Path
    labels: Path | None = None
    test: Path | None = None
    positives: Path | None = None
    test_positives: Path | None = None


def find_inputs(given: Inputs) -> Inputs:
    """Return what was given with what is found where `queries` is a folder; what was given is kept.

    The labels of test queries that were given are not looked for in the folder, whose test queries are others.

    A folder may be one that `datasets` has written by `save_to_disk`, with a split "train" and perhaps "test", or one
    with the files of the Extreme Classification Repository, PECOS or AttentionXML by their usual names.

    Raises:
        FileNotFoundError: If there is no such file or folder, or texts or labels are not found in it.
    """
    folder = given.queries
    if not folder.is_dir():
        return given
    if (folder / "state.json").is_file():
        return given
    if (folder / "dataset_dict.json").is_file():
        saved = folder / "test" if (folder / "test" / "state.json").is_file() else None
        return given._replace(queries=folder / "train", test=given.test or saved)
    found = {
        f"{part} {split}": _first(folder, names)
        for part, by_split in (("texts", _TEXTS), ("labels", _POSITIVES))
        for split, names in by_split.items()
    }
    for part, names, own in (("texts", _TEXTS, None), ("labels", _POSITIVES, given.positives)):
        if own is None and found[f"{part} train"] is None:
            raise FileNotFoundError(
                f"queries={folder} is a folder without a file of the {part} of training queries that is known by its "
                f"name, such as {', '.join(names['train'])}; name the files by queries= and positives="
            )
    test, test_positives = given.test, given.test_positives
    test_labels = test_positives or found["labels test"]
    if test is None and found["texts test"] is not None and test_labels is not None:
        test, test_positives = found["texts test"], test_labels
    return Inputs(
        queries=found["texts train"] or folder,
        labels=given.labels or _first(folder, _LABELS),
        test=test,
        positives=given.positives or found["labels train"],
        test_positives=test_positives,
    )


def other_splits(inputs: Inputs) -> list[Path]:
    """Return the splits beside the queries that `datasets` has saved in the same folder and nothing reads."""
    folder = inputs.queries.parent
    if not (inputs.queries.is_dir() and (folder / "dataset_dict.json").is_file()):
        return []
    read = {path.resolve() for path in inputs if path is not None}
    splits = sorted(path.parent for path in folder.glob("*/state.json"))
    return [split for split in splits if split.resolve() not in read]


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)
