//! One entry point.
fn main() {}
