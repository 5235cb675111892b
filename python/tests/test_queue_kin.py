"""JoinableQueue, SimpleQueue, and the two ends of a queue."""

import os
import pickle
import signal
import threading
import time
import unittest
import warnings

import helpers
import procession
from helpers import wait_until
from procession import _core, queues, reduction


class Unpicklable:
    def __reduce__(self):
        raise TypeError('this one stays here')


class ByItsEnds(queues.SimpleQueue):
    """As libraries subclass the standard's, for pickles of their own."""

    def get(self):
        with self._rlock:
            return pickle.loads(self._reader.recv_bytes())

    def put(self, obj):
        pickled = reduction.ForkingPickler.dumps(obj)
        with self._wlock:
            self._writer.send_bytes(pickled)


class Own(queues.JoinableQueue):
    def __init__(self, text, *, ctx):
        super().__init__(2, ctx=ctx)
        self.text = text


def work(queue):
    while queue.get() is not None:
        queue.task_done()
    queue.task_done()


def get_and_stay(queue, count, ready):
    for _ in range(count):
        queue.get()
    ready.put('got')
    time.sleep(600)


def get_and_end(queue, count):
    for _ in range(count):
        queue.get()


def do_for_another(queue, count):
    for _ in range(count):
        queue.task_done()


def describe(queue):
    return type(queue).__name__, queue.text, queue.full(), queue._unfinished


def echo(queue, back):
    while (item := queue.get()) is not None:
        back.put(item)


