"""The name under which version 0.1.0 had `Predictor`; its model cards import it from here."""

from prime_xmc.export.predictor import Prediction, Predictor, ScoredLabel

__all__ = ["Prediction", "Predictor", "ScoredLabel"]
