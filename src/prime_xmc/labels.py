"""`python -m prime_xmc.labels add|remove|rename|list`: the labels of a model, changed without training."""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig

from prime_xmc.app import run_app

logger = logging.getLogger(__name__)

ACTIONS = ("add", "remove", "rename", "list")


def run(config: DictConfig) -> None:
    """Change the labels of a model, or list them.

    Raises:
        FileNotFoundError: If there is no such model or file, or the model lacks what makes prototypes.
        ValueError: If a file cannot be read, labels are not there or are there already, or a setting is missing.
    """
    # here, because the help need not wait for torch
    from prime_xmc.assemble import load_predictor
    from prime_xmc.export.calibration import REFIT, has_calibration
    from prime_xmc.export.folder import LABELS, read_config, read_labels
    from prime_xmc.export.label_edits import GivenLabels, edit_labels
    from prime_xmc.export.label_files import list_labels
    from prime_xmc.export.label_tables import check_target, read_label_tables, write_label_tables
    from prime_xmc.export.queries import as_names

    if config.action not in ACTIONS:
        raise ValueError(f"expected {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]} behind the command, got {config.action}")
    model = Path(config.model.dir).expanduser()
    target = None if config.output is None else Path(config.output).expanduser()
    if config.action == "list":
        read_config(model)
        list_labels(read_labels(model / LABELS), target)
        return
    if (config.labels is None) == (config.uids is None) or (config.uids is not None and config.action != "remove"):
        instead = " or uids=[...]" if config.action == "remove" else ""
        raise ValueError(f"{config.action}: expected labels=<file>{instead}, and nothing else that names labels")
    if config.queries is not None and config.action != "add":
        raise ValueError(f"queries={config.queries}: example queries are for add, not for {config.action}")
    target = model if target is None else target
    check_target(model, target)
    given = GivenLabels(
        None if config.labels is None else Path(config.labels).expanduser(),
        list(as_names(config.uids) or ()),
        None if config.queries is None else Path(config.queries).expanduser(),
        config.uid_column,
        as_names(config.text_column),
        as_names(config.query_column),
        config.label_column,
        config.separator,
        config.input_format,
        config.encoding,
    )
    changed = edit_labels(read_label_tables(model), config.action, given, lambda: load_predictor(config))
    write_label_tables(changed, model, target)
    logger.info("%s: version %d, %s labels", target, changed.config["version"], f"{len(changed.records):,}")
    if has_calibration(target):
        logger.info(REFIT, target)


def main() -> None:
    """Run the entry point with the command line's configuration."""
    # The action stands alone, as in `git add`; Hydra wants a key. One that there is not is an error of `run`.
    if sys.argv[1:] and sys.argv[1].isalpha() and not any(argument in ACTIONS for argument in sys.argv[2:]):
        sys.argv[1] = f"action={sys.argv[1]}"
    sys.argv[1:] = [f"action={argument}" if argument in ACTIONS else argument for argument in sys.argv[1:]]
    run_app("prime_xmc.labels:run", "labels")


if __name__ == "__main__":
    main()
