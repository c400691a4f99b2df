"""Errors of the model bundle and of its run.

ModelError
    ManifestMismatch    the folder, its manifest and its weights do not belong together: refuse to start
    BadOutput           the network answered with something that is no answer: fail the study
"""


class ModelError(Exception):
    """The model cannot be used."""


class ManifestMismatch(ModelError):
    """The manifest is invalid, or the weights are not those it describes."""


class BadOutput(ModelError):
    """The network's output has the wrong shape or type, or is not finite."""
