//! Tasks as they travel: how to call which function with what.
//!
//! ```text
//! tag    low four bits: how to call (`form`); high four: what the payload is (`value::kind`)
//!   0  8   the task's id (the core's)
//!   8  4   n, the length of the function's pickle; 0: it is in the payload, which is a pair (function, rest)
//!  12  n   the pickle of the function: a plain global name, which workers keep
//!  12+n    the payload
//! ```

use crate::pickle;
use crate::value::{self, Value};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCFunction, PyFunction, PyTuple, PyType};

/// How a worker calls the function.
pub(super) mod form {
    /// `function(payload)`
    pub(in super::super) const ONE: u8 = 0;
    /// `function(*payload)`
    pub(in super::super) const ARGUMENTS: u8 = 1;
    /// `function(*payload[0], **payload[1])`
    pub(in super::super) const KEYWORDS: u8 = 2;
    /// `list(map(function, payload))`
    pub(in super::super) const CHUNK: u8 = 3;
    /// `list(itertools.starmap(function, payload))`
    pub(in super::super) const STAR_CHUNK: u8 = 4;
}

/// Where the function's length stands.
pub(super) const FUNCTION: usize = procession_core::pool::Task::START;
/// Where the function stands.
pub(super) const FUNCTION_BYTES: usize = FUNCTION + 4;

/// A function as the tasks of a job carry it.
pub(super) struct Function {
    object: Py<PyAny>,
    /// Length and pickle.
    head: Vec<u8>,
}

impl Function {
    /// Pickles a function apart if that is just its name; any other goes with each task's payload, so that each
    /// task gets a copy of its own, as in the standard library.
    pub(super) fn new(object: &Bound<'_, PyAny>) -> Self {
        let py = object.py();
        let named = object.cast_exact::<PyFunction>().is_ok()
            || object.cast_exact::<PyCFunction>().is_ok()
            || object.cast::<PyType>().is_ok();
        let mut head = vec![0; 4];
        if named && let Ok(pieces) = pickle::dumps(py, object) {
            let bytes: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| piece.as_bytes(py))
                .copied()
                .collect();
            if is_global(&bytes)
                && let Ok(length) = u32::try_from(bytes.len())
            {
                head = length.to_le_bytes().to_vec();
                head.extend(bytes);
            }
        }
        Self {
            object: object.clone().unbind(),
            head,
        }
    }

    pub(super) fn is(&self, object: &Bound<'_, PyAny>) -> bool {
        self.object.is(object)
    }

    /// Whether it may be used again for another job: it stands for a name, not for a state.
    pub(super) fn is_named(&self) -> bool {
        self.head.len() > 4
    }

    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Encodes what a task carries; user code may run.
    pub(super) fn payload<'py>(&self, rest: &Bound<'py, PyAny>) -> PyResult<Value<'py>> {
        if self.is_named() {
            value::encode(rest)
        } else {
            let pair = PyTuple::new(rest.py(), [self.object.bind(rest.py()), rest])?;
            value::encode(&pair)
        }
    }
}

/// Whether a pickle is a global name and nothing else: `PROTO [FRAME] module MEMOIZE name MEMOIZE STACK_GLOBAL MEMOIZE
/// STOP`. Source: CPython's Lib/pickle.py, `save_global`.
fn is_global(pickle: &[u8]) -> bool {
    fn text(bytes: &[u8]) -> Option<&[u8]> {
        let [0x8c, length, rest @ ..] = bytes else {
            return None;
        };
        match rest.get(usize::from(*length)..)? {
            [0x94, rest @ ..] => Some(rest),
            _ => None,
        }
    }
    let rest = match pickle {
        [0x80, _, 0x95, rest @ ..] => rest.get(8..).unwrap_or_default(),
        [0x80, _, rest @ ..] => rest,
        _ => return false,
    };
    text(rest).and_then(text) == Some(&[0x93, 0x94, b'.'])
}

/// A function that came with a task, kept for the next one: valid while its name still means it.
pub(super) struct Named {
    pickle: Vec<u8>,
    function: Py<PyAny>,
    /// Where the name is looked up; `None` if the name can't be checked so cheaply: the function isn't kept then.
    home: Option<(Py<PyAny>, Py<PyAny>)>,
}

/// The functions that a worker knows.
#[derive(Default)]
pub(super) struct Known(Vec<Named>);

/// More than the functions that a program maps at a time.
const KNOWN_MAX: usize = 64;

impl Known {
    /// The function of that pickle; user code may run.
    pub(super) fn find<'py>(
        &mut self,
        py: Python<'py>,
        pickle: &[u8],
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(place) = self.0.iter().position(|known| known.pickle == pickle) {
            let known = &self.0[place];
            if let Some((module, name)) = &known.home
                && let Ok(now) = module
                    .bind(py)
                    .getattr(name.bind(py).cast::<pyo3::types::PyString>()?)
                && now.is(&known.function)
            {
                return Ok(now);
            }
            self.0.swap_remove(place);
        }
        let function = pickle::loads(py, &PyBytes::new(py, pickle))?;
        if self.0.len() == KNOWN_MAX {
            self.0.clear();
        }
        if let Some(home) = home(&function) {
            self.0.push(Named {
                pickle: pickle.to_vec(),
                function: function.clone().unbind(),
                home: Some(home),
            });
        }
        Ok(function)
    }
}

/// The module and the name of a function that is a plain attribute of its module.
fn home(function: &Bound<'_, PyAny>) -> Option<(Py<PyAny>, Py<PyAny>)> {
    let py = function.py();
    let module = function.getattr("__module__").ok()?;
    let name = function.getattr("__qualname__").ok()?;
    let modules = py.import("sys").ok()?.getattr("modules").ok()?;
    let module = modules.get_item(module).ok()?;
    let found = module
        .getattr(name.cast::<pyo3::types::PyString>().ok()?)
        .ok()?;
    found.is(function).then(|| (module.unbind(), name.unbind()))
}
