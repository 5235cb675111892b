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
use std::sync::{Mutex, OnceLock};
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
    ("many_served_leave_nothing", many_served_leave_nothing),
    (
        "a_preload_runs_once_and_is_shared",
        a_preload_runs_once_and_is_shared,
    ),
    (
        "a_preload_that_fails_is_told_of",
        a_preload_that_fails_is_told_of,
    ),
    ("one_server_serves_the_tree", one_server_serves_the_tree),
    ("a_killed_server_is_replaced", a_killed_server_is_replaced),
    (
        "kills_of_servers_lose_and_double_nothing",
        kills_of_servers_lose_and_double_nothing,
    ),
    (
        "kills_of_those_who_start_leave_nothing",
        kills_of_those_who_start_leave_nothing,
    ),
    (
        "a_server_ends_with_the_last_who_could_ask",
        a_server_ends_with_the_last_who_could_ask,
    ),
    (
        "the_terminal_interrupts_children_and_not_the_server",
        the_terminal_interrupts_children_and_not_the_server,
    ),
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

/// What the preload hook does in tests of it.
const PRELOAD: &str = "PROGRAM_TEST_PRELOAD";

static PRELOADED: OnceLock<u32> = OnceLock::new();

fn preload() {
    match std::env::var(PRELOAD).as_deref() {
        Ok("panic") => panic!("no preload today"),
        Ok("thread") => drop(std::thread::spawn(|| std::thread::sleep(LIMIT))),
        _ => {}
    }
    println!("preloaded");
    PRELOADED.set(std::process::id()).unwrap();
}

