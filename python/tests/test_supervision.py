"""What becomes of processes when others end: nothing that should go stays, and nothing is left in the kernel."""

import contextlib
import gc
import os
import random
import signal
import sys
import time
import unittest

import helpers
import procession
from helpers import alive, wait_until
from procession import _core, util
from test_starvation import HEAD, NAMESPACE


def nothing():
    pass


def group(number):
    """The processes of a process group that run."""
    found = []
    for name in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError):
            with open(f'/proc/{name}/stat') as file:
                state, _, of = file.read().rsplit(')', 1)[1].split()[:3]
            if int(of) == number and state not in 'ZX':
                found.append(int(name))
    return found


def zombies():
    """Children of this process that have ended and that nobody has waited for."""
    found = []
    with open(f'/proc/self/task/{os.getpid()}/children') as file:
        for pid in map(int, file.read().split()):
            if helpers.process_state(pid) == 'Z':
                found.append(pid)
    return found


def held():
    """All that starting a process could leave behind."""
    gc.collect()
    return {
        'descriptors': helpers.descriptors(), 'threads': len(os.listdir('/proc/self/task')), 'zombies': zombies(),
        'arena': _core.census(), 'children': procession.active_children(), 'dangling': len(procession.process._dangling),
        'finalizers': len(util._finalizer_registry), 'after forks': len(util._afterfork_registry),
    }


#: Starts daemons in every way, says their ids, and stays.
DAEMONS = '''
import os, procession, sys, threading, time

def sleep(queue):
    queue.put(os.getpid())
    time.sleep(3600)

def wait(queue, never):
    queue.put(os.getpid())
    never.get()

def lock(queue, taken):
    queue.put(os.getpid())
    with taken:
        pass

def nap(_):
    time.sleep(3600)

def main(context):
    queue, never, taken = context.Queue(), context.Queue(), context.Lock()
    taken.acquire()
    pools, count = [], 0

    def start():
        for target, args in ((sleep, (queue,)), (wait, (queue, never)), (lock, (queue, taken))):
            context.Process(target=target, args=args, daemon=True).start()
        pools.append(context.Pool(2))
        pools[-1].map_async(nap, range(5))

    start()
    # Another thread, which ends long before the process does: its children stay. And one that stays.
    ending = threading.Thread(target=start)
    ending.start()
    ending.join()
    threading.Thread(target=lambda: (start(), time.sleep(3600)), daemon=True).start()
    pids = [queue.get() for _ in range(9)]
    while len(pools) < 3:
        time.sleep(0.01)
    pids += [worker.pid for pool in pools for worker in pool._pool]
    time.sleep(0.3)
    print(*pids, flush=True)
    time.sleep(3600)

if __name__ == '__main__':
    main(procession.get_context(sys.argv[1]))
'''

#: Starts daemons without end, from several threads, and lets them go at once.
STARTS = '''
import os, procession, sys, threading, time

if __name__ == '__main__':
    context = procession.get_context(sys.argv[1])

    def start():
        while True:
            children = [context.Process(target=time.sleep, args=(3600,), daemon=True) for _ in range(3)]
            for child in children:
                child.start()
            for child in children:
                child.kill()
                child.join()

    for _ in range(2):
        threading.Thread(target=start, daemon=True).start()
    threading.Timer(0.05, print, ('begun',), {'flush': True}).start()
    start()
'''


