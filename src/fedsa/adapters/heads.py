"""What is known of a head from its tensors alone."""

from __future__ import annotations

from fedsa.types import Key, Side, State

__all__ = ["bias_of_classes"]


def bias_of_classes(tensors: State, classes: int) -> Key | None:
    """Return the bias that a head adds to the scores of the classes; None if it has none, or if it cannot be told.

    Args:
        tensors: the model's.
        classes: how many there are.
    """
    heads = {key: value for key, value in tensors.items() if key.factor.side is Side.HEAD}
    found = [key for key, value in heads.items() if tuple(value.shape) == (classes,)]
    return found[0] if len(found) == 1 and classes > 1 else None
