"""Deployment: a server and sites on machines of their own, with an engine that carries bytes between them."""
