"""Connections between processes. See the standard library's `multiprocessing.connection`.

Messages, listeners and handshakes are compiled; here are the classes that programs inherit from and the names that they touch.
"""

__all__ = ['Client', 'Listener', 'Pipe', 'wait']

import functools
import io
import itertools
import math
import os
import select
import socket
import sys
import tempfile
import time

from . import _core, reduction, util
from .context import AuthenticationError, BufferTooShort
from .reduction import ForkingPickler as _ForkingPickler


os.register_at_fork(after_in_child=_core.forget_turns)


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
        _core.send_pickled(obj, self._send_bytes)

    def recv_bytes(self, maxlength=None):
        """Receives a message as bytes; an OSError ends the connection if it has more than `maxlength`."""
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError('negative maxlength')
        message = self._recv_bytes(maxlength)
        if message is None:
            self._bad_message_length()
        return message.getvalue()

    def recv_bytes_into(self, buf, offset=0):
        """Receives a message into a buffer and returns its length; BufferTooShort has the message in it."""
        self._check_readable()
        with memoryview(buf) as view:
            if offset < 0:
                raise ValueError('negative offset')
            if offset > view.nbytes:
                raise ValueError('offset too large')
            message = self.recv_bytes()
            with view.cast('B') as room:
                if len(room) < offset + len(message):
                    raise BufferTooShort(message)
                room[offset:offset + len(message)] = message
            return len(message)

    def recv(self):
        """Receives an object; EOFError once the other side is closed and all is received."""
        return _ForkingPickler.loads(self.recv_bytes())

    def poll(self, timeout=0.0):
        """Whether something can be received, waiting for it so many seconds (None: as long as it takes)."""
        self._check_readable()
        return self._poll(timeout)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self.close()


class Connection(_core.Connection, _ConnectionBase):
    """One end of a socket, a pipe, or whatever else carries a stream of bytes: CPython's frames on a descriptor."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Whoever changes how bytes travel has the base's methods, which go that way.
        for way, methods in (('_send_bytes', ('send', 'send_bytes')), ('_recv_bytes', ('recv', 'recv_bytes', 'recv_bytes_into')),
                             ('_poll', ('poll',))):
            if way in vars(cls):
                for name in methods:
                    if name not in vars(cls):
                        setattr(cls, name, getattr(_ConnectionBase, name))

    def _send_bytes(self, buf):
        _core.Connection.send_bytes(self, buf)

    def _recv_bytes(self, maxsize=None):
        return io.BytesIO(_core.Connection.recv_bytes(self, maxsize))

    def _poll(self, timeout):
        return _core.Connection.poll(self, timeout)


def Pipe(duplex=True):
    """Two connected `Connection`s; if not duplex, the first only receives and the second only sends."""
    return _core.pipe(Connection, bool(duplex))


def wait(object_list, timeout=None):
    """Those of the objects that are ready to be read, waiting for one so many seconds (None: as long as it takes)."""
    poll, objects = select.poll(), {}
    for obj in object_list:
        fd = _descriptor(obj)
        poll.register(fd, select.POLLIN)
        objects.setdefault(fd, []).append(obj)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    # A signal that comes just before a poll interrupts nothing: its handler runs between two turns, which get longer.
    turn = 0.05
    while True:
        left = max(0.0, deadline - time.monotonic())
        ready = poll.poll(min(left, turn) * 1000)
        if ready or left == 0.0:
            return [obj for fd, _ in ready for obj in objects[fd]]
        turn = min(2 * turn, 10.0)


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
    name = conn._pipe_name()
    arguments = reduction.DupFd(conn.fileno()), conn.readable, conn.writable
    return (rebuild_connection, arguments) if name is None else (_rebuild_end, (*arguments, name))


def rebuild_connection(df, readable, writable):
    return Connection(df.detach(), readable, writable)


def _rebuild_end(df, readable, writable, name):
    return _core.open_end(Connection, df.detach(), readable, writable, name)


reduction.register(Connection, reduce_connection)

#
# Listeners and clients
#

BUFSIZE = 8192
CONNECTION_TIMEOUT = 20.0
MESSAGE_LENGTH = 20 if sys.version_info < (3, 12) else 40
CHALLENGE = _CHALLENGE = b'#CHALLENGE#'
WELCOME = _WELCOME = b'#WELCOME#'
FAILURE = _FAILURE = b'#FAILURE#'

_mmap_counter = itertools.count()
default_family = 'AF_UNIX'
families = ['AF_INET', 'AF_UNIX']


def arbitrary_address(family):
    """An address of that family at which nobody listens yet."""
    if family == 'AF_INET':
        return 'localhost', 0
    if family == 'AF_UNIX':
        return tempfile.mktemp(prefix='listener-', dir=util.get_temp_dir())
    if family == 'AF_PIPE':
        return tempfile.mktemp(prefix=rf'\\.\pipe\pyc-{os.getpid()}-{next(_mmap_counter)}-', dir='')
    raise ValueError('unrecognized family')


def _validate_family(family):
    if family == 'AF_PIPE':
        raise ValueError(f'Family {family} is not recognized.')


def address_type(address):
    """The family of an address: 'AF_INET', 'AF_UNIX' or 'AF_PIPE'."""
    if type(address) is tuple:
        return 'AF_INET'
    if type(address) is str and address.startswith('\\\\'):
        return 'AF_PIPE'
    if type(address) is str or util.is_abstract_socket_namespace(address):
        return 'AF_UNIX'
    raise ValueError(f'address type of {address!r} unrecognized')


def _check_key(authkey):
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError('authkey should be a byte string')


class Listener:
    """Listens at an address for `Client`s.

    With a key, `accept` gives only connections of those who have it; each that hasn't is one exception. Whoever says nothing keeps nobody waiting.
    """

    def __init__(self, address=None, family=None, backlog=1, authkey=None):
        family = family or (address and address_type(address)) or default_family
        address = address or arbitrary_address(family)
        _validate_family(family)
        self._listener = None
        self._authkey = authkey
        listener = SocketListener(address, family, backlog)
        try:
            _check_key(authkey)
        except TypeError:
            listener.close()
            raise
        self._listener = listener

    def accept(self):
        """The next connection."""
        if self._listener is None:
            raise OSError('listener is closed')
        # An empty key is none up to 3.12.
        has_key = self._authkey or (self._authkey is not None and sys.version_info >= (3, 13))
        return self._listener._accept(self._authkey if has_key else None)

    def close(self):
        """Closes it."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    @property
    def address(self):
        """Where it listens."""
        return self._listener._address

    @property
    def last_accepted(self):
        """Where the last connection came from."""
        return self._listener._last_accepted

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self.close()


