"""Listeners: progress displays, trackers, or a user's own."""

from fedsa.callbacks.base import Callback
from fedsa.callbacks.named import check_callbacks, make_callbacks
from fedsa.callbacks.trackers import TRACKERS, Tracker

__all__ = ["TRACKERS", "Callback", "Tracker", "check_callbacks", "make_callbacks"]
