"""``fedsa`` and ``python -m fedsa``."""

from fedsa.memory import restart_with_tunables


def main() -> None:
    """Run the command line, in a process that has its allocator's settings; see `fedsa.cli.main`."""
    restart_with_tunables()  # before what takes time to import
    from fedsa.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
