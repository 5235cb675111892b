//! What holds for every start method: each test runs in a process of its own, which may fork.
#![allow(
    clippy::print_stdout,
    reason = "what a child says to the streams that it was given"
)]

use crate::each::{METHODS, by, each};
use crate::signals::interrupt;
use crate::watchdog::until;
use procession::{
    ErrorKind, ExitStatus, JoinError, Lock, LockError, Process, Queue, StartMethod, Stdio,
    active_children, current_process, parent_process, wait, wait_timeout,
};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// What the fork server of these tests preloads.
static PRELOADED: OnceLock<u32> = OnceLock::new();

pub(crate) fn preload() {
    PRELOADED.set(std::process::id()).unwrap();
}

/// Waits for a message that nobody sends.
fn wait_for_ever(queue: Queue<()>) {
    let _ = queue.get();
}

/// The state of a process: `None` when there is none, `Z` for a zombie.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether what is left of a process waits for this one; a fork server's child is its server's.
fn is_zombie(method: usize, pid: u32) -> bool {
    METHODS[method] == StartMethod::Forkserver || state(pid) == Some('Z')
}

#[test]
fn the_hook_is_run_in_the_server_of_tests_too() {
    each(|method| {
        let look = |(): ()| PRELOADED.get().copied();
        let found = by(method).spawn(look, ()).unwrap().join().unwrap();
        let is_served = METHODS[method] == StartMethod::Forkserver;
        assert_eq!(found.is_some(), is_served);
        assert_ne!(found, Some(std::process::id()));
    });
}

#[test]
fn values_and_panics_come_back() {
    each(|method| {
        let child = by(method)
            .spawn(
                |(a, b): (u64, String)| format!("{b}{a}"),
                (2, "x".to_owned()),
            )
            .unwrap();
        assert_ne!(child.pid(), std::process::id());
        assert_eq!(child.join().unwrap(), "x2");
        let text = "0123456789abcdef".repeat(1 << 18);
        let back = by(method).spawn(|text: String| text + "!", text.clone());
        assert_eq!(back.unwrap().join().unwrap(), text + "!");
        let child = by(method).spawn(|number: u8| -> u8 { panic!("number {number}") }, 7);
        let child = child.unwrap();
        assert_eq!((*child).join().unwrap(), ExitStatus::Code(101));
        let Err(JoinError::Panicked(panic)) = child.join() else {
            panic!("no panic")
        };
        assert_eq!(panic.message(), "number 7");
    });
}

#[test]
fn each_end_is_told_exactly() {
    each(|method| {
        for code in [0, 3] {
            let exit = |code: i32| -> () { std::process::exit(code) };
            let child = by(method).spawn(exit, code).unwrap();
            let ended = child.join();
            assert!(matches!(ended, Err(JoinError::Lost(ExitStatus::Code(it))) if it == code));
        }
        let never = Queue::new().unwrap();
        for signal in ["kill", "terminate", "interrupt"] {
            let child = by(method).spawn(wait_for_ever, never.clone()).unwrap();
            assert!(child.is_alive().unwrap());
            let number = match signal {
                "kill" => child.kill().map_or(0, |()| 9),
                "terminate" => child.terminate().map_or(0, |()| 15),
                _ => interrupt(&child),
            };
            assert_eq!(wait([&child]).unwrap(), [0]);
            assert!(!child.is_alive().unwrap());
            assert_eq!(child.exit_code().unwrap(), Some(-number));
            let text = child.join().unwrap_err().to_string();
            assert!(text.contains(&format!("signal {number}")), "{text}");
        }
    });
}

#[test]
fn what_a_child_held_when_it_left_and_when_it_died() {
    each(|method| {
        let lock = Lock::new().unwrap();
        let leaves = |lock: Lock| lock.acquire().unwrap().keep();
        by(method)
            .spawn(leaves, lock.clone())
            .unwrap()
            .join()
            .unwrap();
        // It left normally, so another may release it.
        assert!(lock.try_acquire().unwrap().is_none());
        lock.release().unwrap();
        let dies = |lock: Lock| {
            lock.acquire().unwrap().keep();
            std::process::abort()
        };
        let died: Process<()> = by(method).spawn(dies, lock.clone()).unwrap();
        died.join().unwrap_err();
        assert!(matches!(lock.acquire(), Err(LockError::OwnerDied(_))));
    });
}

