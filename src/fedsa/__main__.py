"""``fedsa`` and ``python -m fedsa``."""

import signal
from types import FrameType

from fedsa.memory import restart_with_tunables


def main() -> None:
    """Run the command line, in a process that has its allocator's settings; see `fedsa.cli.main`.

    SIGTERM, with which services and containers are stopped, is answered like Ctrl-C.
    """
    restart_with_tunables()  # before what takes time to import
    from fedsa.cli import main as command_line

    signal.signal(signal.SIGTERM, _interrupt)
    command_line()


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service's children get it from the system and from their parent
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
