"""TLS of the DICOM port and towards peers (PS3.15 B.12, the Modified BCP 195 profile)."""

import ssl
import threading
from pathlib import Path

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.events import Event, emit
from dicom_gateway.settings import Destination, Hl7Destination, Settings, Source

# RFC 9325 section 4.2: forward secrecy and authenticated encryption only. TLS 1.3 has no others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"
# Unset, OpenSSL would ask at the terminal for that of a key which has one.
_NO_PASSWORD = ""


def context_towards(peer: Destination | Hl7Destination | Source) -> ssl.SSLContext | None:
    """The context for one connection to a peer, of its files as they are now; None where it is called without TLS.

    The peer must show a certificate for its host. Raises ConfigurationError for files that cannot be used.
    """
    if peer.tls_ca_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    try:
        context.load_verify_locations(peer.tls_ca_file)
        if peer.tls_certificate_file is not None:
            context.load_cert_chain(peer.tls_certificate_file, peer.tls_key_file, password=_NO_PASSWORD)
    except OSError as error:
        raise ConfigurationError(f"the tls files of {peer.name} cannot be used ({type(error).__name__})") from error
    return context


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION


class TlsContext:
    """The context of the DICOM port, of the settings' files; made again when one of them changes.

    Both sides show a certificate.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError for files that cannot be used."""
        files = (settings.dicom_tls_certificate_file, settings.dicom_tls_key_file, settings.dicom_tls_ca_file)
        self._certificate, self._key, self._ca = (Path(file) for file in files if file is not None)
        self._lock = threading.Lock()
        try:
            self._stamp = self._changed()
            self._context = self._load()
        except OSError as error:
            raise ConfigurationError(f"the dicom_tls files cannot be used ({type(error).__name__})") from error

    def current(self) -> ssl.SSLContext:
        """The context for a new connection. Files that cannot be used leave the one before, and are logged."""
        with self._lock:
            try:
                stamp = self._changed()
                if stamp != self._stamp:
                    self._context = self._load()
                    self._stamp = stamp
                    emit(Event.TLS_RELOADED)
            except OSError as error:
                emit(Event.TLS_NOT_RELOADED, level="error", error=type(error).__name__)
            return self._context

    def _changed(self) -> tuple[int, ...]:
        status = [file.stat() for file in (self._certificate, self._key, self._ca)]
        # The second changes with the rights, too.
        return tuple(time_ns for file in status for time_ns in (file.st_mtime_ns, file.st_ctime_ns))

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _restrict(context)
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        context.load_cert_chain(self._certificate, self._key, password=_NO_PASSWORD)
        context.load_verify_locations(self._ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context
