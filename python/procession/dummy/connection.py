"""Connections between threads. See the standard library's `multiprocessing.dummy.connection`."""

__all__ = ['Client', 'Listener', 'Pipe']

from queue import Queue

families = [None]


class _Closing:
    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self.close()


class Listener(_Closing):
    """Where threads meet; its address is the object that `Client` takes."""

    def __init__(self, address=None, family=None, backlog=1):
        self._backlog_queue = Queue(backlog)

    def accept(self):
        return Connection(*self._backlog_queue.get())

    def close(self):
        self._backlog_queue = None

    @property
    def address(self):
        return self._backlog_queue


def Client(address):
    """A connection to a listener."""
    ours, theirs = Pipe()
    address.put((theirs._in, theirs._out))
    return ours


def Pipe(duplex=True):
    """Two connected ends."""
    a, b = Queue(), Queue()
    return Connection(a, b), Connection(b, a)


class Connection(_Closing):
    """One end of two queues: nothing is pickled."""

    def __init__(self, _in, _out):
        self._out = _out
        self._in = _in
        self.send = self.send_bytes = _out.put
        self.recv = self.recv_bytes = _in.get

    def poll(self, timeout=0.0):
        if self._in.qsize() > 0:
            return True
        if timeout <= 0.0:
            return False
        with self._in.not_empty:
            self._in.not_empty.wait(timeout)
        return self._in.qsize() > 0

    def close(self): pass
