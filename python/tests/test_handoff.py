"""Descriptors in messages: sockets, connections and bare descriptors, in queues, pipes, arguments and tasks."""

import multiprocessing.connection
import multiprocessing.reduction
import os
import pickle
import queue
import signal
import socket
import threading
import unittest

import helpers
import procession
from procession import reduction, resource_sharer
from procession.reduction import ForkingPickler


class Held:
    """A descriptor that goes wherever pickles go; its copy is open where it is unpickled."""

    def __init__(self, fd):
        self.fd = fd

    def __reduce__(self):
        return opened, (reduction.DupFd(self.fd),)


def opened(df):
    return Held(df.detach())


class Unfinished:
    """Has a descriptor, and then can't be pickled."""

    def __init__(self, fd):
        self.fd = fd

    def __reduce__(self):
        return tuple, ([Held(self.fd), threading.Lock()],)


def say(thing, text):
    """Writes to whatever is given, and closes it."""
    if isinstance(thing, socket.socket):
        thing.sendall(text.encode())
        thing.close()
    elif isinstance(thing, Held):
        os.write(thing.fd, text.encode())
        os.close(thing.fd)
    else:
        thing.send(text)
        thing.close()


def say_next(source, text):
    """Writes to what comes first."""
    say(source.get() if hasattr(source, 'get') else source.recv(), text)


def send_and_die(target, put):
    read, write = os.pipe()
    getattr(target, put)((os.getpid(), Held(write)))
    getattr(target, put)('next')
    os.kill(os.getpid(), signal.SIGKILL)


def tell(number):
    """A connection from which a number can be received."""
    reader, writer = procession.Pipe(False)
    writer.send(number)
    return reader


class EndCase(helpers.Case):
    """Makes things that are sent, each with what reads the other end."""

    def setUp(self):
        super().setUp()
        self.addCleanup(resource_sharer.stop)

    def ends(self):
        """What is sent, and what then gives the text that was said to it."""
        read, write = os.pipe()
        os.set_blocking(write, True)
        yield Held(write), (lambda: os.close(write)), lambda: self.read(read)
        one, other = socket.socketpair()
        yield other, other.close, lambda: self.read(one.detach())
        reader, writer = self.context.Pipe(False)
        yield writer, writer.close, lambda: self.receive(reader)
        one_end, other_end = self.context.Pipe()
        yield other_end, other_end.close, lambda: self.receive(one_end)

    def read(self, fd):
        with open(fd) as file:
            return file.read()

    def receive(self, connection):
        with connection:
            text = connection.recv()
            self.assertRaises(EOFError, connection.recv)
            return text


class HandoffTests(EndCase):
    """What holds for every start method."""

    def test_through_queues(self):
        for kind in ('Queue', 'JoinableQueue', 'SimpleQueue'):
            for thing, close, heard in self.ends():
                with self.subTest(kind=kind, thing=type(thing).__name__):
                    things = getattr(self.context, kind)()
                    process = self.start(say_next, things, 'queued')
                    things.put(thing)
                    self.assertEqual(heard_after(close, thing, process, heard), 'queued')

    def test_through_pipes(self):
        for thing, close, heard in self.ends():
            with self.subTest(thing=type(thing).__name__):
                reader, writer = self.context.Pipe(False)
                process = self.start(say_next, reader, 'piped')
                reader.close()
                writer.send(thing)
                self.assertEqual(heard_after(close, thing, process, heard), 'piped')
                writer.close()

    def test_as_arguments(self):
        for thing, close, heard in self.ends():
            with self.subTest(thing=type(thing).__name__):
                process = self.start(say, thing, 'given')
                self.assertEqual(heard_after(close, thing, process, heard), 'given')

    def test_in_tasks_and_results(self):
        with self.context.Pool(2) as pool:
            results = []
            for number, (thing, close, heard) in enumerate(self.ends()):
                results.append((pool.apply_async(say, (thing, f'task {number}')), thing, close, heard))
            for number, (result, thing, close, heard) in enumerate(results):
                result.get()
                close()
                self.assertEqual(heard(), f'task {number}')
            for number, one in enumerate(pool.imap(tell, range(10))):
                with one:
                    self.assertEqual(one.recv(), number)

    def test_of_a_dead_sender(self):
        for kind in ('Queue', 'JoinableQueue', 'SimpleQueue', 'Pipe'):
            with self.subTest(kind=kind):
                if kind == 'Pipe':
                    reader, writer = self.context.Pipe(False)
                    process, take = self.start(send_and_die, writer, 'send'), reader.recv
                else:
                    things = getattr(self.context, kind)()
                    process, take = self.start(send_and_die, things, 'put'), things.get
                process.join()
                self.assertEqual(process.exitcode, -signal.SIGKILL)
                pattern = rf'descriptor \d+ of process {process.pid} can.t be had: the process has ended'
                with self.assertRaisesRegex(ConnectionRefusedError, pattern):
                    take()
                # Nothing else is lost.
                self.assertEqual(take(), 'next')

    def test_result_of_a_worker_that_has_left(self):
        with self.context.Pool(1, maxtasksperchild=1) as pool:
            for number in range(3):
                try:
                    with pool.apply(tell, (number,)) as one:
                        self.assertEqual(one.recv(), number)
                except ConnectionRefusedError as error:
                    # The worker's end came first.
                    self.assertRegex(str(error), r'descriptor \d+ of process \d+ can.t be had')
                self.assertEqual(pool.apply(abs, (-number,)), number)


def heard_after(close, thing, process, heard):
    process.join()
    close()
    return heard()


class ForkHandoffTests(HandoffTests, unittest.TestCase):
    method = 'fork'


class SpawnHandoffTests(HandoffTests, unittest.TestCase):
    method = 'spawn'


