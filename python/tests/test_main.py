"""`python -m procession`: a program that says `import multiprocessing`, on procession; else just as under plain Python."""

import json
import sys
import unittest
import zipfile

import helpers
import procession

#: Prints what a main module sees of itself.
SHOW = '''
    import builtins, json, sys
    spec = __spec__
    print(json.dumps({
        'name': __name__, 'file': __file__, 'package': __package__, 'doc': __doc__,
        'cached': globals().get('__cached__'),
        'spec': spec and [spec.name, spec.origin, spec.parent],
        'loader': type(__loader__).__name__,
        'argv': sys.argv, 'path': sys.path[0], 'main': sys.modules['__main__'].__dict__ is globals(),
        'builtins': __builtins__ is builtins, 'annotations': '__annotations__' in globals(),
        'names': sorted(name for name in globals() if name.startswith('__')),
        'flags': [sys.flags.safe_path, sys.flags.isolated]}))
    '''

#: The parts of a program for both start methods.
PROGRAM = '''
    import multiprocessing, sys
    from multiprocessing import Pool, Process, Queue
    import multiprocessing.pool, multiprocessing.queues
    from multiprocessing.connection import wait

    class Point:
        def __init__(self, x):
            self.x = x
        def __eq__(self, other):
            return type(other) is Point and other.x == self.x

    def work(queue, point):
        import multiprocessing, multiprocessing.queues, procession, procession.queues, logging
        record = logging.LogRecord('n', 10, 'p', 1, 'm', (), None)
        queue.put((multiprocessing is procession, multiprocessing.queues is procession.queues,
                   type(queue) is procession.queues.Queue, multiprocessing.current_process().name,
                   record.processName, point))

    def double(point):
        return Point(point.x * 2)

    if __name__ == '__main__':
        import procession.pool, procession.queues
        assert multiprocessing is procession
        assert multiprocessing.pool is procession.pool and multiprocessing.queues.Queue is procession.queues.Queue
        multiprocessing.set_start_method(sys.argv[1])
        queue = Queue()
        child = Process(target=work, args=(queue, Point(3)), name='Child')
        child.start()
        *same, name, logged, point = queue.get()
        child.join()
        print(*same, name, logged, point == Point(3), child.exitcode)
        with Pool(2) as pool:
            print(pool.map(double, [Point(n) for n in range(5)]) == [Point(2 * n) for n in range(5)])
        sys.exit(7)
    '''
SAID = 'True True True Child Child True 0\nTrue\n'


