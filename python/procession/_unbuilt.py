"""Parts of `multiprocessing` that aren't built yet: they can be imported and say so when they are used."""

__all__ = []


def error(what):
    """The exception that says so."""
    return NotImplementedError(f"procession has no {what} yet (docs/parity.md lists what is built)")


def unbuilt_class(name, module, bases=(object,)):
    """A class that can be imported, subclassed and compared with, but not made."""
    def __new__(cls, *args, **kwargs):
        raise error(name)
    return type(name, bases, {'__new__': __new__, '__module__': module,
                              '__doc__': 'Not built yet: making one raises an error.'})


def unbuilt_function(name, module):
    """A function that can be imported but not called."""
    def function(*args, **kwargs):
        raise error(f'{name}()')
    function.__name__ = function.__qualname__ = name
    function.__module__ = module
    function.__doc__ = 'Not built yet: calling it raises an error.'
    return function
