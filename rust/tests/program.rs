//! A program whose `main` calls [`procession::init`]: what libtest's threads, and its other tests in the same tree, don't
//! let a test show. Each test is a process of its own.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::print_stdout, reason = "what libtest would print")]

use procession::{
    ErrorKind, JoinError, Lock, Process, Queue, StartMethod, Stdio, active_children,
    current_process, parent_process, wait,
};
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// Behind this comes the name of the one test that a process runs.
const RUN: &str = "--run";

/// A test that isn't done by then hangs, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(120);

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("main_is_not_run_twice", main_is_not_run_twice),
    ("a_fork_needs_a_single_thread", a_fork_needs_a_single_thread),
    ("a_forked_child_drops_nothing", a_forked_child_drops_nothing),
    (
        "what_was_buffered_is_written_once",
        what_was_buffered_is_written_once,
    ),
    ("many_forks_leave_nothing", many_forks_leave_nothing),
    ("many_spawns_leave_nothing", many_spawns_leave_nothing),
    ("starts_and_ends_are_logged", starts_and_ends_are_logged),
    (
        "who_ignores_its_children_gets_values",
        who_ignores_its_children_gets_values,
    ),
    (
        "the_first_process_has_no_parent",
        the_first_process_has_no_parent,
    ),
];

fn main() {
    procession::init();
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some(RUN) {
        let name = arguments.next();
        let test = TESTS
            .iter()
            .find(|(test, _)| Some(*test) == name.as_deref());
        return test.expect("a test of that name").1();
    }
    let word = first
        .filter(|word| !word.starts_with('-'))
        .unwrap_or_default();
    let chosen: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| name.contains(&word))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    let failed = chosen.iter().filter(|(name, _)| !passes(name)).count();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let (passed, out) = (chosen.len() - failed, TESTS.len() - chosen.len());
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {out} filtered out\n"
    );
    std::process::exit(if failed == 0 { 0 } else { 101 });
}

/// Runs a test in a process of its own, and says how that went.
fn passes(name: &str) -> bool {
    let mut command = Command::new("timeout");
    command.arg(LIMIT.as_secs().to_string());
    command
        .arg(std::env::current_exe().unwrap())
        .args([RUN, name]);
    let ended = command.output().unwrap();
    let passed = ended.status.success();
    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    if !passed {
        let texts =
            [ended.stdout, ended.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        println!("{}: {}", ended.status, texts.join("\n"));
    }
    passed
}

fn by_fork() -> procession::Builder {
    Process::builder().start_method(StartMethod::Fork)
}

/// What main did, which a child of any kind never does.
static MAIN_WENT_ON: Mutex<u32> = Mutex::new(0);

fn main_is_not_run_twice() {
    *MAIN_WENT_ON.lock().unwrap() += 1;
    let count = |(): ()| *MAIN_WENT_ON.lock().unwrap();
    assert_eq!(Process::spawn(count, ()).unwrap().join().unwrap(), 0);
    assert_eq!(by_fork().spawn(count, ()).unwrap().join().unwrap(), 1);
    // A panic doesn't come back to main either, nor does an exit.
    by_fork()
        .spawn(|(): ()| -> () { panic!("as it should") }, ())
        .unwrap()
        .join()
        .unwrap_err();
    by_fork()
        .spawn(|(): ()| -> () { std::process::exit(5) }, ())
        .unwrap()
        .join()
        .unwrap_err();
    *MAIN_WENT_ON.lock().unwrap() += 1;
    assert_eq!(by_fork().spawn(count, ()).unwrap().join().unwrap(), 2);
}

fn a_fork_needs_a_single_thread() {
    let double = |number: u32| number * 2;
    let (end, wait_for_end) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait_for_end.recv());
    let error = by_fork().spawn(double, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misuse);
    let text = "start a process by fork: this process has 2 threads";
    assert!(error.to_string().starts_with(text), "{error}");
    drop(end);
    thread.join().unwrap().unwrap_err();
    // A joined thread is on its way out for a moment.
    for number in 0..200 {
        std::thread::spawn(|| ()).join().unwrap();
        assert_eq!(
            by_fork().spawn(double, number).unwrap().join().unwrap(),
            number * 2
        );
    }
}

/// Says when it is dropped.
struct Told(Queue<u32>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.put(&std::process::id()).unwrap();
    }
}

fn a_forked_child_drops_nothing() {
    let drops = Queue::new().unwrap();
    let told = Told(drops.clone());
    let lock = Lock::new().unwrap();
    let guard = lock.acquire().unwrap();
    for end in 0..3 {
        let work = |end: u32| match end {
            0 => (),
            1 => panic!("as it should"),
            _ => std::process::exit(0),
        };
        drop(by_fork().spawn(work, end).unwrap().join());
    }
    assert!(drops.is_empty().unwrap());
    let is_held = |lock: Lock| lock.try_acquire().unwrap().is_none();
    assert!(
        by_fork()
            .spawn(is_held, lock.clone())
            .unwrap()
            .join()
            .unwrap()
    );
    drop(guard);
    drop(told);
    assert_eq!(drops.get().unwrap(), std::process::id());
}