class SocketListener:
    """A socket that listens at an address."""

    def __init__(self, address, family, backlog=1):
        self._core = _core.Listener(address, family, backlog)
        self._address = self._core.address
        self._family = family
        self._last_accepted = None
        # The file goes at exit, too; not by a fork.
        self._unlink = util.Finalize(self, self._core.close, exitpriority=0)

    @functools.cached_property
    def _socket(self):
        # For programs that set its timeout.
        return socket.socket(fileno=os.dup(self._core.fileno()))

    def accept(self):
        """The next connection, whoever that is."""
        return self._accept(None)

    def _accept(self, authkey):
        own = vars(self).get('_socket')
        if own is not None:
            # A socket without a timeout would wait where guests are to be looked after.
            os.set_blocking(own.fileno(), False)
        accepted = self._core.accept(authkey, own and own.gettimeout())
        if accepted is None:
            raise TimeoutError('timed out')
        descriptor, self._last_accepted = accepted
        return Connection(descriptor)

    def close(self):
        """Closes it, and removes its file."""
        own = vars(self).pop('_socket', None)
        if own is not None:
            own.close()
        unlink, self._unlink = self._unlink, None
        if unlink is not None:
            unlink()
        self._core.close()


def Client(address, family=None, authkey=None):
    """A connection to the `Listener` at that address."""
    family = family or address_type(address)
    _validate_family(family)
    _check_key(authkey)
    return Connection(_core.connect(address, family, authkey))


def SocketClient(address):
    """A connection to whatever listens at that address."""
    return Connection(_core.connect(address, address_type(address)))


#
# The handshake, over anything that carries messages
#

_create_response = _core.create_response
_verify_challenge = _core.verify_response


def _check_bytes(authkey):
    if not isinstance(authkey, bytes):
        raise ValueError(f'Authkey must be bytes, not {type(authkey)}')


def deliver_challenge(connection, authkey, digest_name='sha256'):
    """Has the other end show that it knows the key."""
    _check_bytes(authkey)
    message = b'{%s}%s' % (digest_name.encode('ascii'), os.urandom(40))
    connection.send_bytes(_CHALLENGE + message)
    response = connection.recv_bytes(256)
    try:
        _verify_challenge(authkey, message, response)
    except AuthenticationError:
        connection.send_bytes(_FAILURE)
        raise
    connection.send_bytes(_WELCOME)


def answer_challenge(connection, authkey):
    """Shows the other end that this one knows the key."""
    _check_bytes(authkey)
    message = connection.recv_bytes(256)
    if not message.startswith(_CHALLENGE):
        raise AuthenticationError(f'Protocol error, expected challenge: {message=}')
    message = message[len(_CHALLENGE):]
    if len(message) < 20:
        raise AuthenticationError(f'challenge too short: {len(message)} bytes')
    connection.send_bytes(_create_response(authkey, message))
    if connection.recv_bytes(256) != _WELCOME:
        raise AuthenticationError('digest sent was rejected')


#
# Messages of XML
#

class ConnectionWrapper:
    """A connection whose objects are turned into bytes, and back, by other functions than pickle's."""

    def __init__(self, conn, dumps, loads):
        self._conn = conn
        self._dumps = dumps
        self._loads = loads
        for name in ('fileno', 'close', 'poll', 'recv_bytes', 'send_bytes'):
            setattr(self, name, getattr(conn, name))

    def send(self, obj):
        """Sends an object."""
        self._conn.send_bytes(self._dumps(obj))

    def recv(self):
        """Receives an object."""
        return self._loads(self._conn.recv_bytes())


def _xml_dumps(obj):
    import xmlrpc.client
    return xmlrpc.client.dumps((obj,), None, None, None, 1).encode('utf-8')


def _xml_loads(s):
    import xmlrpc.client
    (obj,), _ = xmlrpc.client.loads(s.decode('utf-8'))
    return obj


class XmlListener(Listener):
    """A listener whose connections carry XML."""

    def accept(self):
        """The next connection."""
        return ConnectionWrapper(super().accept(), _xml_dumps, _xml_loads)


def XmlClient(*args, **kwds):
    """A client whose connection carries XML."""
    return ConnectionWrapper(Client(*args, **kwds), _xml_dumps, _xml_loads)
