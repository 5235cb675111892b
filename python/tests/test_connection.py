"""Connections: CPython's frames on a pipe or a socket pair, and their ends in other processes."""

import array
import gc
import os
import pickle
import signal
import socket
import struct
import threading
import time
import unittest
from multiprocessing import connection as standard

import helpers
import procession
from procession import connection, reduction


def echo(end):
    """Sends back what it receives, until the other side is closed."""
    with end:
        while True:
            try:
                end.send_bytes(end.recv_bytes())
            except EOFError:
                return


def echo_between(reader, writer):
    try:
        while True:
            writer.send(reader.recv())
    except EOFError:
        pass


def send_after(writer, seconds, value):
    time.sleep(seconds)
    writer.send(value)


def use_socket(end):
    end.sendall(b'through a socket')


class Here(helpers.Case):
    method = 'fork'

    def pipe(self, duplex=True):
        ends = connection.Pipe(duplex)
        for end in ends:
            self.addCleanup(end.close)
        return ends

    def test_duplex(self):
        one, other = self.pipe()
        for sender, receiver in ((one, other), (other, one)):
            self.assertTrue(sender.readable and sender.writable)
            sender.send([1, 'two'])
            self.assertEqual(receiver.recv(), [1, 'two'])

    def test_simplex(self):
        reader, writer = self.pipe(False)
        self.assertEqual((reader.readable, reader.writable, writer.readable, writer.writable),
                         (True, False, False, True))
        writer.send(None)
        self.assertIsNone(reader.recv())
        for use in (lambda: reader.send(1), lambda: reader.send_bytes(b'1')):
            with self.assertRaisesRegex(OSError, 'connection is read-only'):
                use()
        for use in (writer.recv, writer.recv_bytes, writer.poll, lambda: writer.recv_bytes_into(bytearray(9))):
            with self.assertRaisesRegex(OSError, 'connection is write-only'):
                use()

    def test_constructor(self):
        with self.assertRaisesRegex(ValueError, 'invalid handle'):
            connection.Connection(-1)
        with self.assertRaisesRegex(ValueError, 'at least one of'):
            connection.Connection(0, readable=False, writable=False)
        self.assertRaises((TypeError, AttributeError), connection.Connection, 'x')

    def test_messages_stay_apart(self):
        one, other = self.pipe()
        messages = [b'', b'a', b'', b'bc' * 5000, b'd', b'e' * 16384, b'f' * 16385]
        for message in messages:
            one.send_bytes(message)
        self.assertEqual([other.recv_bytes() for _ in messages], messages)
        self.assertFalse(other.poll())

    def test_large_messages(self):
        one, other = self.pipe()
        message = os.urandom(1 << 20) * 20
        thread = threading.Thread(target=echo, args=(other,))
        thread.start()
        one_way = threading.Thread(target=one.send_bytes, args=(message,))
        one_way.start()
        self.assertTrue(one.recv_bytes() == message)
        one_way.join()
        one.close()
        thread.join()

    def test_send_bytes_of_a_part(self):
        one, other = self.pipe()
        for arguments, expected in (((b'abcdef',), b'abcdef'), ((b'abcdef', 2), b'cdef'), ((b'abcdef', 2, 3), b'cde'),
                                    ((b'abcdef', 6), b''), ((b'abcdef', 0, 0), b''), ((bytearray(b'xyz'), 1), b'yz'),
                                    ((memoryview(b'xyz')[::1], 1, 1), b'y'),
                                    ((array.array('i', [1, 2]),), struct.pack('ii', 1, 2)),
                                    ((array.array('i', [1, 2]), 4), struct.pack('i', 2))):
            one.send_bytes(*arguments)
            self.assertEqual(other.recv_bytes(), expected)
        for arguments, said in (((b'abc', -1), 'offset is negative'), ((b'abc', 4), 'buffer length < offset'),
                                ((b'abc', 0, -1), 'size is negative'), ((b'abc', 2, 2), r'buffer length < offset \+ size'),
                                ((b'abc', 4, 0), 'buffer length < offset')):
            with self.assertRaisesRegex(ValueError, said):
                one.send_bytes(*arguments)
        self.assertRaises(TypeError, one.send_bytes, 'text')
        self.assertFalse(other.poll())

    def test_maxlength(self):
        one, other = self.pipe()
        one.send_bytes(b'12345')
        self.assertEqual(other.recv_bytes(5), b'12345')
        self.assertRaises(ValueError, other.recv_bytes, -1)
        one.send_bytes(b'123456')
        with self.assertRaisesRegex(OSError, 'bad message length'):
            other.recv_bytes(5)
        # What follows can't be told apart: it can only send from now on.
        self.assertRaises(OSError, other.recv_bytes)
        other.send('still')
        self.assertEqual(one.recv(), 'still')
        reader, writer = self.pipe(False)
        writer.send_bytes(b'123')
        with self.assertRaisesRegex(OSError, 'bad message length'):
            reader.recv_bytes(2)
        self.assertTrue(reader.closed)

    def test_recv_bytes_into(self):
        one, other = self.pipe()
        room = bytearray(b'.' * 10)
        one.send_bytes(b'abc')
        self.assertEqual(other.recv_bytes_into(room), 3)
        self.assertEqual(room, b'abc.......')
        one.send_bytes(b'xyz')
        self.assertEqual(other.recv_bytes_into(room, 7), 3)
        self.assertEqual(room, b'abc....xyz')
        numbers = array.array('i', [0] * 3)
        one.send_bytes(struct.pack('ii', 5, 6))
        self.assertEqual(other.recv_bytes_into(numbers, 4), 8)
        self.assertEqual(list(numbers), [0, 5, 6])
        self.assertRaisesRegex(ValueError, 'negative offset', other.recv_bytes_into, room, -1)
        self.assertRaisesRegex(ValueError, 'offset too large', other.recv_bytes_into, room, 11)
        for offset, message in ((0, b'longer than the room'), (8, b'123')):
            one.send_bytes(message)
            with self.assertRaises(procession.BufferTooShort) as caught:
                other.recv_bytes_into(room, offset)
            self.assertEqual(caught.exception.args, (message,))
        self.assertRaises(TypeError, other.recv_bytes_into, 'text')

    def test_end_of_file(self):
        for duplex in (True, False):
            reader, writer = self.pipe(duplex)
            writer.send('last')
            writer.close()
            self.assertTrue(reader.poll())
            self.assertEqual(reader.recv(), 'last')
            for use in (reader.recv, reader.recv_bytes, lambda: reader.recv_bytes_into(bytearray(1))):
                self.assertRaises(EOFError, use)
            self.assertTrue(reader.poll())
            other, writer = self.pipe(duplex)
            other.close()
            self.assertRaises(BrokenPipeError, writer.send, 1)

    def test_closed(self):
        one, other = self.pipe()
        fd = one.fileno()
        self.assertFalse(one.closed)
        with one as same:
            self.assertIs(same, one)
        self.assertTrue(one.closed)
        self.assertRaises(OSError, os.fstat, fd)
        for use in (lambda: one.send(1), one.recv, one.recv_bytes, one.poll, one.fileno, lambda: one.send_bytes(b''),
                    lambda: one.recv_bytes_into(bytearray(1))):
            with self.assertRaisesRegex(OSError, 'handle is closed'):
                use()
        one.close()

    def test_dropped_is_closed(self):
        before = helpers.descriptors()
        ends = [connection.Pipe(duplex) for duplex in (True, False) for _ in range(5)]
        self.assertEqual(len(helpers.descriptors()), len(before) + 20)
        del ends
        gc.collect()
        self.assertEqual(helpers.descriptors(), before)

    def test_poll(self):
        one, other = self.pipe()
        begun = time.monotonic()
        self.assertIs(other.poll(0.2), False)
        self.assertGreaterEqual(time.monotonic() - begun, 0.2)
        for timeout in ((), (0,), (-1,)):
            self.assertIs(other.poll(*timeout), False)
        threading.Timer(0.1, one.send, (1,)).start()
        self.assertIs(other.poll(None), True)
        self.assertIs(other.poll(), True)
        self.assertEqual(other.recv(), 1)

    def test_poll_goes_on_after_signals(self):
        heard = []
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, lambda *_: heard.append(0)))
        one, other = self.pipe()
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        begun = time.monotonic()
        self.assertFalse(other.poll(0.3))
        self.assertGreaterEqual(time.monotonic() - begun, 0.3)
        self.assertGreaterEqual(len(heard), 2)

    def test_bad_headers(self):
        for header in (struct.pack('!i', -2), struct.pack('!i', -2**31)):
            reader, writer = self.pipe(False)
            os.write(writer.fileno(), header)
            with self.assertRaisesRegex(OSError, 'bad message length'):
                reader.recv_bytes()
            self.assertTrue(reader.closed)
        # A length that nothing follows takes no memory.
        for header in (struct.pack('!i', 2**31 - 1), struct.pack('!iQ', -1, 2**62)):
            for following, error in ((b'', EOFError), (b'abc', OSError)):
                reader, writer = self.pipe(False)
                os.write(writer.fileno(), header + following)
                writer.close()
                self.assertRaises(error, reader.recv_bytes)
        for header in (b'\0\0', struct.pack('!i', -1) + b'\0\0\0'):
            reader, writer = self.pipe(False)
            os.write(writer.fileno(), header)
            writer.close()
            with self.assertRaisesRegex(OSError, 'got end of file during message'):
                reader.recv_bytes()

    def test_unpicklable_sends_nothing(self):
        one, other = self.pipe()
        with self.assertRaises((pickle.PicklingError, AttributeError)):
            one.send(lambda: None)
        self.assertFalse(other.poll())
        one.send(1)
        self.assertEqual(other.recv(), 1)

    def test_for_any_pickle(self):
        one, other = self.pipe()
        again = reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(one))
        with again:
            again.send(1)
            self.assertEqual(other.recv(), 1)

    def test_the_same_frames_as_the_standards(self):
        values = [None, 'text', {'a': [1, 2]}, b'x' * 16384, b'y' * 100_000]
        one, other = self.pipe()
        theirs = standard.Connection(os.dup(other.fileno()))
        self.addCleanup(theirs.close)
        for value in values:
            for sender, receiver in ((one, theirs), (theirs, one)):
                sender.send(value)
                self.assertEqual(receiver.recv(), value)
        for size in (0, 1, 16380, 16384, 16385, 60_000):
            message = os.urandom(size)
            for sender, receiver in ((one, theirs), (theirs, one)):
                sender.send_bytes(message)
                self.assertEqual(receiver.recv_bytes(), message)
        # The very bytes, for a header of either kind.
        for size in (5, 70_000):
            written = []
            for kind in (connection.Connection, standard.Connection):
                here, there = socket.socketpair()
                with kind(here.detach()) as end, there:
                    end.send_bytes(b'z' * size)
                    end.close()
                    written.append(b''.join(iter(lambda: there.recv(1 << 20), b'')))
            self.assertEqual(written[0], written[1])

    def test_long_header_is_read(self):
        reader, writer = self.pipe(False)
        os.write(writer.fileno(), struct.pack('!iQ', -1, 3) + b'abc')
        self.assertEqual(reader.recv_bytes(), b'abc')


