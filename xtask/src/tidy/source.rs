//! The project's source files, and their code without comments, strings and tests.

use crate::run::{Failed, Step};
use std::path::Path;

/// Folders of the checkout that are not the project's own sources: built, fetched, or a workspace of their own.
const FOREIGN: [&str; 4] = ["target", "bench", "fuzz", "__pycache__"];

/// A source file.
#[derive(Debug)]
pub(super) struct Source {
    /// Its path from the root, with forward slashes.
    pub(super) name: String,
    /// All of it.
    pub(super) text: String,
}

impl Source {
    /// The Rust and Python files of the project, sorted by name.
    ///
    /// # Errors
    /// A folder or a file can't be read.
    pub(super) fn all(root: &Path) -> Step<Vec<Self>> {
        let mut found = Vec::new();
        collect(root, "", &mut found)
            .map_err(|error| Failed(format!("{}: {error}", root.display())))?;
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    #[cfg(test)]
    pub(super) fn new(name: &str, text: &str) -> Self {
        let (name, text) = (name.to_owned(), text.to_owned());
        Self { name, text }
    }

    /// Whether it is Rust.
    pub(super) fn is_rust(&self) -> bool {
        self.name.ends_with(".rs")
    }

    /// Whether all of it is tests, or models that run as such.
    pub(super) fn is_test(&self) -> bool {
        let is_named = |name| self.name.ends_with(name);
        self.name.contains("/tests/") || is_named("/tests.rs") || is_named("/orders.rs")
    }

    /// The part before the tests at its end. By the habit of this house they are one module, the file's last item.
    pub(super) fn shipped(&self) -> &str {
        if !self.is_rust() {
            return &self.text;
        }
        let tests = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(all(test,"];
        let end = tests.iter().filter_map(|mark| self.text.find(mark)).min();
        &self.text[..end.unwrap_or(self.text.len())]
    }

    /// The shipped Rust code, with spaces for what is in comments and strings; line by line the same.
    pub(super) fn code(&self) -> String {
        blank(self.shipped())
    }
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<Source>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || FOREIGN.contains(&&*name) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), &format!("{prefix}{name}/"), found)?;
        } else if kind.is_file() && (name.ends_with(".rs") || name.ends_with(".py")) {
            let text = std::fs::read_to_string(entry.path())?;
            let name = format!("{prefix}{name}");
            found.push(Source { name, text });
        }
    }
    Ok(())
}

/// Replaces comments and the insides of strings by spaces. Lines stay lines, so that a place in the result is the
/// place in the file.
pub(super) fn blank(text: &str) -> String {
    let mut rest = text;
    let mut blanked = String::with_capacity(text.len());
    while !rest.is_empty() {
        let (length, is_code) = token(rest);
        let (piece, next) = rest.split_at(length);
        if is_code {
            blanked.push_str(piece);
        } else {
            blanked.extend(piece.chars().map(|c| if c == '\n' { c } else { ' ' }));
        }
        rest = next;
    }
    blanked
}

/// The length of the next piece of Rust, and whether it is code rather than a comment or a literal.
fn token(rest: &str) -> (usize, bool) {
    if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), false)
    } else if rest.starts_with("/*") {
        (block_comment(rest), false)
    } else if let Some(length) = raw_string(rest) {
        (length, false)
    } else if rest.starts_with('"') {
        (quoted(rest), false)
    } else if let Some(length) = character(rest) {
        (length, false)
    } else {
        // A whole word at once, so that the `r` of `for"` isn't taken for the start of a raw string.
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let first = rest.chars().next().map_or(0, char::len_utf8);
        (word.max(first), true)
    }
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of a raw string such as `r#"…"#`, `br"…"`.
fn raw_string(rest: &str) -> Option<usize> {
    let after = ["br", "cr", "r"]
        .iter()
        .find_map(|mark| rest.strip_prefix(mark))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = rest.len() - after.len() + hashes + 1;
    let length = rest[begin..].find(&end).map(|at| begin + at + end.len());
    Some(length.unwrap_or(rest.len()))
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if inside.starts_with('\\') {
        let end = inside.get(2..)?.find('\'')?;
        return Some(1 + 2 + end + 1);
    }
    let width = inside.chars().next()?.len_utf8();
    inside[width..].starts_with('\'').then_some(width + 2)
}

#[cfg(test)]
mod tests {
    use super::{Source, blank};

    #[test]
    fn comments_and_strings_become_spaces() {
        assert_eq!(blank("a // b\nc"), "a     \nc");
        assert_eq!(blank("a /* b /* c */ d */ e"), "a                   e");
        assert_eq!(
            blank(r#"f("a \" b", 'x', 'y')"#).trim_end(),
            "f(        ,    ,    )"
        );
        assert_eq!(blank("r#\"un\"safe\"# x").trim_start(), "x");
        assert_eq!(blank("for\"x\""), "for   ");
    }

    #[test]
    fn lifetimes_are_code() {
        let code = "fn f<'a>(x: &'a str, y: &'static str) -> char { '\\'' }";
        let expected = code.replace("'\\''", "    ");
        assert_eq!(blank(code), expected);
    }

    #[test]
    fn tests_at_the_end_are_not_shipped() {
        let text = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    unsafe {}\n}\n";
        assert_eq!(Source::new("core/src/a.rs", text).code(), "fn f() {}\n");
        assert!(Source::new("core/tests/it/main.rs", "").is_test());
        assert!(!Source::new("core/src/a.rs", "").is_test());
    }
}
