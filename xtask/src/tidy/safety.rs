//! Where `unsafe` may be. One more file in the list is a conversation, not an edit in passing.

use super::source::{Source, blank};

/// The files that may hold `unsafe`, each with its reason.
const LIST: [(&str, &str); 11] = [
    (
        "core/src/sys/mapping.rs",
        "mmap and munmap; takes over an inherited descriptor",
    ),
    (
        "core/src/sys/robust.rs",
        "the robust list lies in the C library's memory, and the kernel reads it",
    ),
    (
        "core/src/sys/fork.rs",
        "fork, whose handlers are function pointers, and the environment of its child",
    ),
    (
        "core/src/sys/image.rs",
        "the only place that turns an offset in an executable into a function",
    ),
    (
        "core/src/sys/launch.rs",
        "between fork and exec only async-signal-safe calls are allowed",
    ),
    (
        "core/src/sys/pidfd.rs",
        "an ioctl that rustix doesn't know tells how a process ended that isn't ours; who is at the other end of a socket",
    ),
    (
        "core/src/sys/number.rs",
        "descriptors that a program gave by their numbers",
    ),
    (
        "core/src/shm/view.rs",
        "turns an offset in the arena into a reference to atomics",
    ),
    (
        "python/src/entry.rs",
        "functions that the interpreter calls, past PyO3's trampoline",
    ),
    (
        "python/src/memory.rs",
        "the buffer protocol hands an address to the interpreter",
    ),
    (
        "python/src/shared/classes.rs",
        "slots that the interpreter calls, past PyO3's trampoline",
    ),
];

/// Integration tests fork, kill and trace bare processes; they don't ship.
const EXEMPT: [&str; 1] = ["core/tests/"];

/// Every `unsafe` that isn't on the list, and every entry of the list that has lost its reason.
pub(super) fn breaches(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let is_listed = LIST.iter().any(|(file, _)| *file == source.name);
        let is_exempt = EXEMPT.iter().any(|folder| source.name.starts_with(folder));
        match (is_listed || is_exempt, opens(&source.text)) {
            (false, true) => breaches.push(format!(
                "{}: unsafe, and not on the list of xtask/src/tidy/safety.rs",
                source.name
            )),
            (true, false) if is_listed => breaches.push(format!(
                "{}: no unsafe any more: take it off the list of xtask/src/tidy/safety.rs",
                source.name
            )),
            _ => {}
        }
    }
    let face = sources
        .iter()
        .find(|source| source.name == "rust/src/lib.rs");
    if face.is_some_and(|face| !face.text.contains("#![forbid(unsafe_code)]")) {
        breaches.push("rust/src/lib.rs: must forbid unsafe code".to_owned());
    }
    breaches
}

/// Whether a file, its tests included, has `unsafe` code or allows itself some.
fn opens(text: &str) -> bool {
    let code = blank(text);
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    let has_keyword = words.into_iter().any(|word| word == "unsafe");
    let packed: String = code.split_whitespace().collect();
    let allows = ["allow(unsafe_code", "expect(unsafe_code"];
    has_keyword || allows.iter().any(|allow| packed.contains(allow))
}

#[cfg(test)]
mod tests {
    use super::breaches;
    use crate::tidy::source::Source;

    fn count(name: &str, text: &str) -> usize {
        breaches(&[Source::new(name, text)]).len()
    }

    #[test]
    fn unsafe_is_where_the_list_says() {
        assert_eq!(count("core/src/queue/put.rs", "unsafe { x() }"), 1);
        assert_eq!(
            count(
                "core/src/queue/put.rs",
                "#![allow(\n    unsafe_code, reason = \"\")]"
            ),
            1
        );
        assert_eq!(count("core/src/sys/mapping.rs", "unsafe { x() }"), 0);
        assert_eq!(count("core/tests/it/child.rs", "unsafe { x() }"), 0);
    }

    #[test]
    fn words_about_it_are_not_it() {
        assert_eq!(
            count("core/src/queue/put.rs", "// unsafe { x() }\n\"unsafe\""),
            0
        );
        assert_eq!(count("core/src/lib.rs", "#![deny(unsafe_code)]"), 0);
    }

    #[test]
    fn the_list_is_kept_short() {
        assert_eq!(count("core/src/sys/mapping.rs", "fn f() {}"), 1);
    }

    #[test]
    fn the_rust_face_forbids_it() {
        assert_eq!(count("rust/src/lib.rs", "//! Processes.\n"), 1);
        assert_eq!(count("rust/src/lib.rs", "#![forbid(unsafe_code)]\n"), 0);
    }
}
