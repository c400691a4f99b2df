"""Starting parked work again, from the API and from the buttons of the pages."""

from dicom_gateway import operate
from dicom_gateway.errors import NotFound
from dicom_gateway.store.index import get_delivery
from dicom_gateway.web.site import Site


def replay_study(site: Site, uid: str) -> tuple[str, ...]:
    """Start everything of a study that is parked; ids of the jobs started, empty when nothing was parked.

    Raises NotFound for a study that was never received.
    """
    return operate.replay(site.settings, site.study(uid).study_instance_uid)


def replay_delivery(site: Site, uid: str, revision: int, destination: str) -> tuple[str, ...]:
    """Send a parked delivery again; empty when it is not parked. Raises NotFound when there is none."""
    if get_delivery(site.engine, uid, revision, destination) is None:
        raise NotFound("There is no such delivery.")
    wanted = (uid, revision, destination)
    parked = operate.list_parked(site.settings)
    chosen = [job for job in parked if (job.study_instance_uid, job.revision, job.destination) == wanted]
    return tuple(started for job in chosen for started in operate.replay(site.settings, job.job_id))