class Programs:
    def runs(self, *command, **options):
        done = self.python('-m', 'procession', *command, self.method, **options)
        self.assertEqual((done.stderr, done.stdout, done.returncode), ('', SAID, 7))

    def test_a_script(self):
        folder = self.write(self.folder(), {'program.py': PROGRAM})
        self.runs(folder / 'program.py')
        self.runs('program.py', cwd=folder)

    def test_a_module(self):
        folder = self.write(self.folder(), {'program.py': PROGRAM, 'package/__init__.py': '',
                                            'package/program.py': PROGRAM})
        self.runs('-m', 'program', cwd=folder)
        self.runs('-m', 'package.program', cwd=folder)

    #: In a folder or an archive, `__main__` isn't imported by spawned children: what they run is in a module.
    MAIN = 'import sys\nfrom program import main\nif __name__ == "__main__":\n    main()\n'

    def inside(self):
        before, after = PROGRAM.split("    if __name__ == '__main__':\n")
        return before + '    def main():\n' + after

    def test_a_folder(self):
        folder = self.write(self.folder(), {'__main__.py': self.MAIN, 'program.py': self.inside()})
        self.runs(folder)

    def test_an_archive(self):
        folder = self.write(self.folder(), {'__main__.py': self.MAIN, 'program.py': self.inside()})
        with zipfile.ZipFile(folder / 'app.pyz', 'w') as archive:
            for name in ('__main__.py', 'program.py'):
                archive.write(folder / name, name)
        self.runs(folder / 'app.pyz')

    def test_a_subclass_of_process_in_the_script(self):
        folder = self.write(self.folder(), {'program.py': '''
            import multiprocessing, sys
            class Doubler(multiprocessing.get_context(sys.argv[1]).Process):
                def __init__(self, queue, number):
                    super().__init__()
                    self.queue, self.number = queue, number
                def run(self):
                    self.queue.put((self.number * 2, multiprocessing.get_start_method()))
            if __name__ == '__main__':
                queue = multiprocessing.Queue()
                child = Doubler(queue, 21)
                child.start()
                print(*queue.get())
                child.join()
            '''})
        done = self.python('-m', 'procession', folder / 'program.py', self.method)
        self.assertEqual((done.stderr, done.stdout, done.returncode), ('', f'42 {self.method}\n', 0))

    def test_executors_of_the_standard_library(self):
        """They stand on queues of a class of their own, which keeps what can't be pickled."""
        folder = self.write(self.folder(), {'program.py': '''
            import multiprocessing, os, sys
            from concurrent.futures import ProcessPoolExecutor
            from concurrent.futures.process import BrokenProcessPool

            def square(x):
                return x * x

            if __name__ == '__main__':
                context = multiprocessing.get_context(sys.argv[1])
                with ProcessPoolExecutor(2, mp_context=context) as executor:
                    print(*executor.map(square, range(5)))
                    try:
                        executor.submit(square, lambda: None).result()
                    except Exception as error:
                        print('lambda' in str(error))
                    try:
                        executor.submit(os._exit, 3).result()
                    except BrokenProcessPool:
                        print('broken')
            '''})
        done = self.python('-m', 'procession', folder / 'program.py', self.method)
        self.assertEqual((done.stderr, done.stdout), ('', '0 1 4 9 16\nTrue\nbroken\n'))

    def test_children_of_children(self):
        folder = self.write(self.folder(), {'program.py': '''
            import multiprocessing, sys
            def below(queue, depth):
                queue.put((depth, multiprocessing.__name__))
                if depth:
                    child = multiprocessing.Process(target=below, args=(queue, depth - 1))
                    child.start()
                    child.join()
            if __name__ == '__main__':
                multiprocessing.set_start_method(sys.argv[1])
                queue = multiprocessing.Queue()
                below(queue, 2)
                print(*[queue.get() for _ in range(3)])
            '''})
        done = self.python('-m', 'procession', folder / 'program.py', self.method)
        self.assertEqual((done.stderr, done.stdout),
                         ('', "(2, 'procession') (1, 'procession') (0, 'procession')\n"))


class ForkProgramsTest(Programs, helpers.Case):
    method = 'fork'


class SpawnProgramsTest(Programs, helpers.Case):
    method = 'spawn'


class ForkServerProgramsTest(Programs, helpers.Case):
    method = 'forkserver'


