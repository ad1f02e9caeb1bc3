"""Names of the files of a run folder that commands and trainings know it by."""

from pathlib import Path

METADATA = Path(".hydra")  # what Hydra writes before a run begins
CONFIG = METADATA / "config.yaml"  # the configuration, composed and not resolved
OVERRIDES = METADATA / "overrides.yaml"  # the settings of the command line; the last of what Hydra writes
CHECKPOINT = Path("checkpoints", "last.ckpt")  # the newest checkpoint
CHECKPOINT_BEFORE = CHECKPOINT.with_name(f"before-{CHECKPOINT.name}")
METRICS = "metrics.json"  # the last that a run writes, which says that it is finished
