"""Settings: every one documented, the file and the variables read, mistakes named."""

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.settings import (
    Destination,
    DicomwebDestination,
    FhirDestination,
    Hl7Destination,
    MailDestination,
    Rule,
    Settings,
    Source,
    StowDestination,
    WebhookDestination,
)

EXAMPLE = Path(__file__).parents[2] / "onescan.example.toml"
KINDS = (
    Destination,
    StowDestination,
    DicomwebDestination,
    FhirDestination,
    Hl7Destination,
    WebhookDestination,
    MailDestination,
)


def uncommented(text: str) -> str:
    """The example with its commented-out settings (`# name = value`, `# [[table]]`) switched on."""
    lines = []
    for line in text.splitlines():
        body = line.removeprefix("# ")
        is_setting = body.startswith("[[") or (" = " in body and body.split(" = ")[0].isidentifier())
        lines.append(body if is_setting else line)
    return "\n".join(lines)


def test_every_setting_is_documented_in_the_example():
    example = tomllib.loads(uncommented(EXAMPLE.read_text()))
    assert set(example) == set(Settings.model_fields)
    assert [set(named) for named in example["destinations"]] == [set(kind.model_fields) for kind in KINDS]
    assert tuple(map(type, Settings(**example).destinations)) == KINDS
    assert [set(rule) for rule in example["rules"]] == [set(Rule.model_fields)]
    assert [set(source) for source in example["sources"]] == [set(Source.model_fields)]


def test_every_setting_says_what_it_is():
    for documented in (Settings, *KINDS, Rule, Source):
        assert [name for name, field in documented.model_fields.items() if not field.description] == []


def test_the_example_states_the_defaults():
    example = tomllib.loads(EXAMPLE.read_text())
    assert Settings(**example) == Settings()


def test_variables_win_over_the_file(tmp_path, monkeypatch):
    path = tmp_path / "site.toml"
    path.write_text('ae_title = "FILE"\ndicom_port = 4242\n')
    monkeypatch.setenv("ONESCAN_AE_TITLE", "VARIABLE")
    monkeypatch.setenv("ONESCAN_CALLING_AE_TITLES", '["CT1", "PACS"]')
    settings = Settings.load(path)
    assert (settings.ae_title, settings.dicom_port) == ("VARIABLE", 4242)
    assert settings.calling_ae_titles == ("CT1", "PACS")


def test_a_mistyped_variable_is_no_setting_that_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONESCAN_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("ONESCAN_PORT_11112_TCP_ADDR", "10.0.0.1")
    Settings.load(None)
    monkeypatch.setenv("ONESCAN_CALLING_NETWORK", "10.0.0.0/8")
    with pytest.raises(ConfigurationError, match="ONESCAN_CALLING_NETWORK"):
        Settings.load(None)


def test_one_port_serves_one_protocol():
    with pytest.raises(ValidationError, match="are the same"):
        Settings(dicom_port=8042, web_port=8042)


@pytest.mark.parametrize("name", ["calling_ae_titles", "stat_calling_ae_titles"])
@pytest.mark.parametrize(
    ("text", "titles"),
    [("MYPACS", ("MYPACS",)), ("MYPACS, CT 1,", ("MYPACS", "CT 1")), ("*", ("*",)), ("", ()), ('["A,B"]', ("A,B",))],
)
def test_ae_titles_of_a_variable_may_be_comma_separated(tmp_path, monkeypatch, name, text, titles):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"ONESCAN_{name.upper()}", text)
    assert getattr(Settings.load(None), name) == titles
    assert getattr(Settings.model_validate_json(Settings.load(None).model_dump_json()), name) == titles


@pytest.mark.parametrize(
    ("text", "kinds"), [("pneumothorax, pleural_effusion", ("pneumothorax", "pleural_effusion")), ("", ())]
)
def test_urgent_kinds_of_a_variable_may_be_comma_separated(tmp_path, monkeypatch, text, kinds):
    monkeypatch.chdir(tmp_path)
    assert Settings.load(None).urgent_kinds == ("pneumothorax",)
    monkeypatch.setenv("ONESCAN_URGENT_KINDS", text)
    assert Settings.load(None).urgent_kinds == kinds


