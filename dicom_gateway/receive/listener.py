"""The DICOM port: a thread a connection, each with its deadlines. `start_listener` is all that others need of it.

pynetdicom, which does every other DICOM conversation of this product, is not made for this one: it keeps what a peer
sends before an association in memory without a limit, half-open peers keep others out, and it is slower
(benchmarks/RESULTS.md).
"""

import contextlib
import resource
import socket
import ssl
import threading
import time
from collections import Counter

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.events import Event, emit
from dicom_gateway.origin import origin_of
from dicom_gateway.receive.admission import Admission
from dicom_gateway.receive.commitment import Commitments
from dicom_gateway.receive.connection import HALF_OPEN_TIMEOUT_S, Association, Stream
from dicom_gateway.receive.performed import PerformedSteps
from dicom_gateway.receive.reception import Reception
from dicom_gateway.store.schema import open_database
from dicom_gateway.tls import TlsContext

_BACKLOG = 1024
# Beyond these the origin with the most of them makes room: whoever opens them cannot keep others out.
_MAXIMUM_HALF_OPEN = 256
_THREAD_STACK_BYTES = 512 << 10
# Open files: the connection, the image that comes, its folder or the file that it repeats.
_FILES_OF_AN_ASSOCIATION = 3
# Half-open connections and the health probe, the database's connections (three files each in SQLite), the process.
_OTHER_FILES = _MAXIMUM_HALF_OPEN + 200
_STOP_S = 5.0
_LAST_WORD_S = 1.0
_ACCEPT_AGAIN_S = 0.05


class Listener:
    """A DICOM port that is served until `shutdown`."""

    def __init__(self, reception: Reception) -> None:
        """Bind the port.

        Raises OSError when the address cannot be bound, ConfigurationError for TLS files, and where the system does
        not let this process have the files that maximum_associations may need.
        """
        settings = reception.settings
        _allow_files(settings.maximum_associations)
        if not settings.calling_ae_titles:
            emit(Event.NOBODY_MAY_SEND, level="warning", setting="calling_ae_titles")
        self._reception = reception
        self._admission = Admission(reception)
        durable = open_database(settings.database)
        self._commitments = Commitments(durable, settings)
        self._steps = PerformedSteps(durable)
        self._stopped = threading.Event()
        self._tls = TlsContext(settings) if settings.dicom_tls_certificate_file else None
        self._half_open: dict[socket.socket, str] = {}
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        family = socket.AF_INET6 if ":" in settings.dicom_host else socket.AF_INET
        self._socket = socket.create_server((settings.dicom_host, settings.dicom_port), family=family, backlog=_BACKLOG)
        self._accepting = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._accepting.start()
        threading.Thread(target=self._commitments.run, args=[self._stopped], name="commitment", daemon=True).start()

    def shutdown(self) -> None:
        """Stop: connections are closed, images that are not whole are forgotten, none was acknowledged."""
        self._stopped.set()
        self._admission.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._accepting.join()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            _wake(connection, socket.SHUT_RD)
        deadline = time.monotonic() + _STOP_S
        for thread in connections.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        threading.stack_size(_THREAD_STACK_BYTES)
        while True:
            try:
                connection, peer = self._socket.accept()
            except OSError:
                if self._socket.fileno() < 0:
                    return
                # Out of descriptors for a moment, or a peer that went away again.
                time.sleep(_ACCEPT_AGAIN_S)
                continue
            if not self._admission.may_come_from(peer[0]):
                connection.close()
                reason = "no AE title may send from this address"
                emit(Event.ASSOCIATION_REFUSED, level="warning", address=peer[0], reason=reason)
                continue
            if self._tls is not None:
                # Only prepared here: the handshake waits for the peer, in a thread of its own.
                try:
                    connection.getpeername()
                    connection = self._tls.current().wrap_socket(
                        connection, server_side=True, do_handshake_on_connect=False
                    )
                except OSError:
                    # The peer has reset it already.
                    connection.close()
                    continue
            thread = threading.Thread(target=self._serve, args=(connection, peer[0]), name="connection", daemon=True)
            with self._lock:
                self._connections[connection] = thread
                self._half_open[connection] = origin_of(peer[0])
                in_the_way = self._in_the_way() if len(self._half_open) > _MAXIMUM_HALF_OPEN else None
            if in_the_way is not None:
                _wake(in_the_way, socket.SHUT_RDWR)
            try:
                thread.start()
            except RuntimeError:
                self._forget(connection)

    def _in_the_way(self) -> socket.socket:
        """The oldest half-open connection of the origin that has the most; it counts no more."""
        ((origin, _),) = Counter(self._half_open.values()).most_common(1)
        oldest = next(connection for connection, other in self._half_open.items() if other == origin)
        del self._half_open[oldest]
        return oldest

    def _serve(self, connection: socket.socket, address: str) -> None:
        deadline = time.monotonic() + HALF_OPEN_TIMEOUT_S
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if isinstance(connection, ssl.SSLSocket):
                connection.settimeout(HALF_OPEN_TIMEOUT_S)
                connection.do_handshake()
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                emit(Event.TLS_REFUSED, level="warning", address=address, reason=error.reason)
                _leave(connection)
            self._forget(connection)
            return
        association = Association(
            Stream(connection),
            address,
            self._reception,
            self._admission,
            self._commitments,
            self._steps,
            on_established=lambda: self._established(connection),
        )
        try:
            association.serve(deadline)
        except Exception as error:  # noqa: BLE001  # edge: one connection must not end the port
            emit(Event.CONNECTION_FAILED, level="error", address=address, error=type(error).__name__)
        finally:
            _leave(connection)
            self._forget(connection)

    def _established(self, connection: socket.socket) -> None:
        with self._lock:
            self._half_open.pop(connection, None)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._half_open.pop(connection, None)
            self._connections.pop(connection, None)
        connection.close()


def start_listener(reception: Reception) -> Listener:
    """Start answering on the DICOM port, in threads. Raises as `Listener`."""
    listener = Listener(reception)
    listener.start()
    return listener


def _allow_files(associations: int) -> None:
    """Raise the limit of open files of this process to what so many associations need, as far as it may be raised."""
    needed = _FILES_OF_AN_ASSOCIATION * associations + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"maximum_associations = {associations} needs {needed} open files, and this process may have {hard}: "
            "lower it, or raise the limit (ulimit -Hn, LimitNOFILE of systemd)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _leave(connection: socket.socket) -> None:
    """Wait a moment for the peer to close (PS3.8 Table 9-10, Sta13).

    Who closes over bytes that were not read resets the connection, and the peer may never see why it was aborted.
    """
    deadline = time.monotonic() + _LAST_WORD_S
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while (left_s := deadline - time.monotonic()) > 0:
            connection.settimeout(left_s)
            if not socket.socket.recv(connection, 65536):
                return


def _wake(connection: socket.socket, how: int) -> None:
    """Let the thread that reads the connection see its end."""
    with contextlib.suppress(OSError):
        # Not SSLSocket.shutdown: it takes the encryption away under the thread that uses it.
        socket.socket.shutdown(connection, how)
