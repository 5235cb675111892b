"""Too little of something, or too much forbidden: an error that says what is missing, or another way that works.

Each test is a program of its own, which limits itself and then does what programs do.
"""

import os
import sys
import unittest

import helpers

#: What each program begins with: the start method is its first argument.
HEAD = '''
import errno, gc, os, resource, signal, sys, time
import procession

def echo(queue, back):
    back.put(queue.get())

def hold(lock, ready):
    lock.acquire()
    ready.put(True)
    time.sleep(3600)

def square(x):
    return x * x

def nothing():
    pass

def limit(name, soft):
    hard = resource.getrlimit(name)[1]
    resource.setrlimit(name, (soft, hard))

def address_space():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[0]) * 4096

def descriptors():
    # Children that have ended are let go of at the next look; a pool and its workers refer to each other.
    procession.active_children()
    gc.collect()
    open_ones = []
    for fd in range(512):
        try:
            os.fstat(fd)
            open_ones.append(fd)
        except OSError:
            pass
    return open_ones

def refused(call, *args, **kwargs):
    """The error of a call that must fail with one that says what is missing."""
    try:
        call(*args, **kwargs)
    except (OSError, MemoryError) as error:
        assert str(error), repr(error)
        return error
    raise AssertionError('it was not refused')

def everything(context):
    """All that is built, once."""
    queue, back, lock = context.Queue(), context.Queue(), context.Lock()
    for message in ('small', b'x' * 200_000):
        child = context.Process(target=echo, args=(queue, back))
        child.start()
        queue.put(message)
        assert back.get() == message
        child.join()
        assert child.exitcode == 0, child.exitcode
        child.close()
    holder = context.Process(target=hold, args=(lock, back), daemon=True)
    holder.start()
    assert back.get()
    holder.kill()
    import warnings
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        assert lock.acquire()
    assert any('died' in str(one.message) for one in warned), warned
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    reader, writer = context.Pipe(False)
    writer.send('piped')
    assert reader.recv() == 'piped'
    reader.close()
    writer.close()
    with context.Pool(2) as pool:
        assert pool.map(square, range(10)) == [x * x for x in range(10)]

def run(main):
    if __name__ == '__main__':
        main(procession.get_context(sys.argv[1]))
        os.write(ANSWER, b'done')

ANSWER = int(sys.argv[2]) if len(sys.argv) > 2 else 1
'''


