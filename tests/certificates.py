"""A certificate authority for tests, and what it gives to servers and clients."""

import ssl

import trustme


class Hospital:
    """A certificate authority, with the certificates that it gives to us (`files`) and to peers."""

    def __init__(self, folder):
        self.authority = trustme.CA()
        self.files = {name: folder / f"{name}.pem" for name in ("certificate", "key", "ca")}
        self.authority.cert_pem.write_to_path(self.files["ca"])
        self.issue()

    def issue(self) -> trustme.LeafCert:
        """Put a new certificate of ours in place."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        self.files["certificate"].write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.files["key"].write_bytes(issued.private_key_pem.bytes())
        return issued

    def server(self, host: str = "127.0.0.1") -> ssl.SSLContext:
        """The context of a peer that is called, with a certificate for `host`; it asks for one of ours."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(host).configure_cert(context)
        self.authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, shown: trustme.CA | None = None) -> ssl.SSLContext:
        """A sender's context, with a certificate of `shown`."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if shown is not None:
            shown.issue_cert("ct.example.org").configure_cert(context)
        return context
