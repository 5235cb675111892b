"""JoinableQueue, SimpleQueue, and the two ends of a queue."""

import array
import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing.connection
import os
import pickle
import select
import selectors
import signal
import threading
import time
import unittest
import warnings

import helpers
import procession
from helpers import wait_until
from procession import _core, connection, queues, reduction


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
    """What it keeps besides goes along as it pickles it, and what it doesn't pickle stays here, as of the standard's."""

    def __init__(self, text, *, ctx):
        super().__init__(2, ctx=ctx)
        self.text = text
        self.lock = threading.Lock()

    def __getstate__(self):
        return super().__getstate__(), self.text

    def __setstate__(self, state):
        of_the_queue, self.text = state
        super().__setstate__(of_the_queue)


class Silent(queues.Queue):
    def __init__(self, *, ctx):
        super().__init__(ctx=ctx)
        self.lock = threading.Lock()


class Fed(queues.Queue):
    """As loky's: it has a feeder thread of its own, which pickles in a way of its own."""

    def __init__(self, times, *, ctx):
        super().__init__(ctx=ctx)
        self.times = times

    def __getstate__(self):
        return super().__getstate__(), self.times

    def __setstate__(self, state):
        of_the_queue, self.times = state
        super().__setstate__(of_the_queue)

    def _start_thread(self):
        self._buffer.clear()
        self._thread = threading.Thread(target=self._feed_it, daemon=True)
        self._thread.start()

    def _feed_it(self):
        while True:
            with self._notempty:
                while not self._buffer:
                    self._notempty.wait()
            if (obj := self._buffer.popleft()) is queues._sentinel:
                return
            with self._wlock:
                self._send_bytes(pickle.dumps([obj] * self.times))


class OfEnds(queues.SimpleQueue):
    """As loky's: its state are the two ends and two locks that the standard's has."""

    def __getstate__(self):
        return self._reader, self._writer, self._rlock, self._wlock

    def __setstate__(self, state):
        self._reader, self._writer, self._rlock, self._wlock = state


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

    def test_what_a_subclass_does_not_pickle_stays(self):
        made = Silent(ctx=self.context)
        made.put('here')
        through = self.context.Queue()
        through.put(made)
        got = through.get()
        self.assertEqual((type(got), got.get(), vars(got)), (Silent, 'here', {}))

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


    def test_a_subclass_of_a_subclass_is_a_class(self):
        class Later(Silent):
            def _start_thread(self):
                raise AssertionError('there is no such thread')

        made = Later(ctx=self.context)
        made.put('at once')
        self.assertEqual(made.get(), 'at once')
        self.assertIsInstance(made, queues.Queue)

    def test_subclasses_that_replace_parts(self):
        there, back = Fed(2, ctx=self.context), OfEnds(ctx=self.context)
        child = self.start(echo, there, back)
        there.put('a')
        self.assertEqual(back.get(), ['a', 'a'])
        there.put(b'x' * 100_000)
        self.assertEqual(back.get(), [b'x' * 100_000] * 2)
        child.kill()


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

    def test_what_is_looked_at_inside(self):
        queue, bounded = self.context.JoinableQueue(), self.context.JoinableQueue(3)
        for number in range(2):
            queue.put(number)
            bounded.put(number)
        self.assertEqual((bounded._sem.get_value(), bounded._unfinished_tasks.get_value()), (1, 2))
        self.assertEqual(queue._sem.get_value(), 2 ** 31 - 3)
        self.assertEqual((len(queue._buffer), queue._thread, queue._ignore_epipe), (0, None, False))
        self.assertTrue(queue._poll())
        self.assertEqual(pickle.loads(queue._recv_bytes()), 0)
        queue._send_bytes(pickle.dumps('sent'))
        self.assertEqual((queue.get(), queue.get()), (1, 'sent'))
        queue._ignore_epipe = True

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


def put_later(queue, object):
    time.sleep(0.05)
    queue.put(object)


def get_one(queue):
    queue.get()


def watch_and_stay(queue, told):
    """Has descriptors, and keeps them."""
    number = queue._reader.fileno(), queue._writer.fileno()
    told.put(number)
    time.sleep(600)


def wait_and_get(queue, back):
    back.put('ready')
    ready = connection.wait([queue._reader])
    back.put((ready == [queue._reader], queue.get()))


