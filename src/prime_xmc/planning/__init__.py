"""What a run will need in memory, disk space and time."""
