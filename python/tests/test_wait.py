"""`connection.wait`: sentinels, connections, sockets, files and numbers, together."""

import os
import signal
import socket
import tempfile
import threading
import time
import unittest

import helpers
from procession import connection


def hold(reader):
    reader.recv()


def send(*writers):
    for writer in writers:
        writer.send('it')


class Numbered:
    """Anything that has a descriptor."""

    def __init__(self, number):
        self.number = number

    def fileno(self):
        return self.number


class Wait:
    def pipe(self, duplex=False):
        one, other = self.context.Pipe(duplex)
        self.addCleanup(one.close)
        self.addCleanup(other.close)
        return one, other

    def sockets(self):
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)
        return here, there

    def held(self):
        """A process, and what ends it."""
        reader, writer = self.pipe()
        return self.start(hold, reader), lambda: writer.send(None)

    def test_an_object_of_each_kind(self):
        one, other = self.pipe(True)
        reader, writer = self.pipe()
        here, there = self.sockets()
        numbered, to_numbered = self.sockets()
        plain, to_plain = self.sockets()
        child, end = self.held()
        queue, simple = self.context.Queue(), self.context.SimpleQueue()
        things = {
            'a duplex connection': (one, lambda: other.send(1)),
            'a reading connection': (reader, lambda: writer.send(1)),
            'a socket': (here, lambda: there.send(b'1')),
            'something with fileno': (Numbered(numbered.fileno()), lambda: to_numbered.send(b'1')),
            'a number': (plain.fileno(), lambda: to_plain.send(b'1')),
            'a sentinel': (child.sentinel, end),
            'a queue': (queue._reader, lambda: queue.put(1)),
            'a simple queue': (simple._reader, lambda: simple.put(1)),
        }
        everything = [thing for thing, _ in things.values()]
        ready = []
        for name, (thing, act) in things.items():
            with self.subTest(name):
                self.assertEqual(connection.wait([thing], 0), [])
                act()
                self.assertEqual(connection.wait([thing]), [thing])
                ready.append(thing)
                # In the order in which they were given.
                self.assertEqual(connection.wait(everything, 0), ready)
                self.assertEqual(connection.wait(iter(everything)), ready)
        # What is ready stays so until it is read.
        self.assertEqual(one.recv(), 1)
        self.assertEqual(connection.wait([one], 0), [])
        other.close()
        self.assertEqual(connection.wait([one]), [one])
        self.assertRaises(EOFError, one.recv)
        queue.get()
        self.assertEqual(connection.wait([queue._reader, simple._reader], 0), [simple._reader])

    def test_files_are_always_ready(self):
        with tempfile.TemporaryFile() as file:
            self.assertEqual(connection.wait([file, file.fileno()], 3600), [file, file.fileno()])

    def test_timeouts(self):
        reader, _ = self.pipe()
        child, _ = self.held()
        things = [reader, child.sentinel]
        for timeout in (0, 0.0, -1, -1e9, float('-inf'), 1e-9, False):
            self.assertEqual(connection.wait(things, timeout), [])
        for timeout in (0.2, 0.0201):
            begun = time.monotonic()
            self.assertEqual(connection.wait(things, timeout), [])
            self.assertGreaterEqual(time.monotonic() - begun, timeout)
        self.assertEqual(connection.wait([], 0), [])
        begun = time.monotonic()
        self.assertEqual(connection.wait([], timeout=0.1), [])
        self.assertGreaterEqual(time.monotonic() - begun, 0.1)

    def test_timeouts_that_never_pass(self):
        """Longer than the kernel can count."""
        for timeout in (None, 1e9, 1e300, float('inf'), 1 << 40):
            reader, writer = self.pipe()
            child = self.start(send, writer)
            self.assertEqual(connection.wait([reader], timeout), [reader])
            self.assertEqual(connection.wait([child.sentinel], timeout), [child.sentinel])

    def test_it_wakes_for_whatever_comes_first(self):
        first, _ = self.held()
        reader, writer = self.pipe()
        second = self.start(send, writer)
        self.assertEqual(connection.wait([first.sentinel, reader]), [reader])
        self.assertEqual(connection.wait([first.sentinel, second.sentinel]), [second.sentinel])
        threading.Timer(0.1, first.kill).start()
        self.assertEqual(connection.wait([first.sentinel]), [first.sentinel])

    def test_it_goes_on_after_signals(self):
        heard = []
        child, end = self.held()
        with helpers.handling(signal.SIGALRM, lambda *_: heard.append(0)):
            self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            begun = time.monotonic()
            self.assertEqual(connection.wait([child.sentinel], 0.3), [])
            self.assertGreaterEqual(time.monotonic() - begun, 0.3)
            self.assertGreaterEqual(len(heard), 2)
            # What a handler does is seen too.
            signal.signal(signal.SIGALRM, lambda *_: end())
            self.assertEqual(connection.wait([child.sentinel]), [child.sentinel])
            signal.setitimer(signal.ITIMER_REAL, 0)

    def test_a_handler_that_raises_ends_it(self):
        class Enough(Exception):
            pass

        def raising(*_):
            raise Enough

        child, _ = self.held()
        with helpers.handling(signal.SIGALRM, raising):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            self.assertRaises(Enough, connection.wait, [child.sentinel])

    def test_duplicates(self):
        """Each object that was given is answered for, those that share a descriptor too."""
        reader, writer = self.pipe()
        same = Numbered(reader.fileno())
        self.assertEqual(connection.wait([reader, reader, same], 0), [])
        writer.send(1)
        self.assertEqual(connection.wait([reader, same, reader]), [reader, same, reader])

    def test_many(self):
        pipes = [self.pipe() for _ in range(300)]
        readers = [reader for reader, _ in pipes]
        for _, writer in pipes[::3]:
            writer.send(1)
        self.assertEqual(connection.wait(readers), readers[::3])

    def test_rubbish(self):
        for rubbish in ('text', None, 2.5, object(), Numbered('text'), Numbered(None), [0]):
            with self.assertRaisesRegex(ValueError, 'Invalid file object'):
                connection.wait([rubbish], 0)
        for negative in (-1, Numbered(-5)):
            with self.assertRaisesRegex(ValueError, 'Invalid file descriptor'):
                connection.wait([negative], 0)
        here, there = self.sockets()
        here.close()
        with self.assertRaisesRegex(ValueError, 'Invalid file descriptor'):
            connection.wait([here])
        reader, writer = self.pipe()
        reader.close()
        with self.assertRaisesRegex(OSError, 'handle is closed'):
            connection.wait([writer, reader])
        with open(os.devnull) as file:
            pass
        self.assertRaises(ValueError, connection.wait, [file])
        for timeout in ('text', [1], object()):
            self.assertRaises(TypeError, connection.wait, [writer], timeout)
        self.assertRaises(TypeError, connection.wait, 3)

    def test_a_child_waits_too(self):
        """For its parent, and for what it was given."""
        reader, writer = self.pipe()
        back, answer = self.pipe()
        child = self.start(waits, reader, answer)
        writer.send(7)
        self.assertEqual(back.recv(), ([True], [True]))
        child.join()
        self.assertEqual(child.exitcode, 0)


def waits(reader, answer):
    from procession import parent_process
    things = [parent_process().sentinel, reader]
    first = [thing is reader for thing in connection.wait(things)]
    answer.send((first, [thing is reader for thing in connection.wait(things, 0)]))


class ForkWaitTest(Wait, helpers.Case):
    method = 'fork'


class SpawnWaitTest(Wait, helpers.Case):
    method = 'spawn'


class ForkServerWaitTest(Wait, helpers.Case):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
