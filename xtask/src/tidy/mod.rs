//! The rules of the house that no compiler checks: who may import whom, where `unsafe` may be, how long things are.

mod budgets;
mod layers;
mod safety;
mod source;

use crate::run::{Failed, Step, root};
use source::Source;

/// Checks every rule, prints every breach, and what is near its budget.
pub(crate) fn perform() -> Step {
    let sources = Source::all(&root())?;
    println!("tidy: {} files", sources.len());
    let shim = budgets::shim_lines(&sources);
    println!(
        "tidy: the Python shim has {shim} lines of code, of at most {}",
        budgets::SHIM_LINES
    );
    for note in budgets::notes(&sources) {
        println!("tidy: note: {note}");
    }
    let mut breaches = layers::breaches(&sources);
    breaches.extend(safety::breaches(&sources));
    breaches.extend(budgets::breaches(&sources));
    for breach in &breaches {
        println!("tidy: {breach}");
    }
    match breaches.len() {
        0 => Ok(()),
        1 => Err(Failed::new("tidy: 1 breach")),
        count => Err(Failed::new(format!("tidy: {count} breaches"))),
    }
}