class Joinable:
    def setUp(self):
        super().setUp()
        self.queue = self.context.JoinableQueue()

    def test_join_waits_for_all(self):
        children = [self.start(work, self.queue) for _ in range(3)]
        for number in range(300):
            self.queue.put(number)
        self.queue.join()
        self.assertEqual((self.queue.qsize(), self.queue._unfinished), (0, 0))
        for _ in children:
            self.queue.put(None)
        self.queue.join()
        for child in children:
            child.join()
            self.assertEqual(child.exitcode, 0)
        with self.assertRaisesRegex(ValueError, r'task_done\(\) called too many times'):
            self.queue.task_done()

    def test_what_a_killed_getter_had(self):
        ready = self.context.Queue()
        for number in range(5):
            self.queue.put(number)
        child = self.start(get_and_stay, self.queue, 3, ready)
        ready.get()
        self.assertEqual((self.queue.get(), self.queue.get()), (3, 4))
        joined = []
        thread = threading.Thread(target=lambda: joined.append(self.hear()))
        thread.start()
        for _ in range(2):
            self.queue.task_done()
        self.assertEqual(self.queue._unfinished, 3)
        child.kill()
        thread.join()
        self.assertEqual(len(joined[0]), 1, joined)
        self.assertRegex(joined[0][0], '^3 of the queue')
        child.join()
        self.assertEqual(self.hear(), [], 'it was told before')

    def hear(self):
        """The warnings of a join."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            self.queue.join()
        self.assertEqual({warning.category for warning in caught} - {RuntimeWarning}, set())
        return [str(warning.message) for warning in caught]

    def test_one_that_ends_normally_is_waited_for(self):
        for number in range(2):
            self.queue.put(number)
        child = self.start(get_and_end, self.queue, 2)
        child.join()
        self.assertEqual(child.exitcode, 0)
        thread = threading.Thread(target=self.queue.join, daemon=True)
        thread.start()
        thread.join(0.2)
        self.assertTrue(thread.is_alive())
        # Another process may speak for it.
        other = self.start(do_for_another, self.queue, 2)
        thread.join()
        other.join()
        self.assertEqual(other.exitcode, 0)

    def test_a_subclass_is_sent_as_it_is(self):
        made = Own('text', ctx=self.context)
        made.put(1)
        made.put(2)
        made.get()
        self.assertEqual(self.ask(describe, made), ('Own', 'text', False, 2))
        through = self.context.Queue()
        through.put(made)
        self.assertEqual(describe(through.get()), ('Own', 'text', False, 2))

    def test_it_is_a_queue(self):
        self.assertIsInstance(self.queue, queues.Queue)
        self.assertFalse(hasattr(self.context.Queue(), 'task_done'))
        bounded = self.context.JoinableQueue(1)
        bounded.put('one')
        with self.assertRaises(queues.Full):
            bounded.put_nowait('two')
        bounded.close()
        with self.assertRaisesRegex(ValueError, 'is closed'):
            bounded.get()


class ForkJoinableTest(Joinable, helpers.Case):
    method = 'fork'

    def test_ctrl_c_gets_out_of_a_join(self):
        # What a shell starts in the background ignores it.
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        self.queue.put('never done')
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with self.assertRaises(KeyboardInterrupt):
            self.queue.join()
        timer.join()

    def test_a_warning_may_be_an_error(self):
        self.queue.put(1)
        child = self.start(get_and_stay, self.queue, 1, self.context.SimpleQueue())
        wait_until(self.queue.empty)
        child.kill()
        child.join()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            with self.assertRaisesRegex(RuntimeWarning, '^1 of'):
                self.queue.join()
            self.queue.join()


class SpawnJoinableTest(Joinable, helpers.Case):
    method = 'spawn'


class ForkserverJoinableTest(Joinable, helpers.Case):
    method = 'forkserver'


class Simple:
    def setUp(self):
        super().setUp()
        self.queue = self.context.SimpleQueue()

    def test_both_ways(self):
        back = self.context.SimpleQueue()
        child = self.start(echo, self.queue, back)
        for item in [1, 'text', b'x' * 100_000, [{'a': (1, 2)}], self.queue._rlock, back]:
            self.queue.put(item)
            self.assertIs(type(back.get()), type(item))
        self.queue.put(None)
        child.join()
        self.assertEqual(child.exitcode, 0)

    def test_a_subclass_that_uses_the_ends(self):
        one, back = ByItsEnds(ctx=self.context), ByItsEnds(ctx=self.context)
        child = self.start(echo, one, back)
        for item in [1, {'a': 2}, b'x' * 100_000, self.context.Queue()]:
            one.put(item)
            self.assertIs(type(back.get()), type(item))
        one.put(None)
        child.join()
        self.assertEqual(child.exitcode, 0)


class ForkSimpleTest(Simple, helpers.Case):
    method = 'fork'

    def test_no_more_than_the_standards(self):
        names = {name for name in dir(self.queue) if not name.startswith('_')}
        self.assertEqual(names, {'get', 'put', 'empty', 'close'})
        self.assertEqual(str(queues.SimpleQueue[int]), 'procession.queues.SimpleQueue[int]')
        for name in ('_reader', '_writer', '_poll', '_rlock', '_wlock'):
            self.assertIsNotNone(getattr(self.queue, name), name)

    def test_what_cannot_be_pickled_is_the_callers(self):
        with self.assertRaisesRegex(TypeError, 'stays here'):
            self.queue.put(Unpicklable())
        self.assertTrue(self.queue.empty())

    def test_closed(self):
        self.queue.put(1)
        copy = pickle.loads(pickle.dumps(self.queue))
        for _ in range(2):
            self.queue.close()
        for call in (self.queue.get, self.queue.empty, lambda: self.queue.put(2), self.queue._poll):
            with self.assertRaisesRegex(OSError, 'is closed'):
                call()
        self.assertTrue(self.queue._reader.closed and self.queue._writer.closed)
        self.assertEqual(copy.get(), 1)

    def test_dropped_ones_leave_nothing(self):
        before = _core.census()['objects']
        for _ in range(3):
            made = self.context.SimpleQueue(), self.context.JoinableQueue()
            made[0].put(made[1])
            made[1].put(made[0])
            del made
        self.assertLessEqual(_core.census()['objects'], before)


class SpawnSimpleTest(Simple, helpers.Case):
    method = 'spawn'


class ForkserverSimpleTest(Simple, helpers.Case):
    method = 'forkserver'


class EndsTest(helpers.Case):
    """`_reader` and `_writer`."""
    method = 'fork'

    def test_objects_and_pickles(self):
        queue = self.context.Queue()
        reader, writer = queue._reader, queue._writer
        self.assertEqual((reader.readable, reader.writable, writer.readable, writer.writable), (True, False, False, True))
        for item in [1, None, 'text', b'bytes', (1, 'a'), {1, 2}, [b'x' * 100_000], self.context.Lock()]:
            queue.put(item)
            self.assertIs(type(reader.recv()), type(item))
            queue.put(item)
            self.assertIs(type(pickle.loads(reader.recv_bytes())), type(item))
            writer.send(item)
            self.assertIs(type(queue.get()), type(item))
            writer.send_bytes(reduction.ForkingPickler.dumps(item))
            self.assertIs(type(queue.get()), type(item))
        writer.send_bytes(b'any bytes', 4)
        self.assertEqual(reader.recv_bytes(5), b'bytes')
        writer.send_bytes(bytearray(b'any bytes'), 0, 3)
        self.assertEqual(reader.recv_bytes(), b'any')
        for wrong in ((b'x', 2), (b'x', -1), (b'x', 0, -1), (b'x', 0, 2)):
            with self.assertRaises(ValueError):
                writer.send_bytes(*wrong)
        self.assertTrue(queue.empty())

    def test_poll(self):
        queue = self.context.Queue()
        begin = time.monotonic()
        self.assertFalse(queue._reader.poll())
        self.assertFalse(queue._reader.poll(0.1))
        self.assertGreaterEqual(time.monotonic() - begin, 0.1)
        child = self.start(time.sleep, 0.2)
        timer = threading.Timer(0.1, queue.put, (b'x' * 100_000,))
        timer.start()
        for _ in range(2):
            self.assertTrue(queue._reader.poll(None))
        self.assertEqual(len(queue.get()), 100_000)
        self.assertFalse(queue._reader.poll())
        timer.join()
        child.join()

    def test_closed_ends(self):
        queue = self.context.Queue()
        queue.put('x' * 10)
        with self.assertRaisesRegex(OSError, 'bad message length'):
            queue._reader.recv_bytes(3)
        self.assertTrue(queue._reader.closed)
        for call in (queue.get, queue.empty, queue._reader.recv, queue._reader.poll):
            with self.assertRaisesRegex(OSError, 'is closed'):
                call()
        queue.put('still open')
        queue._writer.close()
        with self.assertRaisesRegex(OSError, 'is closed'):
            queue.put('closed')

    def test_a_queue_that_was_used_is_closed_altogether(self):
        unused, used = self.context.Queue(), self.context.JoinableQueue()
        used.put(1)
        for queue in unused, used:
            queue.close()
            queue.join_thread()
        self.assertTrue(unused.empty())
        with self.assertRaisesRegex(OSError, 'is closed'):
            used.empty()
        self.assertTrue(used._reader.closed)


if __name__ == '__main__':
    unittest.main()
