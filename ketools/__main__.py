"""python -m ketools: the command line."""

from ketools.cli import main

if __name__ == "__main__":
    main()
