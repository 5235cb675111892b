//! Who may import whom.
//!
//! Inside the core a module uses only what the table allows it; the crates know each other only as ARCHITECTURE.md
//! draws it. A test may use anything: the rule is for what ships.

use super::source::Source;
use std::collections::BTreeSet;

/// What everyone may use, and which uses nothing of ours.
const GROUND: [&str; 3] = ["error", "deadline", "parcel"];

/// What each module of the core may use beside the ground. A module that is missing here is a breach: a new one gets
/// its place in the table first.
const TABLE: [(&str, &[&str]); 14] = [
    ("error", &[]),
    ("deadline", &[]),
    ("parcel", &[]),
    ("sys", &[]),
    ("shm", &["sys"]),
    ("sync", &["sys", "shm"]),
    ("wire", &[]),
    ("handoff", &["sys", "shm", "sync", "wire"]),
    ("queue", &["sys", "shm", "sync", "wire", "handoff"]),
    ("connection", &["sys", "shm", "sync", "wire", "handoff"]),
    ("process", &["sys", "shm", "sync", "wire", "handoff"]),
    (
        "pool",
        &[
            "sys",
            "shm",
            "sync",
            "wire",
            "handoff",
            "queue",
            "connection",
            "process",
        ],
    ),
    (
        "manager",
        &[
            "sys",
            "shm",
            "sync",
            "wire",
            "handoff",
            "queue",
            "connection",
            "process",
        ],
    ),
    // The process' place in its tree: ties all of them to fork and exit, and nothing may know it.
    (
        "tree",
        &[
            "sys",
            "shm",
            "sync",
            "wire",
            "handoff",
            "queue",
            "connection",
            "process",
            "pool",
            "manager",
        ],
    ),
];

/// Files that decide and do nothing: the present time and events come in, actions go out.
const PURE: [&str; 4] = [
    "core/src/wire/",
    "core/src/pool/scheduler.rs",
    "core/src/pool/batch.rs",
    "core/src/manager/registry.rs",
];

/// What a pure file doesn't name.
const IMPURE: [&str; 4] = ["Instant::now", "std::thread", "thread::spawn", "crate::sys"];

/// Crates that parts of the project must not name: where, but not below, which, and why.
const BARRED: [(&str, &str, &[&str], &str); 3] = [
    (
        "core/src/",
        "core/src/sys/",
        &["libc", "rustix"],
        "only core/src/sys talks to the system",
    ),
    (
        "rust/src/",
        "",
        &["libc", "rustix", "pyo3"],
        "the Rust face reaches the system through the core",
    ),
    (
        "python/src/",
        "",
        &["libc", "rustix", "procession"],
        "the Python face reaches the system through the core, and doesn't know the Rust face",
    ),
];

/// Every import that goes the wrong way.
pub(super) fn breaches(sources: &[Source]) -> Vec<String> {
    let shipped = sources
        .iter()
        .filter(|source| source.is_rust() && !source.is_test());
    shipped.flat_map(of_file).collect()
}

fn of_file(source: &Source) -> Vec<String> {
    let code = source.code();
    let mut breaches = barred(&source.name, &code);
    if let Some(path) = source.name.strip_prefix("core/src/") {
        let module = path.split(['/', '.']).next().unwrap_or_default();
        breaches.extend(of_module(module, &code));
    }
    if PURE.iter().any(|pure| source.name.starts_with(pure)) {
        let named = IMPURE.iter().filter(|word| code.contains(**word));
        breaches.extend(named.map(|word| format!("names {word}, in a file that only decides")));
    }
    for breach in &mut breaches {
        *breach = format!("{}: {breach}", source.name);
    }
    breaches
}

