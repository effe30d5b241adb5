"""The rounds of a run: the loop, the clients as the loop sees them (a fleet), and what the run comes to."""