class Between:
    def both(self, duplex=True):
        ends = self.context.Pipe(duplex)
        for end in ends:
            self.addCleanup(end.close)
        return ends

    def test_given_to_a_child(self):
        one, other = self.both()
        child = self.start(echo, other)
        other.close()
        for size in (0, 1, 16384, 16385, 70_000, 20 << 20):
            message = os.urandom(1 << 16) * (size // (1 << 16)) + b'x' * (size % (1 << 16))
            thread = threading.Thread(target=one.send_bytes, args=(message,))
            thread.start()
            self.assertTrue(one.recv_bytes() == message, size)
            thread.join()
        if self.method != 'fork':
            # A fork has this end too, and never sees the end of the file.
            one.close()
            child.join()
            self.assertEqual(child.exitcode, 0)

    def test_both_kinds_of_ends(self):
        to_reader, to_writer = self.both(False)
        from_reader, from_writer = self.both(False)
        child = self.start(echo_between, to_reader, from_writer)
        from_writer.close()
        for value in (1, ['two', {3: 4}], b'5' * 50_000):
            to_writer.send(value)
            self.assertEqual(from_reader.recv(), value)
        if self.method != 'fork':
            # A fork has the writing end too, and never sees the end.
            to_reader.close()
            to_writer.close()
            self.assertRaises(EOFError, from_reader.recv)
            child.join()
            self.assertEqual(child.exitcode, 0)

    def test_the_end_of_a_child_is_the_end_of_the_file(self):
        reader, writer = self.both(False)
        child = self.start(send_after, writer, 0, 'last')
        writer.close()
        self.assertEqual(reader.recv(), 'last')
        self.assertRaises(EOFError, reader.recv)
        child.join()

    def test_a_killed_sender(self):
        reader, writer = self.both(False)
        child = self.start(send_for_ever, writer)
        writer.close()
        for _ in range(3):
            self.assertEqual(reader.recv_bytes(), b'x' * 300_000)
        child.kill()
        with self.assertRaises((EOFError, OSError)):
            while True:
                self.assertEqual(reader.recv_bytes(), b'x' * 300_000)
        child.join()

    def test_poll_and_wait_for_a_child(self):
        reader, writer = self.both(False)
        child = self.start(send_after, writer, 0.1, 'it')
        self.assertTrue(reader.poll(3600))
        self.assertEqual(reader.recv(), 'it')
        writer.close()
        self.assertIn(child.sentinel, connection.wait([child.sentinel]))

    def test_a_socket(self):
        here, there = socket.socketpair()
        with here, there:
            child = self.start(use_socket, there)
            child.join()
            self.assertEqual((child.exitcode, here.recv(100)), (0, b'through a socket'))


def send_for_ever(writer):
    while True:
        writer.send_bytes(b'x' * 300_000)


class ForkBetweenTest(Between, helpers.Case):
    method = 'fork'


class SpawnBetweenTest(Between, helpers.Case):
    method = 'spawn'


class ForkServerBetweenTest(Between, helpers.Case):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