@pytest.mark.parametrize(
    ("variable", "text", "named"),
    [
        ("ONESCAN_DESTINATIONS", "pacs", "destinations.*JSON"),
        ("ONESCAN_CALLING_AE_TITLES", '["A"', "calling_ae_titles"),
        ("ONESCAN_URGENT_KINDS", "pneumothorax, apathy", "urgent_kinds"),
        ("ONESCAN_CALLING_AE_TITLES", "A TITLE THAT IS TOO LONG", "calling_ae_titles"),
    ],
)
def test_a_mistake_in_a_variable_is_named(tmp_path, monkeypatch, variable, text, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=named):
        Settings.load(None)


@pytest.mark.parametrize(
    ("host", "loopback"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.7", "192.0.2.7"), ("pacs.local",) * 2]
)
def test_where_this_machine_reaches_its_own_port(host, loopback):
    assert Settings(dicom_host=host).dicom_loopback_host == loopback


def test_host_names_are_those_that_can_match():
    names = ("scan.hospital", "*.hospital", "*", "scan_1", "10.0.0.7", "[fd00::5]")
    assert Settings(web_host_names=names).web_host_names == names


def test_without_any_file_the_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(None)
    assert settings.ae_title == "ONESCAN"
    assert settings.database == f"sqlite:///{tmp_path / 'onescan-data' / 'onescan.sqlite'}"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dicom_prot = 104\n", "dicom_prot"),
        ('web_host_names = ["*pacs.local"]\n', r"web_host_names\.0"),
        ('web_host_names = ["scan.hospital:8443"]\n', r"web_host_names\.0"),
        ('web_host_names = ["fd00::5"]\n', r"web_host_names\.0"),
        ("dicom_port = 99999\n", "dicom_port"),
        ("quiet_period_s = -1\n", "quiet_period_s"),
        ('ae_title = "A TITLE THAT IS TOO LONG"\n', "ae_title"),
        ('ae_title = "BACK\\\\SLASH"\n', "ae_title"),
        ('[[destinations]]\nname = "a/b"\nae_title = "X"\nhost = "h"\nport = 1\n', "destinations.0.name"),
        (
            '[[destinations]]\nname = "a"\nkind = "fax"\n',
            "destinations.0: .*stow, dicomweb, fhir, hl7, webhook, mail",
        ),
        ('[[destinations]]\nname = "a"\nkind = "fhir"\nurl = "ftp://x"\n', "destinations.0.url"),
        ('[[destinations]]\nname = "a"\nkind = "stow"\nurl = "http://x"\nobjects = ["fhir"]\n', "objects"),
        ('[[destinations]]\nname = "a"\nkind = "stow"\nurl = "http://x"\nobjects = ["sr", "sr"]\n', "twice: sr"),
        ('[[destinations]]\nname = "a"\nkind = "hl7"\nhost = "h"\n', "destinations.0.port"),
        ('[[destinations]]\nname = "a"\nkind = "webhook"\nurl = "http://x"\nevents = ["all"]\n', "events"),
        ('[[destinations]]\nname = "a"\nkind = "mail"\nhost = "h"\nsender = "a"\nrecipients = []\n', "recipients"),
        (2 * '[[destinations]]\nname = "a"\nae_title = "X"\nhost = "h"\nport = 1\n', "same name"),
        ("this is not TOML", "not TOML"),
        ("rules = " + "[" * 20_000, "not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, named):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        Settings.load(path)


def test_destinations_of_every_kind_survive_the_way_to_the_worker():
    named = [
        {"name": "pacs", "ae_title": "PACS", "host": "h", "port": 104},
        {"name": "web", "kind": "stow", "url": "https://h/dicom-web"},
        {"name": "viewer", "kind": "dicomweb", "objects": ["sr", "marks"]},
        {"name": "ehr", "kind": "fhir", "url": "https://h/r4", "bearer_token_file": "/run/token"},
        {"name": "engine", "kind": "hl7", "host": "h", "port": 2575},
        {"name": "alarm", "kind": "webhook", "url": "https://h/alarm"},
        {"name": "staff", "kind": "mail", "host": "h", "sender": "a@h", "recipients": ["b@h"]},
    ]
    settings = Settings(destinations=named)
    assert [peer.objects for peer in settings.destinations[1:]] == [
        ("sr", "seg", "sc"),
        ("sr", "marks"),
        ("fhir",),
        ("hl7",),
        ("webhook",),
        ("mail",),
    ]
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_token_is_read_when_it_is_needed(tmp_path):
    file = tmp_path / "token"
    peer = FhirDestination(name="ehr", kind="fhir", url="https://h/r4", bearer_token_file=file)
    with pytest.raises(ConfigurationError, match="bearer_token_file of ehr"):
        peer.bearer_token()
    file.write_text("secret\n")
    assert peer.bearer_token() == "secret"
    assert peer.model_copy(update={"bearer_token_file": None}).bearer_token() is None


PEER = '[[destinations]]\nname = "pacs"\nae_title = "X"\nhost = "h"\nport = 1\n'


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('objects = ["sr", "seg", "sr"]', "named twice: sr"),
        ('objects = ["sr", "dicom"]', r"destinations\.0\.objects\.1.*'sr_text'"),
        ("objects = []", r"destinations\.0\.objects"),
        ('transfer_syntaxes = ["RLELossless"]', "ImplicitVRLittleEndian is needed"),
        ('transfer_syntaxes = ["1.2.840.10008.1.2"]', "'ExplicitVRLittleEndian'"),
        ('character_set = "GBK"', "'ISO_IR 192' or 'GB18030'"),
    ],
)
def test_a_mistake_in_a_profile_is_named(tmp_path, line, named):
    path = tmp_path / "site.toml"
    path.write_text(PEER + line)
    with pytest.raises(ConfigurationError, match=named):
        Settings.load(path)


