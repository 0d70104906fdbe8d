"""A network that can be cut: what is sent to it reaches the server, until it is frozen."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress


class Proxy:
    """Forwards connections to a server on this machine.

    Args:
        address: HOST:PORT of the server.

    Attributes:
        address: HOST:PORT of its own.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thawed = threading.Event()
        self._thawed.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self._thawed.clear()

    def close(self) -> None:
        """Hang up everywhere."""
        self._listener.close()
        for one in self._sockets:
            one.close()
        self._thawed.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += (near, far)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), closing(source), closing(sink):
            while content := source.recv(2**16):
                self._thawed.wait()
                sink.sendall(content)