class Starved:
    maxDiff = None

    def check(self, source, **options):
        """Runs a program that says so when all is done, and nothing else."""
        done = self.script(HEAD + source, **options)
        self.assertEqual((done.stdout, done.stderr, done.returncode), ('done', '', 0))

    def test_address_space_that_is_limited_later(self):
        self.check('''
def main(context):
    queue = context.Queue()
    queue.put(1)
    assert queue.get() == 1
    limit(resource.RLIMIT_AS, address_space() + (48 << 20))
    part, stored = b'x' * (4 << 20), 0
    while True:
        try:
            queue.put(part)
        except MemoryError as error:
            assert 'mmap' in str(error) or 'memory' in str(error), error
            break
        stored += 1
        assert stored < 100
    assert stored
    for _ in range(stored):
        assert queue.get() == part
    limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    everything(context)

run(main)
''')

    def test_work_within_a_limit_of_address_space(self):
        self.check('''
def main(context):
    limit(resource.RLIMIT_AS, address_space() + (300 << 20))
    everything(context)

run(main)
''')

    def test_file_size(self):
        # The signal, SIGXFSZ, would be an error of Python's; the default ends the process.
        self.check('''
def main(context):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    limit(resource.RLIMIT_FSIZE, 0)
    error = refused(context.Queue)
    assert error.errno == errno.EFBIG, error
    limit(resource.RLIMIT_FSIZE, 16 << 20)
    queue, stored, part = context.Queue(), 0, b'x' * 100_000
    while True:
        try:
            queue.put(part)
        except OSError as error:
            assert error.errno == errno.EFBIG, error
            break
        stored += 1
        assert stored < 1000
    for _ in range(stored):
        assert queue.get() == part
    del queue
    everything(context)

run(main)
''')

    def test_descriptors_that_are_used_up(self):
        self.check('''
def main(context):
    # All modules are there from now on: a module that can't be opened is nobody's descriptor of ours.
    everything(context)
    limit(resource.RLIMIT_NOFILE, 64)
    before, filling = descriptors(), []
    try:
        while True:
            filling.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    # What costs no descriptor.
    many = [context.Queue() for _ in range(200)]
    for one in many:
        one.put(b'x' * 20_000)
    assert all(len(one.get()) == 20_000 for one in many)
    many.append(context.Lock())
    assert many[-1].acquire()
    del many
    # With each number of free ones it starts, or says that there are too few, and leaves nothing behind.
    started = False
    for _ in range(16):
        now = descriptors()
        for begin in (lambda: context.Process(target=nothing), lambda: context.Pool(1)):
            made = None
            try:
                made = begin()
                if hasattr(made, 'start'):
                    made.start()
                    made.join()
                    started = made.exitcode == 0
                    made.close()
                else:
                    assert made.map(square, [3]) == [9]
                    made.terminate()
                    made.join()
                    made = None
            except OSError as error:
                assert error.errno == errno.EMFILE, error
                made = None
            assert descriptors() == now, (now, descriptors())
            try:
                left = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                left = None
            assert left is None, left
        os.close(filling.pop())
    assert started
    for fd in filling:
        os.close(fd)
    assert descriptors() == before
    everything(context)

run(main)
''')

    def test_no_more_processes(self):
        if os.getuid() != 0:
            print('not root: the limit of processes is not tried here', file=sys.stderr)
            return
        self.check('''
def main(context):
    # All modules are there from now on: they may be out of the other user's reach.
    everything(context)
    queue = context.Queue()
    os.setuid(54_322)
    limit(resource.RLIMIT_NPROC, 1)
    before = descriptors()
    # By fork more than there are places in a tree.
    for _ in range(1100 if sys.argv[1] == 'fork' else 50):
        error = refused(context.Process(target=nothing).start)
        assert error.errno == errno.EAGAIN, error
    assert refused(context.Pool, 2).errno == errno.EAGAIN
    assert descriptors() == before
    queue.put(1)
    assert queue.get() == 1

run(main)
''')

    def test_no_folder_for_temporary_files(self):
        for folder in ('/nonexistent/folder', '/proc'):
            self.check('run(everything)', env={'TMPDIR': folder})

    def test_closed_standard_streams(self):
        for closed in ([0], [1], [2], [0, 1], [0, 1, 2]):
            with self.subTest(closed=closed):
                self.closed_streams(closed)

    def closed_streams(self, closed):
        folder = self.write(self.folder(), {'program.py': HEAD + '''
def main(context):
    everything(context)
    links = [os.readlink('/proc/self/fd/%d' % fd) for fd in range(3) if os.path.lexists('/proc/self/fd/%d' % fd)]
    assert not any('memfd' in link or 'pidfd' in link for link in links), links

run(main)
''', 'close.py': '''
import os, sys
answer = os.dup2(1, 9)
for fd in map(int, sys.argv[3:]):
    os.close(fd)
os.execv(sys.executable, [sys.executable, sys.argv[1], sys.argv[2], '9'])
'''})
        done = self.python(folder / 'close.py', folder / 'program.py', self.method, *closed)
        self.assertEqual((done.stdout, done.stderr, done.returncode), ('done', '', 0))

    def test_streams_closed_under_way(self):
        # The arena and what else is opened must not come to lie there.
        self.check('''
def main(context):
    global ANSWER
    ANSWER = os.dup(1)
    for fd in (0, 1, 2):
        os.close(fd)
    everything(context)

run(main)
''')

    def filtered(self, calls, errno, work, **options):
        """Runs a program under a filter of the kernel's, which refuses these calls."""
        numbers = [NUMBERS[call] for call in calls]
        self.check(FILTER + f'''
def main(context):
    import errno
    refuse({numbers}, {errno})
{work}

run(main)
''', **options)

    def test_what_containers_forbid(self):
        self.filtered(['pidfd_getfd', 'io_uring_setup', 'io_uring_enter', 'io_uring_register', 'futex_waitv',
                       'process_vm_readv', 'ptrace', 'bpf', 'userfaultfd', 'perf_event_open', 'membarrier'],
                      'errno.EPERM', '    everything(context)')

    def test_what_old_kernels_lack(self):
        self.filtered(['clone3', 'close_range', 'rseq', 'get_robust_list', 'set_robust_list'],
                      'errno.ENOSYS', '    everything(context)')

    def test_no_descriptors_of_processes(self):
        for error in ('ENOSYS', 'EPERM'):
            self.filtered(['pidfd_open'], 'errno.' + error, f'''
    before = descriptors()
    queue = context.Queue()
    queue.put(1)
    assert queue.get() == 1
    for start in (context.Process(target=nothing).start, lambda: context.Pool(1)):
        error = refused(start)
        assert error.errno == errno.{error} and 'pidfd_open' in str(error), error
    del queue, start
    now = descriptors()
    # The arena is there for good.
    assert len(now) == len(before) + 1, (before, now)
''')

    def test_no_memory_file(self):
        self.filtered(['memfd_create'], 'errno.EPERM', '''
    for make in (context.Queue, context.Lock, context.Process(target=nothing).start):
        error = refused(make)
        assert error.errno == errno.EPERM and 'memfd_create' in str(error), error
''')

    def test_a_daemon_that_cannot_be_bound_says_so(self):
        done = self.script(HEAD + FILTER + '''
def main(context):
    child = context.Process(target=nothing, daemon=True)
    refuse([%d], errno.EPERM)
    child.start()
    child.join()
    assert child.exitcode == 1, child.exitcode

run(main)
''' % NUMBERS['prctl'])
        self.assertEqual((done.stdout, done.returncode), ('done', 0), done.stderr)
        self.assertIn('prctl', done.stderr)

    def namespaced(self, prepare, source):
        """Runs a program in namespaces of its own; a line where that isn't allowed."""
        done = self.script(HEAD + NAMESPACE + source, env={'PREPARE': prepare})
        if done.returncode == 77:
            print('no namespaces here:', done.stdout, file=sys.stderr)
            return
        self.assertEqual((done.stdout, done.stderr, done.returncode), ('done', '', 0))

    def test_no_room_in_dev_shm(self):
        self.namespaced('full', '''
def main(context):
    everything(context)

run(main)
''')

    def test_no_dev_shm(self):
        self.namespaced('absent', '''
def main(context):
    everything(context)

run(main)
''')

    def test_a_read_only_root(self):
        self.namespaced('read-only', '''
def main(context):
    try:
        open(os.path.join(os.environ['TMPDIR'], 'x'), 'w')
        raise AssertionError('it is not read-only')
    except OSError as error:
        assert error.errno == errno.EROFS, error
    everything(context)

run(main)
''')

    def test_no_proc(self):
        self.namespaced('no proc', '''
def main(context):
    assert not os.path.exists('/proc/self')
    everything(context)

run(main)
''')

    def test_process_1(self):
        self.namespaced('first', '''
def leave_behind(queue, lock):
    if os.fork() == 0:
        while os.getppid() != 1:
            time.sleep(0.01)
        lock.acquire()
        queue.put(os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)

def main(context):
    assert os.getpid() == 1
    everything(context)
    # One that was left to us, and dies with a lock; nobody waits for it.
    queue, lock = context.Queue(), context.Lock()
    parent = context.Process(target=leave_behind, args=(queue, lock))
    parent.start()
    pid = queue.get()
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert lock.acquire()
    parent.join()
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    # Daemons go with us, though signals do less to process 1; children that aren't daemons are waited for.
    context.Process(target=time.sleep, args=(3600,), daemon=True).start()
    context.Process(target=nothing).start()

run(main)
''')


