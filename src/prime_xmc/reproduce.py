"""`python -m prime_xmc.reproduce`: train with the paper's settings, and print its numbers beside ours."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from prime_xmc.app import run_app


def run(config: DictConfig) -> Any:
    """Train, or open a finished run, compare it with what was published, and write the comparison where asked."""
    # here, because the help need not wait for torch
    from prime_xmc.files import write_json
    from prime_xmc.printing import unfailing_output
    from prime_xmc.reproducing import reproduce, show

    compared, notes = reproduce(config)
    if config.output is not None and compared:
        write_json(Path(config.output).expanduser(), [each.to_json() for each in compared])
    with nullcontext() if config.output is None else unfailing_output():
        show(compared, notes)
    return compared


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.reproduce:run", "reproduce", keeps_folder=False)  # a finished run has a folder already


if __name__ == "__main__":
    main()
