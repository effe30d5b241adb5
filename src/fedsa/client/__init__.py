"""What happens where the rows are: a site takes in what the server sent, trains, measures, and hands back updates."""

from fedsa.client.evaluation import Mixing, Personal, Sampling, evaluate, majority_accuracy, predict
from fedsa.client.learner import Learner
from fedsa.client.site import ClientStates, Site
from fedsa.client.state import initial_of_client, own_tensors, personal_tensors

__all__ = [
    "ClientStates",
    "Learner",
    "Mixing",
    "Personal",
    "Sampling",
    "Site",
    "evaluate",
    "initial_of_client",
    "majority_accuracy",
    "own_tensors",
    "personal_tensors",
    "predict",
]
