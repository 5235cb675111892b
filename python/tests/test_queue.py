"""Queues: every message whose put returned is got exactly once, whoever dies meanwhile."""

import array
import collections
import copyreg
import gc
import itertools
import os
import pickle
import queue
import random
import signal
import textwrap
import threading
import time
import unittest
from multiprocessing import reduction as standard_reduction

import helpers
import procession
from helpers import alive, wait_until
from procession import _core, queues, reduction

#: Bytes that a queue may keep at hand for messages to come.
KEPT_MAX = 8 << 20

Point = collections.namedtuple('Point', 'x y')


class Bytes(bytes):
    pass


class Text(str):
    pass


class Number(int):
    pass


class Flag(Exception):
    pass


class Unpicklable:
    def __reduce__(self):
        raise TypeError('this one stays here')


class Interrupting:
    def __reduce__(self):
        raise KeyboardInterrupt


class Unloadable:
    def __reduce__(self):
        return fail, ()


def fail():
    raise Flag('while it is unpickled')


class Puts:
    """Puts into a queue while it's pickled."""

    def __init__(self, queue, depth):
        self.queue, self.depth = queue, depth

    def __reduce__(self):
        if self.depth:
            self.queue.put(Puts(self.queue, self.depth - 1))
        return Point, (self.depth, [self.depth] * 2)


class Gets:
    """Gets from a queue while it's unpickled."""

    def __init__(self, queue):
        self.queue = queue

    def __reduce__(self):
        return get_from, (self.queue,)


def get_from(queue):
    return ['got', queue.get()]


class Reduced:
    def __init__(self, value):
        self.value = value


def rebuild(value, by):
    return Reduced((value, by))


class Feeder(queues.Queue):
    """Notes what can't be pickled."""

    def __init__(self, maxsize=0, *, ctx):
        super().__init__(maxsize, ctx=ctx)
        self.failed = []

    def _on_queue_feeder_error(self, e, obj):
        self.failed.append((type(e), str(e), type(obj)))


class Doubling(queues.Queue):
    def put(self, obj, block=True, timeout=None):
        super().put(obj * 2, block, timeout)

    def get(self, block=True, timeout=None):
        return super().get(block, timeout) + 1


class Holder:
    def __init__(self, queue):
        self.queue = queue


def put_each(queue, items):
    for item in items:
        queue.put(item)


def put_numbers(queue, start, stop):
    for number in range(start, stop):
        queue.put(number)


def put_then_leave(queue, item):
    queue.put(item)
    os._exit(0)


def put_then_kill(queue, item):
    queue.put(item)
    os.kill(os.getpid(), signal.SIGKILL)


def get_some(queue, count):
    return [queue.get() for _ in range(count)]


def get_until_none(queue, answers):
    answers.put(list(iter(queue.get, None)))


def echo(to, back):
    for item in iter(to.get, None):
        back.put(item)


def describe(queue):
    return type(queue).__name__, queue.qsize(), queue._maxsize, queue.get()


def use_queue_inside(outer):
    inner = outer.get()
    inner.put(os.getpid())
    return outer.get().queue.get()


def get_and_log(queue, path):
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    while True:
        number, filling = queue.get()
        assert filling == bytes([number % 256]) * len(filling)
        os.write(log, number.to_bytes(8, 'little'))


def put_and_log(queue, path, which, sizes):
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in itertools.count():
        queue.put((which, number, bytes([number % 256]) * sizes[number % len(sizes)]))
        # It is stored: whatever happens to us now, it will be got.
        os.write(log, number.to_bytes(8, 'little'))


def read_log(path):
    with open(path, 'rb') as file:
        data = file.read()
    return [int.from_bytes(data[at:at + 8], 'little') for at in range(0, len(data), 8)]


def interrupt_when_told(reader, pid, number):
    reader.recv()
    # It is to be waiting by then; if it isn't, the test passes all the same.
    time.sleep(0.3)
    os.kill(pid, number)


class QueueCase(helpers.Case):
    def setUp(self):
        super().setUp()
        self.queue = self.context.Queue()


