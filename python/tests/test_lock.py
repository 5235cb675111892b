"""Locks: one holder at a time, and a dead holder never blocks the living."""

import gc
import os
import pickle
import signal
import sys
import threading
import time
import unittest
import warnings

import helpers
import procession
from helpers import wait_until
from procession import _core, synchronize


class Flag(Exception):
    pass


class Named(synchronize.Lock):
    """A lock with a name."""

    def __init__(self, name, *, ctx):
        super().__init__(ctx=ctx)
        self.name = name

    def acquire(self, block=True, timeout=None):
        self.calls = getattr(self, 'calls', 0) + 1
        return super().acquire(block, timeout)


def state(lock):
    return lock.locked(), lock.acquire(False)


def release(lock):
    lock.release()


def acquire(lock):
    return lock.acquire()


def acquire_and_die(lock, told):
    lock.acquire()
    told.put('held')
    os.kill(os.getpid(), signal.SIGKILL)


def hold(lock, told, reader):
    lock.acquire()
    told.put('held')
    reader.recv()
    lock.release()


def wait_for_lock(lock, told):
    told.put('waiting')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        got = lock.acquire()
    told.put((got, [(warning.category, str(warning.message)) for warning in said]))


def hold_for_ever(lock, told):
    lock.acquire()
    told.put('held')
    time.sleep(3600)


def get_and_use(queue):
    lock = queue.get()
    return lock.locked(), lock.acquire(False), lock.release()


def count_up(lock, path, times):
    for _ in range(times):
        with lock:
            with open(path, 'r+') as file:
                number = int(file.read())
                file.seek(0)
                file.write(str(number + 1))


def use_named(lock):
    with lock:
        return type(lock).__name__, lock.locked()


class LockCase(helpers.Case):
    def setUp(self):
        super().setUp()
        self.lock = self.context.Lock()


