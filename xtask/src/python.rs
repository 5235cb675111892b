//! The extension module, and the interpreters that load it.

use crate::run::{Failed, Step, cargo, output, root, step, target};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The versions that the package is tested with.
const VERSIONS: [&str; 3] = ["3.11", "3.12", "3.13"];

/// An interpreter of a version that we support.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interpreter {
    /// What to run: a name for the search path, or a path.
    pub(crate) program: PathBuf,
    /// Its version, such as `3.11`.
    pub(crate) version: String,
}

impl Interpreter {
    /// The interpreter that was asked for by name or path.
    ///
    /// # Errors
    /// It can't be run, or is older than 3.11, or has no global lock (the extension is built for those that have one).
    pub(crate) fn named(program: &str) -> Step<Self> {
        let version = version(Path::new(program))?;
        Ok(Self {
            program: PathBuf::from(program),
            version,
        })
    }

    /// One interpreter for each supported version that this machine has: `python3`, those named with their version,
    /// and pyenv's.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn all() -> Step<Vec<Self>> {
        let mut found: Vec<Self> = Vec::new();
        for program in candidates() {
            let Ok(version) = version(&program) else {
                continue;
            };
            let is_new = found.iter().all(|other| other.version != version);
            if VERSIONS.contains(&&*version) && is_new {
                found.push(Self { program, version });
            }
        }
        if found.is_empty() {
            return Err(Failed::new("no python3 of 3.11 or later on this machine"));
        }
        Ok(found)
    }

    /// The interpreter that was asked for, or `python3`, or else whatever `all` finds first.
    pub(crate) fn chosen(program: Option<&str>) -> Step<Self> {
        match program {
            Some(program) => Self::named(program),
            None => Self::named("python3").or_else(|_| Ok(Self::all()?.swap_remove(0))),
        }
    }

    /// A command that runs it at the root, with the checkout's package importable. It writes no bytecode: a run changes
    /// nothing in the checkout, and interpreters don't race for its caches, which the build has filled.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(root())
            .env("PYTHONPATH", root().join("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// What a line of Python prints, with the checkout's package importable.
    pub(crate) fn evaluate(&self, line: &str) -> Step<String> {
        let mut command = self.command();
        command.args(["-c", line]);
        output(command)
    }
}

/// Builds the extension module and puts it beside the package's Python files, by one rename, so that a program that
/// imports it meanwhile gets the old one or the new one whole. The package's bytecode is compiled, too, as by an installation:
/// a child that is spawned would else compile it each time, which takes longer than all the rest of its imports.
pub(crate) fn build() -> Step {
    let mut command = cargo(&["build", "--release", "--package", "procession-python"]);
    choose_for_build(&mut command);
    step(command)?;
    let built = target().join("release/lib_core.so");
    let place = root().join("python/procession/_core.abi3.so");
    // A dot in front and another end: no interpreter takes it for a module before its name is right.
    let draft = root().join("python/procession/._core.draft");
    std::fs::create_dir_all(root().join("python/procession"))
        .and_then(|()| std::fs::copy(&built, &draft))
        .and_then(|_| std::fs::rename(&draft, &place))
        .map_err(|error| {
            Failed(format!(
                "{} to {}: {error}",
                built.display(),
                place.display()
            ))
        })?;
    for interpreter in Interpreter::all()? {
        let mut command = interpreter.command();
        command.args(["-m", "compileall", "-q", "python/procession"]);
        step(command)?;
    }
    Ok(())
}

/// Tells the build about a usable interpreter when `python3` isn't one: pyo3 asks an interpreter about its version.
pub(crate) fn choose_for_build(command: &mut Command) {
    let is_usable = version(Path::new("python3")).is_ok();
    if !is_usable && let Ok(found) = Interpreter::all() {
        command.env("PYO3_PYTHON", &found[0].program);
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut candidates = vec![PathBuf::from("python3")];
    candidates.extend(VERSIONS.map(|version| PathBuf::from(format!("python{version}"))));
    let pyenv = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let folder = pyenv.and_then(|pyenv| std::fs::read_dir(pyenv.join("versions")).ok());
    let mut installed: Vec<PathBuf> = folder
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin/python3")))
        .collect();
    installed.sort();
    candidates.extend(installed);
    candidates
}

/// The version of an interpreter that can load the extension.
fn version(program: &Path) -> Step<String> {
    let mut command = Command::new(program);
    let ask = "import sys, sysconfig\n\
               assert sys.version_info >= (3, 11), 'older than 3.11'\n\
               assert not sysconfig.get_config_var('Py_GIL_DISABLED'), 'has no global lock'\n\
               print('%d.%d' % sys.version_info[:2])";
    command.args(["-c", ask]).current_dir(root());
    output(command).map_err(|Failed(why)| {
        let last = why.rsplit(": ").next().unwrap_or_default();
        Failed(format!("{}: {last}", program.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::Interpreter;

    #[test]
    fn each_version_once() {
        let found = Interpreter::all().unwrap();
        let mut versions: Vec<_> = found.iter().map(|one| &one.version).collect();
        versions.sort();
        versions.dedup();
        assert_eq!(versions.len(), found.len());
    }

    #[test]
    fn what_is_no_interpreter_is_refused() {
        assert!(Interpreter::named("false").is_err());
        assert!(Interpreter::named("/nowhere/python3").is_err());
    }
}
