"""The recipes that come with fedsa."""
