"""`python -m tinlab`."""

import sys


def main() -> None:
    """The command line, from its first import on: Ctrl-C ends it without a traceback then, too."""
    try:
        from tinlab.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
