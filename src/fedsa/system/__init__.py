"""This machine: its process and memory, its paths, and what code may run."""
