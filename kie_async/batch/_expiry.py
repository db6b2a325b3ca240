"""When the service deletes what it keeps for a job. Pure."""

from __future__ import annotations

import attrs

from kie_async.journal import Job, State

TRACKS_KEPT = 14 * 86_400.0  # seconds, as the service states; an address may end sooner
UPLOADS_KEPT = 24 * 3600.0  # seconds, as the service states; another of its pages says 3 days
_BELIEVED = 86_400.0  # seconds between the creation of a track and the end of its job, beyond which clocks disagree


@attrs.frozen
class Expiry:
    """When something is deleted.

    Attributes:
        at: unix seconds.
        is_estimate: when it was made is not known for certain.
    """

    at: float
    is_estimate: bool = False


def tracks_expiry(job: Job) -> Expiry | None:
    """When the tracks of a job are deleted that are paid and not fetched; None for any other job."""
    if job.state is not State.SUCCEEDED:
        return None
    seen = job.moments[State.SUCCEEDED.value]
    made = [track.created_at.timestamp() for track in job.tracks if track.created_at is not None]
    is_known = len(made) == len(job.tracks) > 0 and all(abs(seen - each) < _BELIEVED for each in made)
    return Expiry(min(made) + TRACKS_KEPT) if is_known else Expiry(seen + TRACKS_KEPT, is_estimate=True)


def upload_expiry(job: Job) -> Expiry | None:
    """When the upload of a job's source is deleted; None if there is none, or the job does not need it any more."""
    is_needed = job.state in {State.PLANNED, State.INTENT, State.SUBMITTED}
    if not is_needed or job.source is None or job.source.uploaded_at is None:
        return None
    return Expiry(job.source.uploaded_at + UPLOADS_KEPT)
