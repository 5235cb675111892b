"""Connections between processes. See the standard library's `multiprocessing.connection`.

So far in its plain form: CPython's frames on a socket pair or a pipe. A frame is four bytes of length, big-endian, or
-1 and eight bytes; then the message.
"""

__all__ = ['Client', 'Listener', 'Pipe', 'wait']

import io
import itertools
import os
import select
import socket
import struct
import time

from . import _core, _unbuilt, reduction
from .context import AuthenticationError, BufferTooShort  # noqa: F401
from .reduction import ForkingPickler as _ForkingPickler

#: Bytes that are asked for at a time: memory for a message grows with what has come of it, not with what it claims.
_CHUNK = 1 << 20
#: Longer messages are sent as they lie, behind their header; others in one piece with it.
_WHOLE = 16384
#: The longest message whose length fits into four bytes with a sign.
_SHORT_LENGTH = 0x7fffffff


class _ConnectionBase:
    """What sends and receives messages, however they travel."""
    _handle = None

    def __init__(self, handle, readable=True, writable=True):
        handle = handle.__index__()
        if handle < 0:
            raise ValueError('invalid handle')
        if not readable and not writable:
            raise ValueError('at least one of `readable` and `writable` must be True')
        self._handle = handle
        self._readable = readable
        self._writable = writable

    def __del__(self):
        if self._handle is not None:
            self._close()

    def _check_closed(self):
        if self._handle is None:
            raise OSError('handle is closed')

    def _check_readable(self):
        self._check_closed()
        if not self._readable:
            raise OSError('connection is write-only')

    def _check_writable(self):
        self._check_closed()
        if not self._writable:
            raise OSError('connection is read-only')

    def _bad_message_length(self):
        if self._writable:
            # What follows can't be told apart any more, and what was sent may still be read.
            self._readable = False
        else:
            self.close()
        raise OSError('bad message length')

    @property
    def closed(self):
        """Whether the connection is closed."""
        return self._handle is None

    @property
    def readable(self):
        """Whether it can receive."""
        return self._readable

    @property
    def writable(self):
        """Whether it can send."""
        return self._writable

    def fileno(self):
        """The descriptor."""
        self._check_closed()
        return self._handle

    def close(self):
        """Closes it."""
        if self._handle is not None:
            try:
                self._close()
            finally:
                self._handle = None

    def send_bytes(self, buf, offset=0, size=None):
        """Sends the bytes of a buffer as one message."""
        self._check_writable()
        view = memoryview(buf)
        if view.itemsize > 1:
            view = view.cast('B')
        length = view.nbytes
        if offset < 0:
            raise ValueError('offset is negative')
        if length < offset:
            raise ValueError('buffer length < offset')
        if size is None:
            size = length - offset
        elif size < 0:
            raise ValueError('size is negative')
        elif offset + size > length:
            raise ValueError('buffer length < offset + size')
        self._send_bytes(view[offset:offset + size])

    def send(self, obj):
        """Sends an object."""
        self._check_writable()
        _core.send_pickled(obj, _ForkingPickler.dumps, self._send_bytes)

    def recv_bytes(self, maxlength=None):
        """Receives a message as bytes; an OSError ends the connection if it has more than `maxlength`."""
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError('negative maxlength')
        return self._receive(maxlength).getvalue()

    def recv_bytes_into(self, buf, offset=0):
        """Receives a message into a buffer and returns its length; BufferTooShort has the message in it."""
        self._check_readable()
        with memoryview(buf) as view:
            itemsize = view.itemsize
            if offset < 0:
                raise ValueError('negative offset')
            if offset > itemsize * len(view):
                raise ValueError('offset too large')
            message = self._receive()
            size = message.getbuffer().nbytes
            with view.cast('B') as room:
                if len(room) < offset + size:
                    raise BufferTooShort(message.getvalue())
                room[offset:offset + size] = message.getbuffer()
            return size

    def _receive(self, maxlength=None):
        message = self._recv_bytes(maxlength)
        if message is None:
            self._bad_message_length()
        return message

    def recv(self):
        """Receives an object; EOFError once the other side is closed and all is received."""
        self._check_readable()
        return _ForkingPickler.loads(self._receive().getbuffer())

    def poll(self, timeout=0.0):
        """Whether something can be received, waiting for it so many seconds (None: as long as it takes)."""
        self._check_readable()
        return self._poll(timeout)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self.close()


