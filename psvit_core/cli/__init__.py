"""The command line of the PSViT explorer: everything that the app does, for a shell.

With --json, a command prints one JSON object on stdout and nothing else (jobs watch: one a line).
Progress goes to stderr, as do notes on a checkpoint's tensors, which the JSON object repeats.
Exit status: 0 success, 1 failure while running, 2 bad input (a message on stderr), 3 done but a
target was missed on the test split (run), 130 cancelled, 141 if the output pipe was closed.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TextIO

from psvit_core.cli.arguments import make_parser
from psvit_core.cli.session import Result, ensure_images
from psvit_core.errors import PsvitError, StoreError
from psvit_core.tasks.session import Session


@contextmanager
def _stdout_to_stderr(*, active: bool) -> Iterator[None]:
    """Send what a plugin prints to stderr, also from C code and child processes."""
    if not active:
        yield
        return
    if sys.stdout is not None:  # else it is closed
        sys.stdout.flush()
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        saved = -1
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)


_PIPE_CLOSED = 128 + 13  # as a shell reports a program that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command and options; those of the process when None.

    Returns:
        The exit status.
    """
    try:
        try:
            return _run(arguments)
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()  # a closed pipe shows here, not when the interpreter ends
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:  # a pipe of our own
            raise
        for stream in filter(None, closed):  # what is still buffered has no reader
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return _PIPE_CLOSED


def _is_closed(stream: TextIO | None) -> bool:
    """Return whether a stream is a pipe that nobody reads any more."""
    if stream is None:
        return False
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file of the system, as in tests
        return False


def _writes_itself(options: argparse.Namespace) -> bool:
    """Return whether a command runs no code of others, and writes to stdout itself."""
    return getattr(options, "writes_itself", False) is True


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command, print its result or error, and return the exit status."""
    try:
        options = make_parser(__doc__).parse_args(arguments)
        command: Callable[[argparse.Namespace], tuple[Result, str]] = options.command
        with (
            # The app keeps its own, and so does what writes lines of JSON as it goes.
            _stdout_to_stderr(active=hasattr(options, "json") and not _writes_itself(options)),
            ExitStack() as options.running,
        ):
            ensure_images(options)
            result, text = command(options)
        if warnings := getattr(options, "warnings", ()):
            result = {**result, "warnings": list(warnings)}
    except PsvitError as error:
        if not (isinstance(error, StoreError) and error.said):  # once is enough
            print(f"psvit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "psvit: cancelled. Finished work is stored; run the same command to continue.",
            file=sys.stderr,
        )
        return 130
    session: Session | None = getattr(options, "session", None)
    if session is not None and session.notes:
        result = {**result, "notes": list(session.notes)}
    print(json.dumps(result) if options.json else text, flush=True)
    for remark in getattr(options, "remarks", ()):
        print(f"psvit: {remark}", file=sys.stderr)
    status: int = getattr(options, "exit_status", 0)
    return status


__all__ = ["main"]
