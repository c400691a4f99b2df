"""Errors of the gateway, grouped by what the caller does about them.

GatewayError
├── ConfigurationError    a setting is wrong: tell the operator which, exit
├── StorageFull           the storage does not take the bytes: answer 0xA700, the sender keeps its copy
├── ConflictingInstance   a SOP Instance UID we hold comes again with other bytes: keep ours, answer 0x0111
├── NotFound              no such study or job: tell the operator
├── StudyHasChanged       what was asked for is not of the newest images: tell the operator to look again
└── DeliveryError
    ├── PeerUnreachable   connection, abort or "out of resources": try again later
    └── PeerRefused       the destination says no and will say no again: park, a person decides
"""


class GatewayError(Exception):
    """The gateway cannot do what it was asked to do."""


class ConfigurationError(GatewayError):
    """A setting is missing or wrong."""


class StorageFull(GatewayError):
    """The data folder takes no other instance: it is full, read-only, failing or gone."""


class ConflictingInstance(GatewayError):
    """An instance with this SOP Instance UID is stored already, with other bytes."""


class NotFound(GatewayError):
    """There is no study or job with this id."""


class StudyHasChanged(GatewayError):
    """The report that was asked for is not that of all images which were received."""


class DeliveryError(GatewayError):
    """A result did not reach its destination."""


class PeerUnreachable(DeliveryError):
    """The destination could not be reached or was busy; a later attempt may succeed."""


class PeerRefused(DeliveryError):
    """The destination refused the result; the same attempt would be refused again."""
