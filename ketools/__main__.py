"""python -m ketools, and the console script: the command line, from its first import to its last byte of output.

Commands handle their own errors (`ketools.cli`). Anything else also ends in one line and an exit code here: Ctrl-C
during imports, and output that cannot be written.
"""

import os
import sys


def main() -> None:
    """The console script."""
    code: object = 0
    failed: OSError | None = None
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a latin-1 terminal shows ? for characters it lacks
        from ketools.cli import app

        app()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 130
        os.write(2, b"ketools: interrupted\n")
    except OSError as error:  # help is printed outside the commands
        failed = error
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        failed = error
    if failed is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the remaining output cannot be written either
        if not isinstance(failed, BrokenPipeError):
            code = 2
            os.write(2, f"ketools: standard output: {failed.strerror}\n".encode())
    sys.exit(code)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
