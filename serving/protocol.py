"""HTTP/1.1 as uvicorn reads it with httptools, with a limit on what is kept of a request's head.

httptools is fast but keeps headers and trailers of any length; uvicorn's other parser, h11, stops at 64 KiB.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 1 << 16


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request whose address, headers and trailers together are longer than ``MAX_HEAD_BYTES``."""

    _head = 0  # bytes of this request that are kept: address, headers, trailers
    _unread = 0  # bytes since the parser last handed something over: the start of one long header

    def data_received(self, data: bytes) -> None:
        """Read more data, and answer 400 where the request's head is too long."""
        self._unread += len(data)
        super().data_received(data)
        if max(self._head, self._unread) > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"Request head longer than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Reset the counts for a new request."""
        self._head = self._unread = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a piece of the address."""
        self._keep(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer."""
        self._keep(len(name) + len(value))
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; the application limits its length."""
        self._unread = 0
        super().on_body(body)

    def _keep(self, size: int) -> None:
        self._head += size
        self._unread = 0
