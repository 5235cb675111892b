"""Connections: pipes inside the tree, CPython's frames on pipes and sockets, and their ends in other processes."""

import array
import asyncio
import contextlib
import gc
import os
import pickle
import select
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


def connections(one, other, duplex):
    """Connections made by hand, of descriptors."""
    return connection.Connection(one, writable=duplex), connection.Connection(other, readable=duplex)


class Interrupt(Exception):
    """What a signal's handler raises."""


def interrupt(*_):
    raise Interrupt


class Here:
    """What holds for both kinds of connections."""
    method = 'fork'

    def pipe(self, duplex=True):
        ends = self.ends(duplex)
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
        ends = [self.ends(duplex) for duplex in (True, False) for _ in range(5)]
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

    def test_objects_as_bytes_and_bytes_as_objects(self):
        one, other = self.pipe()
        values = [1, None, True, 2.5, 'text', b'bytes', (1, 'two'), [b'x' * 100_000], b'y' * 100_000, 1 << 90, {'a': object}]
        for value in values:
            one.send(value)
            self.assertEqual(pickle.loads(other.recv_bytes()), value)
            one.send(value)
            room = bytearray(200_000)
            length = other.recv_bytes_into(room, 5)
            self.assertEqual(pickle.loads(room[5:5 + length]), value)
            one.send_bytes(reduction.ForkingPickler.dumps(value))
            self.assertEqual(other.recv(), value)
        one.send('more than four bytes')
        with self.assertRaisesRegex(OSError, 'bad message length'):
            other.recv_bytes(4)

    def test_buffers_that_are_no_use(self):
        one, other = self.pipe()
        for wrong in (memoryview(b'abcdef')[::2], memoryview(array.array('i', [1, 2, 3, 4]))[::2]):
            self.assertRaises(TypeError, one.send_bytes, wrong)
        self.assertFalse(other.poll())
        one.send_bytes(b'kept')
        for wrong in (b'not to be written', memoryview(bytearray(9))[::2]):
            self.assertRaises(TypeError, other.recv_bytes_into, wrong)
        self.assertEqual(other.recv_bytes(), b'kept')
        room = bytearray(1 << 20)
        for size in (1 << 20, 16384, 16385, 0):
            message = os.urandom(size)
            sender = threading.Thread(target=one.send_bytes, args=(message,))
            sender.start()
            self.assertEqual(other.recv_bytes_into(room), size)
            self.assertTrue(room[:size] == message)
            sender.join()

    def test_readiness_is_exact(self):
        one, other = self.pipe()

        def ready():
            looks = [bool(select.select([other], [], [], 0)[0]), bool(connection.wait([other], 0)), other.poll()]
            self.assertEqual(len(set(looks)), 1)
            return looks[0]

        for size in (1, 100_000):
            for _ in range(3):
                self.assertFalse(ready())
                one.send_bytes(b'x' * size)
                self.assertTrue(ready())
                other.recv_bytes()
        self.assertFalse(ready())
        one.close()
        self.assertTrue(ready())
        self.assertRaises(EOFError, other.recv)

    def test_asyncio(self):
        one, other = self.pipe()

        async def main():
            loop, heard = asyncio.get_running_loop(), asyncio.Queue()
            loop.add_reader(other.fileno(), lambda: heard.put_nowait(other.recv()))
            for value in (1, b'x' * 100_000):
                one.send(value)
                self.assertEqual(await heard.get(), value)
            loop.remove_reader(other.fileno())

        asyncio.run(main())

    def test_descriptors_at_which_nobody_waits(self):
        for size in self.sizes:
            one, other = self.pipe()
            for end in (one, other):
                os.set_blocking(end.fileno(), False)
            for use in (other.recv, other.recv_bytes, lambda: other.recv_bytes_into(bytearray(9))):
                self.assertRaises(BlockingIOError, use)
            self.assertFalse(other.poll(0.01))
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    one.send_bytes(sent.to_bytes(4, 'big') * size)
                    sent += 1
            self.assertGreater(sent, 1)
            for number in range(sent):
                self.assertTrue(other.recv_bytes() == number.to_bytes(4, 'big') * size)
            self.assertRaises(BlockingIOError, other.recv)
            one.send(sent)
            self.assertEqual(other.recv(), sent)

    def test_a_signal_ends_a_wait(self):
        one, other = self.pipe()
        with helpers.handling(signal.SIGALRM, interrupt):
            for wait in (other.recv, other.recv_bytes, lambda: other.poll(None),
                         lambda: other.recv_bytes_into(bytearray(9))):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                self.assertRaises(Interrupt, wait)
            one.send('kept')
            self.assertEqual(other.recv(), 'kept')
            for size in (8_000, 1 << 20):
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with self.assertRaises(Interrupt):
                    while True:
                        one.send_bytes(b'x' * size)

    def test_threads_share_an_end(self):
        one, other = self.pipe()
        heard = []

        def send(first):
            for number in range(first, first + 200):
                one.send((number, b'x' * (number % 3 * 20_000)))

        def receive():
            while (message := other.recv()) is not None:
                self.assertEqual(message[1], b'x' * (message[0] % 3 * 20_000))
                heard.append(message[0])

        senders = [threading.Thread(target=send, args=(first,)) for first in (0, 200, 400)]
        receivers = [threading.Thread(target=receive) for _ in range(3)]
        for thread in senders + receivers:
            thread.start()
        for thread in senders:
            thread.join()
        for _ in receivers:
            one.send(None)
        for thread in receivers:
            thread.join()
        self.assertEqual(sorted(heard), list(range(600)))

    def test_closed_while_another_thread_waits(self):
        one, other = self.pipe()
        seen = []

        def receive():
            try:
                other.recv()
            except OSError as error:
                seen.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        time.sleep(0.05)
        other.close()
        thread.join()
        self.assertEqual([str(error) for error in seen], ['handle is closed'])

    def test_a_handle_that_is_taken_stays_open(self):
        one, other = self.pipe()
        fd, one._handle = one._handle, None
        self.assertTrue(one.closed)
        del one
        gc.collect()
        os.fstat(fd)
        os.close(fd)
        self.assertRaises(EOFError, other.recv)

    def test_a_fork_has_the_same_ends(self):
        one, other = self.pipe()
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                one.send((os.getpid(), b'x' * 50_000))
            os._exit(0)
        one.close()
        self.assertEqual(other.recv(), (pid, b'x' * 50_000))
        self.assertRaises(EOFError, other.recv)
        os.waitpid(pid, 0)