class Descriptors:
    """`fileno()` of the two ends: readable while there is an object, writable while there is room."""

    def queues(self):
        context = self.context
        return [context.Queue(), context.Queue(2), context.SimpleQueue(), context.JoinableQueue(), context.JoinableQueue(2)]

    def test_readable_while_there_is_an_object(self):
        for queue in self.queues():
            with self.subTest(type(queue).__name__):
                reader = queue._reader
                self.assertIs(queue._reader, reader)
                waits = {
                    'select': lambda: bool(select.select([reader], [], [], 0)[0]),
                    'poll': lambda: bool(polling(select.poll(), reader).poll(0)),
                    'epoll': lambda: bool(polling(select.epoll(), reader).poll(0)),
                    'wait': lambda: connection.wait([reader], 0) == [reader],
                    'stdlib': lambda: multiprocessing.connection.wait([reader], 0) == [reader],
                }
                for name, is_ready in waits.items():
                    with self.subTest(name):
                        self.assertFalse(is_ready())
                        queue.put('one')
                        self.assertTrue(is_ready())
                        queue.put('two')
                        queue.get()
                        self.assertTrue(is_ready())
                        reader.recv()
                        self.assertFalse(is_ready())

    def test_writable_while_there_is_room(self):
        for queue in self.queues():
            writer, room = queue._writer, getattr(queue, '_maxsize', 2 ** 31 - 1)
            is_ready = lambda: bool(select.select([], [writer], [], 0)[1])
            self.assertTrue(is_ready())
            for _ in range(2):
                queue.put('object')
            self.assertEqual(is_ready(), room > 2)
            queue.get()
            self.assertTrue(is_ready())

    def test_it_wakes_who_waits(self):
        for queue in self.queues():
            child = self.start(put_later, queue, 'an object')
            self.assertEqual(connection.wait([queue._reader]), [queue._reader])
            self.assertEqual(queue.get(), 'an object')
            child.join()
            # Another process takes what is there: before long it isn't readable any more.
            descriptor = queue._reader.fileno()
            queue.put('another')
            child = self.start(get_one, queue)
            child.join()
            wait_until(lambda: not select.select([descriptor], [], [], 0)[0])

    def test_a_child_waits(self):
        for queue in self.queues():
            back = self.context.Queue()
            child = self.start(wait_and_get, queue, back)
            self.assertEqual(back.get(), 'ready')
            queue.put('object')
            self.assertEqual(back.get(), (True, 'object'))
            child.join()

    def test_who_watches_is_killed(self):
        queue, told = self.context.Queue(1), self.context.Queue()
        reader, writer = queue._reader.fileno(), queue._writer.fileno()
        for _ in range(3):
            child = self.start(watch_and_stay, queue, told)
            told.get()
            child.kill()
            child.join()
            child = self.start(put_later, queue, 'object')
            self.assertEqual(select.select([reader], [], []), ([reader], [], []))
            child.join()
            wait_until(lambda: not select.select([], [writer], [], 0)[1])
            child = self.start(get_one, queue)
            self.assertEqual(select.select([], [writer], []), ([], [writer], []))
            child.join()

    def test_an_executor_of_the_standard_library(self):
        # Its manager thread waits for a simple queue beside sentinels.
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=self.context) as executor:
            self.assertEqual(list(executor.map(abs, range(-20, 0))), list(range(20, 0, -1)))

    def test_asyncio(self):
        queue, back = self.context.Queue(), []

        async def receive():
            loop, ended = asyncio.get_running_loop(), asyncio.Event()

            def take():
                back.append(queue.get(False))
                if len(back) == 40:
                    ended.set()

            loop.add_reader(queue._reader, take)
            children = [self.start(put_many, queue, 20) for _ in range(2)]
            await ended.wait()
            self.assertTrue(loop.remove_reader(queue._reader))
            return children

        for child in asyncio.run(receive()):
            child.join()
        self.assertEqual(sorted(back), sorted([*range(20)] * 2))


def put_many(queue, count):
    for number in range(count):
        queue.put(number)
        if number % 5 == 0:
            time.sleep(0.002)


def polling(poller, end):
    poller.register(end, select.POLLIN)
    return poller


