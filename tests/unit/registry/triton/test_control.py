"""A Triton server's address and header: what is refused, and that the secret is never shown."""

import pytest

from registry.errors import BadInput
from registry.triton.control import triton_server


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":8001", "localhost:grpc"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="not HOST:PORT"):
        triton_server(address)


@pytest.mark.parametrize("header", ["admin", "=value", "admin=", "a b=value"])
def test_malformed_header_is_refused_without_showing_the_secret(header: str) -> None:
    with pytest.raises(BadInput, match="not NAME=VALUE, as in") as refused:
        triton_server("localhost:8001", header)
    assert "value" not in str(refused.value)


def test_a_header_gets_the_prefix_that_triton_looks_for_and_stays_out_of_logs() -> None:
    server = triton_server("localhost:8001", "admin=s3cret=x")
    assert server.headers == (("triton-grpc-protocol-admin", "s3cret=x"),)
    assert "s3cret" not in repr(server)