#[test]
fn names_go_to_the_child() {
    each(|method| {
        let me = current_process();
        let who = |(): ()| {
            let (me, parent) = (current_process(), parent_process().unwrap().unwrap());
            assert_eq!(me.pid(), std::process::id());
            assert!(parent.is_alive().unwrap());
            let names = (me.name().to_owned(), parent.name().to_owned());
            (names, parent.pid(), me.is_daemon())
        };
        for (name, daemon) in [("heart", false), ("λ / \u{0}", true)] {
            let child = by(method).name(name).daemon(daemon).spawn(who, ()).unwrap();
            assert_eq!((child.name(), child.is_daemon()), (name, daemon));
            let names = (name.to_owned(), me.name().to_owned());
            assert_eq!(child.join().unwrap(), (names, me.pid(), daemon));
        }
        let inner = move |method: usize| {
            let names = [(); 2].map(|()| {
                let child = by(method).spawn(who, ()).unwrap();
                child.join().unwrap().0.0
            });
            (current_process().name().to_owned(), names)
        };
        let (outer, names) = by(method).spawn(inner, method).unwrap().join().unwrap();
        // The third child of this process, which is the first or second of its own parent.
        assert!(
            outer.starts_with("Process-") && outer.ends_with(":3"),
            "{outer}"
        );
        assert_eq!(names, [format!("{outer}:1"), format!("{outer}:2")]);
    });
}

#[test]
fn the_environment_is_what_was_said() {
    each(|method| {
        type Seen = Vec<(String, Option<String>)>;
        let look = |names: Vec<String>| -> Seen {
            let value = |name: String| {
                let value = std::env::var(&name).ok();
                (name, value)
            };
            names.into_iter().map(value).collect()
        };
        let names = || ["PATH", "ADDED", "SECOND"].map(str::to_owned).to_vec();
        let values = |seen: Seen| seen.into_iter().map(|(_, value)| value).collect::<Vec<_>>();
        let path = std::env::var("PATH").ok();
        assert!(path.is_some());
        let some = |text: &str| Some(text.to_owned());
        let child = by(method)
            .env("ADDED", "a = b")
            .env("ADDED", "c")
            .spawn(look, names());
        assert_eq!(
            values(child.unwrap().join().unwrap()),
            [path, some("c"), None]
        );
        let builder = by(method).envs([("ADDED", "1"), ("SECOND", "2")]);
        let child = builder
            .env_remove("PATH")
            .env_remove("ADDED")
            .spawn(look, names());
        assert_eq!(
            values(child.unwrap().join().unwrap()),
            [None, None, some("2")]
        );
        let builder = by(method).env("ADDED", "1").env_clear().env("SECOND", "");
        let all = |(): ()| std::env::vars().collect::<Vec<_>>();
        let child = builder.spawn(all, ()).unwrap();
        assert_eq!(
            child.join().unwrap(),
            [("SECOND".to_owned(), String::new())]
        );
        // This process' own is as it was.
        assert_eq!(std::env::var_os("ADDED"), None);
        for (builder, named) in [
            (by(method).env("", "x"), "\"\" to \"x\""),
            (by(method).env("A=B", "x"), "\"A=B\""),
            (by(method).env("A", "x\0y"), "\"x\\0y\""),
            (by(method).env_remove("A\0"), "\"A\\0\""),
        ] {
            let error = builder.spawn(|(): ()| (), ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Misuse);
            assert!(error.to_string().contains(named), "{error}");
        }
    });
}

#[test]
fn the_directory_is_what_was_said() {
    each(|method| {
        let before = std::env::current_dir().unwrap();
        let here = |(): ()| std::env::current_dir().unwrap();
        for directory in ["/", "/proc/self"] {
            let child = by(method).current_dir(directory).spawn(here, ()).unwrap();
            let expected = std::fs::canonicalize(directory).unwrap();
            assert_eq!(child.join().unwrap(), expected);
        }
        assert_eq!(by(method).spawn(here, ()).unwrap().join().unwrap(), before);
        assert_eq!(std::env::current_dir().unwrap(), before);
        for path in ["/nowhere/at/all", "", "/dev/null"] {
            let error = by(method).current_dir(path).spawn(here, ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Os);
            assert!(error.to_string().contains(&format!("{path:?}")), "{error}");
        }
    });
}

