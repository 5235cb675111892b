"""How objects are reduced for another process. See the standard library's `multiprocessing.reduction`."""

__all__ = ['send_handle', 'recv_handle', 'ForkingPickler', 'register', 'dump', 'DupFd', 'sendfds', 'recvfds']

import copyreg
import functools
import io
import os
import sys
from abc import ABCMeta

# What `pickle` has of it. That module itself brings regular expressions along, which a child seldom needs.
import _pickle

from . import _standard, context, resource_sharer

HAVE_SEND_HANDLE = True


class _Reducers(dict):
    """What was registered with us, then what the standard's pickler and `copyreg` know, as they are at the lookup."""

    def __missing__(self, cls):
        # Whoever has a socket has loaded that module, which takes long.
        if cls.__name__ == 'socket' and cls is getattr(sys.modules.get('socket'), 'socket', None):
            return _reduce_socket
        if standard := _standard.loaded('reduction'):
            try:
                return standard.ForkingPickler._extra_reducers[cls]
            except (AttributeError, KeyError):
                # Another thread is loading it, perhaps.
                pass
        return copyreg.dispatch_table[cls]

    def __contains__(self, cls):
        try:
            self[cls]
        except KeyError:
            return False
        return True


_live_reducers = _Reducers()


class ForkingPickler(_pickle.Pickler):
    """A pickler that knows what processes share."""

    _extra_reducers = _live_reducers
    _copyreg_dispatch_table = copyreg.dispatch_table
    dispatch_table = _live_reducers

    def __init__(self, *args):
        super().__init__(*args)

    @classmethod
    def register(cls, type, reduce):
        """Has `reduce(obj)` called for objects of that very type."""
        cls._extra_reducers[type] = reduce

    @classmethod
    def dumps(cls, obj, protocol=None):
        """The pickle, as a buffer."""
        buffer = io.BytesIO()
        cls(buffer, protocol).dump(obj)
        return buffer.getbuffer()

    loads = _pickle.loads


register = ForkingPickler.register


def dump(obj, file, protocol=None):
    """Pickles an object to a file."""
    ForkingPickler(file, protocol).dump(obj)


#
# Descriptors
#

ACKNOWLEDGE = False


def sendfds(sock, fds):
    """Sends descriptors over a unix socket."""
    import socket
    # Their number, which the standard's `recvfds` compares.
    sock.sendmsg([bytes([len(fds) % 256])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b''.join(
        fd.to_bytes(4, 'little') for fd in fds))])


def recvfds(sock, size):
    """Receives so many descriptors from a unix socket."""
    import socket
    message, fds, flags, _ = socket.recv_fds(sock, 1, size)
    if not message and not fds:
        raise EOFError
    if len(fds) != size or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise RuntimeError(f'received {len(fds)} descriptors, expected {size}')
    return fds


def send_handle(conn, handle, destination_pid):
    """Sends a descriptor over a connection that is a unix socket."""
    import socket
    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as s:
        sendfds(s, [handle])


def recv_handle(conn):
    """Receives a descriptor over a connection that is a unix socket."""
    import socket
    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as s:
        return recvfds(s, 1)[0]


class _Inherited:
    """A descriptor that a spawned child has inherited."""

    def __init__(self, fd):
        self.fd = fd

    def detach(self):
        return self.fd


def DupFd(fd):
    """A picklable object whose `detach()` is a copy of the descriptor in the process that unpickles it."""
    popen = context.get_spawning_popen()
    if popen is None:
        return resource_sharer.DupFd(fd)
    return popen.DupFd(popen.duplicate_for_child(fd))


#
# What is registered from the start
#

def _reduce_method(m):
    if m.__self__ is None:
        return getattr, (m.__class__, m.__func__.__name__)
    return getattr, (m.__self__, m.__func__.__name__)


class _C:
    def f(self):
        pass


register(type(_C().f), _reduce_method)


def _reduce_method_descriptor(m):
    return getattr, (m.__objclass__, m.__name__)


register(type(list.append), _reduce_method_descriptor)
register(type(int.__add__), _reduce_method_descriptor)


def _reduce_partial(p):
    return _rebuild_partial, (p.func, p.args, p.keywords or {})


def _rebuild_partial(func, args, keywords):
    return functools.partial(func, *args, **keywords)


register(functools.partial, _reduce_partial)


def _reduce_socket(s):
    return _rebuild_socket, (DupFd(s.fileno()), s.family, s.type, s.proto)


def _rebuild_socket(df, family, type, proto):
    import socket
    return socket.socket(family, type, proto, fileno=df.detach())


class AbstractReducer(metaclass=ABCMeta):
    """What a program may replace with its own, as `context.reducer`."""

    ForkingPickler = ForkingPickler
    register = register
    dump = dump
    send_handle = send_handle
    recv_handle = recv_handle
    sendfds = sendfds
    recvfds = recvfds
    DupFd = DupFd
    _reduce_method = _reduce_method
    _reduce_method_descriptor = _reduce_method_descriptor
    _rebuild_partial = _rebuild_partial
    _reduce_socket = _reduce_socket
    _rebuild_socket = _rebuild_socket

    def __init__(self, *args):
        register(type(_C().f), _reduce_method)
        register(type(list.append), _reduce_method_descriptor)
        register(type(int.__add__), _reduce_method_descriptor)
        register(functools.partial, _reduce_partial)
