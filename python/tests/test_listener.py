"""Listeners, clients and the handshake, with peers that nobody would invite."""

import hashlib
import hmac
import io
import multiprocessing.connection as standard
import os
import signal
import socket
import struct
import sys
import threading
import time
import unittest

import helpers
import procession
from procession import connection

KEY = b'the key'

#: What a stranger may say, and then hang up; and what `accept` raises.
GARBAGE = [
    (b'', EOFError, ''),
    (b'\0\0', OSError, 'end of file during message'),
    (b'GET / HTTP/1.0\r\n\r\n', OSError, 'bad message length'),
    (struct.pack('!i', -2), OSError, 'bad message length'),
    (struct.pack('!i', 257) + b'x' * 257, OSError, 'bad message length'),
    (struct.pack('!iQ', -1, 2**64 - 1), OSError, 'bad message length'),
    (struct.pack('!i', 40) + b'{sha256}' + b'x' * 3, OSError, 'end of file during message'),
    (struct.pack('!i', 40) + b'{sha256}' + b'x' * 32, procession.AuthenticationError, 'digest received was wrong'),
    (struct.pack('!i', 16) + b'x' * 16, procession.AuthenticationError, 'digest received was wrong'),
    (struct.pack('!i', 30) + b'y' * 30, procession.AuthenticationError, 'unsupported'),
]


class InThread(threading.Thread):
    """A call in a thread, whose result or exception is asked for later."""

    def __init__(self, function, *args, **options):
        super().__init__(daemon=True)
        self.call = function, args, options
        self.start()

    def run(self):
        function, args, options = self.call
        try:
            self.outcome = function(*args, **options), None
        except BaseException as error:
            self.outcome = None, error

    def result(self):
        self.join()
        value, error = self.outcome
        if error is not None:
            raise error
        return value