#[test]
fn streams_are_what_was_said() {
    each(|method| {
        let shout = |(): ()| {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).unwrap();
            // libtest prints a line of its own before a child begins.
            print!("[{}]", text.to_uppercase());
            eprint!("[{}]", text.len());
        };
        let piped = || {
            by(method)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
        };
        let mut child = piped().spawn(shout, ()).unwrap();
        child.take_stdin().unwrap().write_all(b"hello").unwrap();
        assert!(child.take_stdin().is_none());
        let (mut output, mut errors) = (String::new(), String::new());
        child
            .take_stdout()
            .unwrap()
            .read_to_string(&mut output)
            .unwrap();
        child
            .take_stderr()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        child.join().unwrap();
        assert!(
            output.contains("[HELLO]") && errors.contains("[5]"),
            "{output} {errors}"
        );
        // An input that nobody takes ends when the child is joined.
        piped().spawn(shout, ()).unwrap().join().unwrap();
        // One child's output is the next one's input; a file; nothing.
        let mut first = by(method)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn(shout, ())
            .unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let second = by(method)
            .stdin(first.take_stdout().unwrap())
            .stdout(writer);
        let second = second.stderr(Stdio::null()).spawn(shout, ()).unwrap();
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        assert!(output.contains("[]"), "{output}");
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn a_child_in_the_place_of_another_stream() {
    each(|method| {
        // Output and error the other way round, as descriptors that are themselves standard streams of this process.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let say = |(): ()| {
            print!("<out>");
            eprint!("<err>");
        };
        let swapped = move |(method, quiet): (usize, bool)| {
            let (output, errors) = (std::io::stdout(), std::io::stderr());
            let copy = |stream: &dyn AsFd| stream.as_fd().try_clone_to_owned().unwrap();
            let builder = by(method).stdout(copy(&errors)).stderr(copy(&output));
            assert!(quiet);
            builder.spawn(say, ()).unwrap().join().unwrap();
        };
        let outer = by(method).stdout(writer).stderr(Stdio::null());
        let outer = outer.spawn(swapped, (method, true)).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        outer.join().unwrap();
        assert!(text.contains("<err>") && !text.contains("<out>"), "{text}");
    });
}

#[test]
fn children_are_listed_and_collected() {
    each(|method| {
        assert!(active_children().is_empty());
        let never = Queue::new().unwrap();
        let child = by(method)
            .name("one")
            .spawn(wait_for_ever, never.clone())
            .unwrap();
        let dropped = by(method)
            .name("two")
            .daemon(true)
            .spawn(wait_for_ever, never.clone());
        drop(dropped.unwrap());
        let mut listed = active_children();
        listed.sort_by_key(|child| child.name().to_owned());
        let names: Vec<_> = listed
            .iter()
            .map(|it| (it.name(), it.is_daemon()))
            .collect();
        assert_eq!(names, [("one", false), ("two", true)]);
        assert_eq!(listed[0].pid(), child.pid());
        let pid = listed[1].pid();
        listed[1].kill().unwrap();
        assert_eq!(wait(&listed).unwrap(), [1]);
        assert!(is_zombie(method, pid));
        // Nobody joins it; asking does.
        assert_eq!(active_children().len(), 1);
        assert_eq!(state(pid), None);
        assert_eq!(listed[1].exit_code().unwrap(), Some(-9));
        // So does a start.
        let dropped = by(method).spawn(|(): ()| (), ()).unwrap();
        let pid = dropped.pid();
        wait([&dropped]).unwrap();
        drop(dropped);
        assert!(is_zombie(method, pid));
        by(method).spawn(|(): ()| (), ()).unwrap().join().unwrap();
        assert_eq!(state(pid), None);
        never.put(&()).unwrap();
        child.join().unwrap();
        assert!(active_children().is_empty());
    });
}

#[test]
fn a_child_has_no_children_of_its_parents() {
    each(|method| {
        let never = Queue::new().unwrap();
        let older = by(method).spawn(wait_for_ever, never.clone()).unwrap();
        let count = |(): ()| active_children().len();
        assert_eq!(by(method).spawn(count, ()).unwrap().join().unwrap(), 0);
        assert_eq!(active_children().len(), 1);
        never.put(&()).unwrap();
        older.join().unwrap();
    });
}

#[test]
fn a_daemonic_process_has_no_children() {
    each(|method| {
        let start = |method: usize| {
            let error = by(method).spawn(|(): ()| (), ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Misuse);
            error.to_string()
        };
        let child = by(method).daemon(true).spawn(start, method).unwrap();
        let text = child.join().unwrap();
        assert_eq!(
            text,
            "start a process: a daemonic process may not have children"
        );
    });
}

/// Says who it is, and waits.
fn announced((pids, never): (Queue<u32>, Queue<()>)) {
    pids.put(&std::process::id()).unwrap();
    wait_for_ever(never);
}

/// Starts a child, and waits.
fn middle((method, daemon, queues): (usize, bool, (Queue<u32>, Queue<()>))) {
    let child = by(method).daemon(daemon).spawn(announced, queues.clone());
    drop(child.unwrap());
    wait_for_ever(queues.1);
}

#[test]
fn a_daemon_dies_with_a_killed_parent_and_another_lives_on() {
    each(|method| {
        let (pids, never) = (Queue::new().unwrap(), Queue::new().unwrap());
        let alive = |pid| state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'));
        for daemon in [true, false] {
            let queues = (pids.clone(), never.clone());
            let parent = by(method).spawn(middle, (method, daemon, queues)).unwrap();
            let pid = pids.get().unwrap();
            parent.kill().unwrap();
            parent.join().unwrap_err();
            if daemon {
                until("the daemon to end", || !alive(pid));
            } else {
                assert!(alive(pid));
                never.put(&()).unwrap();
                until("the other to end", || !alive(pid));
            }
        }
    });
}

/// Waits for its parent's end, by name, and says so.
fn outlive((began, gone): (Queue<u32>, Queue<String>)) {
    let parent = parent_process().unwrap().unwrap();
    assert!(!parent.join_timeout(Duration::ZERO).unwrap());
    began.put(&parent.pid()).unwrap();
    assert_eq!(wait([&parent]).unwrap(), [0]);
    parent.join().unwrap();
    assert!(!parent.is_alive().unwrap());
    // Opened again, it is as gone.
    assert!(!parent_process().unwrap().unwrap().is_alive().unwrap());
    gone.put(&parent.name().to_owned()).unwrap();
}

#[test]
fn a_child_sees_its_parent_go() {
    each(|method| {
        let (began, gone) = (Queue::new().unwrap(), Queue::new().unwrap());
        let start = |(method, queues): (usize, (Queue<u32>, Queue<String>))| {
            drop(by(method).spawn(outlive, queues).unwrap());
            std::thread::sleep(Duration::from_secs(600));
        };
        let queues = (began.clone(), gone.clone());
        let parent = by(method)
            .name("mother")
            .spawn(start, (method, queues))
            .unwrap();
        assert_eq!(began.get().unwrap(), parent.pid());
        parent.kill().unwrap();
        parent.join().unwrap_err();
        assert_eq!(gone.get().unwrap(), "mother");
    });
}

#[test]
fn the_first_of_several() {
    each(|method| {
        assert_eq!(wait(&[] as &[Process<()>]).unwrap(), []);
        let queues: Vec<Queue<()>> = (0..3).map(|_| Queue::new().unwrap()).collect();
        let spawn = |queue: &Queue<()>| by(method).spawn(wait_for_ever, queue.clone()).unwrap();
        let mut children: Vec<_> = queues.iter().map(spawn).collect();
        let (begin, timeout) = (Instant::now(), Duration::from_millis(30));
        assert_eq!(wait_timeout(&children, timeout).unwrap(), []);
        assert!(begin.elapsed() >= timeout);
        queues[1].put(&()).unwrap();
        assert_eq!(wait(&children).unwrap(), [1]);
        let (reader, writer) = std::io::pipe().unwrap();
        let mixed: [&dyn AsFd; 3] = [&reader, &children[0], &children[1].sentinel()];
        assert_eq!(wait(mixed).unwrap(), [2]);
        drop(writer);
        assert_eq!(wait(mixed).unwrap(), [0, 2]);
        children.swap_remove(1).join().unwrap();
        queues[0].put(&()).unwrap();
        queues[2].put(&()).unwrap();
        while !children.is_empty() {
            for place in wait(&children).unwrap().into_iter().rev() {
                children.swap_remove(place).join().unwrap();
            }
        }
    });
}

/// A child, where a forked process finds it.
static CHILD: Mutex<Option<Process<()>>> = Mutex::new(None);

#[test]
fn another_process_than_the_creator_is_told_so() {
    each(|method| {
        let never = Queue::new().unwrap();
        *CHILD.lock().unwrap() = Some(by(method).spawn(wait_for_ever, never.clone()).unwrap());
        let misuse = |(): ()| -> Vec<String> {
            let mut child = CHILD.lock().unwrap().take().unwrap();
            let errors = [
                child.is_alive().map(drop).unwrap_err(),
                child.exit_code().map(drop).unwrap_err(),
                child.terminate().unwrap_err(),
                child.kill().unwrap_err(),
                child.interrupt().unwrap_err(),
                (*child).join().map(drop).unwrap_err(),
                child
                    .join_timeout(Duration::ZERO)
                    .unwrap()
                    .unwrap_err()
                    .into(),
                child.join().unwrap_err().into(),
            ];
            assert!(errors.iter().all(|error| error.kind() == ErrorKind::Misuse));
            errors.iter().map(ToString::to_string).collect()
        };
        let forked = Process::builder()
            .start_method(StartMethod::Fork)
            .spawn(misuse, ());
        let child = CHILD.lock().unwrap().take().unwrap();
        let (name, pid, me) = (child.name(), child.pid(), std::process::id());
        let whose = format!("{name} (process {pid}) is a child of process {me}, not of this one");
        for error in forked.unwrap().join().unwrap() {
            assert!(error.ends_with(&whose), "{error}");
        }
        assert!(child.is_alive().unwrap());
        never.put(&()).unwrap();
        child.join().unwrap();
    });
}
