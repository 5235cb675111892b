//! Every store to shared memory that the sources have: what a walk must reach.

use procession_core::sys::crash::Site;
use std::path::Path;

/// The methods of `sys::word`'s cells that store.
const STORING: [&str; 6] = ["store", "swap", "replace", "add", "set_bits", "clear_bits"];

/// Why a walk may not reach a store.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Except {
    /// No process can be brought to it.
    Never(&'static str),
    /// Only two that run at the same instant come to it: most walks do, and none can make sure.
    Perhaps(&'static str),
    /// Only beside another process, and some walks come to it by chance where they have a neighbour for another reason: each
    /// reaches it, but none is to die there by itself.
    Beside(&'static str),
}

/// Those stores, by file and a part of the line.
const EXCEPT: [(&str, &str, Except); 5] = [
    (
        "src/sync/lock.rs",
        "word.replace(value, DIED |",
        Except::Never(
            "an owner whose slot has another process: recovery marks locks first, so only flipped bits lead here",
        ),
    ),
    (
        "src/shm/robust.rs",
        "word.load(Relaxed) == 0 && word.replace(0, tid)",
        Except::Perhaps(
            "its holder must let go on another processor, within the microsecond in which this one looks",
        ),
    ),
    (
        "src/shm/robust.rs",
        "word.replace(value, if died {",
        Except::Beside("another process had the lock a moment ago, or died with it"),
    ),
    (
        "src/shm/robust.rs",
        "!word.replace(value, value | WAITERS)",
        Except::Beside("another process has the lock"),
    ),
    (
        "src/sys/gate.rs",
        "self.0.swap(2, Acquire)",
        Except::Perhaps("another thread of the process must be inside at that instant"),
    ),
];

/// A store in the sources.
#[derive(Debug)]
pub(crate) struct Store {
    /// As the compiler names it.
    pub(crate) site: Site,
    /// A queue counts what it loses with a getter that dies here.
    pub(crate) counts: bool,
    /// Why it may not be reached, if so.
    pub(crate) except: Option<Except>,
}

/// All of them, in order; but for those of the models, which no process runs.
pub(crate) fn all() -> Vec<Store> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut stores = Vec::new();
    visit(&root, "core/src", &mut stores);
    stores.sort_by_key(|store| store.site);
    stores
}

fn visit(folder: &Path, name: &str, stores: &mut Vec<Store>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            visit(&entry.path(), &name, stores);
        } else if Path::new(&name).extension().is_some_and(|it| it == "rs")
            && name != "core/src/sys/word.rs"
            && !name.ends_with("/orders.rs")
            && !name.contains("/model")
        {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            // For as long as the program: sites are compared with the compiler's own names.
            stores.extend(scan(name.leak(), &text));
        }
    }
}

/// The stores in one file. Only one that uses `sys::word`, or writes bytes, can have any.
fn scan(name: &'static str, text: &str) -> Vec<Store> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    if !code.contains("word::") && !code.contains("windows()") {
        return Vec::new();
    }
    let own = own_atomics(code);
    let mut stores = Vec::new();
    let mut statement = String::new();
    for (number, line) in (1..).zip(code.lines().map(str::trim)) {
        if line.starts_with("//") {
            continue;
        }
        // rustfmt breaks a long chain before a method: what it is called on stands in the lines above.
        if !line.starts_with('.') {
            statement.clear();
        }
        let before = statement.len();
        statement.push_str(line);
        if is_store(&statement, before, &own) {
            let except = EXCEPT
                .iter()
                .find(|(file, part, _)| name.ends_with(file) && line.contains(part));
            stores.push(Store {
                site: (name, number),
                counts: name.ends_with("queue/get.rs"),
                except: except.map(|(_, _, why)| *why),
            });
        }
    }
    stores
}

/// Whether a statement, behind `from`, calls a storing method of a cell of shared memory.
fn is_store(statement: &str, from: usize, own: &[&str]) -> bool {
    let calls = |method: &str| {
        let call = format!(".{method}(");
        statement[from..]
            .match_indices(&call)
            .map(|(at, _)| &statement[..from + at])
            .collect::<Vec<_>>()
    };
    let is_cell = |receiver: &&str| {
        !receiver.ends_with("ptr()")
            && !own
                .iter()
                .any(|field| receiver.ends_with(&format!("self.{field}")))
    };
    STORING.iter().any(|method| calls(method).iter().any(is_cell))
        // Bytes are written by the windows alone; other types write other things.
        || ["write", "clear"].iter().any(|method| {
            let mut receivers = calls(method).into_iter();
            receivers.any(|receiver| receiver.ends_with("windows()"))
        })
}

/// Fields of this process' own memory: declared in the file as the standard library's atomics.
fn own_atomics(code: &str) -> Vec<&str> {
    code.lines()
        .filter_map(|line| line.trim().split_once(": Atomic"))
        .map(|(field, _)| field.trim_start_matches("pub(crate) "))
        .collect()
}

#[test]
fn the_scan_knows_a_store_when_it_sees_one() {
    let found = scan(
        "a.rs",
        "use word::Cell;\nlast: AtomicU32,\nlet a = x\n    .y\n    .store(1);\nself.last.store(2);\nself.z.replace(0, 1);\n\
         // w.add(1)\nv.as_ptr().add(1);\nfile.write(b);\nm.windows().write(1, b);\nmore.windows();\n\
         list.clear();\nm.windows().clear(1, 2);\n",
    );
    let lines: Vec<u32> = found.iter().map(|store| store.site.1).collect();
    assert_eq!(lines, [5, 7, 11, 14]);
    assert!(scan("b.rs", "self.z.replace(0, 1);\n").is_empty());
}
