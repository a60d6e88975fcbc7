"""Where a service may listen, and with which token."""

from __future__ import annotations

import pytest

from customized_grpo.errors import UserError
from customized_grpo.serving.access import check_access, listen


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_service_that_others_can_reach_needs_a_token(host: str) -> None:
    with pytest.raises(UserError, match=f"--host {host} can be reached"):
        check_access(host, None, "T")
    check_access(host, "0123456789abcdef", "T")


@pytest.mark.parametrize("token", ["short", "0123456789abcde\n", "0123456789abcdéf"])
def test_a_token_that_is_no_token_is_refused_but_not_shown(token: str) -> None:
    with pytest.raises(UserError, match="the token in T is not 16 or more") as caught:
        check_access("127.0.0.1", token, "T")
    assert token not in str(caught.value)


def test_loopback_needs_no_token_and_a_taken_port_is_a_clear_message() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_access(host, None, "T")
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="cannot listen on 127.0.0.1 port"):
        listen("127.0.0.1", taken.getsockname()[1])