fn of_module(module: &str, code: &str) -> Vec<String> {
    if module == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = TABLE.iter().find(|(name, _)| *name == module) else {
        let place = "xtask/src/tidy/layers.rs";
        return vec![format!("{module} has no place in the table of {place}")];
    };
    let is_allowed = |used: &str| {
        let is_ground = GROUND.contains(&used) && !GROUND.contains(&module);
        used == module || is_ground || allowed.contains(&used)
    };
    let used = used_modules(code).into_iter();
    used.filter(|used| !is_allowed(used))
        .map(|used| format!("{module} uses {used}, which is not below it"))
        .collect()
}

/// The core's modules that follow a `crate::`, in groups too. What the root re-exports (`crate::Error`) is the ground.
fn used_modules(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => used.extend(first_words(group)),
            None => used.extend([word(rest)]),
        }
    }
    let is_module = |name: &String| name.starts_with(|c: char| c.is_lowercase());
    used.into_iter().filter(is_module).collect()
}

/// The first word of each member of a group, whatever is nested in it.
fn first_words(group: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth > 0 => {}
            ',' | '}' => {
                words.push(word(group[begin..at].trim_start()));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn word(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.chars().take_while(|c| is_word(*c)).collect()
}

fn barred(name: &str, code: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    for (folder, exempt, crates, why) in BARRED {
        let is_exempt = !exempt.is_empty() && name.starts_with(exempt);
        if !name.starts_with(folder) || is_exempt {
            continue;
        }
        let named = crates.iter().filter(|one| names_crate(code, one));
        breaches.extend(named.map(|one| format!("names the crate {one}: {why}")));
    }
    breaches
}

/// Whether a path in the code begins with this crate.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[cfg(test)]
mod tests {
    use super::{breaches, used_modules};
    use crate::tidy::source::Source;

    fn count(name: &str, text: &str) -> usize {
        breaches(&[Source::new(name, text)]).len()
    }

    #[test]
    fn layers_are_used_downwards() {
        let fine = "use crate::shm::Arena;\nuse crate::queue::Put;\nuse crate::{Error, error};";
        assert_eq!(count("core/src/queue/put.rs", fine), 0);
        assert_eq!(count("core/src/shm/slots.rs", "use crate::queue::Put;"), 1);
        assert_eq!(
            count("core/src/queue/put.rs", "crate::process::adopt(1)"),
            1
        );
        assert_eq!(
            count("core/src/error.rs", "use crate::deadline::Deadline;"),
            1
        );
        assert_eq!(count("core/src/shm/slots.rs", "// crate::queue knows"), 0);
        assert_eq!(count("core/src/lib.rs", "pub use crate::queue::Queue;"), 0);
    }

    #[test]
    fn groups_are_read_whole() {
        let code = "use crate::{\n    Error, shm::{Arena, view::View},\n    queue,\n};";
        assert_eq!(Vec::from_iter(used_modules(code)), ["queue", "shm"]);
        assert_eq!(count("core/src/sync/lock.rs", code), 1);
    }

    #[test]
    fn tests_may_use_anything() {
        let text = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::pool::Pool;\n}";
        assert_eq!(count("core/src/shm/slots.rs", text), 0);
    }

    #[test]
    fn a_new_module_needs_a_place() {
        assert_eq!(count("core/src/novelty.rs", ""), 1);
    }

    #[test]
    fn pure_files_decide_only() {
        assert_eq!(count("core/src/pool/scheduler.rs", "Instant::now()"), 1);
        assert_eq!(count("core/src/pool/driver.rs", "Instant::now()"), 0);
        assert_eq!(
            count("core/src/wire/frame.rs", "std::thread::yield_now()"),
            1
        );
    }

    #[test]
    fn only_sys_talks_to_the_system() {
        assert_eq!(count("core/src/sys/fork.rs", "libc::fork()"), 0);
        assert_eq!(count("core/src/shm/arena.rs", "libc::fork()"), 1);
        assert_eq!(count("rust/src/lib.rs", "use rustix::fs;"), 1);
        assert_eq!(count("python/src/lib.rs", "procession::Queue"), 1);
        assert_eq!(count("python/src/lib.rs", "procession_core::Queue"), 0);
    }
}
