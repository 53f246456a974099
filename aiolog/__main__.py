"""``python -m aiolog``: the command line where no script is on PATH."""

from aiolog.cli import main

main()
