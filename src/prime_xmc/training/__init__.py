"""Training: Lightning modules, optimisers, callbacks, checkpoints, trackers and sweeps."""
