"""Starting parked work again, from the API and from the buttons of the pages."""

from fastapi import HTTPException

from dicom_gateway import operate
from dicom_gateway.errors import NotFound
from dicom_gateway.store.index import get_delivery
from dicom_gateway.web.site import Site


def replay_study(site: Site, uid: str) -> tuple[str, ...]:
    """Start everything of a study that is parked; ids of the jobs started, empty when nothing was parked.

    Raises NotFound for a study that was never received, HTTPException 409 where all that is parked has to stay so.
    """
    return _replayed(site, site.study(uid).study_instance_uid)


def replay_delivery(site: Site, uid: str, revision: int, destination: str) -> tuple[str, ...]:
    """Send a parked delivery again; empty when it is not parked.

    Raises NotFound when there is none, HTTPException 409 where it has to stay parked.
    """
    if get_delivery(site.engine, uid, revision, destination) is None:
        raise NotFound("There is no such delivery.")
    wanted = (uid, revision, destination)
    parked = operate.list_parked(site.settings)
    chosen = [job for job in parked if (job.study_instance_uid, job.revision, job.destination) == wanted]
    return tuple(started for job in chosen for started in _replayed(site, job.job_id))


def _replayed(site: Site, what: str) -> tuple[str, ...]:
    started = operate.replay(site.settings, what)
    kept = () if started else operate.kept_parked(site.settings, what)
    if kept:
        raise HTTPException(409, "; ".join(kept))
    return started