class Connection(_ConnectionBase):
    """One end of a socket pair or a pipe, with CPython's frames on it."""

    def _close(self, _close=os.close):
        _close(self._handle)

    def _send(self, buf):
        with memoryview(buf) as left:
            sent = 0
            while sent < len(left):
                sent += os.write(self._handle, left[sent:])

    def _recv(self, size):
        message = io.BytesIO()
        left = size
        while left > 0:
            chunk = os.read(self._handle, min(left, _CHUNK))
            if not chunk:
                if left == size:
                    raise EOFError
                raise OSError('got end of file during message')
            message.write(chunk)
            left -= len(chunk)
        return message

    def _send_bytes(self, buf):
        size = len(buf)
        if size > _SHORT_LENGTH:
            header = struct.pack('!iQ', -1, size)
        else:
            header = struct.pack('!i', size)
        if size > _WHOLE:
            self._send(header)
            self._send(buf)
        else:
            self._send(header + buf)

    def _recv_bytes(self, maxsize=None):
        size, = struct.unpack('!i', self._recv(4).getvalue())
        if size == -1:
            size, = struct.unpack('!Q', self._recv(8).getvalue())
        if size < 0 or (maxsize is not None and size > maxsize):
            return None
        return self._recv(size)

    def _poll(self, timeout):
        return bool(wait([self], timeout))


def Pipe(duplex=True):
    """Two connected `Connection`s; if not duplex, the first only receives and the second only sends."""
    if duplex:
        one, other = socket.socketpair()
        return Connection(one.detach()), Connection(other.detach())
    reader, writer = os.pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)


def wait(object_list, timeout=None):
    """Those of the objects that are ready to be read, waiting for one so many seconds (None: as long as it takes)."""
    poll, objects = select.poll(), {}
    for obj in object_list:
        fd = _descriptor(obj)
        poll.register(fd, select.POLLIN)
        objects.setdefault(fd, []).append(obj)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        # The kernel counts in ms; an hour at a time is never too much for it.
        ready = poll.poll(left if left is None else min(left, 3600.0) * 1000)
        if ready or left == 0.0:
            return [obj for fd, _ in ready for obj in objects[fd]]


def _descriptor(obj):
    try:
        fd = obj if isinstance(obj, int) else int(obj.fileno())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f'Invalid file object: {obj!r}') from None
    if fd < 0:
        raise ValueError(f'Invalid file descriptor: {fd}')
    return fd


#
# Sent to another process
#

def reduce_connection(conn):
    return rebuild_connection, (reduction.DupFd(conn.fileno()), conn.readable, conn.writable)


def rebuild_connection(df, readable, writable):
    return Connection(df.detach(), readable, writable)


reduction.register(Connection, reduce_connection)

#
# Listeners and clients
#

BUFSIZE = 8192
CONNECTION_TIMEOUT = 20.0
MESSAGE_LENGTH = 20
CHALLENGE = _CHALLENGE = b'#CHALLENGE#'
WELCOME = _WELCOME = b'#WELCOME#'
FAILURE = _FAILURE = b'#FAILURE#'

_mmap_counter = itertools.count()
default_family = 'AF_UNIX'
families = ['AF_INET', 'AF_UNIX']

Listener = _unbuilt.unbuilt_class('Listener', __name__)
SocketListener = _unbuilt.unbuilt_class('SocketListener', __name__)
XmlListener = _unbuilt.unbuilt_class('XmlListener', __name__, (Listener,))
ConnectionWrapper = _unbuilt.unbuilt_class('ConnectionWrapper', __name__)
Client = _unbuilt.unbuilt_function('Client', __name__)
SocketClient = _unbuilt.unbuilt_function('SocketClient', __name__)
XmlClient = _unbuilt.unbuilt_function('XmlClient', __name__)
arbitrary_address = _unbuilt.unbuilt_function('arbitrary_address', __name__)
address_type = _unbuilt.unbuilt_function('address_type', __name__)
deliver_challenge = _unbuilt.unbuilt_function('deliver_challenge', __name__)
answer_challenge = _unbuilt.unbuilt_function('answer_challenge', __name__)
