"""`python -m prime_xmc.plan`: what a training run will need in memory, disk and time, before it is started."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from prime_xmc.app import run_app


def run(config: DictConfig) -> dict[str, Any]:
    """Plan the run of a configuration, print the plan and write it where asked."""
    # here, because the help need not wait for torch
    from prime_xmc.files import write_json
    from prime_xmc.planning.run_plan import TABLE_WIDTH, plan, show
    from prime_xmc.printing import unfailing_output

    planned = plan(config)
    if config.output is not None:
        write_json(Path(config.output).expanduser(), planned)
    with nullcontext() if config.output is None else unfailing_output():
        show(planned, Console(width=max(Console().width, TABLE_WIDTH)))
    return planned


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.plan:run", "plan")


if __name__ == "__main__":
    main()
