"""Pools: every task is answered once, whoever dies meanwhile."""

import contextlib
import ctypes
import faulthandler
import functools
import gc
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import unittest
import warnings

import procession
from procession import pool as pools

#: Seconds after which a test that hangs shows its stacks. No test asserts that something is quick.
WATCHDOG = 120


def square(x):
    return x * x


def add(a, b=0):
    return a + b


def same(x):
    return x


def pid(_=None):
    return os.getpid()


def slow_square(x):
    time.sleep(0.01)
    return x * x


def note_work_in(cell):
    global at_work
    at_work = cell


def noted_slow_square(x):
    at_work.value = os.getpid()
    return slow_square(x)


def raise_value_error(x):
    raise ValueError(x)


def raise_odd(x):
    if x % 2:
        raise ValueError(x)
    return x


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f'{a} {b}')


def raise_two_arguments(x):
    raise TwoArguments(1, x)


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError('this exception stays here')


def raise_unpicklable(x):
    raise Unpicklable(x)


def return_lambda(x):
    return lambda: x


def kill_self(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(status):
    os._exit(status)


def system_exit(status):
    sys.exit(status)


def segfault(_):
    faulthandler.disable()
    ctypes.string_at(0)


def kill_if_three(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def sleep_for(seconds):
    time.sleep(seconds)
    return seconds


def touch(path):
    with open(path, 'ab', 0) as file:
        file.write(b'x')


def fail_to_start(path):
    touch(path)
    raise RuntimeError('no database')


STATE = None


def remember(value):
    global STATE
    STATE = value


def recall(_):
    return STATE


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Counter:
    """Its state travels with each task: no task sees what another did to its copy."""

    def __init__(self):
        self.count = 0

    def __call__(self, x):
        self.count += 1
        return self.count

    def method(self, x):
        self.count += 1
        return self.count


class AsksWhileUnpickled:
    """Asks a pool of the process that unpickles it, if that has one."""
    pool = None

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self.pool is not None:
            self.value = self.pool.apply(square, (self.value,))


class AsksWhilePickled:
    def __init__(self, pool):
        self.pool = pool

    def __reduce__(self):
        return int, (self.pool.apply(square, (6,)),)


class Lying:
    """Has another length than it says."""

    def __init__(self, said, items):
        self.said, self.items = said, items

    def __len__(self):
        return self.said

    def __iter__(self):
        return iter(self.items)


def failing(count):
    for i in range(count):
        yield i
    raise KeyError('the input ends here')


def alive(process_id):
    try:
        with open(f'/proc/{process_id}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] not in 'ZX'
    except OSError:
        return False


def wait_until(condition):
    """Waits for as long as it takes; the watchdog ends what never comes."""
    while not condition():
        time.sleep(0.01)


def setUpModule():
    faulthandler.dump_traceback_later(WATCHDOG * 10, exit=True)


def tearDownModule():
    faulthandler.cancel_dump_traceback_later()


class PoolCase(unittest.TestCase):
    method = 'fork'

    def setUp(self):
        faulthandler.dump_traceback_later(WATCHDOG, exit=True)

    def make(self, processes=2, **kwargs):
        context = procession.get_context(self.method)
        pool = pools.Pool(processes, context=context, **kwargs)
        self.addCleanup(self.end, pool)
        return pool

    def end(self, pool):
        pool.terminate()
        pool.join()
        self.assertEqual([p.pid for p in pool._pool if p.is_alive()], [])

    def works(self, pool):
        self.assertEqual(pool.map(square, range(20), 1), [x * x for x in range(20)])


class Calls:
    def test_apply(self):
        pool = self.make()
        self.assertEqual(pool.apply(square, (5,)), 25)
        self.assertEqual(pool.apply(add, (5,), {'b': 6}), 11)
        self.assertEqual(pool.apply(add, [5, 6]), 11)
        self.assertEqual(pool.apply(add, kwds={'a': 1}), 1)
        self.assertEqual(pool.apply(pow, (2, 10)), 1024)
        self.assertEqual(pool.apply(functools.partial(add, b=3), (4,)), 7)

    def test_values_keep_type_and_value(self):
        values = [None, True, False, 0, -1, 2**63 - 1, -2**63, 2**63, 1.5, float('inf'), b'', b'x' * 100_000, '', 'ä',
                  (), (1,), [1, [2]], {'a': {1, 2}}, Exception, square, b'y' * (3 << 20), 'z' * 70_000]
        pool = self.make()
        for value, result in zip(values, pool.map(same, values, 1)):
            self.assertEqual(result, value)
            self.assertIs(type(result), type(value))
        for value in values:
            self.assertEqual(pool.apply(same, (value,)), value)

    def test_map(self):
        pool = self.make()
        for size in (None, 1, 3, 100):
            self.assertEqual(pool.map(square, range(25), size), [x * x for x in range(25)])
        self.assertEqual(pool.map(square, (x for x in range(3))), [0, 1, 4])
        self.assertEqual(pool.map(square, []), [])
        self.assertEqual(pool.map_async(square, [], chunksize=1).get(), [])
        self.assertEqual(pool.starmap(add, zip(range(9), range(9))), [2 * x for x in range(9)])
        self.assertEqual(pool.starmap_async(add, [(1,), (2, 3)]).get(), [1, 5])

    def test_map_of_what_has_another_length(self):
        pool = self.make()
        for said in (1, 3, 7):
            result = pool.map(square, Lying(said, [1, 2, 3]), 1)
            self.assertEqual(result, [1, 4, 9], said)

    def test_many_tasks(self):
        pool = self.make()
        count = 30_000
        expected = [x * x for x in range(count)]
        self.assertEqual(list(pool.imap(square, range(count))), expected)
        self.assertEqual(sorted(pool.imap_unordered(square, range(count))), expected)
        self.assertEqual(pool.map(square, range(count), 1), expected)
        pending = [pool.apply_async(square, (x,)) for x in range(count)]
        self.assertEqual([result.get() for result in pending], expected)

    def test_large_tasks(self):
        pool = self.make()
        blobs = [bytes([n]) * (1 << 20) for n in range(40)]
        self.assertEqual(list(pool.imap(same, blobs)), blobs)

    def test_imap(self):
        pool = self.make()
        for ask in (pool.imap, pool.imap_unordered):
            for size in (1, 3, 50):
                items = [list(range(30)), range(30), iter(range(30)), (x for x in range(30))]
                for iterable in items:
                    self.assertEqual(sorted(ask(square, iterable, size)), [x * x for x in range(30)])
            with self.assertRaises(ValueError):
                ask(square, [1], 0)
            with self.assertRaises(TypeError):
                ask(square, 1)
        self.assertEqual(list(pool.imap(square, range(30), 7)), [x * x for x in range(30)])
        results = pool.imap(square, [3])
        self.assertEqual((results.next(timeout=60), results._index, results._length), (9, 1, 1))
        self.assertRaises(StopIteration, results.next)
        self.assertRaises(StopIteration, results.next, timeout=1)

    def test_imap_of_an_input_that_waits_for_results(self):
        pool = self.make()
        results = queue.Queue()

        def numbers():
            yield 1
            for _ in range(20):
                yield results.get() + 1

        answers = []
        for answer in pool.imap(same, numbers()):
            answers.append(answer)
            results.put(answer)
        self.assertEqual(answers, list(range(1, 22)))

    def test_imap_of_a_failing_input(self):
        pool = self.make()
        for size, whole in ((1, 7), (3, 6)):
            got = []
            with self.assertRaises(KeyError) as caught:
                for result in pool.imap(same, failing(7), size):
                    got.append(result)
            self.assertEqual(got, list(range(whole)))
            self.assertIsNone(caught.exception.__cause__)
            with self.assertRaises(KeyError):
                for _ in range(99):
                    next(unordered := pool.imap_unordered(same, failing(0), size))
            self.assertEqual(list(unordered), [])
        with self.assertRaises(KeyError):
            pool.map(same, failing(3))
        with self.assertRaises(KeyError):
            pool.map(same, Lying(9, failing(3)), 1)
        self.works(pool)

    def test_imap_that_nobody_reads_is_done_nevertheless(self):
        pool = self.make()
        with open(os.path.join(self.folder(), 'count'), 'wb') as file:
            pass
        pool.imap(touch, [file.name] * 50)
        pool.imap_unordered(touch, (name for name in [file.name] * 50))
        pool.close()
        pool.join()
        self.assertEqual(os.path.getsize(file.name), 100)

    def folder(self):
        import tempfile
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return folder.name

    def test_function_state_is_a_copy_a_task(self):
        pool = self.make(1)
        counter = Counter()
        self.assertEqual(pool.map(counter, range(5), 1), [1] * 5)
        self.assertEqual(list(pool.imap(counter.method, range(5))), [1] * 5)
        self.assertEqual([pool.apply(counter, (0,)) for _ in range(3)], [1] * 3)
        self.assertEqual(counter.count, 0)

    def test_many_threads_ask(self):
        pool = self.make()
        wrong = []

        def ask(number):
            for x in range(50):
                if pool.apply(add, (number, x)) != number + x:
                    wrong.append((number, x))
            if pool.map(square, range(number + 5), 2) != [x * x for x in range(number + 5)]:
                wrong.append(number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_user_code_that_asks_while_it_is_pickled(self):
        pool = self.make()
        self.assertEqual(pool.apply(same, (AsksWhilePickled(pool),)), 36)
        AsksWhileUnpickled.pool = pool
        self.addCleanup(setattr, AsksWhileUnpickled, 'pool', None)
        with self.subTest('unpickled here'):
            self.assertEqual(pool.apply(AsksWhileUnpickled, (7,)).value, 49)

    def test_initializer(self):
        pool = self.make(initializer=remember, initargs=('it',))
        self.assertEqual(set(pool.map(recall, range(10))), {'it'})
        with self.assertRaises(TypeError):
            self.make(initializer=3)

    def test_bad_numbers(self):
        for processes in (0, -1):
            with self.assertRaises(ValueError):
                pools.Pool(processes)
        for most in (0, -1, 0.5, '12'):
            with self.assertRaises(ValueError):
                pools.Pool(1, maxtasksperchild=most)


class Results:
    def test_result(self):
        pool = self.make()
        result = pool.apply_async(sleep_for, (0.3,))
        self.assertFalse(result.ready())
        self.assertRaises(ValueError, result.successful)
        self.assertRaises(procession.TimeoutError, result.get, timeout=0.01)
        self.assertIs(result.wait(0.01), None)
        self.assertIn(result._job, pool._cache)
        self.assertIs(result._pool, pool)
        result.wait()
        self.assertTrue(result.ready() and result.successful() and result._success)
        self.assertEqual((result.get(), result.get(0), result._value), (0.3, 0.3, 0.3))
        self.assertNotIn(result._job, pool._cache)
        self.assertIsNone(result._pool)
        result.note = 'results take attributes'

    def test_ready_comes_without_waiting(self):
        pool = self.make()
        result = pool.apply_async(square, (3,))
        wait_until(result.ready)
        self.assertEqual(result.get(), 9)

    def test_failure(self):
        pool = self.make()
        result = pool.apply_async(raise_value_error, (5,))
        with self.assertRaises(ValueError) as caught:
            result.get()
        self.assertEqual(caught.exception.args, (5,))
        self.assertIs(type(caught.exception.__cause__), pools.RemoteTraceback)
        self.assertIn('raise ValueError(x)', str(caught.exception.__cause__))
        self.assertFalse(result.successful())

    def test_map_fails_when_all_chunks_have_ended(self):
        pool = self.make()
        result = pool.map_async(raise_odd, range(10), 1)
        with self.assertRaises(ValueError):
            result.get()
        self.assertEqual(result._number_left, 0)
        results = pool.imap(raise_odd, range(4))
        self.assertEqual(next(results), 0)
        self.assertRaises(ValueError, next, results)
        self.assertEqual(next(results), 2)

    def test_callbacks(self):
        pool = self.make()
        called = []

        def note(value):
            called.append((value, threading.current_thread() is threading.main_thread()))

        pool.apply_async(square, (3,), callback=note).wait()
        pool.map_async(square, [1, 2], callback=note).wait()
        failed = pool.apply_async(raise_value_error, (1,), callback=note, error_callback=note)
        self.assertRaises(ValueError, failed.get)
        self.assertEqual([value for value, _ in called[:2]], [9, [1, 4]])
        self.assertIs(type(called[2][0]), ValueError)
        self.assertFalse(any(main for _, main in called))

    def test_callback_without_a_waiter(self):
        pool = self.make()
        done = threading.Event()
        pool.apply_async(square, (3,), callback=lambda value: done.set())
        done.wait()
        done.clear()
        time.sleep(0.3)
        pool.apply_async(square, (lambda: 1,), error_callback=lambda value: done.set())
        done.wait()

    def test_callbacks_run_one_at_a_time_and_all(self):
        pool = self.make()
        running, most, called = 0, 0, []

        def note(value):
            nonlocal running, most
            running += 1
            most = max(most, running)
            time.sleep(0.0001)
            called.append(value)
            running -= 1

        for x in range(300):
            pool.apply_async(square, (x,), callback=note)
        self.works(pool)
        pool.close()
        pool.join()
        self.assertEqual(most, 1)
        self.assertEqual(sorted(called), [x * x for x in range(300)])

    def test_callback_that_raises_is_the_result(self):
        pool = self.make()
        result = pool.apply_async(square, (3,), callback=lambda value: 1 / 0)
        self.assertRaises(ZeroDivisionError, result.get)
        self.works(pool)

    def test_callback_that_asks_the_pool(self):
        pool = self.make()
        answers = []
        result = pool.apply_async(square, (3,), callback=lambda value: answers.append(pool.apply(square, (value,))))
        result.wait()
        self.assertEqual(answers, [81])

    def test_unpicklable(self):
        pool = self.make()
        with self.assertRaises(Exception) as caught:
            pool.apply_async(same, (lambda: 1,)).get()
        self.assertNotIsInstance(caught.exception, procession.TimeoutError)
        with self.assertRaises(Exception):
            pool.map(same, [1, lambda: 1, 2], 1)
        results = pool.imap(same, [1, lambda: 1, 2])
        self.assertEqual(next(results), 1)
        self.assertRaises(Exception, next, results)
        self.assertEqual(next(results), 2)
        with self.assertRaises(pools.MaybeEncodingError) as caught:
            pool.apply(return_lambda, (1,))
        self.assertIn('lambda', caught.exception.value)
        with self.assertRaises(pools.MaybeEncodingError) as caught:
            pool.apply(raise_unpicklable, (1,))
        self.assertIn('raise Unpicklable', str(caught.exception.__cause__))
        with self.assertRaises(pools.MaybeEncodingError) as caught:
            pool.apply(raise_two_arguments, (1,))
        self.assertIn('TwoArguments', str(caught.exception))
        self.assertIn('raise TwoArguments', str(caught.exception.__cause__))
        self.works(pool)


class Deaths:
    def test_task_that_dies(self):
        pool = self.make()
        cases = [(kill_self, signal.SIGKILL, 'SIGKILL', -9), (kill_self, signal.SIGTERM, 'SIGTERM', -15),
                 (leave, 3, 'status 3', 3), (leave, 0, 'status 0', 0), (system_exit, 5, 'status 5', 5),
                 (segfault, None, 'SIGSEGV', -11)]
        for function, argument, text, code in cases:
            with self.assertRaises(procession.ProcessError, msg=text) as caught:
                pool.apply_async(function, (argument,)).get()
            self.assertIn(text, str(caught.exception))
            self.assertEqual(caught.exception.exitcode, code)
        self.works(pool)
        self.assertEqual(len(pool._pool), 2)

    def test_a_death_costs_one_task(self):
        pool = self.make()
        results = [pool.apply_async(kill_if_three, (x,)) for x in range(50)]
        for x, result in enumerate(results):
            if x == 3:
                self.assertRaises(procession.ProcessError, result.get)
            else:
                self.assertEqual(result.get(), x)
        got, lost = [], 0
        stream = pool.imap(kill_if_three, range(20))
        for _ in range(20):
            try:
                got.append(next(stream))
            except procession.ProcessError:
                lost += 1
        self.assertEqual((got, lost), ([x for x in range(20) if x != 3], 1))
        with self.assertRaises(procession.ProcessError):
            pool.map(kill_if_three, range(20), 1)

    def test_every_task_kills_its_worker(self):
        pool = self.make()
        results = [pool.apply_async(leave, (7,)) for _ in range(30)]
        for result in results:
            self.assertRaises(procession.ProcessError, result.get)
        self.works(pool)

    def test_workers_killed_from_outside(self):
        pool = self.make(3)
        for round_ in range(4):
            self.works(pool)
            for process in list(pool._pool):
                # By its pidfd: what a fork server has waited for is gone, id and all.
                process.kill()
            if round_ % 2:
                time.sleep(0.1)
        self.works(pool)

    def test_workers_killed_at_work(self):
        at_work = procession.get_context(self.method).Value('i', lock=False)
        pool = self.make(3, initializer=note_work_in, initargs=(at_work,))
        stop = threading.Event()

        def kill():
            # Only one that has begun: a pool whose workers die as they start is broken.
            while not stop.wait(0.05):
                for process in list(pool._pool):
                    if process.pid == at_work.value:
                        with contextlib.suppress(OSError):
                            os.kill(process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            results = [pool.apply_async(noted_slow_square, (x,)) for x in range(200)]
            lost = 0
            for x, result in enumerate(results):
                try:
                    self.assertEqual(result.get(), x * x)
                except procession.ProcessError:
                    lost += 1
        finally:
            stop.set()
            killer.join()
        self.assertLess(lost, 200)
        self.works(pool)

    def test_a_callback_hears_of_a_death(self):
        pool = self.make()
        heard = queue.Queue()
        pool.apply_async(leave, (3,), error_callback=heard.put)
        self.assertIn('status 3', str(heard.get()))

    def test_initializer_that_fails(self):
        import tempfile
        with tempfile.NamedTemporaryFile() as count:
            with self.quiet():
                pool = self.make(initializer=fail_to_start, initargs=(count.name,))
                with self.assertRaises(procession.ProcessError) as caught:
                    pool.map(square, range(4))
            self.assertLessEqual(os.path.getsize(count.name), 20)
            self.assertIn('no database', str(caught.exception.__cause__))
            self.assertRaises(procession.ProcessError, pool.apply, square, (1,))
            self.assertRaises(procession.ProcessError, pool.map, square, [1])
            self.assertRaises(procession.ProcessError, pool.imap, square, [1])

    @contextlib.contextmanager
    def quiet(self):
        """The workers' tracebacks go nowhere."""
        sys.stderr.flush()
        kept = os.dup(2)
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

    def test_max_tasks(self):
        pool = self.make(maxtasksperchild=3)
        before = {process.pid for process in pool._pool}
        pids = pool.map(pid, range(40), 1)
        for process_id in set(pids):
            self.assertLessEqual(pids.count(process_id), 3)
        pool._repopulate_pool()
        self.assertGreaterEqual(len(pool._pool), 2)
        self.assertTrue(before.isdisjoint(process.pid for process in pool._pool))
        results = [pool.apply_async(slow_square, (x,)) for x in range(20)]
        pool.close()
        pool.join()
        self.assertEqual([result.get() for result in results], [x * x for x in range(20)])


class Ends:
    def test_close_and_join(self):
        pool = self.make()
        self.assertRaises(ValueError, pool.join)
        results = pool.map_async(slow_square, range(20), 1)
        pool.close()
        pool.close()
        for ask in (pool.apply, pool.apply_async):
            self.assertRaises(ValueError, ask, square, (1,))
        for ask in (pool.map, pool.map_async, pool.imap, pool.imap_unordered, pool.starmap):
            self.assertRaises(ValueError, ask, square, [1])
        pool.join()
        pool.join()
        self.assertEqual(results.get(), [x * x for x in range(20)])
        self.assertEqual([process.exitcode for process in pool._pool], [0] * len(pool._pool))
        self.assertRaises(ValueError, pool.__enter__)

    def test_terminate_answers_everything(self):
        pool = self.make()
        running = [pool.apply_async(sleep_for, (600,)) for _ in range(5)]
        mapped = pool.map_async(sleep_for, [600] * 9000, 1)
        stream = pool.imap(sleep_for, (600 for _ in range(9000)))
        waiting = threading.Thread(target=lambda: self.assertRaises(procession.ProcessError, running[0].get))
        waiting.start()
        time.sleep(0.2)
        pool.terminate()
        pool.terminate()
        pool.join()
        waiting.join()
        for result in (*running, mapped):
            self.assertRaises(procession.ProcessError, result.get)
        self.assertRaises(procession.ProcessError, next, stream)

    def test_terminate_races(self):
        for i in range(20):
            pool = self.make()
            result = pool.map_async(slow_square, range(100), 1)
            time.sleep((i % 5) * 0.004)
            if i % 2:
                pool.close()
            pool.terminate()
            pool.join()
            self.assertTrue(result.ready())

    def test_terminate_in_a_callback(self):
        pool = self.make()
        done = threading.Event()

        def end(value):
            pool.terminate()
            done.set()

        pool.map_async(sleep_for, [600] * 100, 1)
        pool.apply_async(square, (lambda: 1,), error_callback=end)
        done.wait()
        pool.join()

    def test_terminate_a_worker_that_wont_end(self):
        grace, pools._GRACE = pools._GRACE, 0.2
        self.addCleanup(setattr, pools, '_GRACE', grace)
        pool = self.make(initializer=ignore_sigterm)
        result = pool.apply_async(sleep_for, (600,))
        self.works(pool)
        os.kill(pool._pool[1].pid, signal.SIGSTOP)
        pool.terminate()
        pool.join()
        self.assertRaises(procession.ProcessError, result.get)

    def test_context_manager(self):
        with self.make() as pool:
            result = pool.map_async(slow_square, range(5))
            self.assertEqual(result.get(), [0, 1, 4, 9, 16])
        self.assertRaises(ValueError, pool.apply, square, (1,))

    def test_a_pool_that_is_dropped_ends_its_workers(self):
        context = procession.get_context(self.method)
        pool = pools.Pool(2, context=context)
        self.works(pool)
        pool.apply_async(square, (3,)).get()
        pids = [process.pid for process in pool._pool]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            pool = None
            gc.collect()
        self.assertIn('unclosed running multiprocessing pool', str(caught[0].message))
        del caught  # It holds the pool: a ResourceWarning names its source.
        gc.collect()
        self.assertEqual([process_id for process_id in pids if alive(process_id)], [])

    def test_a_pool_with_work_lives_until_it_is_done(self):
        context = procession.get_context(self.method)
        done = queue.Queue()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ResourceWarning)
            pools.Pool(1, context=context).apply_async(slow_square, (3,), callback=done.put)
            self.assertEqual(done.get(), 9)
            gc.collect()

    def test_names_that_users_look_at(self):
        pool = self.make(2)
        self.assertEqual((pool._processes, len(pool._pool), pool._state), (2, 2, 'RUN'))
        self.assertIn('state=RUN pool_size=2', repr(pool))
        self.assertEqual(pool._taskqueue.qsize(), 0)
        self.assertIn('PoolWorker', pool._pool[0].name)
        self.assertTrue(pool._pool[0].daemon)
        result = pool.map_async(sleep_for, [0.05] * 4, 1)
        self.assertEqual((result._chunksize, result._number_left > 0), (1, True))
        self.assertFalse(result._event.is_set())
        result.wait()
        self.assertEqual((result._number_left, len(pool._cache)), (0, 0))
        with self.assertRaises(NotImplementedError):
            pool.__reduce__()


class ForkTests(Calls, Results, Deaths, Ends, PoolCase):
    method = 'fork'

    def test_a_forked_childs_copy_is_not_its_own(self):
        pool = self.make()
        self.works(pool)
        child = os.fork()
        if child == 0:
            try:
                pool.apply(square, (1,))
            except RuntimeError:
                pool = None
                gc.collect()
                os._exit(17)
            os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 17)
        self.works(pool)


class SpawnTests(Calls, Results, Deaths, Ends, PoolCase):
    method = 'spawn'


class ForkServerTests(Calls, Results, Deaths, Ends, PoolCase):
    method = 'forkserver'


class ProgramTests(unittest.TestCase):
    """Whole programs: Ctrl-C, and ends that nobody prepared."""

    def setUp(self):
        faulthandler.dump_traceback_later(WATCHDOG, exit=True)

    def start(self, text):
        text = 'import os, signal, sys, time, threading\nfrom procession.pool import Pool\n' + textwrap.dedent(text)
        return subprocess.Popen([sys.executable, '-c', text], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, start_new_session=True, env={**os.environ, 'PYTHONPATH': ':'.join(sys.path)})

    def test_ctrl_c(self):
        program = self.start('''
            signal.signal(signal.SIGINT, signal.default_int_handler)
            from procession import get_context
            try:
                with Pool(4, context=get_context('fork')) as pool:
                    pool.apply(int)
                    print(*[p.pid for p in pool._pool], flush=True)
                    pool.map(time.sleep, [600, 600], 1)
            except KeyboardInterrupt:
                sys.exit(7)
        ''')
        pids = [int(word) for word in program.stdout.readline().split()]
        time.sleep(0.3)
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate()
        self.assertEqual((program.returncode, errors), (7, ''))
        self.assertEqual([process_id for process_id in pids if alive(process_id)], [])

    def test_every_wait_can_be_interrupted(self):
        for wait in ('pool.apply(time.sleep, (600,))', 'pool.apply_async(time.sleep, (600,)).get()',
                     'next(pool.imap(time.sleep, [600]))', 'pool.apply_async(time.sleep, (600,)).wait()',
                     'pool.apply_async(time.sleep, (600,), callback=print).get()',
                     'pool.apply_async(time.sleep, (600,)); pool.close(); pool.join()'):
            program = self.start(f'''
                signal.signal(signal.SIGINT, signal.default_int_handler)
                from procession import get_context
                pool = Pool(1, context=get_context('fork'))
                pool.apply(int)
                print('up', flush=True)
                try:
                    {wait}
                except KeyboardInterrupt:
                    pool.terminate()
                    sys.exit(7)
            ''')
            program.stdout.readline()
            time.sleep(0.2)
            os.kill(program.pid, signal.SIGINT)
            _, errors = program.communicate()
            self.assertEqual((wait, program.returncode, errors), (wait, 7, ''))

    def test_a_program_that_forgets_its_pool(self):
        program = self.start('''
            from procession import get_context
            pool = Pool(2, context=get_context('fork'))
            results = [pool.apply_async(time.sleep, (600,), callback=print) for _ in range(4)]
            threading.Thread(target=results[0].get, daemon=True).start()
            pool.imap(str, iter(int, 1))
            time.sleep(0.2)
            print(*[p.pid for p in pool._pool], flush=True)
        ''')
        output, errors = program.communicate()
        pids = [int(word) for word in output.split()]
        wait_until(lambda: not any(map(alive, pids)))
        self.assertEqual((program.returncode, len(pids)), (0, 2))


if __name__ == '__main__':
    unittest.main()
