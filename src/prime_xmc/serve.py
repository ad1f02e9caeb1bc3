"""`python -m prime_xmc.serve`: a model that answers over HTTP, with a page to try it on."""

import importlib.util
import logging
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from prime_xmc.app import run_app

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Serve a model until the process is told to end.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the model is damaged, a setting is out of range, the address is taken, or a library is missing.
    """
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if not importlib.util.find_spec(name)]:
        raise ValueError(f"serving needs {', '.join(missing)}: pip install '.[serve]' in the clone")
    # here, because the help need not wait for torch
    import torch

    from prime_xmc.assemble import load_scorer
    from prime_xmc.export.predictor import Predictor
    from prime_xmc.export.searchers import WITHOUT_CLASSIFIERS
    from prime_xmc.serving.application import Serving, make_app
    from prime_xmc.serving.limits import Limits
    from prime_xmc.serving.served_model import ModelSlot
    from prime_xmc.serving.server import address_of, allowed_hosts, bind, check_token, serve

    token = check_token(config.token, config.host)
    hosts = allowed_hosts(config.hosts, config.host, token)
    limits = Limits(**config.limits)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    directory = Path(config.model.dir).expanduser()
    scorers = list(dict.fromkeys([config.scorer, *config.other_scorers]))

    def load(folder: Path, scorer: str) -> Predictor:
        changed: dict[str, Any] = {"model": {"dir": str(folder)}, "scorer": scorer}
        if scorer in WITHOUT_CLASSIFIERS and any(each not in WITHOUT_CLASSIFIERS for each in scorers):
            changed["classifiers"] = None  # they are for the others
        return load_scorer(cast(DictConfig, OmegaConf.merge(config, changed)))

    with bind(config.host, config.port) as bound:  # first, since loading takes longer
        slot = ModelSlot(directory, load, scorers, explain=config.explain)
        serving = Serving(
            slot,
            limits,
            max_batch=config.batch.texts,
            max_wait=config.batch.wait_ms / 1000,
            watch_seconds=config.watch_seconds,
            title=config.title,
        )
        model = slot.model
        about = f"{model.predictor.num_labels:,} labels, {' and '.join(model.predictors)}, version {model.version}"
        bound.listen()  # whoever has read the next line may connect; what comes too early waits
        logger.info("%s serves %s: %s", address_of(bound), directory, about)
        app = make_app(serving, token=token, hosts=hosts)
        serve(app, slot, bound, shutdown_seconds=config.shutdown_seconds, access_log=config.access_log)


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.serve:run", "serve")


if __name__ == "__main__":
    main()
