"""`python -m prime_xmc.audit`: what is wrong or odd with a data set, and what that does to the metrics."""

import importlib.util
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from prime_xmc.app import run_app
from prime_xmc.printing import unfailing_output, visible


def run(config: DictConfig, command: str | None = None) -> Any:
    """Audit the data set of a configuration, print what was found, and write the page and the JSON.

    Args:
        config: Configuration of conf/audit.yaml.
        command: Command that the page names as its origin; None if there is none.

    Raises:
        FileNotFoundError: If a raw file is missing.
        ValueError: If one is malformed, a library is missing, or something was found that makes training senseless.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ValueError("an audit needs jinja2: pip install '.[report]' in the clone")
    # here, because the help need not wait for torch
    from prime_xmc.assemble import prompts_of, raw_files
    from prime_xmc.auditing.audit_data import audit, write_filters
    from prime_xmc.auditing.audit_page import write_audit
    from prime_xmc.auditing.summary import summary
    from prime_xmc.data.tokenizer import load_tokenizer, token_counter

    found = audit(
        raw_files(config.dataset, prompts_of(config.encoder)),
        count_tokens=token_counter(load_tokenizer(config.encoder.source)),
        max_length=config.dataset.max_length,
        max_compared=config.max_compared,
    )
    folder = Path(config.output).expanduser()
    write_audit(found, folder / "index.html", folder / "audit.json", command)
    written = write_filters(found) if config.write_filters else []
    with unfailing_output():
        sys.stdout.write(visible(summary(found)))
        sys.stdout.writelines(f"filtered pairs were added: {path}\n" for path in written)
        sys.stdout.write(f"{folder / 'index.html'}\n")
    if found.errors:
        raise ValueError(
            f"training on these data makes no sense: {'; '.join(each.sentence() for each in found.errors)}"
        )
    return found


def main() -> None:
    """Run the entry point with the command line's configuration."""
    command = shlex.join(["python", "-m", "prime_xmc.audit", *sys.argv[1:]])
    run_app(partial(run, command=command), "audit")


if __name__ == "__main__":
    main()
