"""Forks that aren't ours, forks among threads, and what a program that a fork starts inherits."""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import unittest

import helpers
import procession
from helpers import wait_until
from procession import _core, connection

#: The system call by which a thread ends alone.
EXIT = 60 if os.uname().machine == 'x86_64' else 93


def pass_on(queue, answers):
    answers.put(queue.get())


def put_here_and_there(queue, answers, number):
    """Puts into and gets from a queue that a thread of the parent was busy with when it was forked."""
    for _ in range(20):
        queue.put(number)
    for _ in range(20):
        queue.get()
    answers.put(number)


def take_turns(lock, answers):
    for _ in range(50):
        with lock:
            pass
    answers.put('done')


class ForkCase(helpers.Case):
    method = 'fork'

    def setUp(self):
        super().setUp()
        self.queue, self.lock = self.context.Queue(), self.context.Lock()
        #: Forked, and not waited for yet: the ids of others may be anybody's by now.
        self.running = set()
        self.addCleanup(lambda: [self.reap(pid) for pid in list(self.running)])

    def fork(self, function, *args):
        """A bare fork, without a word to us; 0 if the function returns, 1 if it raises."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                function(*args)
                status = 0
            finally:
                os._exit(status)
        self.running.add(pid)
        return pid

    def reap(self, pid):
        os.kill(pid, signal.SIGKILL)
        self.status(pid)

    def status(self, pid):
        status = os.waitpid(pid, 0)[1]
        self.running.discard(pid)
        return os.waitstatus_to_exitcode(status)

    def census(self):
        """What the arena holds, once all that can be given back is."""
        _core.reap()
        return _core.census()


class BareForkTest(ForkCase):
    def test_queue(self):
        self.queue.put('from the parent')
        back = self.context.Queue()
        pid = self.fork(lambda: back.put((os.getpid(), self.queue.get(), b'x' * 200_000)))
        self.assertEqual(back.get(), (pid, 'from the parent', b'x' * 200_000))
        self.assertEqual(self.status(pid), 0)

    def test_forks_of_forks(self):
        def descend(depth):
            self.queue.put(depth)
            if depth:
                assert self.status(self.fork(descend, depth - 1)) == 0

        self.assertEqual(self.status(self.fork(descend, 4)), 0)
        self.assertEqual([self.queue.get() for _ in range(5)], [4, 3, 2, 1, 0])

    def test_a_queue_of_the_childs_own(self):
        def make():
            made = self.context.Queue()
            made.put('made by a child')
            self.queue.put(made)

        self.assertEqual(self.status(self.fork(make)), 0)
        self.assertEqual(self.queue.get().get(), 'made by a child')

    def test_a_killed_holder(self):
        def hold():
            self.lock.acquire()
            os.kill(os.getpid(), signal.SIGKILL)

        self.assertEqual(self.status(self.fork(hold)), -signal.SIGKILL)
        with self.assertWarnsRegex(RuntimeWarning, 'died holding it'):
            self.assertTrue(self.lock.acquire())

    def test_a_lock_that_the_parent_holds(self):
        def try_it():
            assert self.lock.locked() and not self.lock.acquire(False)
            self.lock.release()

        self.lock.acquire()
        self.assertEqual(self.status(self.fork(try_it)), 0)
        self.assertTrue(self.lock.acquire(False))

    def test_a_holder_that_becomes_another_program(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)

        def become():
            self.lock.acquire()
            self.queue.put('stored before')
            os.dup2(writer, 1)
            os.execv(sys.executable, [sys.executable, '-c', '''if True:
                import os, time
                links = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2, *range(3, 50))
                         if os.path.exists(f"/proc/self/fd/{fd}") or os.path.lexists(f"/proc/self/fd/{fd}")]
                os.write(1, b"arena" if any("memfd" in link for link in links) else b"clean")
                time.sleep(3600)'''])

        pid = self.fork(become)
        os.close(writer)
        # The program has nothing of ours: no arena, and no lock either.
        self.assertEqual(os.read(reader, 100), b'clean')
        with self.assertWarnsRegex(RuntimeWarning, 'died holding it'):
            self.assertTrue(self.lock.acquire())
        self.assertEqual(self.queue.get(), 'stored before')
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(self.status(pid), -signal.SIGKILL)

    def test_a_fork_that_starts_processes(self):
        def start():
            child = self.context.Process(target=self.queue.put, args=('from a grandchild',))
            child.start()
            child.join()
            assert child.exitcode == 0

        self.assertEqual(self.status(self.fork(start)), 0)
        self.assertEqual(self.queue.get(), 'from a grandchild')

    def test_before_there_is_an_arena(self):
        done = self.script('''
            import os, procession
            pid = os.fork()
            queue = procession.Queue()
            queue.put(1)
            assert queue.get() == 1
            if pid == 0:
                os._exit(0)
            print(os.waitpid(pid, 0)[1])
            ''')
        self.assertEqual((done.stdout, done.stderr), ('0\n', ''))


class ReferencesTest(ForkCase):
    def test_what_a_parent_drops_at_once(self):
        answers = self.context.Queue()

        def child(queue, lock, number):
            with lock:
                assert queue.get() == b'x' * 20_000
            queue.put('again')
            assert queue.get() == 'again'
            answers.put(number)

        for number in range(1000):
            queue, lock = self.context.Queue(), self.context.Lock()
            queue.put(b'x' * 20_000)
            pid = self.fork(child, queue, lock, number)
            del queue, lock
            self.assertEqual(answers.get(), number)
            self.assertEqual(self.status(pid), 0)
        del answers
        census = self.census()
        self.assertEqual((census['processes'], census['owned_bytes']), (1, 0))

    def test_what_a_parent_of_ours_drops_at_once(self):
        answers = self.context.Queue()
        for number in range(100):
            queue = self.context.Queue()
            queue.put(number)
            child = self.start(pass_on, queue, answers)
            del queue
            self.assertEqual(answers.get(), number)
            child.join()
            child.close()

    def test_a_grandchild_outlives_both(self):
        def child(queue, answers):
            if os.fork() == 0:
                while os.getppid() == middle[0]:
                    time.sleep(0.001)
                pass_on(queue, answers)
                os._exit(0)

        answers, middle = self.context.Queue(), []
        for number in range(50):
            queue = self.context.Queue()
            queue.put(number)
            middle[:] = [0]

            def begin(queue=queue):
                middle[0] = os.getpid()
                child(queue, answers)

            pid = self.fork(begin)
            del queue, begin
            self.assertEqual(self.status(pid), 0)
            self.assertEqual(answers.get(), number)

    def test_every_end_of_a_bare_fork(self):
        def end_by(end):
            self.lock.acquire()
            self.queue.put('held')
            end()

        ends = [lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL), os.abort,
                lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM),
                lambda: os.execv('/bin/sleep', ['sleep', '3600'])]
        for end in ends:
            pid = self.fork(end_by, end)
            self.assertEqual(self.queue.get(), 'held')
            # It is nobody's child that anybody waits for, or lives on as another program.
            with self.assertWarnsRegex(RuntimeWarning, 'died holding it'):
                self.assertTrue(self.lock.acquire())
            self.lock.release()
            self.reap(pid)

    def test_exec_inside_with(self):
        done = self.script('''
            import os, sys, warnings, procession
            context = procession.get_context('fork')
            lock, queue = context.Lock(), context.Queue()
            if os.fork() == 0:
                with lock:
                    queue.put('inside')
                    os.execv('/bin/sleep', ['sleep', '1'])
            assert queue.get() == 'inside'
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter('always')
                with lock:
                    print([str(one.message) for one in warned])
            os.wait()
            ''')
        self.assertIn('died holding it', done.stdout)
        self.assertEqual(done.stderr, '')

    def test_exec_among_threads_that_put_and_get(self):
        # One of the threads is inside the queue, as often as not, when all of them go.
        for round in range(15):
            queue, ready = self.context.Queue(), self.context.Queue()

            def become():
                def loop():
                    while True:
                        queue.put(b'x' * 20_000)
                        queue.get()

                for _ in range(3):
                    threading.Thread(target=loop, daemon=True).start()
                ready.put(True)
                time.sleep(0.002 * round)
                os.execv('/bin/sleep', ['sleep', '3600'])

            pid = self.fork(become)
            self.assertTrue(ready.get())
            for _ in range(200):
                queue.put(b'x' * 20_000)
                self.assertEqual(queue.get(), b'x' * 20_000)
            self.reap(pid)

    def test_a_first_thread_that_ends_alone(self):
        def child():
            def go_on():
                with open(f'/proc/{os.getpid()}/stat') as file:
                    while file.seek(0) or file.read().rsplit(')', 1)[1].split()[0] != 'Z':
                        time.sleep(0.001)
                self.queue.put('here still')
                assert back.get() == 'a question'
                self.lock.release()
                os._exit(0)

            self.lock.acquire()
            threading.Thread(target=go_on).start()
            libc = ctypes.CDLL(None)
            # By the system call, which asks no interpreter; ctypes lets go of the interpreter's lock before it.
            libc.syscall(EXIT, 0)

        back = self.context.Queue()
        pid = self.fork(child)
        self.assertEqual(self.queue.get(), 'here still')
        _core.reap()
        # It lives, so what it holds it holds.
        self.assertFalse(self.lock.acquire(timeout=0.2))
        back.put('a question')
        self.assertTrue(self.lock.acquire())
        self.assertEqual(self.status(pid), 0)


class AmongThreadsTest(ForkCase):
    def among(self, work, threads=2):
        """Runs `work` in threads until the test is over."""
        over = threading.Event()

        def loop():
            while not over.is_set():
                work()

        running = [threading.Thread(target=loop) for _ in range(threads)]

        def end():
            over.set()
            for thread in running:
                thread.join()

        self.addCleanup(end)
        for thread in running:
            thread.start()

    def put_and_get(self):
        self.queue.put(b'x' * 300)
        self.queue.get()

    def test_fork_while_others_put_and_get(self):
        self.among(self.put_and_get)
        answers = self.context.Queue()
        for number in range(25):
            child = self.start(put_here_and_there, self.queue, answers, number)
            self.assertEqual(answers.get(), number)
            child.join()
            self.assertEqual(child.exitcode, 0)
            child.close()

    def test_bare_fork_while_others_put_and_get(self):
        self.among(self.put_and_get)
        answers = self.context.Queue()
        for number in range(25):
            pid = self.fork(put_here_and_there, self.queue, answers, number)
            self.assertEqual(answers.get(), number)
            self.assertEqual(self.status(pid), 0)

    def test_fork_while_another_waits_to_get(self):
        got = []
        thread = threading.Thread(target=lambda: got.append(self.queue.get()))
        thread.start()
        time.sleep(0.2)
        answers = self.context.Queue()
        pid = self.fork(lambda: answers.put(self.queue.empty()))
        self.assertTrue(answers.get())
        self.assertEqual(self.status(pid), 0)
        # The child has no waiting thread: what is put is the parent's.
        self.queue.put('for the thread')
        thread.join()
        self.assertEqual(got, ['for the thread'])

    def test_fork_while_another_waits_to_put(self):
        bounded = self.context.Queue(1)
        bounded.put('first')
        thread = threading.Thread(target=bounded.put, args=('second',))
        thread.start()
        time.sleep(0.2)
        answers = self.context.Queue()

        def child():
            try:
                bounded.put('third', False)
            except queue.Full:
                answers.put(bounded.get())

        pid = self.fork(child)
        self.assertEqual(answers.get(), 'first')
        self.assertEqual(self.status(pid), 0)
        thread.join()
        self.assertEqual(bounded.get(), 'second')
        self.assertTrue(bounded.empty())

    def test_fork_while_others_take_a_lock(self):
        def take():
            with self.lock:
                pass

        self.among(take)
        answers = self.context.Queue()
        for _ in range(15):
            # A thread of the parent may have held it: that thread frees it, in the parent.
            child = self.start(take_turns, self.lock, answers)
            self.assertEqual(answers.get(), 'done')
            child.join()
            child.close()

    def test_fork_while_others_accept(self):
        listener = connection.Listener(authkey=b'key')
        self.addCleanup(listener.close)
        # Nobody waits.
        listener._listener._socket.settimeout(0)

        def look():
            with self.assertRaises(TimeoutError):
                listener.accept()

        self.among(look)
        for _ in range(60):
            # In the child those threads are gone, wherever they were.
            self.assertEqual(self.status(self.fork(look)), 0)

    def test_fork_while_others_wait_to_send(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        end = connection.Connection(writer, readable=False)
        self.addCleanup(end.close)

        def drain():
            while os.read(reader, 1 << 16):
                pass

        def send():
            threading.Thread(target=drain, daemon=True).start()
            end.send_bytes(b'short')

        # One is in the middle of it, for the others that's a turn to wait for.
        threads = [threading.Thread(target=end.send_bytes, args=(bytes(4 << 20),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            # The child's turn is its own.
            self.assertEqual(self.status(self.fork(send)), 0)
        reads = threading.Thread(target=drain)
        reads.start()
        for thread in threads:
            thread.join()
        end.close()
        reads.join()

    def test_a_child_of_who_accepts_accepts_too(self):
        listener = connection.Listener(backlog=8, authkey=b'key')
        self.addCleanup(listener.close)
        silent = [connection.SocketClient(listener.address) for _ in range(3)]

        def serve():
            while True:
                try:
                    with listener.accept() as served:
                        served.send(served.recv())
                    return
                except procession.AuthenticationError:
                    # One of the silent, on a slow machine.
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        # It looks after the silent ones, with whom the child has nothing to do.
        time.sleep(0.2)
        pid = self.fork(serve)
        # Each is served by one of the two.
        for _ in range(2):
            with connection.Client(listener.address, authkey=b'key') as end:
                end.send('back again')
                self.assertEqual(end.recv(), 'back again')
        self.assertEqual(self.status(pid), 0)
        thread.join()
        for stranger in silent:
            stranger.close()

    def test_fork_while_others_make_and_drop(self):
        def make():
            queue, lock = self.context.Queue(), self.context.Lock()
            queue.put(b'x' * 20_000)
            with lock:
                self.assertEqual(len(queue.get()), 20_000)

        self.among(make, threads=3)
        for _ in range(60):
            pid = self.fork(make)
            self.assertEqual(self.status(pid), 0)

    def test_forks_in_several_threads(self):
        statuses = []

        def fork():
            for number in range(30):
                pid = self.fork(self.put_and_get)
                statuses.append(self.status(pid))

        threads = [threading.Thread(target=fork) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(statuses, [0] * 90)
        self.assertTrue(self.queue.empty())

    def test_programs_while_others_put_and_get(self):
        # By vfork or posix_spawn, which run no fork handlers: the program has nothing of ours.
        self.among(self.put_and_get)
        listing = 'for fd in /proc/self/fd/*; do readlink $fd; done'
        for close_fds in (True, False):
            for _ in range(15):
                done = subprocess.run(['sh', '-c', listing], capture_output=True, text=True, close_fds=close_fds)
                self.assertEqual(done.stderr, '')
                self.assertNotIn('memfd', done.stdout)
        self.assertEqual(self.census()['processes'], 1)

    def test_a_child_of_another_thread_outlives_it(self):
        reader, writer = self.context.Pipe(False)
        self.addCleanup(reader.close)
        self.addCleanup(writer.close)
        for method in ('fork', 'spawn'):
            context, back = procession.get_context(method), self.context.Queue()
            children = []

            def start():
                children.append(self.own(context.Process(target=reply, args=(reader, back), daemon=True)))
                children[0].start()

            thread = threading.Thread(target=start)
            thread.start()
            thread.join()
            wait_until(lambda: not os.path.exists(f'/proc/self/task/{thread.native_id}'))
            time.sleep(0.2)
            writer.send(method)
            self.assertEqual(back.get(), method)
            children[0].join()
            self.assertEqual(children[0].exitcode, 0)


def reply(reader, back):
    back.put(reader.recv())


if __name__ == '__main__':
    unittest.main()
