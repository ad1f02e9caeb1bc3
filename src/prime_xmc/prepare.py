"""`python -m prime_xmc.prepare`: raw files to a prepared data set, once, and what is in it."""

import sys
from typing import Any

from omegaconf import DictConfig

from prime_xmc.app import run_app


def run(config: DictConfig) -> Any:
    """Prepare a data set and describe it on standard output."""
    # here, because the help need not wait for torch
    from prime_xmc.assemble import open_corpus
    from prime_xmc.data.preparation import describe
    from prime_xmc.printing import unfailing_output, visible

    corpus = open_corpus(config)
    rows = describe(corpus)
    width = max(len(name) for name, _ in rows)
    with unfailing_output():
        sys.stdout.writelines(f"{name:<{width}}  {visible(value)}\n" for name, value in rows)
    return corpus


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.prepare:run", "prepare")


if __name__ == "__main__":
    main()
