"""The application entity that opens associations: who we say we are, how long we wait, and TLS."""

import socket
import ssl

from pynetdicom import AE, evt

from dicom_gateway.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.settings import Destination, Source
from dicom_gateway.tls import context_towards


def _send_at_once(event: evt.Event) -> None:
    # Nagle's algorithm would keep the end of each image back until the peer has acknowledged the rest: up to 40 ms.
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# What `AE.associate` takes as `evt_handlers`.
HANDLERS: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, _send_at_once)]


def requestor(calling_ae_title: str, *, connection_timeout_s: float, response_timeout_s: float) -> AE:
    """An entity without presentation contexts yet."""
    entity = AE(ae_title=calling_ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = entity.acse_timeout = connection_timeout_s
    entity.dimse_timeout = entity.network_timeout = response_timeout_s
    return entity


def tls_arguments(peer: Destination | Source) -> tuple[ssl.SSLContext, str] | None:
    """What `AE.associate` takes as `tls_args`. Raises ConfigurationError for files that cannot be used."""
    context = context_towards(peer)
    return None if context is None else (context, peer.host)