#: Numbers of system calls, which differ between kinds of machines below 424.
NUMBERS = {
    'pidfd_open': 434, 'clone3': 435, 'close_range': 436, 'pidfd_getfd': 438, 'futex_waitv': 449,
    'io_uring_setup': 425, 'io_uring_enter': 426, 'io_uring_register': 427,
    **({'prctl': 157, 'memfd_create': 319, 'get_robust_list': 274, 'set_robust_list': 273, 'rseq': 334,
        'process_vm_readv': 310, 'ptrace': 101, 'bpf': 321, 'userfaultfd': 323, 'perf_event_open': 298,
        'membarrier': 324} if os.uname().machine == 'x86_64' else
       {'prctl': 167, 'memfd_create': 279, 'get_robust_list': 100, 'set_robust_list': 99, 'rseq': 293,
        'process_vm_readv': 270, 'ptrace': 117, 'bpf': 280, 'userfaultfd': 282, 'perf_event_open': 241,
        'membarrier': 283}),
}

#: Refuses calls from then on, here and in children. Source: seccomp(2), bpf(4).
FILTER = '''
def refuse(numbers, error):
    import ctypes, struct
    steps = [struct.pack('HBBI', 0x20, 0, 0, 0)]
    for at, number in enumerate(numbers):
        # A match goes to the last step.
        steps.append(struct.pack('HBBI', 0x15, len(numbers) - at, 0, number))
    steps.append(struct.pack('HBBI', 0x06, 0, 0, 0x7fff0000))
    steps.append(struct.pack('HBBI', 0x06, 0, 0, 0x00050000 | error))
    code = ctypes.create_string_buffer(b''.join(steps))

    class Program(ctypes.Structure):
        _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(steps), ctypes.addressof(code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
'''

