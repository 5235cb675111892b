//! A wheel of the Python face, built by pip as a user's would be.

use crate::arguments::Arguments;
use crate::python::Interpreter;
use crate::run::{Failed, Step, root, step, succeeds, target};

/// Builds a wheel into `target/wheels`. pip fetches maturin for it, so this verb alone needs pip and the network.
pub(crate) fn perform(arguments: &Arguments) -> Step {
    let interpreter = Interpreter::chosen(arguments.python.as_deref())?;
    let mut pip = interpreter.command();
    pip.args(["-m", "pip", "--version"]);
    if !succeeds(pip) {
        let program = interpreter.program.display();
        return Err(Failed(format!(
            "{program} has no pip, which builds the wheel"
        )));
    }
    let mut command = interpreter.command();
    command.args(["-m", "pip", "wheel", "--no-deps", "--wheel-dir"]);
    command
        .arg(target().join("wheels"))
        .arg(root().join("python"));
    step(command)
}
