"""The command line: everything that the app does, for a shell.

``--json`` prints one JSON object on stdout and nothing else; progress goes to stderr. Exit status:
0 done, 1 failed while running, 2 bad input (one line on stderr), 130 cancelled.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from psvit_core.cli.arguments import make_parser
from psvit_core.cli.engine import Result
from psvit_core.errors import PsvitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = make_parser(__doc__).parse_args(arguments)
        command: Callable[[argparse.Namespace], tuple[Result, str]] = options.command
        result, text = command(options)
    except PsvitError as error:
        print(f"psvit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("psvit: cancelled; finished cells are kept.", file=sys.stderr)
        return 130
    print(json.dumps(result) if options.json else text)
    return 0


__all__ = ["main"]
