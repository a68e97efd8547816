"""python -m ketools, and the console script: the command line, from its first import to its last byte of output.

Whatever happens outside the commands, which end themselves (`ketools.cli`), ends here in a line and an exit code too:
Ctrl-C while modules are imported, and output that cannot be written.
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
                stream.reconfigure(errors="replace")  # a terminal of latin-1 shows ? for what it lacks
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left cannot be written either
        if not isinstance(failed, BrokenPipeError):
            code = 2
            os.write(2, f"ketools: standard output: {failed.strerror}\n".encode())
    sys.exit(code)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
