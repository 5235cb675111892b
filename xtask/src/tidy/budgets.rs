//! How long files, functions and the Python shim may be. Rust's functions are clippy's affair (clippy.toml).

use super::source::Source;
use std::collections::BTreeMap;

/// Lines of a file, its tests not counted, beyond which it is two nouns.
const FILE_LINES: usize = 600;
/// Lines of a file beyond which it is worth a hard look.
const FILE_LINES_NOTED: usize = 400;
/// Lines of a Python function, documentation included, beyond which it is worth a hard look.
const FUNCTION_LINES_NOTED: usize = 70;
/// Rust files of a folder beyond which it is worth a hard look.
const FOLDER_FILES_NOTED: usize = 10;
/// Lines of code of the Python shim, all files together: what doesn't fit belongs in the core. What explains the code
/// is free: a limit that is kept by writing less of it would be a bad one.
pub(super) const SHIM_LINES: usize = 4000;

/// The folder of the shim.
const SHIM: &str = "python/procession/";

/// Read as a whole on purpose, so its length is not remarked on up to the limit.
const WHOLE: [&str; 1] = ["core/src/pool/scheduler.rs"];

/// What is over its limit.
pub(super) fn breaches(sources: &[Source]) -> Vec<String> {
    let mut breaches: Vec<String> = lengths(sources)
        .filter(|(_, lines)| *lines > FILE_LINES)
        .map(|(name, lines)| format!("{name}: {lines} lines, the limit is {FILE_LINES}"))
        .collect();
    let shim = shim_lines(sources);
    if shim > SHIM_LINES {
        breaches.push(format!("{SHIM}: {shim} lines, the limit is {SHIM_LINES}"));
    }
    breaches
}

/// What is within its limit and worth a look.
pub(super) fn notes(sources: &[Source]) -> Vec<String> {
    let mut notes: Vec<String> = lengths(sources)
        .filter(|(name, lines)| {
            (FILE_LINES_NOTED + 1..=FILE_LINES).contains(lines) && !WHOLE.contains(name)
        })
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    for source in sources.iter().filter(|one| one.name.starts_with(SHIM)) {
        let long = python_functions(&source.text)
            .into_iter()
            .filter(|(_, lines)| *lines > FUNCTION_LINES_NOTED);
        notes.extend(long.map(|(name, lines)| format!("{}: {name}: {lines} lines", source.name)));
    }
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for source in sources.iter().filter(|one| one.is_rust()) {
        let folder = source
            .name
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        *folders.entry(folder).or_default() += 1;
    }
    let full = folders
        .into_iter()
        .filter(|(folder, files)| *files > FOLDER_FILES_NOTED && *folder != "xtask/src");
    notes.extend(full.map(|(folder, files)| format!("{folder}: {files} files")));
    notes
}

/// Lines of the Python shim.
pub(super) fn shim_lines(sources: &[Source]) -> usize {
    let shim = sources.iter().filter(|one| one.name.starts_with(SHIM));
    shim.map(|one| python_lines(&one.text)).sum()
}

/// The lines of a Python file that are neither empty nor comments nor documentation.
fn python_lines(text: &str) -> usize {
    const QUOTES: &str = "\"\"\"";
    let mut in_documentation = false;
    let mut is_code = |line: &str| {
        let line = line.trim();
        if in_documentation {
            in_documentation = !line.ends_with(QUOTES);
            return false;
        }
        if let Some(rest) = line.strip_prefix(QUOTES) {
            in_documentation = !rest.ends_with(QUOTES);
            return false;
        }
        !line.is_empty() && !line.starts_with('#')
    };
    text.lines().filter(|line| is_code(line)).count()
}

fn lengths(sources: &[Source]) -> impl Iterator<Item = (&str, usize)> {
    let shipped = sources.iter().filter(|source| !source.is_test());
    shipped.map(|source| (&*source.name, source.shipped().lines().count()))
}

/// The functions of a Python file and their lengths: from `def` to the last line that is indented deeper. A bracket
/// that closes at the margin of `def` belongs to it.
fn python_functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut functions = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let head = line.trim_start().trim_start_matches("async ");
        let Some(rest) = head.strip_prefix("def ") else {
            continue;
        };
        let name = rest.split('(').next().unwrap_or(rest).to_owned();
        let belongs = |other: &&&str| {
            other.trim().is_empty()
                || indent(other) > indent(line)
                || other.trim_start().starts_with(')')
        };
        let body = lines[at + 1..].iter().take_while(belongs);
        let length = body
            .enumerate()
            .filter(|(_, other)| !other.trim().is_empty())
            .last()
            .map_or(1, |(index, _)| index + 2);
        functions.push((name, length));
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::{FILE_LINES, SHIM_LINES, breaches, notes, python_functions, python_lines};
    use crate::tidy::source::Source;

    #[test]
    fn a_long_file_is_two_nouns() {
        let long = "x\n".repeat(FILE_LINES + 1);
        assert_eq!(breaches(&[Source::new("core/src/a.rs", &long)]).len(), 1);
        let tested = format!("x\n\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(breaches(&[Source::new("core/src/a.rs", &tested)]).is_empty());
        assert!(breaches(&[Source::new("python/tests/test_a.py", &long)]).is_empty());
        let noted = "x\n".repeat(FILE_LINES);
        assert_eq!(notes(&[Source::new("core/src/a.rs", &noted)]).len(), 1);
    }

    #[test]
    fn the_shim_is_measured_as_a_whole() {
        let half = "x\n".repeat(FILE_LINES);
        let count = SHIM_LINES / FILE_LINES + 1;
        let files: Vec<Source> = (0..count)
            .map(|n| Source::new(&format!("python/procession/m{n}.py"), &half))
            .collect();
        assert_eq!(breaches(&files).len(), 1);
        assert!(breaches(&files[1..]).is_empty());
    }

    #[test]
    fn what_explains_code_is_no_line_of_it() {
        let text = "\"\"\"A module.\n\nMore.\n\"\"\"\n\n# Why.\nx = 1  # One.\n\n\ndef f():\n    \"\"\"One.\"\"\"\n    return x\n";
        assert_eq!(python_lines(text), 3);
    }

    #[test]
    fn functions_end_where_the_indentation_does() {
        let text =
            "def f(\n    a,\n):\n    return 1\n\n\nclass C:\n    def g(self): pass\n    x = 1\n";
        let expected = [("f".to_owned(), 4), ("g".to_owned(), 1)];
        assert_eq!(python_functions(text), expected);
    }
}
