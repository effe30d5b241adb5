"""What can be done with what a run left."""
