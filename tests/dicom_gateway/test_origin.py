"""Whoever has many addresses is counted once."""

import pytest

from dicom_gateway.origin import origin_of
from dicom_gateway.wrong_attempts import MOST_WRONG, WrongAttempts


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::7", "2001:db8:0:2::/64"),
        ("fe80::7%eth0", "fe80::7%eth0"),
        ("::1", "::/64"),
        ("", ""),
        ("of a proxy", "of a proxy"),
    ],
)
def test_origin_of_an_address(address, origin):
    assert origin_of(address) == origin


def test_guessing_from_ever_other_addresses_of_one_subnet_is_guessing():
    """Ten wrong ones shut out an address, a hundred its subnet."""
    wrong = WrongAttempts()
    for number in range(MOST_WRONG):
        for last in range(1, 11):
            assert wrong.wait_s("2001:db8::a:a", now=1.0) == 0
            wrong.add(f"2001:db8::{last:x}", now=1.0)
        assert (wrong.wait_s("2001:db8::1", now=1.0) > 0) == (number + 1 == MOST_WRONG)
    assert wrong.wait_s("2001:db8::a:a", now=1.0) > 0
    assert wrong.wait_s("2001:db8:0:1::a", now=1.0) == 0
    assert wrong.wait_s("2001:db8::a:a", now=62.0) == 0


def test_who_guesses_at_one_address_shuts_out_no_neighbour():
    wrong = WrongAttempts()
    for _ in range(MOST_WRONG):
        wrong.add("2001:db8::1", now=1.0)
    assert wrong.wait_s("2001:db8::1", now=1.0) > 0
    assert wrong.wait_s("2001:db8::2", now=1.0) == 0
