"""Queries to a SuperLink that no ``flwr`` command makes, in Flower's own protocol.

The protocol is internal to Flower, so callers must cope without an answer: imports fail if another
version has different modules, and an answer may be an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLEET, CONTROL = "Fleet API", "Control API"
DEFAULT_PORT = {FLEET: 9092, CONTROL: 9093}
PATIENCE = 5.0
REVOKED = "unregistered"  # the status of a node whose key was revoked for good


@dataclass(frozen=True)
class Address:
    """The address of one API of a superlink, and how to connect to it.

    Parameters
    ----------
    api
        :data:`FLEET` (nodes) or :data:`CONTROL` (``flwr``).
    host, port
        As given.
    certificates
        The CA's certificate; None for a superlink without TLS.
    """

    api: str
    host: str
    port: int
    certificates: Path | None = None

    @classmethod
    def parse(cls, api: str, text: str, certificates: Path | None = None) -> "Address":
        """Read ``HOST:PORT``.

        Raises
        ------
        ValueError
            If it is not one.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ValueError(
                f"address {text!r}: must be HOST:PORT, as in 192.168.0.2:{DEFAULT_PORT[api]}"
            )
        return cls(api, host.strip("[]"), int(port), certificates)

    @property
    def target(self) -> str:
        """The address as gRPC takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ask(address: Address, private: Any, method: Callable[[Any], Any], request: Any) -> Any:
    """Return the answer of a gRPC method, or its ``grpc.RpcError``.

    Parameters
    ----------
    address
        The API to ask.
    private
        A node's private key to sign with, or None.
    method
        Makes the stub's method from a channel.
    request
        Its argument.
    """
    import grpc
    from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor

    if address.certificates is None:
        channel = grpc.insecure_channel(address.target)
    else:
        trusted = grpc.ssl_channel_credentials(address.certificates.read_bytes())
        channel = grpc.secure_channel(address.target, trusted)
    with channel:
        asking = channel
        if private is not None:
            signing = NodeAuthClientInterceptor(private, private.public_key())
            asking = grpc.intercept_channel(channel, signing)
        try:
            return method(asking)(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            return error


def activation(address: Address, private: Any = None) -> Any:
    """Return the Fleet API's refusal of an activation that it always refuses.

    An interval of length zero is refused: with one status if the key is unknown, with another if it
    is known, because only then is the interval checked. Nothing is activated.
    """
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.proto.fleet_pb2_grpc import FleetStub

    public = b"" if private is None else key_bytes(private.public_key())
    request = ActivateNodeRequest(public_key=public, heartbeat_interval=0.0)
    return ask(address, private, lambda c: FleetStub(c).ActivateNode, request)


def nodes(address: Address) -> Any:
    """Return the Control API's list of nodes (``nodes_info``), or an error."""
    from flwr.proto.control_pb2 import ListNodesRequest
    from flwr.proto.control_pb2_grpc import ControlStub

    return ask(address, None, lambda c: ControlStub(c).ListNodes, ListNodesRequest())


def key_bytes(public: Any) -> bytes:
    """Return a public key as Flower sends it."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return public_key_to_bytes(public)
