"""`python -m prime_xmc.classify`: the second stage, one-vs-all classifiers on the frozen encoder of a trained model."""

from omegaconf import DictConfig

from prime_xmc.app import run_app


def classify(config: DictConfig) -> float | None:
    """Run by a configuration; return the validation P@1 of the classifiers, for sweepers that optimise it."""
    from prime_xmc.stages import train_classifiers  # here, because the help need not wait for torch

    return train_classifiers(config).metrics.get("val/W/P@1")


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.classify:classify", "classify")


if __name__ == "__main__":
    main()
