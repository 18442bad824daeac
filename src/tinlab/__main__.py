"""`python -m tinlab`."""

from tinlab.cli import main

main()