#: Enters namespaces as $PREPARE says; the exit status 77 says that this isn't allowed here.
NAMESPACE = '''
def enter(prepare):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    NEWNS, NEWPID, PRIVATE, BIND, REMOUNT = 0x20000, 0x20000000, 0x44000, 4096, 32

    def mount(source, target, kind, flags=0, data=b''):
        assert libc.mount(source, target, kind, flags, data) == 0, (target, ctypes.get_errno())

    if libc.unshare(NEWNS | (NEWPID if prepare == 'first' else 0)) != 0:
        sys.stdout.write(prepare)
        sys.stdout.flush()
        os._exit(77)
    mount(b'none', b'/', b'', PRIVATE)
    if prepare == 'first':
        pid = os.fork()
        if pid:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xff)
        mount(b'none', b'/proc', b'proc')
    elif prepare == 'no proc':
        mount(b'none', b'/proc', b'tmpfs')
    elif prepare == 'full':
        mount(b'none', b'/dev/shm', b'tmpfs', 0, b'size=4k')
        with open('/dev/shm/filling', 'wb', buffering=0) as file:
            file.write(b'x' * 4096)
    elif prepare == 'absent':
        mount(b'none', b'/dev', b'tmpfs')
        os.mknod('/dev/null', 0o666 | 0o20000, os.makedev(1, 3))
    elif prepare == 'read-only':
        # The place for temporary files, and the present directory.
        os.environ['TMPDIR'] = os.getcwd()
        here = os.getcwd().encode()
        mount(here, here, b'', BIND)
        mount(b'none', here, b'', BIND | REMOUNT | 1)
        os.chdir(os.getcwd())

if __name__ == '__main__':
    enter(os.environ['PREPARE'])
'''


class ForkTest(Starved, helpers.Case):
    method = 'fork'


class SpawnTest(Starved, helpers.Case):
    method = 'spawn'


if __name__ == '__main__':
    unittest.main()