class Here(QueueCase):
    """What one process can see by itself."""
    method = 'fork'

    def same(self, value):
        self.queue.put(value)
        got = self.queue.get()
        self.assertIs(type(got), type(value))
        self.assertEqual(got, value)
        return got

    def test_values(self):
        shared = [1]
        values = [
            None, True, False, 0, -1, 2**63 - 1, -2**63, 2**63, 2**200, 1.5, float('inf'), -0.0, 1j, '', 'ä', 'x' * 5000,
            '\0', '\udcff', 'ä' * 5000, '\U0001f600' * 300, b'', b'x', (), (1,), (1, 'a', b'b', None, True, 1.5), [], [1, [2, [3, [4, [5, [6]]]]]],
            {}, {'a': 1, 2: (3,)}, {1, 2}, frozenset('ab'), bytearray(b'xyz'), bytearray(b'z' * 100_000), Exception, len,
            range(5), Point(1, 2), Bytes(b'own'), Text('own'), Number(3), array.array('d', [1, 2]), slice(1, 2), ...,
            collections.OrderedDict(b=1, a=2), collections.deque([1]), b'y' * 255, b'y' * 256, ('y' * 255, 'y' * 256),
            list(range(1000)), (shared, shared), 'x' * 4096, 'x' * 4097,
        ]
        for value in values:
            with self.subTest(value=repr(value)[:40]):
                self.same(value)
        self.assertEqual(str(self.same(-0.0)), '-0.0')
        nan = (self.queue.put(float('nan')), self.queue.get())[1]
        self.assertNotEqual(nan, nan)

    def test_short_strings_come_again_and_are_never_mixed_up(self):
        texts = ['a' * count for count in range(20)] + ['\0' * count for count in range(20)]
        texts += ['a\0', '\0a', '\1a', 'ab', 'ba', 'é', 'éé', 'ab\0\0', '☃' * 5, '☃' * 6]
        texts += [f'{number:x}' for number in range(300)]
        texts += ['b' * at + 'c' + 'b' * (length - at - 1) for length in range(18) for at in range(length)]
        for _ in range(2):
            for text in texts:
                self.queue.put((text, 1))
            self.assertEqual([self.queue.get() for _ in texts], [(text, 1) for text in texts])

    def test_what_is_one_object_stays_one(self):
        shared = [1]
        self.queue.put((shared, shared, {'a': shared}))
        first, second, third = self.queue.get()
        self.assertIs(first, second)
        self.assertIs(first, third['a'])
        text = 'a text that is not interned'[:20]
        self.queue.put([text, text])
        first, second = self.queue.get()
        self.assertIs(first, second)
        ring = []
        ring.append(ring)
        self.queue.put(ring)
        got = self.queue.get()
        self.assertIs(got, got[0])

    def test_an_object_is_pickled_when_it_is_put(self):
        item = [1]
        self.queue.put(item)
        item.append(2)
        self.assertEqual(self.queue.get(), [1])

    def test_bytes(self):
        pattern = random.Random(7).randbytes(1 << 16)
        for size in (0, 1, 7, 8, 9, 63, 64, 4095, 4096, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 20 << 20):
            value = (pattern * (size // len(pattern) + 1))[:size]
            with self.subTest(size=size):
                self.assertTrue((self.queue.put(value), self.queue.get())[1] == value)
                kept = Bytes(value)
                kept.note = 'and its attributes'
                self.queue.put(kept)
                got = self.queue.get()
                self.assertTrue(type(got) is Bytes and got == value and got.note == kept.note)

    def test_order(self):
        count = 3000
        for number in range(count):
            self.queue.put((number, b'x' * (number * 7 % 900)))
        self.assertEqual([self.queue.get()[0] for _ in range(count)], list(range(count)))
        # With a large one in between now and then.
        for number in range(200):
            self.queue.put((number, b'x' * (200_000 if number % 9 == 0 else 10)))
        self.assertEqual([self.queue.get()[0] for _ in range(200)], list(range(200)))

    def test_counts(self):
        self.assertEqual((self.queue.qsize(), self.queue.empty(), self.queue.full()), (0, True, False))
        self.queue.put(1)
        self.queue.put(2)
        self.assertEqual((self.queue.qsize(), self.queue.empty(), self.queue.full()), (2, False, False))
        self.queue.get()
        self.assertEqual(self.queue.qsize(), 1)
        self.assertEqual(self.queue._maxsize, 2**31 - 1)
        for unlimited in (0, -5):
            self.assertEqual(self.context.Queue(unlimited)._maxsize, 2**31 - 1)

    def test_maxsize(self):
        bounded = self.context.Queue(maxsize=3)
        self.assertEqual(bounded._maxsize, 3)
        for number in range(3):
            self.assertFalse(bounded.full())
            bounded.put(number, False)
        self.assertTrue(bounded.full())
        self.assertRaises(queue.Full, bounded.put, 3, False)
        self.assertRaises(queue.Full, bounded.put_nowait, 3)
        self.assertRaises(queue.Full, bounded.put, 3, timeout=0)
        self.assertRaises(queue.Full, bounded.put, 3, True, -1)
        self.assertRaises(queue.Full, bounded.put, 3, 0)
        self.assertRaises(queue.Full, bounded.put, 3, 1, 0)
        self.assertEqual(bounded.get(), 0)
        bounded.put(b'x' * (1 << 20))
        self.assertRaises(queue.Full, bounded.put, 4, block=False)
        self.assertEqual([bounded.get(), bounded.get(), len(bounded.get())], [1, 2, 1 << 20])
        self.assertTrue(bounded.empty())

    def test_waiting_is_never_too_short(self):
        bounded = self.context.Queue(1)
        bounded.put(1)
        for wait, error in ((lambda: self.queue.get(timeout=0.3), queue.Empty),
                            (lambda: self.queue.get(True, 0.3), queue.Empty),
                            (lambda: bounded.put(2, timeout=0.3), queue.Full)):
            begun = time.monotonic()
            self.assertRaises(error, wait)
            self.assertGreaterEqual(time.monotonic() - begun, 0.3)
        # Not blocking, a timeout means nothing; a negative one is none.
        for arguments in ((False,), (0,), (None,), ('',), (False, 3600), (True, 0), (1, 0), (True, -1), (True, -1e9)):
            self.assertRaises(queue.Empty, self.queue.get, *arguments)
        self.assertRaises(queue.Empty, self.queue.get_nowait)
        self.assertRaises(TypeError, self.queue.get, True, 'soon')

    def test_timeout_that_is_longer_than_time(self):
        for timeout in (1e9, 1e300, float('inf'), None):
            timer = threading.Timer(0.05, self.queue.put, (timeout,))
            timer.start()
            self.assertEqual(self.queue.get(timeout=timeout), timeout)
            timer.join()

    def test_closed(self):
        self.queue.put(1)
        self.assertRaises(AssertionError, self.queue.join_thread)
        self.queue.close()
        said = f'Queue {self.queue!r} is closed'
        for use in (lambda: self.queue.put(1), self.queue.get, self.queue.get_nowait,
                    lambda: self.queue.put_nowait(1), lambda: self.queue.get(timeout=1)):
            with self.assertRaises(ValueError) as caught:
                use()
            self.assertEqual(str(caught.exception), said)
        self.queue.close()
        self.queue.join_thread()
        self.queue.cancel_join_thread()

    def test_unpicklable(self):
        feeder = Feeder(2, ctx=self.context)
        for _ in range(10):
            feeder.put(Unpicklable())
            feeder.put((1, [Unpicklable()]), False)
        self.assertEqual(feeder.failed, [(TypeError, 'this one stays here', kind) for kind in (Unpicklable, tuple)] * 10)
        self.assertEqual((feeder.qsize(), feeder.empty()), (0, True))
        feeder.put(1, False)
        feeder.put(2, False)
        self.assertRaises(queue.Full, feeder.put, 3, False)
        self.assertEqual([feeder.get(), feeder.get()], [1, 2])
        # Even a full one only reports it.
        feeder.put(lambda: None)
        self.assertEqual(feeder.failed[-1][2], type(lambda: None))

    def test_unpicklable_by_default(self):
        done = self.script('''
            import procession
            queue = procession.Queue()
            queue.put(lambda: None)
            queue.put('after it')
            print(queue.get(), queue.empty())
            ''')
        self.assertEqual((done.returncode, done.stdout), (0, 'after it True\n'))
        self.assertRegex(done.stderr, r'(?m)^(_pickle.PicklingError|AttributeError): .*lambda')

    def test_ctrl_c_while_pickling_is_the_callers(self):
        feeder = Feeder(ctx=self.context)
        self.assertRaises(KeyboardInterrupt, feeder.put, Interrupting())
        self.assertEqual((feeder.failed, feeder.qsize()), ([], 0))

    def test_unloadable(self):
        self.queue.put(Unloadable())
        self.queue.put('next')
        with self.assertRaisesRegex(Flag, 'while it is unpickled'):
            self.queue.get()
        self.assertEqual(self.queue.get(), 'next')

    def test_subclass_that_overrides(self):
        doubling = Doubling(ctx=self.context)
        doubling.put(1)
        doubling.put_nowait(2)
        self.assertEqual([doubling.get(), doubling.get_nowait()], [3, 5])
        self.assertRaises(queue.Empty, doubling.get_nowait)

    def test_init_is_needed_and_once(self):
        class Lazy(queues.Queue):
            def __init__(self):
                pass
        lazy = Lazy()
        self.assertRaises(RuntimeError, lazy.put, 1)
        self.assertRaises(RuntimeError, lazy.get)
        self.assertRaises(RuntimeError, lazy.qsize)
        self.assertRaises(RuntimeError, self.queue.__init__, ctx=self.context)
        self.assertRaises(TypeError, self.context.Queue, 'many')
        self.assertRaises(TypeError, queues.Queue)

    def test_reentrant(self):
        self.queue.put(Puts(self.queue, 5))
        self.assertEqual(get_some(self.queue, 6), [Point(depth, [depth] * 2) for depth in range(6)])
        other = self.context.Queue()
        other.put('the other')
        self.queue.put(Gets(other))
        self.queue.put([Gets(other), 2])
        other.put(b'x' * 100_000)
        self.assertEqual(self.queue.get(), ['got', 'the other'])
        self.assertEqual(self.queue.get(), [['got', b'x' * 100_000], 2])

    def test_reducers(self):
        def try_with(register, by):
            class Own(Reduced):
                pass
            register(Own, lambda obj: (rebuild, (obj.value, by)))
            for item, value in ((Own(1), lambda got: got.value), ([Own(1)], lambda got: got[0].value)):
                self.queue.put(item)
                self.assertEqual(value(self.queue.get()), (1, by))
            return Own
        for register, by in ((reduction.register, 'ours'), (reduction.ForkingPickler.register, 'pickler'),
                             (standard_reduction.ForkingPickler.register, 'standard'), (copyreg.pickle, 'copyreg')):
            with self.subTest(by=by):
                # After a pickler is in use too: what it knows is looked up each time.
                try_with(register, by)
        kind = try_with(copyreg.pickle, 'copyreg')
        standard_reduction.ForkingPickler.register(kind, lambda obj: (rebuild, (obj.value, 'standard')))
        self.queue.put(kind(1))
        self.assertEqual(self.queue.get().value, (1, 'standard'))
        reduction.register(kind, lambda obj: (rebuild, (obj.value, 'ours')))
        self.queue.put(kind(1))
        self.assertEqual(self.queue.get().value, (1, 'ours'))

    def test_a_pickle_of_a_queue(self):
        """It isn't for a child: the queue lives on without a holder until it is opened."""
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            made = Feeder(4, ctx=self.context)
            made.put('inside')
            text = pickle.dumps(made, protocol)
            del made
            gc.collect()
            got = pickle.loads(text)
            self.assertEqual((type(got), got.get(), got._maxsize), (Feeder, 'inside', 4))
            # What a subclass has besides it says itself, as with the standard's.
            self.assertFalse(hasattr(got, 'failed'))

    def test_threads_share(self):
        count, bounded = 3000, self.context.Queue(10)
        got = [[] for _ in range(3)]

        def take(into):
            into.extend(iter(bounded.get, None))

        takers = [threading.Thread(target=take, args=(into,)) for into in got]
        putters = [threading.Thread(target=put_numbers, args=(bounded, start * count, (start + 1) * count))
                   for start in range(3)]
        for thread in takers + putters:
            thread.start()
        for thread in putters:
            thread.join()
        for _ in takers:
            bounded.put(None)
        for thread in takers:
            thread.join()
        self.assertEqual(sorted(itertools.chain(*got)), list(range(3 * count)))
        for taken in got:
            for start in range(3):
                mine = [number for number in taken if number // count == start]
                self.assertEqual(mine, sorted(mine))

    def test_a_queue_costs_no_descriptor(self):
        made = [self.context.Queue()]
        before = helpers.descriptors()
        for _ in range(200):
            made.append(self.context.Queue())
            made[-1].put(b'x' * 100)
        self.assertEqual(helpers.descriptors(), before)

    def test_a_thousand_queues_under_a_small_limit(self):
        done = self.script('''
            import procession, resource, sys
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
            queues = [procession.Queue() for _ in range(1000)]
            for number, queue in enumerate(queues):
                queue.put(number)
            assert [queue.get() for queue in queues] == list(range(1000))
            print('good')
            ''')
        self.assertEqual((done.stdout, done.stderr), ('good\n', ''))

    def test_dropped_queues_leave_nothing(self):
        gc.collect()
        before = _core.census()
        for number in range(300):
            dropped = self.context.Queue(number % 3)
            dropped.put(b'x' * number * 50)
        del dropped
        gc.collect()
        now = _core.census()
        self.assertEqual(now['objects'], before['objects'])
        self.assertLessEqual(now['owned_bytes'], before['owned_bytes'])
        self.assertLessEqual(now['allocated_bytes'] - before['allocated_bytes'], KEPT_MAX)


class Signals(QueueCase):
    """Waits of the main thread, and what signals do to them."""
    method = 'fork'

    def setUp(self):
        super().setUp()
        self.full = self.context.Queue(1)
        self.full.put('full')
        self.waits = [self.queue.get, lambda: self.full.put(1), lambda: self.queue.get(timeout=3600),
                      lambda: self.full.put(1, timeout=3600)]

    def handle(self, number, handler):
        self.addCleanup(signal.signal, number, signal.signal(number, handler))

    def test_ctrl_c_gets_out(self):
        self.handle(signal.SIGINT, signal.default_int_handler)
        for wait in self.waits:
            with self.assertRaises(KeyboardInterrupt):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                wait()
        self.works()

    def test_ctrl_c_from_another_process_gets_out(self):
        self.handle(signal.SIGINT, signal.default_int_handler)
        for wait in self.waits:
            reader, writer = self.context.Pipe(False)
            with reader, writer:
                self.start(interrupt_when_told, reader, os.getpid(), signal.SIGINT)
                with self.assertRaises(KeyboardInterrupt):
                    writer.send(None)
                    wait()
        self.works()

    def works(self):
        self.assertEqual((self.queue.qsize(), self.full.qsize()), (0, 1))
        self.queue.put('still works')
        self.assertEqual((self.queue.get(), self.full.get()), ('still works', 'full'))

    def test_handlers_run_and_the_wait_goes_on(self):
        for wait, error in ((lambda: self.queue.get(timeout=0.4), queue.Empty),
                            (lambda: self.full.put(1, timeout=0.4), queue.Full)):
            heard = []
            self.handle(signal.SIGALRM, lambda *_: heard.append(0))
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            begun = time.monotonic()
            try:
                self.assertRaises(error, wait)
                self.assertGreaterEqual(time.monotonic() - begun, 0.4)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self.assertGreaterEqual(len(heard), 2)

    def test_a_handlers_own_exception_gets_out(self):
        def raise_flag(*_):
            raise Flag
        self.handle(signal.SIGALRM, raise_flag)
        for wait in self.waits:
            with self.assertRaises(Flag):
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                wait()
        self.works()

    def test_a_handler_may_use_the_queue(self):
        self.handle(signal.SIGALRM, lambda *_: self.queue.put('from the handler'))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        self.assertEqual(self.queue.get(), 'from the handler')
        self.handle(signal.SIGALRM, lambda *_: self.full.get())
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        self.full.put('next')
        self.assertEqual(self.full.get(), 'next')

    def test_a_handler_that_uses_the_queue_at_any_instant(self):
        heard = itertools.count()
        self.handle(signal.SIGALRM, lambda *_: self.queue.put(('handler', next(heard))))
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            for number in range(20_000):
                self.queue.put(('main', number))
                if number % 3 == 0:
                    self.queue.qsize()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        got = get_some(self.queue, self.queue.qsize())
        self.assertEqual([number for who, number in got if who == 'main'], list(range(20_000)))
        # A handler may interrupt a handler that has its number, and hasn't put it yet.
        numbers = sorted(number for who, number in got if who == 'handler')
        self.assertEqual(numbers, list(range(next(heard))))


class Between:
    """What other processes do to a queue."""
    kills = 0

    def test_both_ways(self):
        back = self.context.Queue()
        child = self.start(echo, self.queue, back)
        items = [1, 'text', b'', b'x' * 65536, b'y' * (1 << 20), b'z' * (20 << 20), ['list'], {'a': (1, 2)}, 2**99,
                 Bytes(b'own'), Text('own'), Point(1, 2), 1.5, 'ä' * 3000]
        for item in items:
            self.queue.put(item)
            got = back.get()
            self.assertTrue(got == item and type(got) is type(item), repr(item)[:40])
        self.queue.put(None)
        child.join()
        self.assertEqual(child.exitcode, 0)

    def test_wakes_who_waits(self):
        bounded, back = self.context.Queue(1), self.context.Queue()
        child = self.start(echo, bounded, back)
        for number in range(300):
            bounded.put(number)
            if number % 3 == 0:
                bounded.put(-number)
                self.assertEqual((back.get(), back.get()), (number, -number))
            else:
                self.assertEqual(back.get(), number)
        bounded.put(None)
        child.join()

    def test_a_child_gets_it_as_it_is(self):
        made = Feeder(5, ctx=self.context)
        made.put('one')
        made.failed = ['state']
        self.assertEqual(self.ask(describe, made), ('Feeder', 1, 5, 'one'))
        self.assertEqual(self.ask(describe, self.same_put('two')), ('Queue', 1, 2**31 - 1, 'two'))

    def same_put(self, item):
        self.queue.put(item)
        return self.queue

    def test_a_queue_in_a_queue(self):
        inner, outer = self.context.Queue(), self.context.Queue()
        outer.put(inner)
        held = self.context.Queue()
        held.put('as an attribute')
        outer.put(Holder(held))
        # It has no other holder while it is on its way.
        del held
        gc.collect()
        reader, writer = self.context.Pipe(False)
        with reader:
            child = self.start(helpers.answer, writer, use_queue_inside, (outer,))
            writer.close()
            self.assertEqual(reader.recv(), 'as an attribute')
            self.assertEqual(inner.get(), child.pid)
            child.join()

    def test_a_queue_made_by_a_child(self):
        made = self.ask(make_and_put)
        self.assertEqual(made.get(), 'by a child that is gone')

    def test_many_of_both(self):
        producers = consumers = 3
        count = 4000 if self.method == 'fork' else 2000
        for maxsize in (0, 7):
            shared, answers = self.context.Queue(maxsize), self.context.Queue()
            getting = [self.start(get_until_none, shared, answers) for _ in range(consumers)]
            putting = [self.start(put_numbers, shared, which * count, (which + 1) * count)
                       for which in range(producers)]
            for child in putting:
                child.join()
                self.assertEqual(child.exitcode, 0)
            for _ in getting:
                shared.put(None)
            got = [answers.get() for _ in getting]
            for child in getting:
                child.join()
            self.assertEqual(sorted(itertools.chain(*got)), list(range(producers * count)))
            for taken in got:
                for which in range(producers):
                    mine = [number for number in taken if number // count == which]
                    self.assertEqual(mine, sorted(mine))

    def test_join_before_get(self):
        child = self.start(fill, self.queue)
        child.join()
        self.assertEqual(child.exitcode, 0)
        self.assertEqual(sum(map(len, get_some(self.queue, 1001))), (10 << 20) + 1_000_000)
        self.assertTrue(self.queue.empty())

    def test_put_then_die(self):
        for end, code in ((put_then_leave, 0), (put_then_kill, -signal.SIGKILL)):
            children = [self.start(end, self.queue, (number, b'x' * 3000 * number)) for number in range(self.kills)]
            for child in children:
                child.join()
                self.assertEqual(child.exitcode, code)
            got = sorted(get_some(self.queue, self.kills))
            self.assertEqual(got, [(number, b'x' * 3000 * number) for number in range(self.kills)])
        self.assertEqual(self.queue._lost, 0)

    def test_killed_getters(self):
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        path = self.folder() / 'log'
        path.touch()
        number = 0
        with self.subTest(seed=seed):
            for _ in range(self.kills):
                child = self.start(get_and_log, self.queue, path)
                wait_until(lambda: self.queue.empty() or not alive(child.pid))
                end = time.monotonic() + chance.random() * 0.02
                while time.monotonic() < end:
                    self.queue.put((number, bytes([number % 256]) * chance.choice([0, 10, 500, 5000, 200_000])))
                    number += 1
                child.kill()
                child.join()
                self.assertEqual(child.exitcode, -signal.SIGKILL)
            logged = read_log(path)
            rest = [item for item, _ in get_some(self.queue, self.queue.qsize())]
            self.assertEqual(len(set(logged)), len(logged))
            self.assertEqual(set(logged) & set(rest), set())
            self.assertEqual(rest, sorted(rest))
            missing = number - len(logged) - len(rest)
            # One a kill at most: it was taken and not yet noted.
            self.assertTrue(0 <= self.queue._lost <= missing <= self.kills, (self.queue._lost, missing))
            self.queue.put('still works')
            self.assertEqual(self.ask(get_some, self.queue, 1), ['still works'])

    def test_killed_while_it_waits_to_get(self):
        for _ in range(3):
            child = self.start(get_some, self.queue, 1)
            time.sleep(0.2)
            child.kill()
            child.join()
        self.queue.put('hello')
        self.assertEqual(self.ask(get_some, self.queue, 1), ['hello'])
        self.assertEqual(self.queue._lost, 0)

    def test_killed_while_it_waits_to_put(self):
        bounded = self.context.Queue(1)
        bounded.put('first')
        for _ in range(3):
            child = self.start(put_each, bounded, ['never'])
            time.sleep(0.2)
            child.kill()
            child.join()
        self.assertEqual(bounded.get(), 'first')
        self.ask(put_each, bounded, ['second'])
        self.assertEqual(bounded.get(), 'second')
        self.assertTrue(bounded.empty())

    def test_killed_putters(self):
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        with self.subTest(seed=seed):
            for which in range(self.kills):
                path = self.folder() / 'log'
                path.touch()
                sizes = chance.choices([0, 10, 500, 5000, 200_000], k=5)
                child = self.start(put_and_log, self.queue, path, which, sizes)
                first = self.queue.get()
                time.sleep(chance.random() * 0.01)
                child.kill()
                child.join()
                self.assertEqual(child.exitcode, -signal.SIGKILL)
                got = [first, *get_some(self.queue, self.queue.qsize())]
                self.assertRaises(queue.Empty, self.queue.get, False)
                self.assertEqual([item[:2] for item in got], [(which, number) for number in range(len(got))])
                for _, number, filling in got:
                    self.assertTrue(filling == bytes([number % 256]) * sizes[number % 5])
                stored = read_log(path)
                # The last one may be stored and not yet noted.
                self.assertIn(len(got) - len(stored), (0, 1))
        self.ask(put_each, self.queue, ['still works'])
        self.assertEqual(self.queue.get(), 'still works')

    def test_closed_there_is_open_here(self):
        self.ask(put_and_close, self.queue)
        self.assertEqual(self.queue.get(), 'one')
        self.queue.put('two')
        self.assertEqual(self.queue.get(), 'two')

    def test_memory_of_a_long_stream(self):
        bounded = self.context.Queue(1000)
        before = _core.census()['allocated_bytes']
        count = 100_000
        child = self.start(put_numbers, bounded, 0, count)
        for number in range(count):
            if bounded.get() != number:
                self.fail(number)
        child.join()
        child.close()
        self.assertLessEqual(_core.census()['allocated_bytes'] - before, KEPT_MAX)


def fill(queue):
    queue.put(b'x' * (10 << 20))
    for _ in range(1000):
        queue.put(b'y' * 1000)


def put_and_close(queue):
    queue.put('one')
    queue.close()


def make_and_put():
    made = procession.Queue()
    made.put('by a child that is gone')
    return made


class ForkBetweenTest(Between, QueueCase):
    method = 'fork'
    kills = 30


class SpawnBetweenTest(Between, QueueCase):
    method = 'spawn'
    kills = 8


class ForkServerBetweenTest(Between, QueueCase):
    method = 'forkserver'
    kills = 8


class MemoryTest(helpers.Case):
    """Each in a process of its own: an arena keeps some memory for what is to come."""
    method = 'fork'

    def program(self, source):
        done = self.script(f'''
import procession
from procession import _core
KEPT_MAX = {KEPT_MAX}
queue = procession.Queue()
before = _core.census()['allocated_bytes']
def grown():
    return _core.census()['allocated_bytes'] - before
''' + textwrap.dedent(source) + "\nprint('good')\n")
        self.assertEqual((done.stdout, done.stderr), ('good\n', ''))

    def test_a_million_messages(self):
        self.program('''
            for batch in range(1000):
                for number in range(1000):
                    queue.put((batch, number))
                for number in range(1000):
                    assert queue.get() == (batch, number)
            assert grown() <= KEPT_MAX, grown()
            ''')

    def test_large_messages(self):
        self.program('''
            for size in (5000, 64 << 10, 1 << 20, 3 << 20):
                block = b'x' * size
                for _ in range((256 << 20) // size // 8):
                    for _ in range(4):
                        queue.put(block)
                    for _ in range(4):
                        assert queue.get() == block
                assert grown() <= 4 * size + KEPT_MAX, (size, grown())
            ''')

    def test_a_flood_leaves_what_was_in_flight_at_most(self):
        for count, length in ((200_000, 100), (50_000, 1000), (500, 100_000)):
            with self.subTest(length=length):
                self.program(f'''
                    filling = b'x' * {length}
                    # From one flood to the next no more either.
                    for _ in range(4):
                        for _ in range({count}):
                            queue.put(filling)
                        in_flight = procession._core.census()['linked_bytes']
                        assert in_flight >= {count * length}, in_flight
                        full = grown()
                        assert full <= in_flight + KEPT_MAX, (full, in_flight)
                        for _ in range({count}):
                            queue.get()
                        assert grown() <= full, (grown(), full)
                    ''')

    def test_a_flood_of_large_ones_is_given_back(self):
        self.program('''
            block = b'x' * (2 << 20)
            for _ in range(100):
                queue.put(block)
            assert grown() >= 100 * len(block)
            for _ in range(100):
                queue.get()
            # The engine keeps 64 MiB for what is to come.
            assert grown() <= (64 << 20) + KEPT_MAX, grown()
            ''')


if __name__ == '__main__':
    unittest.main()
