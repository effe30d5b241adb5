"""``fedsa`` and ``python -m fedsa``."""

import signal

from fedsa.memory import restart_with_tunables


def main() -> None:
    """Run the command line, in a process that has its allocator's settings; see `fedsa.cli.main`."""
    restart_with_tunables()  # before what takes time to import
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who stops a service or a container is told how to go on
    from fedsa.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
