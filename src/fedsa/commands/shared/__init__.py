"""What several commands need, and what is not one command: no file here is a command."""
