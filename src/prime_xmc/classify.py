"""`python -m prime_xmc.classify`: the second stage, one-vs-all classifiers on the frozen encoder of a trained model."""

import sys

from omegaconf import DictConfig

from prime_xmc.app import expand_model, run_app
from prime_xmc.stages import train_classifiers


def classify(config: DictConfig) -> float | None:
    """Run by a configuration; return the validation P@1 of the classifiers, for sweepers that optimise it."""
    return train_classifiers(config).metrics.get("val/W/P@1")


def main() -> None:
    """Run the entry point with the command line's configuration."""
    sys.argv[1:] = expand_model(sys.argv[1:])
    run_app(classify, "classify")


if __name__ == "__main__":
    main()
