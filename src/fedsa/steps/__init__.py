"""What happens to an update between client and server: a step is one file."""