fn what_was_buffered_is_written_once() {
    print!("not a whole line");
    let say = |(): ()| print!("of the child");
    let mut child = by_fork().stdout(Stdio::piped()).spawn(say, ()).unwrap();
    let mut text = String::new();
    child
        .take_stdout()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    child.join().unwrap();
    assert_eq!(text, "of the child");
}

/// Descriptors, threads, children that nobody has waited for, and what the arena has.
fn left() -> impl PartialEq + std::fmt::Debug {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    (
        count("/proc/self/fd"),
        count("/proc/self/task"),
        children,
        procession::__private::census(),
    )
}

fn leaves_nothing(method: StartMethod, starts: u32) {
    let start = |number: u32| {
        let builder = Process::builder()
            .start_method(method)
            .stdout(Stdio::piped());
        let reply = |number: u32| (number + 1, Lock::new().unwrap());
        builder.spawn(reply, number).unwrap()
    };
    drop(start(1).join().unwrap());
    let before = left();
    for number in 0..starts {
        match number % 4 {
            0 => drop(start(number)),
            1 => {
                let killed = start(number);
                killed.kill().unwrap();
                drop(killed.join());
            }
            _ => assert_eq!(start(number).join().unwrap().0, number + 1),
        }
    }
    while let [child, ..] = &*active_children() {
        child.join().unwrap();
    }
    drop(active_children());
    assert_eq!(left(), before);
}

fn many_forks_leave_nothing() {
    leaves_nothing(StartMethod::Fork, 2000);
}

fn many_spawns_leave_nothing() {
    leaves_nothing(StartMethod::Spawn, 200);
}

/// Keeps what is logged by the library.
struct Logger(Mutex<Vec<(log::Level, String)>>);

static LOGGER: Logger = Logger(Mutex::new(Vec::new()));

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        assert!(record.target().starts_with("procession"));
        let line = (record.level(), record.args().to_string());
        self.0.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

fn starts_and_ends_are_logged() {
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let logged = || std::mem::take(&mut *LOGGER.0.lock().unwrap());
    let ends = |end: u32| match end {
        0 => (),
        1 => panic!("as it should"),
        2 => std::process::abort(),
        _ => std::thread::sleep(LIMIT),
    };
    use log::Level::{Debug, Warn};
    let expected = [
        (Debug, "ended by exit code 0"),
        (Warn, "died by exit code 101"),
        (Warn, "died by signal 6"),
        (Debug, "ended by signal 15"),
    ];
    for (end, (level, text)) in (0..).zip(expected) {
        let child = Process::builder().name("logged").spawn(ends, end).unwrap();
        let who = format!("logged (process {})", child.pid());
        if end == 3 {
            child.terminate().unwrap();
        }
        // Each is told once, however often it is asked.
        wait([&child]).unwrap();
        child.exit_code().unwrap();
        drop(child.join());
        let started = (Debug, format!("{who} was started by spawn"));
        assert_eq!(logged(), [started, (level, format!("{who} {text}"))]);
    }
}

/// Started with SIGCHLD ignored: the system forgets how its children end.
fn who_ignores_its_children_gets_values() {
    let again = std::env::var_os("IGNORES").is_some();
    if !again {
        let mut command = Command::new("env");
        command.args(["--ignore-signal=CHLD", "IGNORES=1"]);
        command.arg(std::env::current_exe().unwrap());
        command.args([RUN, "who_ignores_its_children_gets_values"]);
        assert!(command.status().unwrap().success());
        return;
    }
    let reply = |go: Queue<u32>| go.get().unwrap() + 1;
    for method in [StartMethod::Spawn, StartMethod::Fork] {
        let builder = || Process::builder().start_method(method);
        let go = Queue::new().unwrap();
        let child = builder().spawn(reply, go.clone()).unwrap();
        assert!(child.is_alive().unwrap());
        go.put(&1).unwrap();
        wait([&child]).unwrap();
        assert!(!child.is_alive().unwrap());
        assert_eq!(child.exit_code().unwrap_err().kind(), ErrorKind::Os);
        assert_eq!(child.join().unwrap(), 2);
        let child = builder().spawn(reply, go).unwrap();
        child.kill().unwrap();
        let ended = child.join();
        assert!(matches!(ended, Err(JoinError::Failed(error)) if error.kind() == ErrorKind::Os));
        assert!(active_children().is_empty());
    }
}

fn the_first_process_has_no_parent() {
    assert!(parent_process().unwrap().is_none());
    let me = current_process();
    assert_eq!((me.name(), me.is_daemon()), ("MainProcess", false));
    std::io::stdout().flush().unwrap();
}
