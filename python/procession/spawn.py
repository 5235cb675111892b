"""A spawned child's first steps. See the standard library's `multiprocessing.spawn`."""

__all__ = ['_main', 'freeze_support', 'set_executable', 'get_executable',
           'get_preparation_data', 'get_command_line', 'import_main_path']

import os
import pickle
import runpy
import sys
import types

from . import _alias, _core, process, util
from .context import _default_context

WINEXE = False
WINSERVICE = False

#: Where this package lies: a child looks here before it has its parent's path.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: The child's program. It drops the current directory, which `-c` puts first, from its path.
_PROGRAM = ('import sys; home = %r; sys.path[:1 - sys.flags.safe_path] = [home] * (home not in sys.path); '
            'from procession.%s import %s; %s')


def _program(module, call):
    """A program for `-c` that calls a function of this package."""
    return _PROGRAM % (_HOME, module, call.partition('(')[0], call)


def set_executable(exe):
    """Sets the interpreter that spawned children run; None forgets it."""
    global _python_exe
    _python_exe = exe if exe is None else os.fsencode(exe)


def get_executable():
    """The interpreter that spawned children run, as bytes."""
    return _python_exe


set_executable(sys.executable)


def is_forking(argv):
    """Whether a command line is a child's."""
    return len(argv) >= 2 and argv[1] == '--multiprocessing-fork'


def freeze_support():
    """Runs a child's part if this process is one: the first line of a frozen program's main block."""
    if is_forking(sys.argv):
        kwds = {}
        for arg in sys.argv[2:]:
            name, value = arg.split('=', 1)
            kwds[name] = value if name == 'token' else None if value == 'None' else int(value)
        spawn_main(**kwds)


def get_command_line(**kwds):
    """The command line of a child."""
    if getattr(sys, 'frozen', False):
        return [sys.executable, '--multiprocessing-fork', *('%s=%s' % item for item in kwds.items())]
    arguments = ', '.join('%s=%r' % item for item in kwds.items())
    return [get_executable(), *util._args_from_interpreter_flags(), '-c',
            _program('spawn', f'spawn_main({arguments})'), '--multiprocessing-fork']


def spawn_main(token, pipe_handle, parent_sentinel, parent_pid, dies_with_parent=0, by_main_thread=0, alias=0,
               tracker_fd=None):
    """A child's whole life: joins its parent's tree, reads what to do, does it and exits."""
    assert is_forking(sys.argv), 'Not forking'
    if dies_with_parent:
        _core.die_with_parent(parent_pid, bool(by_main_thread))
    _core.attach(token)
    if alias:
        _alias.install()
    inherited = [pipe_handle, parent_sentinel]
    if tracker_fd is not None:
        from . import resource_tracker
        resource_tracker._resource_tracker._fd = tracker_fd
        inherited.append(tracker_fd)
    for descriptor in inherited:
        # This child's own children get what is meant for them, and nothing else.
        os.set_inheritable(descriptor, False)
    sys.exit(_main(pipe_handle, parent_sentinel))


def _main(fd, parent_sentinel):
    with os.fdopen(fd, 'rb', closefd=True) as from_parent:
        if not from_parent.peek(1):
            # The parent is gone, or has changed its mind.
            return 1
        process.current_process()._inheriting = True
        try:
            prepare(pickle.load(from_parent))
            self = pickle.load(from_parent)
        finally:
            del process.current_process()._inheriting
    return self._bootstrap(parent_sentinel)


def _check_not_importing_main():
    if getattr(process.current_process(), '_inheriting', False):
        raise RuntimeError('''
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.

        This probably means that you are not using fork to start your
        child processes and you have forgotten to use the proper idiom
        in the main module:

            if __name__ == '__main__':
                freeze_support()
                ...

        The "freeze_support()" line can be omitted if the program
        is not going to be frozen to produce an executable.

        To fix this issue, refer to the "Safe importing of main module"
        section in https://docs.python.org/3/library/multiprocessing.html
        ''')


def get_preparation_data(name):
    """What a child must know before it can unpickle its process object."""
    _check_not_importing_main()
    data = dict(
        log_to_stderr=util._log_to_stderr,
        authkey=process.current_process().authkey,
        name=name,
        sys_path=[process.ORIGINAL_DIR if path == '' and process.ORIGINAL_DIR else path for path in sys.path],
        sys_argv=sys.argv,
        orig_dir=process.ORIGINAL_DIR,
        dir=os.getcwd(),
        start_method=_default_context.get_start_method(),
    )
    if util._logger is not None:
        data['log_level'] = util._logger.getEffectiveLevel()
    main_module = sys.modules['__main__']
    main_mod_name = getattr(getattr(main_module, '__spec__', None), 'name', None)
    if main_mod_name is not None:
        data['init_main_from_name'] = main_mod_name
    elif (main_path := getattr(main_module, '__file__', None)) is not None:
        if not os.path.isabs(main_path) and process.ORIGINAL_DIR is not None:
            main_path = os.path.join(process.ORIGINAL_DIR, main_path)
        data['init_main_from_path'] = os.path.normpath(main_path)
    return data


#
# In the child
#

old_main_modules = []


def prepare(data):
    """Makes this process one in which the parent's objects can be unpickled."""
    if 'name' in data:
        process.current_process().name = data['name']
    if 'authkey' in data:
        process.current_process().authkey = data['authkey']
    if data.get('log_to_stderr'):
        util.log_to_stderr()
    if 'log_level' in data:
        util.get_logger().setLevel(data['log_level'])
    if 'sys_path' in data:
        sys.path = data['sys_path']
    if 'sys_argv' in data:
        sys.argv = data['sys_argv']
    if 'dir' in data:
        os.chdir(data['dir'])
    if 'orig_dir' in data:
        process.ORIGINAL_DIR = data['orig_dir']
    if 'start_method' in data:
        _default_context.set_start_method(data['start_method'], force=True)
    if 'init_main_from_name' in data:
        _fixup_main_from_name(data['init_main_from_name'])
    elif 'init_main_from_path' in data:
        _fixup_main_from_path(data['init_main_from_path'])


def _fixup_main_from_name(mod_name):
    # A package's or an archive's __main__ runs all that it has: nothing can be unpickled from it.
    if mod_name == '__main__' or mod_name.endswith('.__main__'):
        return
    current_main = sys.modules['__main__']
    if getattr(current_main.__spec__, 'name', None) == mod_name:
        # It was populated before a fork.
        return
    old_main_modules.append(current_main)
    _become_main(runpy.run_module(mod_name, run_name='__mp_main__', alter_sys=True))


def _fixup_main_from_path(main_path):
    # IPython's script has no `if __name__ == '__main__'`.
    if os.path.splitext(os.path.basename(main_path))[0] == 'ipython':
        return
    current_main = sys.modules['__main__']
    if getattr(current_main, '__file__', None) == main_path:
        return
    old_main_modules.append(current_main)
    _become_main(runpy.run_path(main_path, run_name='__mp_main__'))


def _become_main(content):
    main_module = types.ModuleType('__mp_main__')
    main_module.__dict__.update(content)
    sys.modules['__main__'] = sys.modules['__mp_main__'] = main_module


def import_main_path(main_path):
    """Makes the script of that path the main module."""
    _fixup_main_from_path(main_path)