class ListenerTest(helpers.Case):
    method = 'fork'

    def listener(self, *args, **options):
        listener = connection.Listener(*args, **options)
        self.addCleanup(listener.close)
        return listener

    def says(self, source, **options):
        """What a program prints that ends well."""
        program = self.script(source, **options)
        self.assertEqual((program.returncode, program.stderr), (0, ''))
        return program.stdout.strip()

    def both(self, listener, authkey=None):
        client = InThread(connection.Client, listener.address, authkey=authkey)
        served = listener.accept()
        ends = client.result(), served
        for end in ends:
            self.addCleanup(end.close)
        return ends

    def check(self, one, other):
        for sender, receiver in ((one, other), (other, one)):
            for message in (b'', b'short', b'x' * 100_000, b'y' * 3_000_000):
                sending = InThread(sender.send_bytes, message)
                self.assertTrue(receiver.recv_bytes() == message)
                sending.result()
            sender.send({'an': ['object']})
            self.assertEqual(receiver.recv(), {'an': ['object']})

    def test_families(self):
        folder = self.folder()
        path = str(folder / 'socket')
        for args, kind in (((), 'AF_UNIX'), ((None, 'AF_INET'), 'AF_INET'), ((('127.0.0.1', 0),), 'AF_INET'),
                           ((('localhost', 0),), 'AF_INET'), ((path,), 'AF_UNIX'), ((f'\0test-{os.getpid()}',), 'AF_UNIX'),
                           ((f'\0test-{os.getpid()}'.encode(),), 'AF_UNIX'), ((('::1', 0), 'AF_INET6'), 'AF_INET')):
            for authkey in (None, KEY):
                with self.subTest(args=args, authkey=authkey):
                    with connection.Listener(*args, authkey=authkey) as listener:
                        address = listener.address
                        self.assertEqual(connection.address_type(address), kind)
                        one, other = self.both(listener, authkey)
                        self.check(one, other)
                        if kind == 'AF_UNIX':
                            self.assertEqual(listener.last_accepted, '')
                        else:
                            self.assertEqual(listener.last_accepted[0], listener.address[0])
                        with self.assertRaises(OSError):
                            connection.Listener(listener.address, 'AF_INET6' if len(listener.address) == 4 else None)
                    with self.assertRaisesRegex(OSError, 'listener is closed'):
                        listener.accept()
                    with self.assertRaises(OSError):
                        connection.Client(address)

    def test_a_socket_like_the_standards(self):
        path = str(self.folder() / 'socket')
        for theirs, ours in ((standard.Listener, connection.Client), (connection.Listener, standard.Client)):
            for address in (('127.0.0.1', 0), path, f'\0test-{os.getpid()}'):
                for authkey in (None, KEY):
                    with self.subTest(listener=theirs, address=address, authkey=authkey):
                        with theirs(address, authkey=authkey) as listener:
                            client = InThread(ours, listener.address, authkey=authkey)
                            with listener.accept() as served, client.result() as end:
                                self.check(end, served)

    def test_arguments(self):
        for kind in (connection.Listener, connection.Client):
            with self.assertRaisesRegex(ValueError, 'Family AF_PIPE is not recognized'):
                kind(r'\\.\pipe\x')
            for address, error in ((7, TypeError), (b'x', ValueError)):
                with self.assertRaisesRegex(error, 'unrecognized'):
                    kind(address)
        with self.assertRaisesRegex(TypeError, 'authkey should be a byte string'):
            connection.Listener(authkey='text')
        with self.assertRaises(socket.gaierror):
            connection.Client(('name.invalid', 1))
        with self.assertRaises(TypeError):
            connection.Client(('127.0.0.1',))
        with self.assertRaises(OverflowError):
            connection.Client(('127.0.0.1', 70_000))
        with self.assertRaisesRegex(ValueError, 'unrecognized family'):
            connection.arbitrary_address('AF_X')

    def test_files(self):
        path = self.folder() / 'socket'
        with connection.Listener(str(path)):
            self.assertTrue(path.is_socket())
            with self.assertRaises(OSError) as caught:
                connection.Listener(str(path))
            self.assertIn(str(path), str(caught.exception))
        self.assertFalse(path.exists())
        # Somebody else's file stays.
        listener = self.listener(str(path))
        path.unlink()
        path.write_text('')
        listener.close()
        self.assertTrue(path.exists())
        path.unlink()
        # Nor does a child remove it; and what isn't closed goes at exit.
        self.assertEqual(self.says(f'''
            import os, pathlib, procession.connection as connection
            listener = connection.Listener({str(path)!r})
            child = os.fork()
            if child == 0:
                listener.close()
                os._exit(0)
            os.waitpid(child, 0)
            print(pathlib.Path({str(path)!r}).is_socket())
        '''), 'True')
        self.assertFalse(path.exists())

    def test_a_long_temporary_folder(self):
        folder = self.folder()
        for _ in range(10):
            folder = folder / ('far' * 10)
        folder.mkdir(parents=True)
        self.assertEqual(self.says('''
            import procession.connection as connection, threading
            with connection.Listener(authkey=b'key') as listener:
                assert len(listener.address) > 250, listener.address
                thread = threading.Thread(target=lambda: connection.Client(listener.address, authkey=b'key').send('far'))
                thread.start()
                print(listener.accept().recv())
                thread.join()
        ''', env={'TMPDIR': str(folder)}), 'far')

    def test_wrong_keys(self):
        listener = self.listener(authkey=KEY)
        for _ in range(3):
            client = InThread(connection.Client, listener.address, authkey=b'another')
            with self.assertRaisesRegex(procession.AuthenticationError, 'digest received was wrong'):
                listener.accept()
            with self.assertRaisesRegex(procession.AuthenticationError, 'digest sent was rejected'):
                client.result()
        self.check(*self.both(listener, KEY))
        # An empty key is none up to 3.12.
        listener = self.listener(authkey=b'')
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(listener.address)
            stranger.shutdown(socket.SHUT_WR)
            if sys.version_info < (3, 13):
                listener.accept().close()
            else:
                self.assertRaises(EOFError, listener.accept)

    def test_strangers_cost_their_own_connection(self):
        before = helpers.descriptors()
        listener = connection.Listener(('127.0.0.1', 0), authkey=KEY, backlog=16)
        for said, error, why in GARBAGE * 3:
            with socket.create_connection(listener.address) as stranger:
                stranger.sendall(said)
                stranger.shutdown(socket.SHUT_WR)
                with self.assertRaisesRegex(error, why):
                    listener.accept()
                # It heard a challenge, and at most that it failed.
                heard = bytearray()
                try:
                    while said := stranger.recv(1000):
                        heard += said
                except ConnectionResetError:
                    pass  # What it had said wasn't read to its end.
                self.assertRegex(heard, rb'(?s)^(\0\0\0\x3b#CHALLENGE#\{sha256\}.{40}(\0\0\0\x09#FAILURE#)?)?$')
        for end in (*self.both(listener, KEY), listener):
            end.close()
        self.assertEqual(helpers.descriptors(), before)

    def test_silent_and_slow_peers_keep_nobody_waiting(self):
        listener = self.listener(('127.0.0.1', 0), authkey=KEY, backlog=128)
        strangers = [socket.create_connection(listener.address) for _ in range(40)]
        for stranger in strangers[::2]:
            stranger.sendall(b'\0\0\0')
        for _ in range(5):
            self.check(*self.both(listener, KEY))
        for stranger in strangers:
            stranger.close()
        for _ in strangers:
            with self.assertRaises((EOFError, OSError)):
                listener.accept()
        self.check(*self.both(listener, KEY))

    def test_any_number_of_threads(self):
        listener = self.listener(('127.0.0.1', 0), authkey=KEY, backlog=128)
        servers = [InThread(lambda: [listener.accept() for _ in range(20)]) for _ in range(3)]
        clients = [InThread(lambda: [connection.Client(listener.address, authkey=KEY) for _ in range(20)])
                   for _ in range(3)]
        for thread in servers + clients:
            self.assertEqual(len(thread.result()), 20)

    def test_no_descriptor_left(self):
        folder = self.folder()
        path = str(folder / 'socket')
        self.assertEqual(self.says(f'''
            import errno, os, resource, socket, time, procession.connection as connection
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            listener = connection.Listener({path!r}, authkey=b'key')
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect({path!r})
            used = []
            try:
                while True:
                    used.append(os.dup(0))
            except OSError:
                pass
            for _ in range(2):
                begun, busy = time.monotonic(), time.process_time()
                try:
                    listener.accept()
                except OSError as error:
                    assert error.errno == errno.EMFILE, error
                else:
                    raise AssertionError
                assert time.monotonic() - begun > 0.9 and time.process_time() - busy < 0.5
            for fd in used:
                os.close(fd)
            stranger.close()
            try:
                listener.accept()
            except (EOFError, OSError) as error:
                print('goes on')
        '''), 'goes on')

    def test_a_reflected_challenge_is_not_answered(self):
        """A false listener without the key sends on one connection what it was challenged with on another."""
        false = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(false.close)

        def frame(stream):
            length, = struct.unpack('!i', stream.recv(4, socket.MSG_WAITALL))
            return stream.recv(length, socket.MSG_WAITALL)

        def say(stream, message):
            stream.sendall(struct.pack('!i', len(message)) + message)

        clients = [InThread(connection.Client, false.getsockname(), authkey=KEY) for _ in range(2)]
        first, second = (false.accept()[0] for _ in clients)
        with first, second:
            say(first, b'#CHALLENGE#{sha256}' + b'z' * 40)
            frame(first)
            say(first, b'#WELCOME#')
            challenge = frame(first)
            self.assertTrue(challenge.startswith(b'#CHALLENGE#{sha256}'))
            say(second, challenge)
            self.assertEqual(second.recv(100), b'')
        raised = []
        for client in clients:
            with self.assertRaises((procession.AuthenticationError, EOFError, OSError)) as caught:
                client.result()
            raised.append(str(caught.exception))
        self.assertIn('the peer sent back a challenge of our own', raised)

    def test_interruptions(self):
        self.interrupt_waits([])

    def test_signals_that_interrupt_nothing(self):
        # As if they had come just before the wait: another thread takes them.
        self.interrupt_waits([signal.SIGINT])

    def interrupt_waits(self, blocked):
        listener = self.listener(authkey=KEY)
        open_listener = self.listener()
        full = self.listener(backlog=0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for each in waiting:
            self.addCleanup(each.close)
            each.setblocking(False)
            try:
                each.connect(full.address)
            except BlockingIOError:
                pass
        silent = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(silent.close)
        one, other = ends()
        read, write = os.pipe()
        reader, writer = connection.Connection(read, writable=False), connection.Connection(write, readable=False)
        for end in (one, other, reader, writer):
            self.addCleanup(end.close)
        waits = {
            'accept': open_listener.accept, 'accept with a key': listener.accept,
            'connect': lambda: connection.Client(full.address),
            'authenticate': lambda: connection.Client(silent.getsockname(), authkey=KEY),
            'recv': one.recv, 'recv of a pipe': reader.recv, 'recv_bytes_into': lambda: one.recv_bytes_into(bytearray(9)),
            'poll': lambda: one.poll(None), 'wait': lambda: connection.wait([one]),
            'send': lambda: one.send_bytes(b'x' * 30_000_000),
            'send to a pipe': lambda: writer.send_bytes(b'x' * 30_000_000),
        }
        for name, wait in waits.items():
            with self.subTest(name), helpers.handling(signal.SIGINT, signal.default_int_handler):
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
                before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
                try:
                    self.assertRaises(KeyboardInterrupt, wait)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Half a message went: what followed couldn't be told apart.
        for end in (one, writer):
            with self.assertRaisesRegex(OSError, 'cut off'):
                end.send(1)

    def test_a_timeout_of_the_socket(self):
        listener = self.listener(authkey=KEY)
        listener._listener._socket.settimeout(0.1)
        self.assertRaises(TimeoutError, listener.accept)
        listener._listener._socket.settimeout(None)
        self.check(*self.both(listener, KEY))

    def test_xml(self):
        listener = connection.XmlListener(authkey=KEY)
        self.addCleanup(listener.close)
        client = InThread(connection.XmlClient, listener.address, authkey=KEY)
        served = listener.accept()
        end = client.result()
        end.send(['text', 1])
        self.assertEqual(served.recv(), ['text', 1])
        for each in (served, end):
            each.close()


class ChallengeTest(unittest.TestCase):
    """The halves of the handshake, over whatever carries messages."""

    def test_digests(self):
        challenge = b'#' * 20
        self.assertEqual(connection._create_response(KEY, challenge), hmac.new(KEY, challenge, 'md5').digest())
        for name in ('md5', 'sha256', 'sha384', 'sha3_256', 'sha3_384'):
            challenge = b'{%s}' % name.encode() + b'#' * 40
            response = connection._create_response(KEY, challenge)
            self.assertEqual(response, b'{%s}' % name.encode() + hmac.new(KEY, challenge, name).digest())
            connection._verify_challenge(KEY, challenge, response)
            connection._verify_challenge(KEY, challenge, hmac.new(KEY, challenge, 'md5').digest())
            for wrong in (b'', response[:-1], response + b'x', b'{sha1}' + hashlib.sha1(challenge).digest(),
                          hmac.new(b'no', challenge, 'md5').digest()):
                self.assertRaises(procession.AuthenticationError, connection._verify_challenge, KEY, challenge, wrong)
        self.assertRaises(procession.AuthenticationError, connection._create_response, KEY, b'{sha1}' + b'#' * 20)

    def test_any_object(self):
        one, other = connection.Pipe()
        with one, other:
            for theirs, ours in ((standard.answer_challenge, connection.deliver_challenge),
                                 (standard.deliver_challenge, connection.answer_challenge)):
                peer = InThread(theirs, other, KEY)
                ours(one, KEY)
                peer.result()
            peer = InThread(connection.answer_challenge, other, b'another')
            with self.assertRaisesRegex(procession.AuthenticationError, 'digest received was wrong'):
                connection.deliver_challenge(one, KEY)
            with self.assertRaisesRegex(procession.AuthenticationError, 'digest sent was rejected'):
                peer.result()
            for function in (connection.deliver_challenge, connection.answer_challenge):
                self.assertRaisesRegex(ValueError, 'must be bytes', function, one, 'text')
            for said, why in ((b'hello', 'expected challenge'), (b'#CHALLENGE#short', 'too short')):
                other.send_bytes(said)
                with self.assertRaisesRegex(procession.AuthenticationError, why):
                    connection.answer_challenge(one, KEY)


def ends():
    """Both ends of a stream: what descriptors are read and written by."""
    return [connection.Connection(one.detach()) for one in socket.socketpair()]


class SharedEndTest(helpers.Case):
    """What subclasses and threads may do with an end."""
    method = 'fork'

    def test_threads_that_share_an_end(self):
        one, other = connection.Pipe()
        counts = range(150)

        def send(number):
            for count in counts:
                one.send_bytes(b'%d' % number * (1 + count * 977))

        def receive():
            return [other.recv_bytes() for _ in counts]

        senders = [InThread(send, number) for number in range(4)]
        receivers = [InThread(receive) for _ in senders]
        messages = sorted(message for receiver in receivers for message in receiver.result())
        for sender in senders:
            sender.result()
        expected = sorted(b'%d' % number * (1 + count * 977) for number in range(4) for count in counts)
        self.assertTrue(messages == expected)
        one.close()
        other.close()

    def test_an_interruption_while_another_thread_receives(self):
        one, other = connection.Pipe()
        waiting = InThread(other.recv)
        time.sleep(0.1)
        with helpers.handling(signal.SIGINT, signal.default_int_handler):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            self.assertRaises(KeyboardInterrupt, other.recv)
        one.send('to the thread')
        self.assertEqual(waiting.result(), 'to the thread')
        one.close()
        other.close()

    def test_a_fork_while_a_thread_receives(self):
        one, other = ends()
        here, there = ends()
        waiting = InThread(other.recv)
        time.sleep(0.1)
        there.send('to the child')
        child = os.fork()
        if child == 0:
            try:
                # The thread isn't here any more, and what it had taken is.
                other._handle = os.dup(here.fileno())
                os._exit(0 if other.recv() == 'to the child' else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitpid(child, 0), (child, 0))
        one.send('to the parent')
        self.assertEqual(waiting.result(), 'to the parent')
        for end in (one, other, here, there):
            end.close()

    def test_closed_by_another_thread(self):
        one, other = connection.Pipe()
        waiting = InThread(other.recv)
        time.sleep(0.1)
        other.close()
        with self.assertRaisesRegex(OSError, 'handle is closed'):
            waiting.result()
        one.close()

    def test_subclasses(self):
        class Kept(connection._ConnectionBase):
            def __init__(self):
                super().__init__(0)
                self.messages = []

            def _close(self):
                self.closed_by = 'close'

            def _send_bytes(self, buf):
                self.messages.append(bytes(buf))

            def _recv_bytes(self, maxsize=None):
                message = self.messages.pop(0)
                return None if maxsize is not None and len(message) > maxsize else io.BytesIO(message)

            def _poll(self, timeout):
                return bool(self.messages)

        with Kept() as kept:
            kept.send(['object'])
            kept.send_bytes(b'bytes', 1)
            self.assertTrue(kept.poll())
            self.assertEqual((kept.recv(), kept.recv_bytes()), (['object'], b'ytes'))
            kept.send_bytes(b'long')
            room = bytearray(9)
            self.assertEqual((kept.recv_bytes_into(room, 2), room), (4, b'\0\0long\0\0\0'))
            kept.send_bytes(b'long')
            with self.assertRaisesRegex(OSError, 'bad message length'):
                kept.recv_bytes(3)
        self.assertEqual(kept.closed_by, 'close')

        class Loud(connection.Connection):
            def _send_bytes(self, buf):
                super()._send_bytes(bytes(buf) + b'!')

        class Louder(Loud):
            def _recv_bytes(self, maxsize=None):
                return io.BytesIO(super()._recv_bytes(maxsize).getvalue().upper())

        one, other = ends()
        for kind, heard in ((Loud, b'loud!'), (Louder, b'loud!')):
            loud = kind(os.dup(one.fileno()))
            self.assertIsInstance(loud, connection._ConnectionBase)
            loud.send_bytes(b'loud')
            self.assertEqual(other.recv_bytes(), heard)
            other.send_bytes(b'back')
            self.assertEqual(loud.recv_bytes(), b'BACK' if kind is Louder else b'back')
            loud.close()
        one.close()
        other.close()

    def test_a_descriptor_taken_away(self):
        one, other = ends()
        fd = one._handle
        self.assertEqual(fd, one.fileno())
        one._handle = None
        self.assertTrue(one.closed)
        with connection.Connection(fd) as again:
            again.send('still open')
            self.assertEqual(other.recv(), 'still open')
        other.close()


if __name__ == '__main__':
    unittest.main()
