"""What clients' adapters say of new rows."""

from fedsa.runs.predict.predictor import Predicted, Predictor, predict

__all__ = ["Predicted", "Predictor", "predict"]