def test_a_destination_without_a_profile_gets_the_default_one(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(PEER)
    (peer,) = Settings.load(path).destinations
    assert peer.objects == ("sr", "seg", "sc")
    assert (peer.transfer_syntaxes[0], peer.character_set) == ("ExplicitVRLittleEndian", "ISO_IR 192")


RULE = '[[rules]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("", "rules.0: .*rule a has no condition"),
        ('modality = "CT"\ndestinations = ["pacz"]', r"rule a: no destination is named pacz \(there are: pacs\)"),
        ("minimum_age_years = 18\nmaximum_age_years = 17", "rules.0: .*minimum_age_years is greater"),
        ("minimum_age_years = -1", "rules.0.minimum_age_years"),
        ("maximum_age_years = 17.5", "rules.0.maximum_age_years"),
        ("modality = []", "rules.0.modality"),
        ("modality = [1]", "rules.0.modality"),
        ('bodypart = "CHEST"', "rules.0.bodypart"),
        ('modality = "CT"\n[[rules]]\nname = "a"\nmodality = "MR"', "two rules have the same name"),
    ],
)
def test_a_mistake_in_a_rule_is_named(tmp_path, lines, named):
    path = tmp_path / "site.toml"
    path.write_text(PEER + RULE + lines)
    with pytest.raises(ConfigurationError, match=named):
        Settings.load(path)


def test_rules_survive_the_way_to_the_listener(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(PEER + RULE + 'body_part = "CHEST "\nmodality = ["CT", "PT"]\ndestinations = []\n')
    settings = Settings.load(path)
    (rule,) = settings.rules
    assert (rule.body_part, rule.modality, rule.destinations, rule.analyse) == (("CHEST",), ("CT", "PT"), (), True)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.toml"):
        Settings.load(tmp_path / "absent.toml")


def test_nobody_may_send_unless_allowed():
    assert not Settings().accepts("ANYONE")
    assert Settings(calling_ae_titles=("CT1",)).accepts("CT1 ")
    assert not Settings(calling_ae_titles=("CT1",)).accepts("CT2")
    assert Settings(calling_ae_titles=("*",)).accepts("ANYONE")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().dicom_port = 1
