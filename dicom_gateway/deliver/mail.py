"""Notices to people by e-mail (SMTP)."""

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from dicom_gateway.deliver.notice import Notice, as_text, subject
from dicom_gateway.errors import ConfigurationError, PeerRefused, PeerUnreachable
from dicom_gateway.settings import MailDestination

TIMEOUT_S = 30.0
# RFC 5321 section 4.2.1: 4yz is transient, 5yz permanent.
_PERMANENT = 500


def send(notice: Notice, destination: MailDestination) -> None:
    """Hand the mail to the server; it has taken it for at least one recipient when this returns.

    Raises PeerUnreachable where another attempt may succeed, PeerRefused for a permanent "no". Of an answer only its
    code is told.
    """
    message = EmailMessage()
    message["Subject"] = subject(notice)
    message["From"], message["To"] = destination.sender, ", ".join(destination.recipients)
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=destination.sender.partition("@")[2])
    message.set_content(as_text(notice))
    with _session(destination) as server:
        server.send_message(message)


def connect(destination: MailDestination) -> None:
    """Log in and send nothing. Raises PeerUnreachable or PeerRefused as `send` does."""
    with _session(destination) as server:
        server.noop()


@contextmanager
def _session(destination: MailDestination) -> Iterator[smtplib.SMTP]:
    try:
        with _server(destination) as server:
            if destination.security == "starttls":
                server.starttls(context=ssl.create_default_context())
            if destination.user is not None:
                password = destination.password()
                if password is None:
                    raise ConfigurationError(f"user of {destination.name} is set, but no password_file")
                server.login(destination.user, password)
            yield server
    except smtplib.SMTPRecipientsRefused as error:
        _raise_for(max(code for code, _ in error.recipients.values()))
    except smtplib.SMTPResponseException as error:
        _raise_for(error.smtp_code)
    except smtplib.SMTPNotSupportedError as error:
        raise PeerRefused("the mail server lacks what security or user ask for") from error
    except (smtplib.SMTPException, OSError) as error:
        raise PeerUnreachable("no connection to the mail server, or it ended") from error


def _server(destination: MailDestination) -> smtplib.SMTP:
    if destination.security == "tls":
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(destination.host, destination.port, timeout=TIMEOUT_S, context=context)
    return smtplib.SMTP(destination.host, destination.port, timeout=TIMEOUT_S)


def _raise_for(code: int) -> None:
    raise (PeerRefused if code >= _PERMANENT else PeerUnreachable)(f"SMTP code {code}")