class ForkServerHandoffTests(HandoffTests, unittest.TestCase):
    method = 'forkserver'


del HandoffTests


class DupFdTests(EndCase):
    """`resource_sharer` and `reduction`, in one process and between two."""

    def pipe(self):
        read, write = os.pipe()
        self.addCleanup(self.close, read)
        return read, write

    def close(self, fd):
        try:
            os.close(fd)
        except OSError:
            pass

    def test_once(self):
        read, write = self.pipe()
        df = resource_sharer.DupFd(write)
        os.close(write)
        fd = pickle.loads(pickle.dumps(df)).detach()
        self.assertFalse(os.get_inheritable(fd))
        os.write(fd, b'x')
        os.close(fd)
        self.assertEqual(os.read(read, 10), b'x')
        self.assertEqual(os.read(read, 10), b'')
        pattern = rf'descriptor {write} of process {os.getpid()} can.t be had: it was redeemed before'
        for again in (df, pickle.loads(pickle.dumps(df))):
            with self.assertRaisesRegex(ConnectionRefusedError, pattern):
                again.detach()
        self.assertRegex(repr(df), f'DupFd of descriptor {write} of process {os.getpid()}')

    def test_of_nothing(self):
        read, write = self.pipe()
        os.close(write)
        for fd in (write, -1):
            with self.assertRaises(OSError):
                resource_sharer.DupFd(fd)
        with self.assertRaises(TypeError):
            resource_sharer.DupFd('x')
        for pickled in (b'', b'prctick1' + b'x' * 55):
            with self.assertRaises(OSError):
                type(self).open(pickled)

    @staticmethod
    def open(ticket):
        from procession import _core
        return _core.open_descriptor(ticket)

    def test_stop(self):
        read, write = self.pipe()
        df = resource_sharer.DupFd(write)
        os.close(write)
        resource_sharer.stop(timeout=5)
        self.assertEqual(os.read(read, 10), b'')
        with self.assertRaisesRegex(ConnectionRefusedError, 'keeps no descriptors any more'):
            df.detach()
        resource_sharer.stop()
        again = resource_sharer.DupFd(read)
        os.close(again.detach())

    def test_child_holds_nothing_of_its_parents(self):
        read, write = self.pipe()
        df = resource_sharer.DupFd(write)
        os.close(write)
        go_read, go_write = self.pipe()
        pid = os.fork()
        if not pid:
            os.close(go_write)
            os.read(go_read, 1)
            os._exit(0)
        os.close(df.detach())
        # The child has no copy.
        self.assertEqual(os.read(read, 10), b'')
        os.close(go_write)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_what_was_not_put_is_not_kept(self):
        read, write = self.pipe()
        things = self.context.Queue(1)
        things.put(None)
        for _ in range(5):
            with self.assertRaises(queue.Full):
                things.put(Held(write), False)
            with self.assertRaises(queue.Full):
                things.put(Held(write), timeout=0.005)
        one, other = self.context.Pipe()
        with other, self.assertRaises((pickle.PicklingError, TypeError)):
            other.send(Unfinished(write))
        with self.assertRaises(OSError):
            other.send(Held(write))
        one.close()
        os.close(write)
        self.assertEqual(os.read(read, 10), b'')

    def test_threads_send_and_get_at_once(self):
        things, texts = self.context.Queue(), []
        read, write = self.pipe()

        def put():
            for _ in range(50):
                things.put(Held(write))

        def get():
            for _ in range(50):
                say(things.get(), '.')

        threads = [threading.Thread(target=target) for target in (put, get) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.close(write)
        self.assertEqual(len(os.read(read, 1000)), 200)
        self.assertEqual(os.read(read, 10), b'')
        self.assertEqual(texts, [])

    def test_a_thread_is_no_reason_to_warn_of_a_fork(self):
        program = '''
            import os, warnings
            from procession import resource_sharer
            warnings.simplefilter('error')
            read, write = os.pipe()
            os.close(resource_sharer.DupFd(write).detach())
            pid = os.fork()
            if not pid:
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        '''
        done = self.script(program)
        self.assertEqual((done.stdout, done.stderr), ('7\n', ''))

    def test_handles_over_connections(self):
        one, other = self.context.Pipe()
        with one, other:
            read, write = self.pipe()
            reduction.send_handle(one, write, os.getpid())
            os.close(write)
            fd = reduction.recv_handle(other)
            os.write(fd, b'x')
            os.close(fd)
            self.assertEqual(os.read(read, 10), b'x')
            one.send(b'bytes, and no descriptor')
            self.assertRaises(RuntimeError, reduction.recv_handle, other)
        one, other = self.context.Pipe()
        one.close()
        with other:
            self.assertRaises(EOFError, reduction.recv_handle, other)

    def test_the_standards_packets(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for mine, send, receive in ((theirs, reduction.sendfds, multiprocessing.reduction.recvfds),
                                        (theirs, multiprocessing.reduction.sendfds, reduction.recvfds)):
                for count in (1, 3, 250):
                    send(ours, [ours.fileno()] * count)
                    fds = receive(mine, count)
                    self.assertEqual(len(fds), count)
                    for fd in fds:
                        os.close(fd)

    def test_sockets_keep_what_they_are(self):
        with socket.create_server(('127.0.0.1', 0)) as listener:
            copy = ForkingPickler.loads(ForkingPickler.dumps(listener))
            with copy:
                self.assertEqual((copy.family, copy.type, copy.proto, copy.getsockname()),
                                 (listener.family, listener.type, listener.proto, listener.getsockname()))
                with socket.create_connection(listener.getsockname()), copy.accept()[0]:
                    pass


if __name__ == '__main__':
    unittest.main()
