"""``python -m fedsa``."""

from fedsa.cli import main

main()
