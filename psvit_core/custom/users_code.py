"""Errors of the user's code, as one line of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psvit_core.errors import ModelError, PsvitError

_MOST = 300  # characters of a message


def one_line(error: BaseException) -> str:
    """Return the type and message of an error in one line.

    Of an error that ``users_code`` raised, those of its cause.
    """
    if isinstance(error, PsvitError) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MOST]}{'...' if len(text) > _MOST else ''}"


@contextmanager
def users_code(fault: str) -> Iterator[None]:
    """Turn whatever the user's code raises in the ``with`` block into a ``ModelError``.

    ``SystemExit`` too: a network must not end the process. Errors of this package stay as they are.

    Args:
        fault: What fails, e.g. ``my_model cannot be built``; the error follows after a colon.
    """
    try:
        yield
    except PsvitError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{fault}: {one_line(error)}") from error
