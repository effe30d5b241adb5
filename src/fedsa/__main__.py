"""``fedsa`` and ``python -m fedsa``."""

import sys

TYPE_CHECKING = False  # as type checkers know it
if TYPE_CHECKING:
    from types import FrameType


def main() -> None:
    """Run the command line, in a process that has its allocator's settings; see `fedsa.cli.main`.

    SIGTERM, with which services and containers are stopped, is answered like Ctrl-C, also while libraries load.
    """
    try:  # nothing is imported before it: Ctrl-C would end in a traceback
        import signal

        from fedsa.system.process import restart_with_tunables

        signal.signal(signal.SIGTERM, _interrupt)
        restart_with_tunables()  # before what takes time to import
        from fedsa.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _interrupt(number: int, frame: "FrameType | None") -> None:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service's children get it from the system and from their parent
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
