"""`python -m prime_xmc.baseline`: a method to compare with, evaluated and recorded as a training is."""

from importlib.util import find_spec

from omegaconf import DictConfig

from prime_xmc.app import run_app


def run(config: DictConfig) -> float | None:
    """Run a method by a configuration, or as a job of a sweep; return the validation P@1.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If a package is missing, the data are malformed, or a setting is out of range.
    """
    missing = [name for name, module in (("scikit-learn", "sklearn"), ("scipy", "scipy")) if find_spec(module) is None]
    if missing:
        raise ValueError(f"a baseline needs {', '.join(missing)}: pip install '.[baselines]' in the clone")
    # here, because the help need not wait for torch
    from prime_xmc.baselines.running import run_baseline
    from prime_xmc.training.sweeps import in_sweep, run_job

    if in_sweep():
        return run_job(config, run_baseline)
    return run_baseline(config).metrics.get("val/P@1")


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.baseline:run", "baseline")


if __name__ == "__main__":
    main()