class AsPlainPythonTest(helpers.Case):
    def same(self, *command, flags=(), **options):
        """Whether a command does on procession what it does without."""
        plain = self.python(*flags, *command, **options)
        ours = self.python(*flags, '-m', 'procession', *command, **options)
        if plain.stdout.startswith('{'):
            self.assertEqual(json.loads(ours.stdout), json.loads(plain.stdout))
        self.assertEqual((ours.returncode, ours.stdout, ours.stderr), (plain.returncode, plain.stdout, plain.stderr))
        return ours

    def test_main_of_a_script(self):
        folder = self.write(self.folder(), {'show.py': SHOW, 'sub/show.py': '"""With a text."""\n' + SHOW.replace('\n    ', '\n')})
        for command in ((folder / 'show.py',), (folder / 'show.py', '-x', 'a b', '--', '-m'),):
            self.assertEqual(self.same(*command, cwd=folder).returncode, 0)
        for command in (('show.py', 'argument'), ('sub/show.py',), ('./sub/../show.py',)):
            self.assertEqual(self.same(*command, cwd=folder).returncode, 0)
        (folder / 'link.py').symlink_to(folder / 'sub' / 'show.py')
        self.assertEqual(self.same('link.py', cwd=folder).returncode, 0)

    def test_main_of_a_module(self):
        folder = self.write(self.folder(), {
            'show.py': SHOW, 'package/__init__.py': '', 'package/show.py': SHOW, 'package/__main__.py': SHOW})
        for command in (('-m', 'show', '-x'), ('-m', 'package.show'), ('-m', 'package', '-m', 'argument')):
            self.assertEqual(self.same(*command, cwd=folder).returncode, 0, command)

    def test_main_of_a_folder_and_an_archive(self):
        folder = self.write(self.folder(), {'app/__main__.py': SHOW})
        with zipfile.ZipFile(folder / 'app.zip', 'w') as archive:
            archive.write(folder / 'app' / '__main__.py', '__main__.py')
        for command in (('app', 'x'), (folder / 'app',), ('app.zip', '-y'), (folder / 'app.zip',)):
            self.assertEqual(self.same(*command, cwd=folder).returncode, 0, command)

    def test_ends(self):
        folder = self.folder()
        for number, (source, code) in enumerate((
                ('import sys; sys.exit(5)', 5), ('import sys; sys.exit()', 0), ('import sys; sys.exit("text")', 1),
                ('raise SystemExit(3)', 3), ('import os; os._exit(9)', 9), ('pass', 0), ('import sys; sys.exit(-1)', 255),
                ('import os, signal; os.kill(os.getpid(), signal.SIGTERM)', -15))):
            self.write(folder, {f'end{number}.py': source})
            self.assertEqual(self.same(folder / f'end{number}.py').returncode, code)

    def test_failures(self):
        """Their traceback has the frames of `runpy` and ours before the script's."""
        folder = self.write(self.folder(), {'fail.py': 'def f():\n    raise ValueError("a text")\nf()\n',
                                            'wrong.py': 'this is no program\n'})
        done = self.python('-m', 'procession', folder / 'fail.py')
        self.assertEqual(done.returncode, 1)
        self.assertIn(f'  File "{folder / "fail.py"}", line 3, in <module>\n', done.stderr)
        self.assertTrue(done.stderr.endswith('ValueError: a text\n'))
        done = self.python('-m', 'procession', folder / 'wrong.py')
        self.assertEqual(done.returncode, 1)
        self.assertIn(f'File "{folder / "wrong.py"}", line 1', done.stderr)
        self.assertIn('SyntaxError', done.stderr)

    def test_what_is_missing(self):
        folder = self.folder()
        plain = self.python('nothing.py', cwd=folder)
        ours = self.python('-m', 'procession', 'nothing.py', cwd=folder)
        self.assertEqual(ours.returncode, 2)
        self.assertEqual((ours.returncode, ours.stdout, ours.stderr), (plain.returncode, plain.stdout, plain.stderr))
        plain = self.python('-m', 'nothing', cwd=folder)
        ours = self.python('-m', 'procession', '-m', 'nothing', cwd=folder)
        self.assertEqual((ours.returncode, ours.stdout, ours.stderr), (plain.returncode, plain.stdout, plain.stderr))

    def test_usage(self):
        for command, code in ((('--help',), 0), (('-h',), 0), ((), 1), (('-m',), 1), (('-x', 'a'), 1)):
            done = self.python('-m', 'procession', *command)
            self.assertEqual(done.returncode, code)
            self.assertIn('usage: python -m procession', done.stdout if code == 0 else done.stderr)

    def test_a_script_may_shadow(self):
        """The script's folder is first, as it would be."""
        folder = self.write(self.folder(), {
            'program.py': 'import colors\nprint(colors.NAME)\n', 'colors.py': 'NAME = "mine"\n'})
        self.assertEqual(self.same(folder / 'program.py').stdout, 'mine\n')
        self.assertEqual(self.same('-m', 'program', cwd=folder).stdout, 'mine\n')