class Here(LockCase):
    method = 'fork'

    def test_acquire_and_release(self):
        self.assertIs(self.lock.acquire(), True)
        self.assertTrue(self.lock.locked())
        self.assertIs(self.lock.acquire(False), False)
        self.assertIs(self.lock.acquire(block=False), False)
        # Anything is true or false, as it is for the standard's.
        for block in (0, None, '', []):
            self.assertIs(self.lock.acquire(block), False)
        self.assertIsNone(self.lock.release())
        self.assertFalse(self.lock.locked())
        for arguments in ((), (True,), (False,), (True, 1), (True, None), (False, 1), (True, -1), (1, 0), (0,), (None,), ('yes', 1)):
            self.assertIs(self.lock.acquire(*arguments), True, arguments)
            self.assertIsNone(self.lock.release())
        for named in ({'block': True}, {'block': False}, {'timeout': 1}, {'block': True, 'timeout': 0.5}):
            self.assertIs(self.lock.acquire(**named), True, named)
            self.lock.release()
        self.assertIs(self.lock.acquire(True, timeout=1), True)

    def test_bad_arguments(self):
        for arguments, named in (((1, 2, 3), {}), ((), {'blocking': True}), ((True, 'soon'), {}),
                                 ((True,), {'block': True})):
            self.lock.acquire()
            self.assertRaises(TypeError, self.lock.acquire, *arguments, **named)
            self.lock.release()
        self.assertRaises(TypeError, self.lock.release, 1)
        self.assertRaises(TypeError, synchronize.Lock, 3)

    def test_release_of_a_free_one(self):
        for _ in range(2):
            with self.assertRaisesRegex(ValueError, 'semaphore or lock released too many times'):
                self.lock.release()
        with self.lock:
            pass
        self.assertRaises(ValueError, self.lock.release)
        self.assertTrue(self.lock.acquire(False))

    def test_context_manager(self):
        with self.lock as entered:
            self.assertIs(entered, True)
            self.assertTrue(self.lock.locked())
        self.assertFalse(self.lock.locked())
        with self.assertRaises(Flag):
            with self.lock:
                raise Flag
        self.assertFalse(self.lock.locked())

    def test_timeouts_are_never_early(self):
        self.lock.acquire()
        begun = time.monotonic()
        self.assertIs(self.lock.acquire(timeout=0.3), False)
        self.assertGreaterEqual(time.monotonic() - begun, 0.3)
        for arguments in ((True, 0), (True, -1), (True, -1e300), (False, 3600)):
            self.assertIs(self.lock.acquire(*arguments), False)
        for timeout in (None, 1e9, 1e300, float('inf')):
            timer = threading.Timer(0.05, self.lock.release)
            timer.start()
            self.assertIs(self.lock.acquire(True, timeout), True)
            timer.join()

    def test_another_thread_releases(self):
        self.lock.acquire()
        thread = threading.Thread(target=self.lock.release)
        thread.start()
        thread.join()
        self.assertTrue(self.lock.acquire(False))

    def test_threads_exclude_each_other(self):
        inside, most, done = [0], [0], []

        def work():
            for _ in range(300):
                with self.lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    if len(done) % 7 == 0:
                        time.sleep(0)
                    inside[0] -= 1
                    done.append(0)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((most, len(done)), ([1], 1200))

    def test_names(self):
        self.assertIs(type(self.lock), synchronize.Lock)
        self.assertEqual(synchronize.Lock.__module__, 'procession.synchronize')
        self.assertEqual(synchronize.Lock.__qualname__, 'Lock')
        self.assertIsInstance(procession.Lock(), synchronize.Lock)
        self.assertEqual(synchronize.Lock.acquire.__name__, 'acquire')
        self.assertIn('Takes it', synchronize.Lock.acquire.__doc__)

    def test_subclass(self):
        named = Named('n', ctx=self.context)
        self.assertTrue(named.acquire())
        self.assertEqual((named.name, named.calls, named.locked()), ('n', 1, True))
        named.release()

        class Lazy(synchronize.Lock):
            def __init__(self):
                pass
        lazy = Lazy()
        for use in (lazy.acquire, lazy.release, lazy.locked):
            self.assertRaises(RuntimeError, use)
        self.assertRaises(RuntimeError, self.lock.__init__, ctx=self.context)

    def test_a_pickle_is_the_same_lock(self):
        text = pickle.dumps(self.lock)
        other = pickle.loads(text)
        with self.lock:
            self.assertFalse(other.acquire(False))
        self.assertTrue(other.acquire(False))
        self.assertTrue(self.lock.locked())

    def test_nothing_is_left(self):
        gc.collect()
        fds, objects = helpers.descriptors(), _core.census()['objects']
        made = [self.context.Lock() for _ in range(500)]
        self.assertEqual(helpers.descriptors(), fds)
        self.assertEqual(_core.census()['objects'], objects + 500)
        made[7].acquire()
        del made
        gc.collect()
        self.assertEqual(_core.census()['objects'], objects)

    def handle(self, number, handler):
        self.addCleanup(signal.signal, number, signal.signal(number, handler))

    def test_ctrl_c_gets_out(self):
        self.handle(signal.SIGINT, signal.default_int_handler)
        self.lock.acquire()
        for wait in (self.lock.acquire, lambda: self.lock.acquire(timeout=3600), self.lock.__enter__):
            with self.assertRaises(KeyboardInterrupt):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                wait()
        self.lock.release()
        self.assertTrue(self.lock.acquire(False))

    def test_handlers_run_and_the_wait_goes_on(self):
        heard = []
        self.handle(signal.SIGALRM, lambda *_: heard.append(0))
        self.lock.acquire()
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        begun = time.monotonic()
        self.assertFalse(self.lock.acquire(timeout=0.4))
        self.assertGreaterEqual(time.monotonic() - begun, 0.4)
        self.assertGreaterEqual(len(heard), 2)

    def test_a_signal_at_any_instant_of_a_wait(self):
        """Around the instants at which the waiter is awake to look at the holder, every 50 ms."""
        self.handle(signal.SIGALRM, lambda *_: self.lock.release())
        for microseconds in range(-300, 400, 20):
            self.assertTrue(self.lock.acquire())
            signal.setitimer(signal.ITIMER_REAL, 0.1002 + microseconds / 1e6)
            self.assertTrue(self.lock.acquire(timeout=3600))
            self.lock.release()

    def test_a_handler_that_releases(self):
        self.handle(signal.SIGALRM, lambda *_: self.lock.release())
        self.lock.acquire()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        self.assertTrue(self.lock.acquire())


