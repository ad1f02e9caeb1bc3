"""`python -m prime_xmc.classify`: the second stage, one-vs-all classifiers on the frozen encoder of a trained model."""

from omegaconf import DictConfig

from prime_xmc.app import run_app


def classify(config: DictConfig) -> float | None:
    """Run by a configuration, or as a job of a sweep; return the validation P@1 of the classifiers."""
    from prime_xmc.stages import train_classifiers  # here, because the help need not wait for torch
    from prime_xmc.training.sweeps import in_sweep, note_finished, objective, run_job

    if in_sweep():
        return run_job(config, train_classifiers)
    value = objective(train_classifiers(config).metrics)
    note_finished(config)
    return value


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.classify:classify", "classify")


if __name__ == "__main__":
    main()