fn main() {
    procession::init_with(preload);
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

fn many_served_leave_nothing() {
    leaves_nothing(StartMethod::Forkserver, 2000);
}

fn served() -> procession::Builder {
    Process::builder().start_method(StartMethod::Forkserver)
}

/// The fork server's process id, in a child of it.
fn server(_: ()) -> u32 {
    *PRELOADED.get().unwrap()
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn until_gone(pid: u32) {
    while is_running(pid) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(signal: &str, pid: i64) {
    let mut kill = Command::new("kill");
    let sent = kill.args(["-s", signal, "--", &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

fn a_preload_runs_once_and_is_shared() {
    let pids: Vec<u32> = (0..10)
        .map(|_| served().spawn(server, ()).unwrap().join().unwrap())
        .collect();
    assert!(
        pids.iter()
            .all(|pid| *pid == pids[0] && *pid != std::process::id())
    );
    assert!(is_running(pids[0]) && PRELOADED.get().is_none());
    // What it printed is the server's to print.
    let mut child = served()
        .stdout(Stdio::piped())
        .spawn(|(): ()| print!("child"), ())
        .unwrap();
    let mut text = String::new();
    child
        .take_stdout()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "child");
    let parent = |(): ()| std::fs::read_to_string("/proc/self/stat").unwrap();
    let stat = served().spawn(parent, ()).unwrap().join().unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    assert_eq!(fields.split(' ').nth(1).unwrap(), pids[0].to_string());
    // Spawned and forked children know nothing of it.
    let has = |(): ()| PRELOADED.get().is_some();
    for method in [StartMethod::Spawn, StartMethod::Fork] {
        let builder = Process::builder().start_method(method);
        assert!(!builder.spawn(has, ()).unwrap().join().unwrap());
    }
}

fn a_preload_that_fails_is_told_of() {
    for (how, code) in [("panic", 101), ("thread", 1)] {
        let fail = |(): ()| {
            let error = served().spawn(server, ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost);
            error.to_string()
        };
        let builder = Process::builder().env(PRELOAD, how).stderr(Stdio::piped());
        let mut child = builder.spawn(fail, ()).unwrap();
        let mut said = String::new();
        child
            .take_stderr()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let text = child.join().unwrap();
        let start = format!("start a process: the fork server ended by exit code {code}");
        assert!(text.starts_with(&start), "{text}");
        let reason = if how == "panic" {
            "no preload today"
        } else {
            "1 threads running"
        };
        assert!(said.contains(reason), "{said}");
    }
}

fn one_server_serves_the_tree() {
    let first = served().spawn(server, ()).unwrap().join().unwrap();
    let inner = |(): ()| {
        assert_eq!(parent_process().unwrap().unwrap().name(), "MainProcess");
        served().spawn(server, ()).unwrap().join().unwrap()
    };
    assert_eq!(served().spawn(inner, ()).unwrap().join().unwrap(), first);
    assert_eq!(by_fork().spawn(inner, ()).unwrap().join().unwrap(), first);
    // A spawned process starts one of its own.
    assert_ne!(Process::spawn(inner, ()).unwrap().join().unwrap(), first);
    let many: Vec<_> = (0..50)
        .map(|_| served().spawn(server, ()).unwrap())
        .collect();
    assert!(many.into_iter().all(|child| child.join().unwrap() == first));
}

fn a_killed_server_is_replaced() {
    let go = Queue::<u32>::new().unwrap();
    let reply = |go: Queue<u32>| go.get().unwrap() + 1;
    let older = served().spawn(reply, go.clone()).unwrap();
    let dies = served().spawn(reply, go.clone()).unwrap();
    let mut last = served().spawn(server, ()).unwrap().join().unwrap();
    for _ in 0..3 {
        signal("KILL", last.into());
        until_gone(last);
        let next = served().spawn(server, ()).unwrap().join().unwrap();
        assert_ne!(next, last);
        // Nothing of the dead one is left.
        assert!(!std::path::Path::new(&format!("/proc/{last}")).exists());
        last = next;
    }
    // Children of the dead one run on, and are as exact as before.
    assert!(older.is_alive().unwrap() && dies.is_alive().unwrap());
    dies.kill().unwrap();
    wait([&dies]).unwrap();
    assert!(!dies.is_alive().unwrap());
    go.put(&1).unwrap();
    assert_eq!(older.join().unwrap(), 2);
}

/// A server is killed at any moment of the starts that it is asked for: each function runs once, or the start or the join
/// says that it was lost.
fn kills_of_servers_lose_and_double_nothing() {
    let began = Queue::<u32>::new().unwrap();
    let work = |(began, number): (Queue<u32>, u32)| {
        began.put(&number).unwrap();
        number
    };
    let killer = |(victims, seed): (Queue<u32>, u64)| {
        let (mut pause, mut last) = (seed, 0);
        while let Ok(pid) = victims.get() {
            if pid == 0 {
                return;
            }
            // It is dead, and its id may be another's.
            if pid == std::mem::replace(&mut last, pid) {
                continue;
            }
            pause = pause * 1_103_515_245 % 2_147_483_647;
            std::thread::sleep(Duration::from_micros(pause % 3000));
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status();
        }
    };
    let victims = Queue::new().unwrap();
    let seed = std::env::var("SEED").map_or(77, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let killer = Process::spawn(killer, (victims.clone(), seed)).unwrap();
    let (mut joined, mut lost) = (Vec::new(), 0);
    for number in 0..60 {
        let Ok(found) = served()
            .spawn(server, ())
            .and_then(|child| Ok(child.join()?))
        else {
            continue;
        };
        victims.put(&found).unwrap();
        let children: Vec<_> = (0..10)
            .map(|it| served().spawn(work, (began.clone(), number * 10 + it)))
            .collect();
        for (it, child) in children.into_iter().enumerate() {
            match child {
                Ok(child) => joined.push(child.join().unwrap()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Lost, "{it}: {error}");
                    lost += 1;
                }
            }
        }
    }
    victims.put(&0).unwrap();
    killer.join().unwrap();
    // One that was lost may be running still.
    std::thread::sleep(Duration::from_millis(100));
    let mut ran = Vec::new();
    while let Ok(number) = began.try_get() {
        ran.push(number);
    }
    ran.sort_unstable();
    let mut once = ran.clone();
    once.dedup();
    assert_eq!(ran, once, "run twice");
    assert!(
        joined
            .iter()
            .all(|number| ran.binary_search(number).is_ok())
    );
    assert!(joined.len() + lost <= 600 && ran.len() <= joined.len() + lost);
    println!("{} joined, {lost} lost, {} ran", joined.len(), ran.len());
}

/// Starts processes until it is killed: by each method, joined, dropped and daemonic ones.
fn start_for_ever((began, method): (Queue<u32>, usize)) {
    let method = [
        StartMethod::Spawn,
        StartMethod::Fork,
        StartMethod::Forkserver,
    ][method];
    let say = |began: Queue<u32>| began.put(&std::process::id()).unwrap();
    for number in 0u32.. {
        let builder = Process::builder().start_method(method);
        let child = builder.daemon(number % 3 == 0).spawn(say, began.clone());
        if number % 2 == 0 {
            drop(child.unwrap().join());
        }
    }
}

/// A process is killed at any moment of the starts that it makes: its children end, its server too, and nothing is left of
/// any of them in the tree.
fn kills_of_those_who_start_leave_nothing() {
    let seed: u64 = std::env::var("SEED").map_or(77, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut pause = seed;
    let began = Queue::<u32>::new().unwrap();
    let empty = |began: &Queue<u32>| while began.try_get().is_ok() {};
    let before = left();
    for kill in 0..45 {
        let starter = Process::spawn(start_for_ever, (began.clone(), kill % 3)).unwrap();
        began.get().unwrap();
        pause = pause * 1_103_515_245 % 2_147_483_647;
        std::thread::sleep(Duration::from_micros(pause % 5000));
        starter.kill().unwrap();
        starter.join().unwrap_err();
        empty(&began);
    }
    // Those that were started last end in their own time.
    while left() != before {
        std::thread::sleep(Duration::from_millis(5));
        empty(&began);
    }
}

fn a_server_ends_with_the_last_who_could_ask() {
    let (go, pids) = (Queue::<u32>::new().unwrap(), Queue::new().unwrap());
    let middle = |(go, pids): (Queue<u32>, Queue<u32>)| {
        let wait = |(go, pids): (Queue<u32>, Queue<u32>)| {
            pids.put(&server(())).unwrap();
            go.get().unwrap();
            // There is nobody else left who has the way to it.
            pids.put(&served().spawn(server, ()).unwrap().join().unwrap())
                .unwrap();
        };
        drop(served().spawn(wait, (go, pids)).unwrap());
        std::thread::sleep(LIMIT);
    };
    let starter = Process::spawn(middle, (go.clone(), pids.clone())).unwrap();
    let pid = pids.get().unwrap();
    starter.kill().unwrap();
    starter.join().unwrap_err();
    assert!(is_running(pid));
    go.put(&1).unwrap();
    assert_eq!(pids.get().unwrap(), pid);
    until_gone(pid);
}

/// A job of its own is interrupted, as by Ctrl-C.
fn the_terminal_interrupts_children_and_not_the_server() {
    let group = |(pids, method): (Queue<u32>, u32)| {
        let wait = |pids: Queue<u32>| {
            pids.put(&std::process::id()).unwrap();
            std::thread::sleep(LIMIT);
        };
        let first = served().spawn(server, ()).unwrap().join().unwrap();
        let child = served().spawn(wait, pids.clone()).unwrap();
        assert_eq!(pids.get().unwrap(), child.pid());
        assert_eq!(method, 0);
        // What the terminal sends to each process of the job.
        for pid in [first, child.pid()] {
            signal("INT", pid.into());
        }
        assert_eq!((*child).join().unwrap(), procession::ExitStatus::Signal(2));
        assert!(is_running(first));
        assert_eq!(served().spawn(server, ()).unwrap().join().unwrap(), first);
        // One that is interrupted as it begins hears it, too.
        for _ in 0..50 {
            let child = served()
                .spawn(|(): ()| std::thread::sleep(LIMIT), ())
                .unwrap();
            child.interrupt().unwrap();
            assert_eq!((*child).join().unwrap(), procession::ExitStatus::Signal(2));
        }
    };
    let pids = Queue::new().unwrap();
    Process::spawn(group, (pids, 0)).unwrap().join().unwrap();
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

/// Started with SIGCHLD ignored: only a kernel of 6.15 or later keeps how its children end.
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
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>());
    let version = (
        numbers.next().unwrap().unwrap(),
        numbers.next().unwrap().unwrap(),
    );
    let known = |code| (version >= (6, 15)).then_some(code);
    let reply = |go: Queue<u32>| go.get().unwrap() + 1;
    for method in [StartMethod::Spawn, StartMethod::Fork] {
        let builder = || Process::builder().start_method(method);
        let go = Queue::new().unwrap();
        let child = builder().spawn(reply, go.clone()).unwrap();
        assert!(child.is_alive().unwrap());
        go.put(&1).unwrap();
        wait([&child]).unwrap();
        assert!(!child.is_alive().unwrap());
        match known(0) {
            Some(code) => assert_eq!(child.exit_code().unwrap(), Some(code)),
            None => assert_eq!(child.exit_code().unwrap_err().kind(), ErrorKind::Os),
        }
        assert_eq!(child.join().unwrap(), 2);
        let child = builder().spawn(reply, go).unwrap();
        child.kill().unwrap();
        match child.join().unwrap_err() {
            JoinError::Lost(status) => assert_eq!(Some(status.number()), known(-9)),
            JoinError::Failed(error) => {
                assert_eq!((error.kind(), known(-9)), (ErrorKind::Os, None))
            }
            panicked => panic!("{panicked}"),
        }
        assert!(active_children().is_empty());
    }
}

fn the_first_process_has_no_parent() {
    assert!(parent_process().unwrap().is_none());
    let me = current_process();
    assert_eq!((me.name(), me.is_daemon()), ("MainProcess", false));
    std::io::stdout().flush().unwrap();
}