class Between:
    def setUp(self):
        super().setUp()
        self.told = self.context.Queue()

    def killed_while_holding(self):
        child = self.start(acquire_and_die, self.lock, self.told)
        self.assertEqual(self.told.get(), 'held')
        child.join()
        self.assertEqual(child.exitcode, -signal.SIGKILL)

    def test_a_child_sees_its_state(self):
        self.assertEqual(self.ask(state, self.lock), (False, True))
        # It exited normally: the lock is still held, as the standard's is.
        self.assertEqual(self.ask(state, self.lock), (True, False))

    def test_exclusion(self):
        path = self.folder() / 'number'
        path.write_text('0')
        times = 1000 if self.method == 'fork' else 400
        children = [self.start(count_up, self.lock, path, times) for _ in range(3)]
        count_up(self.lock, path, times)
        for child in children:
            child.join()
            self.assertEqual(child.exitcode, 0)
        self.assertEqual(path.read_text(), str(4 * times))

    def test_another_process_releases(self):
        self.lock.acquire()
        self.ask(release, self.lock)
        self.assertFalse(self.lock.locked())
        self.assertTrue(self.lock.acquire(False))
        # While somebody waits for it.
        child = self.start(wait_for_lock, self.lock, self.told)
        self.assertEqual(self.told.get(), 'waiting')
        time.sleep(0.1)
        self.lock.release()
        self.assertEqual(self.told.get(), (True, []))
        child.join()

    def test_a_holder_that_exits_leaves_it_held(self):
        self.assertTrue(self.ask(acquire, self.lock))
        self.assertTrue(self.lock.locked())
        self.assertFalse(self.lock.acquire(timeout=0.2))
        self.lock.release()
        self.assertTrue(self.lock.acquire(False))

    def test_a_killed_holder(self):
        for arguments in ((), (False,), (True, 5)):
            self.killed_while_holding()
            with self.assertWarnsRegex(RuntimeWarning, 'died holding it') as caught:
                self.assertTrue(self.lock.acquire(*arguments))
            self.assertEqual(caught.filename, __file__)
            # Now it's an ordinary lock again.
            self.assertFalse(self.lock.acquire(False))
            self.lock.release()
            with warnings.catch_warnings():
                warnings.simplefilter('error')
                with self.lock:
                    pass
        self.killed_while_holding()
        with self.assertWarns(RuntimeWarning):
            with self.lock:
                pass

    def test_a_killed_holder_when_warnings_are_errors(self):
        self.killed_while_holding()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            with self.assertRaises(RuntimeWarning):
                self.lock.acquire()
            # It was told, and has the lock not: the next one gets a free lock.
            self.assertFalse(self.lock.locked())
            self.assertTrue(self.lock.acquire(False))

    def test_killed_while_another_waits(self):
        holder = self.start(hold_for_ever, self.lock, self.told)
        self.assertEqual(self.told.get(), 'held')
        waiter = self.start(wait_for_lock, self.lock, self.told)
        self.assertEqual(self.told.get(), 'waiting')
        time.sleep(0.2)
        holder.kill()
        got, said = self.told.get()
        self.assertTrue(got)
        self.assertEqual([category for category, _ in said], [RuntimeWarning])
        waiter.join()
        holder.join()

    def test_a_killed_waiter_takes_nothing_along(self):
        self.lock.acquire()
        for _ in range(3):
            waiter = self.start(wait_for_lock, self.lock, self.told)
            self.assertEqual(self.told.get(), 'waiting')
            time.sleep(0.1)
            waiter.kill()
            waiter.join()
        self.lock.release()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            self.assertTrue(self.lock.acquire(False))

    def test_a_stopped_holder_is_not_dead(self):
        reader, writer = self.context.Pipe(False)
        with reader, writer:
            child = self.start(hold, self.lock, self.told, reader)
            self.assertEqual(self.told.get(), 'held')
            os.kill(child.pid, signal.SIGSTOP)
            try:
                wait_until(lambda: helpers.process_state(child.pid) == 'T')
                self.assertFalse(self.lock.acquire(False))
                begun = time.monotonic()
                self.assertFalse(self.lock.acquire(timeout=0.4))
                self.assertGreaterEqual(time.monotonic() - begun, 0.4)
                writer.send(None)
                self.assertFalse(self.lock.acquire(timeout=0.1))
            finally:
                os.kill(child.pid, signal.SIGCONT)
            with warnings.catch_warnings():
                warnings.simplefilter('error')
                self.assertTrue(self.lock.acquire())
            child.join()

    def test_through_a_queue(self):
        queue = self.context.Queue()
        self.lock.acquire()
        queue.put(self.lock)
        reader, writer = self.context.Pipe(False)
        self.assertEqual(self.ask(held_by_another, queue), (True, False))
        self.lock.release()
        queue.put(self.lock)
        self.assertEqual(self.ask(get_and_use, queue), (False, True, None))
        # Nobody holds it but the message.
        queue.put(self.context.Lock())
        gc.collect()
        self.assertEqual(self.ask(get_and_use, queue), (False, True, None))

    def test_subclass_in_a_child(self):
        self.assertEqual(self.ask(use_named, Named('n', ctx=self.context)), ('Named', True))

    def test_many_are_killed(self):
        for _ in range(10 if self.method == 'fork' else 4):
            children = [self.start(count_for_ever, self.lock) for _ in range(3)]
            time.sleep(0.05)
            for child in children:
                child.kill()
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                self.assertTrue(self.lock.acquire())
            self.lock.release()
            for child in children:
                child.join()


def held_by_another(queue):
    lock = queue.get()
    return lock.locked(), lock.acquire(False)


def count_for_ever(lock):
    warnings.simplefilter('ignore')
    while True:
        with lock:
            pass


class ForkBetweenTest(Between, LockCase):
    method = 'fork'


class SpawnBetweenTest(Between, LockCase):
    method = 'spawn'


class ForkServerBetweenTest(Between, LockCase):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