class ForkDescriptorTest(Descriptors, helpers.Case):
    method = 'fork'

    def test_none_before_somebody_asks_and_none_after(self):
        wait_until(lambda: helpers.threads('queue-watch') == 0)
        before = len(helpers.descriptors())
        queues = [self.context.Queue() for _ in range(20)]
        for queue in queues:
            queue.put(1)
            self.assertTrue(queue._reader.poll())
        self.assertEqual(len(helpers.descriptors()), before)
        numbers = {end.fileno() for queue in queues for end in (queue._reader, queue._writer)}
        self.assertEqual(len(numbers), 40)
        self.assertEqual(len(helpers.descriptors()), before + 40)
        # A thread names itself once it runs.
        wait_until(lambda: helpers.threads('queue-watch') > 0)
        self.assertEqual({end.fileno() for queue in queues for end in (queue._reader, queue._writer)}, numbers)
        self.assertEqual(helpers.threads('queue-watch'), 1)
        del queue, queues
        gc.collect()
        wait_until(lambda: helpers.threads('queue-watch') == 0)
        self.assertEqual(len(helpers.descriptors()), before)

    def test_closed_while_it_is_watched(self):
        queue = self.context.Queue()
        queue.put('object')
        reader, writer = queue._reader, queue._writer
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            selector.register(writer, selectors.EVENT_WRITE)
            self.assertEqual(len(selector.select(0)), 2)
            queue.close()
            for end in reader, writer:
                with self.assertRaisesRegex(OSError, 'is closed'):
                    end.fileno()
        del queue, reader, writer
        queue = self.context.Queue()
        self.assertEqual(connection.wait([queue._reader], 0), [])

    def test_forked_while_it_watches(self):
        queue, back = self.context.Queue(), self.context.Queue()
        descriptor = queue._reader.fileno()
        pid = os.fork()
        if pid == 0:
            try:
                with contextlib.suppress(OSError):
                    os.fstat(descriptor)
                    back.put('the parent\'s descriptor is open')
                wait_and_get(queue, back)
            finally:
                os._exit(0)
        self.assertEqual(back.get(), 'ready')
        queue.put('object')
        self.assertEqual(back.get(), (True, 'object'))
        os.waitpid(pid, 0)
        wait_until(lambda: not select.select([descriptor], [], [], 0)[0])
        queue.put('object')
        self.assertEqual(select.select([descriptor], [], [])[0], [descriptor])

    def test_signals_go_to_the_main_thread(self):
        queue, heard = self.context.Queue(), []
        queue._reader.fileno()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))

        def handler(number, frame):
            heard.append(number)
            queue.put('from the handler')

        with helpers.handling(signal.SIGUSR1, handler):
            timer.start()
            self.assertEqual(connection.wait([queue._reader]), [queue._reader])
        self.assertEqual(heard, [signal.SIGUSR1])
        timer.join()

    def test_received_into_a_buffer(self):
        queue = self.context.Queue()
        reader, writer = queue._reader, queue._writer
        room = bytearray(b'.' * 8)
        writer.send_bytes(b'bytes')
        self.assertEqual(reader.recv_bytes_into(room, 2), 5)
        self.assertEqual(room, b'..bytes.')
        numbers = array.array('i', [0] * 4)
        writer.send_bytes(array.array('i', [7, 8]))
        self.assertEqual(reader.recv_bytes_into(numbers, 8), 8)
        self.assertEqual(numbers.tolist(), [0, 0, 7, 8])
        for wrong in (-1, 9):
            with self.assertRaisesRegex(ValueError, 'offset'):
                reader.recv_bytes_into(room, wrong)
        writer.send_bytes(b'x')
        with self.assertRaises(TypeError):
            reader.recv_bytes_into(b'not to be written')
        self.assertEqual(reader.recv_bytes(), b'x')
        writer.send_bytes(b'longer than that')
        with self.assertRaises(procession.BufferTooShort) as caught:
            reader.recv_bytes_into(room)
        self.assertEqual(caught.exception.args, (b'longer than that',))
        writer.send_bytes(b'x' * 100_000)
        room = bytearray(100_000)
        self.assertEqual(reader.recv_bytes_into(room), 100_000)
        self.assertEqual(room, b'x' * 100_000)


class SpawnDescriptorTest(Descriptors, helpers.Case):
    method = 'spawn'


class ForkserverDescriptorTest(Descriptors, helpers.Case):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