class AliasTest(helpers.Case):
    def run_alias(self, source, *args):
        folder = self.write(self.folder(), {'program.py': source})
        done = self.python('-m', 'procession', folder / 'program.py', *args)
        self.assertEqual(done.stderr, '')
        return done.stdout

    def test_every_module(self):
        said = self.run_alias('''
            import importlib, multiprocessing, pkgutil, procession, sys
            for module in pkgutil.walk_packages(procession.__path__, 'procession.'):
                short = module.name.removeprefix('procession.')
                if short.startswith('_') or short in ('__main__', 'popen_spawn_win32'):
                    continue
                theirs = importlib.import_module('multiprocessing.' + short)
                assert theirs is importlib.import_module(module.name), short
                assert theirs is sys.modules['multiprocessing.' + short], short
            assert 'multiprocessing' in sys.modules and sys.modules['multiprocessing'] is procession
            import multiprocessing.dummy, multiprocessing.dummy.connection
            from multiprocessing import pool
            from multiprocessing.pool import ThreadPool
            try:
                import multiprocessing.nothing
            except ModuleNotFoundError as error:
                print(error.name)
            ''')
        self.assertEqual(said, 'multiprocessing.nothing\n')

    def test_what_isnt_built_names_itself(self):
        said = self.run_alias('''
            import multiprocessing, multiprocessing.managers
            for name, use in (
                    ('Manager', multiprocessing.Manager), ('BaseManager', multiprocessing.managers.BaseManager)):
                try:
                    use()
                except NotImplementedError as error:
                    assert name in str(error) and 'procession' in str(error), (name, error)
                else:
                    print(name, 'says nothing')
            ''')
        self.assertEqual(said, '')

    def test_logging_of_children(self):
        for method in ('fork', 'spawn'):
            folder = self.write(self.folder(), {'program.py': '''
                import logging, multiprocessing, sys
                def work():
                    logging.basicConfig(format='%(processName)s %(message)s', stream=sys.stdout, force=True)
                    logging.warning('here')
                if __name__ == '__main__':
                    child = multiprocessing.get_context(sys.argv[1]).Process(target=work, name='Named')
                    child.start()
                    child.join()
                    work()
                '''})
            for command in ((), ('-m', 'procession')):
                done = self.python(*command, folder / 'program.py', method)
                self.assertEqual((done.stderr, done.stdout), ('', 'Named here\nMainProcess here\n'), (method, command))

    def test_logging_without_the_alias(self):
        for method in ('fork', 'spawn'):
            self.method = method
            done = self.script('''
                import logging, procession, sys
                def work():
                    print(logging.LogRecord('n', 10, 'p', 1, 'm', (), None).processName, flush=True)
                if __name__ == '__main__':
                    child = procession.get_context(sys.argv[1]).Process(target=work, name='Named')
                    child.start()
                    child.join()
                ''')
            self.assertEqual((done.stderr, done.stdout), ('', 'Named\n'))

    def test_an_alias_of_somebody_elses(self):
        """Another finder than ours has put this package in the standard's place, as whoever runs the standard's tests on it does."""
        for method in ('fork', 'spawn'):
            self.method = method
            done = self.script('''
                import importlib, procession, sys
                from importlib.machinery import ModuleSpec
                class Alias:
                    @staticmethod
                    def find_spec(name, path=None, target=None):
                        if name.partition('.')[0] == 'multiprocessing':
                            return ModuleSpec(name, Alias)
                    @staticmethod
                    def create_module(spec):
                        pass
                    @staticmethod
                    def exec_module(module):
                        ours = module.__name__.replace('multiprocessing', 'procession')
                        sys.modules[module.__name__] = importlib.import_module(ours)
                sys.meta_path.insert(0, Alias)
                import multiprocessing
                def work():
                    import multiprocessing.context
                    print(multiprocessing.TimeoutError.__module__, multiprocessing.context is procession.context, flush=True)
                    import logging
                    print(logging.LogRecord('n', 10, 'p', 1, 'm', (), None).processName, flush=True)
                if __name__ == '__main__':
                    child = multiprocessing.get_context(sys.argv[1]).Process(target=work, name='Named')
                    child.start()
                    child.join()
                ''')
            self.assertEqual((done.stderr, done.stdout), ('', 'multiprocessing.context True\nNamed\n'))

    def test_the_standards_stays_where_nobody_asked(self):
        """Importing this package changes nothing for a program that uses both."""
        done = self.script('''
            import multiprocessing, multiprocessing.queues
            before = multiprocessing
            import procession, procession.queues
            import multiprocessing.pool
            assert multiprocessing is before and multiprocessing is not procession
            assert multiprocessing.queues.Queue is not procession.queues.Queue
            import sys
            if __name__ == '__main__':
                queue = multiprocessing.Queue()
                child = multiprocessing.Process(target=queue.put, args=('standard',))
                child.start()
                print(queue.get())
                child.join()
            ''')
        self.assertEqual((done.stderr, done.stdout), ('', 'standard\n'))


if __name__ == '__main__':
    unittest.main()
