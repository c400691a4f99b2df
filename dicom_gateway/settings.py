"""Everything a site can set, read once from onescan.toml and ONESCAN_* variables and passed on as a value."""

import ipaddress
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    IPvAnyNetwork,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from dicom_gateway.errors import ConfigurationError
from models import BUNDLED_MODEL_DIR
from models.findings import FindingKind

DEFAULT_FILE = Path("onescan.toml")
ANY_AE_TITLE = "*"
_PREFIX = "ONESCAN_"
# What Kubernetes tells every container of a service that is called onescan.
_OF_A_CLUSTER = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?")
_DATABASES = ("postgresql", "sqlite")
_LOOPBACK_OF_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}

# PS3.5 Table 6.2-1, AE: at most 16 characters, no backslash and no control characters.
AeTitle = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")
]
# NoDecode: a variable may be a plain comma-separated list.
AeTitles = Annotated[tuple[AeTitle, ...], NoDecode]
Networks = Annotated[tuple[IPvAnyNetwork, ...], NoDecode]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ResultObject = Literal[
    "sr",
    "seg",
    "seg_labelmap",
    "sc",
    "marks",
    "key_images",
    "ko",
    "gsps",
    "pdf",
    "sr_comprehensive",
    "sr_enhanced",
    "sr_text",
]
# DICOM keywords (PS3.6 Annex A). The first two hold any object; the others only some.
TransferSyntax = Literal["ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "RLELossless"]
CodeSet = Literal["freeset", "snomed"]
UNCOMPRESSED: tuple[TransferSyntax, ...] = ("ExplicitVRLittleEndian", "ImplicitVRLittleEndian")


class _Named(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = Field(
        description="Name in logs, pages and commands: letters, digits, '-' and '_'."
    )


class _WantsReports(_Named):
    """A destination that is told findings."""

    language: Literal["en", "zh"] = Field(
        default="en", description="Language of all that people read there: 'en' (English) or 'zh' (Chinese)."
    )
    code_set: CodeSet = Field(
        default="freeset",
        description="Codes of findings: 'freeset' (nobody needs a licence) or 'snomed' (the exact SNOMED CT concept "
        "where there is one; outside of the member countries of SNOMED International the site needs a licence).",
    )


class _WantsObjects(_WantsReports):
    """A destination of DICOM objects."""

    objects: Annotated[tuple[ResultObject, ...], Field(min_length=1)] = Field(
        default=("sr", "seg", "sc"),
        description="What to send, in this order, but no SR before the segmentation that it refers to: "
        "'sr' (structured report), 'seg' (segmentation), 'seg_labelmap' (as label maps, or as 'seg' where those are "
        "refused), 'sc' (summary page), 'marks' (outlines as an SR), 'key_images', 'ko' (key object selection), "
        "'gsps' (presentation states), 'pdf', 'sr_comprehensive', 'sr_enhanced', 'sr_text' (the SR in older classes; "
        "'sr' falls back to them by itself).",
    )
    character_set: Literal["ISO_IR 192", "GB18030"] = Field(
        default="ISO_IR 192", description="Character set of what is sent: 'ISO_IR 192' (UTF-8) or 'GB18030'."
    )

    @field_validator("objects", "transfer_syntaxes", check_fields=False)
    @classmethod
    def _named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := {name for name in value if value.count(name) > 1}:
            raise ValueError(f"named twice: {', '.join(sorted(twice))}")
        return value


class _OverTls(_Named):
    """A peer that is called over TLS where it has certificates of its own."""

    tls_ca_file: Path | None = Field(
        default=None,
        description="Certificates (PEM) of those who vouch for the peer, which is then called over TLS; its own is "
        "to be for host. Unset: no TLS.",
    )
    tls_certificate_file: Path | None = Field(
        default=None, description="Certificate chain (PEM) that is shown to a peer that asks for one."
    )
    tls_key_file: Path | None = Field(default=None, description="Its private key (PEM), without a password.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        if self.tls_certificate_file is not None and self.tls_ca_file is None:
            raise ValueError("tls_certificate_file without tls_ca_file: who vouches for the peer?")
        return self


class Destination(_WantsObjects, _OverTls):
    """A C-STORE peer that wants results, and the profile of what it is given."""

    kind: Literal["dicom"] = Field(default="dicom", description="'dicom': results are stored there by C-STORE.")
    ae_title: AeTitle = Field(description="AE title the destination answers to.")
    host: Annotated[str, StringConstraints(min_length=1)] = Field(description="Host name or address.")
    port: Port = Field(description="TCP port.")
    transfer_syntaxes: Annotated[tuple[TransferSyntax, ...], Field(min_length=1)] = Field(
        default=UNCOMPRESSED,
        description="Transfer syntaxes that are offered, the preferred one first: ExplicitVRLittleEndian, "
        "ImplicitVRLittleEndian, RLELossless (for pictures only). Label maps are always RLELossless.",
    )
    storage_commitment: bool = Field(
        default=False,
        description="Ask for storage commitment of what was stored. The destination answers to our DICOM port: its AE "
        "title must be one of calling_ae_titles.",
    )

    @property
    def address(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"

    @field_validator("transfer_syntaxes")
    @classmethod
    def _holds_every_object(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) & set(UNCOMPRESSED):
            raise ValueError(f"at least one of {' and '.join(UNCOMPRESSED)} is needed: only pictures can be compressed")
        return value


def _secret(destination: _Named, setting: str) -> str | None:
    """The line in the file that a setting names; None where it is unset. Raises ConfigurationError."""
    path: Path | None = getattr(destination, setting)
    if path is None:
        return None
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {setting} of {destination.name}") from error


class _OverHttp(_Named):
    """A destination that is a web service."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s?#@]+$")] = Field(
        description="Base address of the server, without a password."
    )
    bearer_token_file: Path | None = Field(
        default=None, description="File with the token that the server asks for; unset: none is sent."
    )

    @property
    def address(self) -> str:
        return self.url

    def bearer_token(self) -> str | None:
        """Raises ConfigurationError where the file cannot be read."""
        return _secret(self, "bearer_token_file")


class StowDestination(_OverHttp, _WantsObjects):
    """A DICOMweb server that wants results."""

    kind: Literal["stow"] = Field(description="'stow': results are stored there by STOW-RS (DICOMweb).")


class DicomwebDestination(_WantsObjects):
    """Our own DICOMweb server, which then has these objects instead of the default ones."""

    kind: Literal["dicomweb"] = Field(description="'dicomweb': results are kept to be fetched from us at /dicom-web.")

    @property
    def address(self) -> str:
        return "/dicom-web"


class FhirDestination(_OverHttp, _WantsReports):
    """A FHIR R4 server that wants reports."""

    objects: ClassVar[tuple[str, ...]] = ("fhir",)

    kind: Literal["fhir"] = Field(description="'fhir': each report is posted as one FHIR R4 transaction.")
    patient_identifier_system: str | None = Field(
        default=None,
        description="What the server calls the identifier system (a URI) of the Patient ID; unset: any system.",
    )


class Hl7Destination(_WantsReports, _OverTls):
    """An HL7 v2 interface engine that wants reports."""

    objects: ClassVar[tuple[str, ...]] = ("hl7",)

    kind: Literal["hl7"] = Field(description="'hl7': each report is sent as one HL7 v2.5.1 ORU^R01 over MLLP.")
    host: Annotated[str, StringConstraints(min_length=1)] = Field(description="Host name or address.")
    port: Port = Field(description="TCP port.")

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


NoticeEvent = Literal["report", "urgent", "parked"]


class _Notified(_Named):
    """A destination that is told what happened, and nothing of the patient but the Study Instance UID."""

    events: Annotated[tuple[NoticeEvent, ...], Field(min_length=1)] = Field(
        default=("urgent",),
        description="What it is told: 'report' (every report), 'urgent' (one that urgent_kinds make urgent, and its "
        "amendments), 'parked' (an analysis that failed, or a delivery that was given up).",
    )


class WebhookDestination(_OverHttp, _Notified):
    """A web service that is told what happened."""

    objects: ClassVar[tuple[str, ...]] = ("webhook",)

    kind: Literal["webhook"] = Field(description="'webhook': each event is posted there as JSON.")
    secret_file: Path | None = Field(
        default=None, description="File with the secret that messages are signed with (HMAC-SHA256); unset: unsigned."
    )

    def secret(self) -> str | None:
        """Raises ConfigurationError where the file cannot be read."""
        return _secret(self, "secret_file")


# As Starlette's TrustedHostMiddleware matches them.
HostPattern = Annotated[
    str, StringConstraints(pattern=r"^(\*|(\*\.)?[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])$")
]
EmailAddress = Annotated[str, StringConstraints(pattern=r"^[^@\s,<>]+@[^@\s,<>]+$", max_length=254)]


class MailDestination(_Notified):
    """People who are told by e-mail what happened."""

    objects: ClassVar[tuple[str, ...]] = ("mail",)

    kind: Literal["mail"] = Field(description="'mail': each event is sent there as an e-mail.")
    host: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="Host name or address of the mail server."
    )
    port: Port = Field(default=587, description="TCP port of the mail server.")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="'starttls', 'tls' (from the first byte, port 465) or 'none'."
    )
    sender: EmailAddress = Field(description="Address that the mail comes from.")
    recipients: Annotated[tuple[EmailAddress, ...], Field(min_length=1)] = Field(description="Addresses it goes to.")
    user: str | None = Field(default=None, description="Name to log in with; unset: no login.")
    password_file: Path | None = Field(default=None, description="File with the password of user.")

    @property
    def address(self) -> str:
        return f"{', '.join(self.recipients)} by {self.host}:{self.port}"

    def password(self) -> str | None:
        """Raises ConfigurationError where the file cannot be read."""
        return _secret(self, "password_file")


_KINDS = ("dicom", "stow", "dicomweb", "fhir", "hl7", "webhook", "mail")


def _kind_of(destination: Any) -> str | None:
    kind = destination.get("kind", "dicom") if isinstance(destination, dict) else getattr(destination, "kind", None)
    return kind if kind in _KINDS else None


AnyDestination = Annotated[
    Annotated[Destination, Tag("dicom")]
    | Annotated[StowDestination, Tag("stow")]
    | Annotated[DicomwebDestination, Tag("dicomweb")]
    | Annotated[FhirDestination, Tag("fhir")]
    | Annotated[Hl7Destination, Tag("hl7")]
    | Annotated[WebhookDestination, Tag("webhook")]
    | Annotated[MailDestination, Tag("mail")],
    Discriminator(
        _kind_of,
        custom_error_type="destination_kind",
        custom_error_message=f"a destination's kind is one of {', '.join(_KINDS)}",
    ),
]


class Source(_OverTls):
    """A sender that can be asked by C-FIND how many images of a study it has."""

    ae_title: AeTitle = Field(description="AE title that it sends with.")
    host: Annotated[str, StringConstraints(min_length=1)] = Field(description="Host name or address it is asked at.")
    port: Port = Field(description="TCP port it is asked at.")
    query_ae_title: AeTitle | None = Field(
        default=None, description="AE title it is asked by; unset: the one it sends with."
    )

    @property
    def called_ae_title(self) -> str:
        return self.query_ae_title or self.ae_title

    @property
    def address(self) -> str:
        return f"{self.called_ae_title} at {self.host}:{self.port}"


ReportDestination = Destination | StowDestination | DicomwebDestination | FhirDestination | Hl7Destination
NotifiedDestination = WebhookDestination | MailDestination


# Stripped, as blanks around a DICOM value mean nothing (PS3.5 6.2).
Pattern = Annotated[str, StringConstraints(strip_whitespace=True, max_length=64)]
Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1)]
AgeYears = Annotated[int, Field(ge=0, le=150)]
TEXT_CONDITIONS = ("calling_ae_title", "modality", "body_part", "study_description", "station_name")


class Rule(_Named):
    """Whether studies that meet all of its conditions are analysed, and where their reports go.

    A condition on text names one or more patterns with the wild cards of DICOM queries (PS3.4 C.2.2.2.4), case ignored:
    '*' stands for any text, '?' for one character, '' for a value that is missing.
    """

    calling_ae_title: Patterns | None = Field(default=None, description="AE title that sent the study.")
    modality: Patterns | None = Field(default=None, description="Modality of any of its series.")
    body_part: Patterns | None = Field(default=None, description="Body Part Examined of any of its series.")
    study_description: Patterns | None = Field(default=None, description="Study Description.")
    station_name: Patterns | None = Field(default=None, description="Station Name of any of its series.")
    minimum_age_years: AgeYears | None = Field(
        default=None, description="Least age of the patient in completed years. An unknown age meets no condition."
    )
    maximum_age_years: AgeYears | None = Field(
        default=None, description="Greatest age of the patient in completed years: 17 for children."
    )
    analyse: bool = Field(
        default=True, description="false: the study is kept, and analysed only when an operator asks for it."
    )
    destinations: tuple[str, ...] | None = Field(
        default=None, description="Names of the destinations of its report; [] for none. Unset: all destinations."
    )

    @field_validator(*TEXT_CONDITIONS, mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        least, greatest = self.minimum_age_years, self.maximum_age_years
        if all(value is None for value in (least, greatest, *(getattr(self, name) for name in TEXT_CONDITIONS))):
            raise ValueError(f'rule {self.name} has no condition; for every study write modality = "*"')
        if least is not None and greatest is not None and least > greatest:
            raise ValueError(f"rule {self.name}: minimum_age_years is greater than maximum_age_years")
        return self


class Settings(BaseSettings):
    """One immutable value. Arguments win over variables, variables over the file, the file over defaults."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    data_dir: Path = Field(
        default=Path("onescan-data"),
        description="Folder of received images, results and the embedded database.",
    )
    database_url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        description="postgresql://user@host/name to use PostgreSQL; unset: SQLite inside data_dir.",
    )
    ae_title: AeTitle = Field(default="ONESCAN", description="Our AE title; senders must call it by this name.")
    dicom_host: str = Field(default="0.0.0.0", description="Address the DICOM port listens on.")
    dicom_port: Port = Field(default=11112, description="TCP port for C-STORE and C-ECHO.")
    calling_ae_titles: AeTitles = Field(
        default=(), description="AE titles allowed to send. Empty: nobody. '*': anybody."
    )
    stat_calling_ae_titles: AeTitles = Field(
        default=(),
        description="AE titles whose studies are analysed before all others; they must be allowed to send too.",
    )
    quiet_period_s: Seconds = Field(
        default=5.0, description="Seconds of silence after the last release until a study counts as complete."
    )
    quiet_period_single_image_s: Seconds = Field(
        default=30.0, description="The same in seconds for senders that open one association per image."
    )
    sources: tuple[Source, ...] = Field(
        default=(),
        description="Senders that are asked by C-FIND how many images of a study they have, when they stop sending it.",
    )
    missing_images_wait_s: Seconds = Field(
        default=300.0,
        description="Seconds of silence after which a study is analysed without the images that its source has "
        "and has not sent, while a performed procedure step of its modality goes on, or after its association broke.",
    )
    calling_networks: Networks = Field(
        default=(), description="Networks that may send, as 10.1.0.0/16 or 10.1.2.3. Empty: every address."
    )
    calling_ae_networks: dict[AeTitle, tuple[IPvAnyNetwork, ...]] = Field(
        default={}, description="The same for single AE titles, which may then send from nowhere else."
    )
    stow_networks: Networks = Field(
        default=(), description="Networks that may send images to the web port by STOW-RS (DICOMweb). Empty: nobody."
    )
    dicom_passcodes_file: Path | None = Field(
        default=None,
        description="Senders must name themselves with a passcode (user identity negotiation, PS3.7 D.3.3.7): a line "
        "'name:passcode' each; unset: a user identity is not asked for and not looked at.",
    )
    dicom_tls_certificate_file: Path | None = Field(
        default=None, description="Certificate chain (PEM) of the DICOM port, which then speaks TLS only."
    )
    dicom_tls_key_file: Path | None = Field(default=None, description="Its private key (PEM), without a password.")
    dicom_tls_ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) of those who vouch for senders; one without is refused."
    )
    maximum_associations: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=200, description="Associations served at the same time; more are rejected for the moment."
    )
    maximum_associations_per_address: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=100,
        description="The same for each network address, in IPv6 for each /64; the first association of each title in "
        "calling_ae_titles is let in beyond it.",
    )
    maximum_mb_per_s_per_address: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="MB a second that are read from one address; unset: as fast as it comes."
    )
    maximum_instance_mb: Annotated[int, Field(ge=1)] = Field(
        default=4096, description="Largest image that is taken, in MB; a larger one is refused (0xA700)."
    )
    minimum_free_space_mb: Annotated[int, Field(ge=0)] = Field(
        default=1024, description="Free space in MB of data_dir below which images are refused (0xA700)."
    )
    web_host: str = Field(
        default="127.0.0.1", description="Address the web pages listen on; one that others reach needs web_users_file."
    )
    web_port: Port = Field(default=8080, description="TCP port of the web pages and the JSON API.")
    web_users_file: Path | None = Field(
        default=None,
        description="Who may see the pages: a line 'name:bcrypt hash' a person, as `onescan password` prints it; "
        "unset: everybody who reaches the port.",
    )
    web_host_names: Annotated[tuple[HostPattern, ...], NoDecode] = Field(
        default=(),
        description="Names, beside localhost, that a proxy may pass on as Host while web_users_file is unset: without "
        "port, *.name for all below it, IPv6 addresses in brackets.",
    )
    model_dir: Path = Field(
        default=BUNDLED_MODEL_DIR,
        description="Folder with model.json and its ONNX weights; unset: the bundled model.",
    )
    execution_provider: Literal["cpu", "cuda", "openvino", "cann"] = Field(
        default="cpu", description="What runs the network: cpu, or cuda, openvino, cann where onnxruntime has it."
    )
    inference_threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Threads of the network; 0: as many as there are cores."
    )
    destinations: tuple[AnyDestination, ...] = Field(
        default=(), description="Where results are sent, and what each destination is given."
    )
    rules: tuple[Rule, ...] = Field(
        default=(),
        description="Which studies are analysed and where their reports go: the first rule that fits decides. "
        "A study that none fits is analysed, and its report goes to every destination.",
    )
    urgent_kinds: Annotated[tuple[FindingKind, ...], NoDecode] = Field(
        default=(FindingKind.PNEUMOTHORAX,),
        description="Finding kinds that make a report urgent where they are present with evidence of grade A or B; "
        "its series descriptions begin with URGENT. Not with grade C, which is evidence from simulation alone.",
    )
    delivery_attempts: Annotated[int, Field(ge=1)] = Field(
        default=32,
        description="Attempts to deliver to an unreachable destination before the delivery is parked; with the "
        "default pauses they go on for about a day.",
    )
    delivery_backoff_s: Seconds = Field(
        default=10.0,
        description="Seconds until the second delivery attempt; doubles each time, up to one hour.",
    )
    worker_concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Studies analysed at the same time by one worker."
    )
    analysis_timeout_s: Seconds = Field(
        default=1800.0,
        description="Seconds that an analysis may take; the worker that hangs longer is started again, and the study "
        "parked when that has happened four times.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least serious log event that is written: debug, info, warning or error."
    )

    @field_validator(
        *("calling_ae_titles", "stat_calling_ae_titles", "calling_networks", "urgent_kinds", "web_host_names"),
        "stow_networks",
        mode="before",
    )
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """A text is a comma-separated list, or JSON where it begins with a bracket."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        files = (self.dicom_tls_certificate_file, self.dicom_tls_key_file, self.dicom_tls_ca_file)
        if any(files) and not all(files):
            raise ValueError("dicom_tls_certificate_file, dicom_tls_key_file and dicom_tls_ca_file go together")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.dicom_port == self.web_port:
            raise ValueError("dicom_port and web_port are the same")
        return self

    @field_validator("database_url")
    @classmethod
    def _is_database_url(cls, value: str | None) -> str | None:
        try:
            good = value is None or (urlsplit(value).scheme in _DATABASES and urlsplit(value).port != 0)
        except ValueError:
            good = False
        if not good:
            # What a library says of such an address may quote the password.
            raise ValueError(
                "not postgresql://user@host:port/name; in a password write %40 for @, %3A for : and %2F for /"
            )
        return value

    @model_validator(mode="after")
    def _destinations_named_once(self) -> Self:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations have the same name")
        return self

    @model_validator(mode="after")
    def _sources_named_once(self) -> Self:
        for values in ([source.name for source in self.sources], [source.ae_title for source in self.sources]):
            if len(set(values)) != len(values):
                raise ValueError("two sources have the same name or the same AE title")
        return self

    @model_validator(mode="after")
    def _rules_named_once_and_lead_somewhere(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name")
        known = [destination.name for destination in self.destinations]
        for rule in self.rules:
            if unknown := [name for name in rule.destinations or () if name not in known]:
                raise ValueError(
                    f"rule {rule.name}: no destination is named {', '.join(unknown)}"
                    f" (there are: {', '.join(known) or 'none'})"
                )
        return self

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Settings of `path`, else of ./onescan.toml where it exists, else defaults; ONESCAN_* variables win.

        Raises ConfigurationError, which names every wrong setting, or the file that cannot be read.
        """
        chosen = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
        if unknown := sorted(name for name in os.environ if _names_no_setting(name)):
            raise ConfigurationError(f"no setting has the name of the variable {', '.join(unknown)}")
        try:
            from_file = tomllib.loads(chosen.read_text(encoding="utf-8")) if chosen else {}
            return cls(**{**from_file, **EnvSettingsSource(cls)()})
        except OSError as error:
            raise ConfigurationError(f"cannot read {chosen}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"{chosen} is not TOML: {error}") from error
        except SettingsError as error:
            # Its message names the setting and does not quote the value.
            raise ConfigurationError(
                f'{error}: its variable is given as JSON, for example [{{"name": "pacs", "ae_title": "PACS", ...}}]'
            ) from error
        except ValidationError as error:
            # The kind of a destination stands in the location of a mistake in it; it is no name of a setting.
            where = [".".join(str(part) for part in e["loc"] if part not in _KINDS) for e in error.errors()]
            wrong = "; ".join(f"{loc}: {e['msg']}" for loc, e in zip(where, error.errors(), strict=True))
            raise ConfigurationError(f"settings ({chosen or 'ONESCAN_* variables'}): {wrong}") from error

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the one database."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir.resolve() / 'onescan.sqlite'}"
        return self.database_url.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def dicom_loopback_host(self) -> str:
        """Address at which this machine itself reaches our DICOM port; `dicom_host` unless that is any address."""
        return _LOOPBACK_OF_ANY.get(self.dicom_host, self.dicom_host)

    @property
    def web_is_local(self) -> bool:
        """Whether only this machine reaches the web port."""
        try:
            return ipaddress.ip_address(self.web_host).is_loopback
        except ValueError:
            return self.web_host == "localhost"

    @property
    def incoming_dir(self) -> Path:
        return self.data_dir / "incoming"

    @property
    def studies_dir(self) -> Path:
        return self.data_dir / "studies"

    @property
    def decoded_dir(self) -> Path:
        return self.data_dir / "decoded"

    @property
    def results_dir(self) -> Path:
        return self.data_dir / "results"

    def dicom_passcodes(self) -> dict[str, str] | None:
        """Passcodes by name; None where none are asked for. Raises ConfigurationError for a file not of that form."""
        if self.dicom_passcodes_file is None:
            return None
        try:
            lines = self.dicom_passcodes_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError("cannot read dicom_passcodes_file") from error
        pairs = [line.partition(":") for line in lines if line.strip()]
        if not all(name and separator and passcode for name, separator, passcode in pairs):
            raise ConfigurationError("dicom_passcodes_file has a line that is not name:passcode")
        return {name: passcode for name, _, passcode in pairs}

    def accepts(self, calling_ae_title: str) -> bool:
        """Whether this calling AE title may send to us."""
        return ANY_AE_TITLE in self.calling_ae_titles or calling_ae_title.strip() in self.calling_ae_titles


def _names_no_setting(variable: str) -> bool:
    """Whether a variable looks like one of ours and is none: a mistyped limit would limit nothing."""
    name = variable.upper().removeprefix(_PREFIX)
    return name != variable.upper() and name.lower() not in Settings.model_fields and not _OF_A_CLUSTER.fullmatch(name)
