"""Replace this process by a program that dies with the parent: `python -m … PARENT PROGRAM ARGUMENT…`."""

import os
import sys

from tasks.execution.isolate import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[1]))  # what the kernel was asked for stays across exec
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # a list made by run_process
