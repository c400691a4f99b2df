"""PDUs and command sets: pynetdicom encodes what we parse and decodes what we encode."""

from factories import make_ct_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import associate_request, echo_request, message, store_request
from pydicom.uid import CTImageStorage
from pynetdicom.dimse_messages import C_ECHO_RSP, C_STORE_RSP
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_RELEASE_RP, P_DATA_TF
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation, UserIdentityNegotiation

from dicom_gateway.receive import pdu
from dicom_gateway.receive.pdu import AbortReason, ContextResult, ProtocolError, Rejection

_UIDS = st.lists(st.integers(0, 99999), min_size=2, max_size=8).map(lambda parts: ".".join(map(str, parts)))
_TITLES = st.text("ABCXYZ0189_ -", min_size=1, max_size=16).filter(str.strip)
_CONTEXTS = st.lists(st.tuples(_UIDS, st.lists(_UIDS, min_size=1, max_size=5, unique=True)), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(
    contexts=_CONTEXTS,
    calling=_TITLES,
    called=_TITLES,
    name=st.binary(min_size=1, max_size=64),
    passcode=st.binary(min_size=1),
)
def test_a_request_is_parsed_as_it_was_meant(contexts, calling, called, name, passcode) -> None:
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field, identity.secondary_field = 2, name, passcode
    encoded = associate_request(contexts, calling=calling, called=called, user_items=[identity])
    request = pdu.parse_associate_request(encoded[6:])
    assert (request.calling_ae_title, request.called_ae_title) == (calling.strip(), called.strip())
    assert request.titles == encoded[10:74]
    proposal = pdu.parse_proposal(request.items)
    assert proposal.application_context == pdu.APPLICATION_CONTEXT
    assert [(c.context_id, c.abstract_syntax, c.transfer_syntaxes) for c in proposal.contexts] == [
        (2 * number + 1, sop_class, tuple(syntaxes)) for number, (sop_class, syntaxes) in enumerate(contexts)
    ]
    assert proposal.user_identity == pdu.UserIdentity(2, False, name, passcode)


@settings(max_examples=50, deadline=None)
@given(results=st.lists(st.tuples(st.sampled_from(ContextResult), _UIDS), max_size=20), calling=_TITLES)
def test_an_acceptance_is_read_as_it_was_meant(results, calling) -> None:
    request = pdu.parse_associate_request(associate_request(calling=calling)[6:])
    contexts = b"".join(
        pdu.encode_context_result(2 * number + 1, result, syntax) for number, (result, syntax) in enumerate(results)
    )
    encoded = pdu.encode_associate_accept(request, contexts, pdu.encode_user_information(131072, "1.2.3", "NAME", ()))
    decoded = A_ASSOCIATE_AC()
    decoded.decode(encoded)
    assert decoded.calling_ae_title == calling.strip()
    assert [(c.context_id, c.result, c.transfer_syntax) for c in decoded.presentation_context] == [
        (2 * number + 1, result, syntax) for number, (result, syntax) in enumerate(results)
    ]
    assert decoded.user_information.maximum_length == 131072
    assert decoded.user_information.implementation_version_name == "NAME"


def test_the_other_pdus_are_those_of_the_standard() -> None:
    for rejection in Rejection:
        rejected = A_ASSOCIATE_RJ()
        rejected.decode(pdu.encode_associate_reject(rejection))
        assert (rejected.result, rejected.source, rejected.reason_diagnostic) == rejection.value
    for reason in AbortReason:
        aborted = A_ABORT_RQ()
        aborted.decode(pdu.encode_abort(reason))
        assert (aborted.source, aborted.reason_diagnostic) == (2, reason)
    A_RELEASE_RP().decode(pdu.encode_release_response())


@settings(max_examples=50, deadline=None)
@given(status=st.sampled_from([0x0000, 0x0110, 0xA700, 0xC000]), comment=st.text("abc XYZ:,.()019", max_size=80))
def test_responses_are_read_as_they_were_meant(status, comment) -> None:
    for request, response in ((store_request(make_ct_dataset()), C_STORE_RSP()), (echo_request(), C_ECHO_RSP())):
        encoded_request = message(request)[0][12:]
        command = pdu.parse_command_set(encoded_request)
        assert (command.message_id, command.sop_class_uid) == (request.MessageID, request.AffectedSOPClassUID)
        encoded = P_DATA_TF()
        encoded.decode(pdu.encode_response(command, 3, status, comment))
        assert response.decode_msg(encoded.to_primitive())
        primitive = response.message_to_primitive()
        assert (primitive.Status, primitive.MessageIDBeingRespondedTo) == (status, request.MessageID)
        assert response.context_id == 3


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 200))
def test_a_request_that_is_cut_off(cut) -> None:
    whole = associate_request()[6:]
    content = whole[:cut]
    try:
        proposal = pdu.parse_proposal(pdu.parse_associate_request(content).items)
    except ProtocolError as error:
        assert error.reason is AbortReason.INVALID_PARAMETER
        assert cut < len(whole)
    else:
        # Cut between two items, it is a request for less.
        assert cut >= len(whole) or not proposal.contexts or len(content) > 68


def test_roles_are_read() -> None:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = CTImageStorage, False, True
    proposal = pdu.parse_proposal(pdu.parse_associate_request(associate_request(user_items=[role])[6:]).items)
    assert [granted.sop_class_uid for granted in proposal.roles] == [CTImageStorage]
