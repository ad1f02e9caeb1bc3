"""`python -m prime_xmc.labels add|remove|rename|list`: the labels of a model, changed without training."""

import json
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
    from prime_xmc.export.folder import LABELS, read_config
    from prime_xmc.export.folder import read_labels as read_records
    from prime_xmc.export.label_changes import add_labels, remove_labels, rename_labels
    from prime_xmc.export.label_files import read_examples, read_labels, read_uids
    from prime_xmc.export.label_tables import read_label_tables, write_label_tables
    from prime_xmc.files import write_text
    from prime_xmc.printing import visible_json

    if config.action not in ACTIONS:
        raise ValueError(f"expected {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]} behind the command, got {config.action}")
    model = Path(config.model.dir).expanduser()
    target = None if config.output is None else Path(config.output).expanduser()
    if config.action == "list":
        read_config(model)
        lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in read_records(model / LABELS))
        sys.stdout.write(visible_json(lines)) if target is None else write_text(target, lines)
        return
    if (config.labels is None) == (config.uids is None) or (config.uids is not None and config.action != "remove"):
        instead = " or uids=[...]" if config.action == "remove" else ""
        raise ValueError(f"{config.action}: expected labels=<file>{instead}, and nothing else that names labels")
    if config.queries is not None and config.action != "add":
        raise ValueError(f"queries={config.queries}: example queries are for add, not for {config.action}")
    file = None if config.labels is None else Path(config.labels).expanduser()
    tables = read_label_tables(model)
    if file is None:
        changed = remove_labels(tables, [str(uid) for uid in config.uids])
    elif config.action == "remove":
        changed = remove_labels(tables, read_uids(file, config.uid_column))
    else:
        labels = read_labels(file, config.uid_column, config.text_column)
        if config.action == "rename":
            changed = rename_labels(tables, load_predictor(config), labels)
        else:
            examples = []
            if config.queries is not None:
                known = {str(record["uid"]) for record in tables.records} | {label.uid for label in labels}
                columns = config.query_column, config.label_column, config.separator
                examples = read_examples(Path(config.queries).expanduser(), known, *columns)
            changed = add_labels(tables, load_predictor(config), labels, examples)
    write_label_tables(changed, model, model if target is None else target)
    logger.info("%s: version %d, %s labels", target or model, changed.config["version"], f"{len(changed.records):,}")


def main() -> None:
    """Run the entry point with the command line's configuration."""
    # The action stands alone, as in `git add`; Hydra wants a key. One that there is not is an error of `run`.
    if sys.argv[1:] and sys.argv[1].isalpha() and not any(argument in ACTIONS for argument in sys.argv[2:]):
        sys.argv[1] = f"action={sys.argv[1]}"
    sys.argv[1:] = [f"action={argument}" if argument in ACTIONS else argument for argument in sys.argv[1:]]
    run_app("prime_xmc.labels:run", "labels")


if __name__ == "__main__":
    main()
