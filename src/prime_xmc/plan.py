"""`python -m prime_xmc.plan`: what a training run will need in memory, disk and time, before it is started."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from prime_xmc.app import run_app
from prime_xmc.files import write_json
from prime_xmc.planning.run_plan import TABLE_WIDTH, plan, show


def run(config: DictConfig) -> dict[str, Any]:
    """Plan the run of a configuration, print the plan and write it where asked."""
    planned = plan(config)
    show(planned, Console(width=max(Console().width, TABLE_WIDTH)))
    if config.output is not None:
        write_json(Path(config.output).expanduser(), planned)
    return planned


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app(run, "plan")


if __name__ == "__main__":
    main()
