"""Files that a link names: none is read before the user asks for it.

A path in a field of the header comes from its user, or from a link that somebody else made. Only a
path that was typed, or chosen with a button, in this session is read without a further question; so
are files and images that a job has read before.
"""

from __future__ import annotations

from psvit_core.jobs import client
from psvit_core.records import Subject
from psvit_core.storage.store import Store
from ui.model import state

_GIVEN = "consent-given"  # session key: paths and data specifications


def give(*names: str | None) -> None:
    """Note that the user has asked for files or images, by path or data specification."""
    given = state.get(_GIVEN, frozenset())
    state.put(_GIVEN, given | {name for name in names if name})


def missing(*names: str | None) -> list[str]:
    """Return those files that the user has not asked for."""
    given = state.get(_GIVEN, frozenset())
    return [name for name in names if name and name not in given]


def covers_images(store: Store, subject: Subject) -> bool:
    """Return whether a subject's images may be read: they were asked for, or used by a job."""
    return not missing(subject.data) or any(
        job.subject is not None and job.subject.data == subject.data
        for job in client.list_jobs(store)
    )
