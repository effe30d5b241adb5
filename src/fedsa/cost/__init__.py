"""What a run will take, and how much of it is left."""
