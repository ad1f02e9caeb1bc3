"""The stages of a run: prototypes, then one-vs-all classifiers and what is combined with them."""

from prime_xmc.stages.first_stage import TrainedPrototypes, train_prototypes
from prime_xmc.stages.second_stage import TrainedClassifiers, train_classifiers

__all__ = ["TrainedClassifiers", "TrainedPrototypes", "train_classifiers", "train_prototypes"]