class PipeTest(Here, helpers.Case):
    """Of pipes inside the tree."""
    sizes = 1, 5_000, 50_000

    def ends(self, duplex):
        return connection.Pipe(duplex)

    def test_a_descriptor_promises_no_bytes(self):
        one, other = self.pipe()
        with connection.Connection(os.dup(other.fileno())) as by_hand:
            one.send('a message')
            self.assertEqual(connection.wait([by_hand], 0), [by_hand])
            self.assertTrue(by_hand.poll())
            for use in (by_hand.recv, by_hand.recv_bytes, lambda: by_hand.send(1), lambda: by_hand.send_bytes(b'')):
                with self.assertRaisesRegex(OSError, 'end of a pipe inside a tree'):
                    use()
        self.assertEqual(other.recv(), 'a message')

    def test_of_no_use_in_another_tree(self):
        one, other = self.pipe()
        text = bytes(reduction.ForkingPickler.dumps(one))
        done = self.script(f"""
            import pickle
            try:
                pickle.loads({text!r})
            except ValueError as error:
                print(error)
        """)
        self.assertIn('in the tree of processes that it was made in', done.stdout)
        one.close()
        self.assertRaises(EOFError, other.recv)

    def test_other_bytes_are_an_error(self):
        one, other = self.pipe()
        os.write(one.fileno(), b'any bytes')
        with self.assertRaisesRegex(OSError, 'message of a pipe'):
            other.recv()
        one.send('next')
        self.assertEqual(other.recv(), 'next')

    def test_a_long_message_is_waited_for(self):
        one, other = self.pipe()
        sent = threading.Event()

        def send():
            one.send_bytes(bytes(16 << 20))
            sent.set()

        sender = threading.Thread(target=send)
        sender.start()
        other.poll(None)
        self.assertFalse(sent.wait(0.2))
        self.assertEqual(len(other.recv_bytes()), 16 << 20)
        sender.join()
        # One that nobody receives any more isn't waited for.
        sender = threading.Thread(target=send)
        sender.start()
        other.poll(None)
        other.close()
        sender.join()

    def test_without_memory(self):
        done = self.script("""
            import resource
            import threading
            from procession import Pipe

            def limit(more):
                used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
                most = used + more if more else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

            def refused(use):
                limit(100 << 20)
                try:
                    use()
                except MemoryError:
                    print('no memory')
                limit(None)
                one.send('goes on')
                print(other.recv())

            one, other = Pipe()
            message = b'x' * (200 << 20)
            refused(lambda: one.send_bytes(message))
            # It returns once the message is taken.
            sender = threading.Thread(target=one.send_bytes, args=(message,))
            sender.start()
            other.poll(None)
            refused(other.recv_bytes)
            sender.join()
        """)
        self.assertEqual((done.stdout, done.stderr), ('no memory\ngoes on\n' * 2, ''))


class StreamTest(Here, helpers.Case):
    """Of descriptors that carry CPython's frames: sockets, and pipes of the system that go one way."""
    #: What a stream takes a part of is waited for: its rest must follow.
    sizes = 1,

    def ends(self, duplex):
        if duplex:
            one, other = socket.socketpair()
            return connections(one.detach(), other.detach(), True)
        return connections(*os.pipe(), False)

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
        for size in (10, 10_000, 300_000):
            reader, writer = self.both(False)
            child = self.start(send_for_ever, writer, size)
            writer.close()
            for _ in range(30):
                self.assertEqual(reader.recv_bytes(), b'x' * size)
            child.kill()
            with self.assertRaises(EOFError):
                while True:
                    self.assertEqual(reader.recv_bytes(), b'x' * size)
            child.join()

    def test_a_killed_receiver(self):
        for size in (10, 10_000, 300_000):
            one, other = self.both()
            child = self.start(receive_for_ever, other)
            other.close()
            for _ in range(30):
                one.send_bytes(b'x' * size)
            child.kill()
            with self.assertRaises((BrokenPipeError, ConnectionResetError)):
                while True:
                    one.send_bytes(b'x' * size)
            child.join()
            with self.assertRaises((EOFError, ConnectionResetError)):
                one.recv()

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


def send_for_ever(writer, size):
    while True:
        writer.send_bytes(b'x' * size)


def receive_for_ever(reader):
    while True:
        reader.recv_bytes()


class ForkBetweenTest(Between, helpers.Case):
    method = 'fork'


class SpawnBetweenTest(Between, helpers.Case):
    method = 'spawn'


class ForkServerBetweenTest(Between, helpers.Case):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