class Supervision:
    def daemons(self):
        """A program that runs, and its daemons and workers."""
        folder = self.write(self.folder(), {'program.py': DAEMONS})
        program = self.begin(folder / 'program.py', self.method)
        pids = list(map(int, program.stdout.readline().split()))
        self.assertEqual([alive(pid) for pid in pids], [True] * 15, program.poll())
        return program, pids

    def test_daemons_and_workers_die_with_a_killed_parent(self):
        program, pids = self.daemons()
        program.kill()
        program.wait()
        wait_until(lambda: not any(map(alive, pids)) and not group(program.pid))

    def test_daemons_and_workers_die_with_a_parent_that_ends_otherwise(self):
        for end in (signal.SIGTERM, signal.SIGINT):
            program, pids = self.daemons()
            program.send_signal(end)
            program.wait()
            wait_until(lambda: not any(map(alive, pids)) and not group(program.pid))

    def test_a_stopped_parent_is_not_a_dead_one(self):
        program, pids = self.daemons()
        program.send_signal(signal.SIGSTOP)
        wait_until(lambda: helpers.process_state(program.pid) == 'T')
        time.sleep(0.5)
        self.assertTrue(all(map(alive, pids)))
        program.kill()
        program.wait()
        wait_until(lambda: not any(map(alive, pids)))

    def test_a_parent_that_is_killed_while_it_starts_daemons(self):
        """At any instant of their start: what doesn't know its parent yet finds it gone."""
        seed = int(os.environ.get('SEED', random.randrange(1 << 32)))
        times, rounds = random.Random(seed), 8
        folder = self.write(self.folder(), {'program.py': STARTS})
        for _ in range(rounds):
            with self.subTest(again=f'SEED={seed} python3 -m unittest -k killed_while_it_starts'):
                program = self.begin(folder / 'program.py', self.method)
                self.assertEqual(program.stdout.readline(), 'begun\n', program.poll())
                time.sleep(times.random() * 0.1)
                program.kill()
                program.wait()
                wait_until(lambda: not group(program.pid))

    def test_who_isnt_a_daemon_lives_on(self):
        """With its own daemons, until its own end."""
        done = self.begin('-c', f'''if True:
            import os, sys, time
            sys.path.insert(0, {os.path.dirname(__file__)!r})
            import test_supervision as here
            child = here.procession.get_context({self.method!r}).Process(target=here.live_on, args=(os.getpid(),))
            child.start()
            time.sleep(3600)
            ''')
        child, daemon, parent = map(int, done.stdout.readline().split())
        done.kill()
        done.wait()
        self.assertEqual(done.stdout.readline(), 'the parent is gone\n')
        self.assertEqual((parent, alive(child), alive(daemon)), (done.pid, True, True))
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not alive(child) and not alive(daemon))

    def namespaced(self, source):
        """Runs a program as process 1 of a namespace; a line where that isn't allowed."""
        done = self.script(HEAD + NAMESPACE + source, env={'PREPARE': 'first'})
        if done.returncode == 77:
            print('no namespaces here', file=sys.stderr)
            return
        self.assertEqual((done.stdout, done.stderr, done.returncode), ('done', '', 0))

    def test_process_1(self):
        """Its daemons aren't taken for orphans, and those of another process go though process 1 adopts them."""
        self.namespaced('''
import threading

def states(pids):
    found = []
    for pid in pids:
        try:
            with open(f'/proc/{pid}/stat') as file:
                found.append(file.read().rsplit(')', 1)[1].split()[0])
        except OSError:
            found.append('X')
    return found

def daemons(context):
    """Of this thread and of another one."""
    children = [context.Process(target=time.sleep, args=(3600,), daemon=True) for _ in range(2)]
    children[0].start()
    thread = threading.Thread(target=children[1].start)
    thread.start()
    thread.join()
    return [child.pid for child in children]

def parent(queue):
    queue.put(daemons(procession.get_context(sys.argv[1])))
    time.sleep(3600)

def main(context):
    assert os.getpid() == 1
    mine, queue = daemons(context), context.Queue()
    child = context.Process(target=parent, args=(queue,))
    child.start()
    orphans = queue.get()
    time.sleep(0.3)
    assert not {'X', 'Z'} & {*states(mine), *states(orphans)}, (states(mine), states(orphans))
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    # Nobody waits for them.
    while states(orphans) not in (['Z', 'Z'], ['X', 'X']):
        time.sleep(0.01)
    assert not {'X', 'Z'} & {*states(mine)}, states(mine)

run(main)
''')

    def test_no_zombie_stays(self):
        for _ in range(20):
            self.context.Process(target=nothing, daemon=True).start()
        # Nobody joined them, nobody has them: whoever asks for children, or starts one, waits for those that have ended.
        wait_until(lambda: not procession.active_children())
        self.assertEqual(zombies(), [])
        kept = [self.start(nothing) for _ in range(5)]
        wait_until(lambda: not any(alive(child.pid) for child in kept))
        self.start(nothing).join()
        self.assertEqual(zombies(), [])
        self.assertEqual([child.exitcode for child in kept], [0] * 5)

    def test_many_in_a_row_leave_nothing(self):
        # What needs no import in the child: that would take most of the time.
        self.start(os.getpid).join()
        before = held()
        for done in range(self.many):
            if done % 100 == 0:
                self.go_on()
            child = self.context.Process(target=os.getpid)
            child.start()
            child.join()
            self.assertEqual(child.exitcode, 0)
        del child
        self.assertEqual(held(), before)


def live_on(parent):
    """Prints who it is, then what becomes of its parent."""
    daemon = procession.Process(target=time.sleep, args=(3600,), daemon=True)
    daemon.start()
    print(os.getpid(), daemon.pid, parent, flush=True)
    procession.parent_process().join()
    print('the parent is gone', flush=True)
    time.sleep(3600)


class ForkSupervisionTest(Supervision, helpers.Case):
    method = 'fork'
    many = 2000


class SpawnSupervisionTest(Supervision, helpers.Case):
    method = 'spawn'
    many = 100

    def test_a_parent_that_dies_before_its_child_has_begun(self):
        """And whose place in the tree, with all that it kept, was given back."""
        folder = self.write(self.folder(), {
            'interpreter': f'''\
                #!/bin/sh
                while [ ! -e go ]; do sleep 0.01; done
                exec {sys.executable} "$@"
                ''',
            'program.py': '''
                import os, procession, time

                def live_on():
                    queue = procession.SimpleQueue()
                    queue.put(procession.parent_process().is_alive())
                    print('lives on', queue.get(), flush=True)

                def start():
                    procession.set_executable('./interpreter')
                    procession.get_context('spawn').Process(target=live_on).start()
                    os.kill(os.getpid(), 9)

                if __name__ == '__main__':
                    queue = procession.SimpleQueue()
                    parent = procession.get_context('fork').Process(target=start)
                    parent.start()
                    parent.join()
                    queue.put('the tree goes on')
                    open('go', 'w').close()
                    time.sleep(3600)
                '''})
        (folder / 'interpreter').chmod(0o755)
        program = self.begin('program.py', cwd=folder)
        self.assertEqual(program.stdout.readline(), 'lives on False\n')


class ForkServerSupervisionTest(Supervision, helpers.Case):
    method = 'forkserver'
    many = 2000


if __name__ == '__main__':
    unittest.main()
