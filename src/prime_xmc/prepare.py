"""`python -m prime_xmc.prepare`: raw files to a prepared data set, once, and what is in it."""

import sys

from omegaconf import DictConfig

from prime_xmc.app import run_app
from prime_xmc.assemble import open_corpus
from prime_xmc.data.corpus import Corpus
from prime_xmc.data.preparation import describe
from prime_xmc.printing import unfailing_output


def run(config: DictConfig) -> Corpus:
    """Prepare a data set and describe it on standard output."""
    corpus = open_corpus(config)
    rows = describe(corpus)
    width = max(len(name) for name, _ in rows)
    with unfailing_output():
        sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in rows)
    return corpus


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app(run, "prepare")


if __name__ == "__main__":
    main()
