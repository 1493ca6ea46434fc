"""``python -m cli`` is the same as ``sluice``."""

from cli.main import main

main()
