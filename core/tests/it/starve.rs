//! Too little of something, or too much forbidden: an error that says what is missing, or another way that works.
//!
//! Each test limits a forked child, and lets it do everything that a process does.

use crate::child::{alone, fork, has_children, until, until_empty};
use procession_core::process::{self, Others};
use procession_core::{Acquired, Arena, Deadline, Error, ExitStatus, Lock, Put, Queue};
use procession_core::{Result, Setting, Spec};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};
use std::os::fd::AsRawFd;

/// An arena, and messages of every kind through a queue of it.
fn memory() -> Result<Arena> {
    let arena = Arena::create()?;
    let (queue, lock) = (Queue::new(&arena, None)?, Lock::new(&arena)?);
    for length in [40, 50_000, 3 << 20] {
        lock.acquire(Deadline::NEVER)?;
        queue.put(1, &[&vec![7; length]], Deadline::NEVER)?;
        lock.release()?;
        let got = queue.get(Deadline::now())?.expect("a message");
        assert_eq!(got.bytes, vec![7; length]);
    }
    Ok(arena)
}

/// Forked processes that share, die and are recovered.
fn relatives(arena: &Arena) -> Result<()> {
    let (queue, lock) = (Queue::new(arena, None)?, Lock::new(arena)?);
    fork(|| {
        fork(|| {
            let put = queue.put(0, &[b"grandchild"], Deadline::NEVER);
            assert_eq!(put, Ok(Put::Stored));
        })
        .join();
        queue.put(0, &[&[7; 50_000]], Deadline::NEVER).unwrap();
    })
    .join();
    for length in [10, 50_000] {
        let got = queue.get(Deadline::now())?.expect("a message");
        assert_eq!(got.bytes.len(), length);
    }
    let holder = fork(|| {
        lock.acquire(Deadline::NEVER).unwrap();
        queue.put(0, &[&[7; 50_000]], Deadline::NEVER).unwrap();
        // SAFETY: to this process; the first one of a pid namespace can't kill itself, but this one isn't.
        unsafe { libc::raise(libc::SIGKILL) };
    });
    until("the child to hold it", || {
        lock.is_held().unwrap() && !queue.is_empty().unwrap()
    });
    // Nobody has waited for it yet.
    assert_eq!(lock.acquire(Deadline::NEVER)?, Acquired::OwnerDied);
    assert_eq!(holder.wait(), -libc::SIGKILL);
    lock.release()?;
    drop((queue, lock));
    until_empty(arena);
    Ok(())
}

/// Another membership, as a program that was started has it.
fn newcomer(arena: &Arena) -> Result<()> {
    let place = arena.reserve()?;
    let lock = Lock::new(arena)?;
    place.give(lock.name())?;
    let copy = arena.descriptor().try_clone_to_owned().unwrap();
    let token = place.token(copy.as_raw_fd());
    fork(|| {
        // It takes over its own copy, and leaves by _exit.
        let joined = Arena::attach(&token).unwrap();
        let same = Lock::open(&joined, lock.name()).unwrap();
        assert!(same.try_acquire().unwrap());
        // It dies with what it has.
        std::mem::forget((joined, same));
    })
    .join();
    drop(place);
    arena.reap()?;
    assert_eq!(lock.acquire(Deadline::NEVER)?, Acquired::OwnerDied);
    Ok(())
}

/// Programs, started, waited for and signalled.
fn programs() -> Result<()> {
    let shell = |script: &str| {
        let spec = Spec::new("/bin/sh").argument("sh");
        spec.argument("-c").argument(script).start()
    };
    let status = shell("exit 7")?.wait(Deadline::NEVER)?;
    assert_eq!(status, Some(ExitStatus::Code(7)));
    let child = shell("kill -STOP $$; exit 3")?;
    if let Err(error) = child.signal(libc::SIGKILL) {
        let pid = libc::pid_t::try_from(child.pid()).unwrap();
        // SAFETY: our own child, which nobody has waited for.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        child.wait(Deadline::NEVER)?;
        return Err(error);
    }
    let status = child.wait(Deadline::NEVER)?;
    assert_eq!(status, Some(ExitStatus::Signal(libc::SIGKILL)));
    Ok(())
}

/// A child that goes on in a copy of this process.
fn copies() -> Result<()> {
    let ((), forked) = process::fork(Others::None, Setting::default(), (), |()| 5);
    assert_eq!(forked?.wait(Deadline::NEVER)?, Some(ExitStatus::Code(5)));
    Ok(())
}

/// The call that is missing for each of what a process does: for whole arenas, for programs, and for copies of itself.
fn everything() -> [Option<&'static str>; 3] {
    let missing = |result: Result<()>| match result {
        Ok(()) => None,
        Err(Error::Os { call, .. }) => Some(call),
        Err(error) => panic!("it doesn't say what is missing: {error}"),
    };
    // Where getrandom is refused, std opens /dev/urandom for the first of these, and keeps it open.
    drop(std::collections::HashSet::<u8>::new());
    let before = descriptors();
    let shared = memory().and_then(|arena| {
        relatives(&arena)?;
        newcomer(&arena)
    });
    let (started, forked) = (programs(), copies());
    assert_eq!(descriptors(), before, "a descriptor is left");
    assert!(!has_children());
    [missing(shared), missing(started), missing(forked)]
}

/// How many descriptors of this process are open, of those that a test may have.
fn descriptors() -> usize {
    // SAFETY: asks.
    let open = |number: &i32| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    (0..512).filter(open).count()
}

fn errno() -> i32 {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or_default()
}

fn limit(resource: libc::__rlimit_resource_t, soft: u64) {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes the one structure.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut now) }, 0);
    now.rlim_cur = soft.min(now.rlim_max);
    // SAFETY: reads the one structure.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const now) }, 0);
}

/// Puts until that fails, and gives the number of messages and the error.
fn put_all(queue: &Queue, length: usize) -> (usize, Error) {
    let message = vec![7; length];
    for count in 0..4096 {
        if let Err(error) = queue.put(0, &[&message], Deadline::NEVER) {
            return (count, error);
        }
    }
    panic!("there is no limit");
}

/// What was put is there, and more can be put.
fn get_all(queue: &Queue, count: usize, length: usize) {
    for _ in 0..count {
        let mut bytes = Vec::new();
        let taken = queue.get_into(&mut bytes, Deadline::now()).unwrap();
        let extent = taken.expect("a message").extent.expect("a large one");
        assert_eq!(extent.len(), length);
    }
    assert!(queue.is_empty().unwrap());
    assert_eq!(queue.put(0, &[b"more"], Deadline::NEVER), Ok(Put::Stored));
    assert_eq!(queue.get(Deadline::now()).unwrap().unwrap().bytes, b"more");
}

/// Bytes of address space that this process has.
fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn address_space_that_is_limited_later() {
    let _alone = alone();
    fork(|| {
        let arena = memory().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        limit(libc::RLIMIT_AS, address_space() + (20 << 20));
        let (count, error) = put_all(&queue, 1 << 20);
        let expected = Error::Os {
            call: "mmap",
            errno: libc::ENOMEM,
        };
        assert_eq!(error, expected);
        assert!(count > 1, "{count}");
        get_all(&queue, count, 1 << 20);
        drop(queue);
        until_empty(&arena);
    })
    .join();
}

#[test]
fn no_memory_for_a_copy_of_a_message() {
    let _alone = alone();
    fork(|| {
        let arena = memory().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        let part = vec![7; 1 << 20];
        queue.put(0, &[&part[..]; 64], Deadline::NEVER).unwrap();
        limit(libc::RLIMIT_AS, address_space() + (8 << 20));
        let expected = Error::Os {
            call: "malloc",
            errno: libc::ENOMEM,
        };
        let got = queue.get(Deadline::now());
        assert_eq!(got.err(), Some(expected));
        assert_eq!(arena.census().unwrap().owned_bytes, 0);
        get_all(&queue, 0, 0);
    })
    .join();
}

#[test]
fn file_size() {
    let _alone = alone();
    for room in [0, 300 << 10, 4 << 20] {
        // A signal, SIGXFSZ, would end it.
        fork(|| {
            limit(libc::RLIMIT_FSIZE, room);
            let Ok(arena) = Arena::create() else {
                let refused = Arena::create().unwrap_err();
                assert!(matches!(
                    refused,
                    Error::Os {
                        errno: libc::EFBIG,
                        ..
                    }
                ));
                assert!(room < 2 << 20, "{refused}");
                return;
            };
            let queue = Queue::new(&arena, None).unwrap();
            let (count, error) = put_all(&queue, 100_000);
            assert!(
                matches!(
                    error,
                    Error::Os {
                        errno: libc::EFBIG,
                        ..
                    }
                ),
                "{error}"
            );
            assert_eq!(count == 0, room < 2 << 20);
            if count == 0 {
                return;
            }
            get_all(&queue, count, 100_000);
            drop(queue);
            until_empty(&arena);
            let missing = [relatives(&arena), newcomer(&arena), programs()];
            assert_eq!(missing, [Ok(()), Ok(()), Ok(())]);
        })
        .join();
    }
}

#[test]
fn descriptors_that_are_used_up() {
    let _alone = alone();
    fork(|| {
        let arena = Arena::create().unwrap();
        // None below the limit is free.
        let mut filling = Vec::new();
        limit(libc::RLIMIT_NOFILE, 100);
        while let Ok(file) = std::fs::File::open("/dev/null") {
            filling.push(file);
        }
        for call in ["memfd_create", "posix_spawn"] {
            let error = match call {
                "memfd_create" => Arena::create().unwrap_err(),
                _ => programs().unwrap_err(),
            };
            assert!(
                matches!(
                    error,
                    Error::Os {
                        errno: libc::EMFILE,
                        ..
                    }
                ),
                "{error}"
            );
        }
        // What costs no descriptor.
        let queues: Vec<_> = (0..300)
            .map(|_| Queue::new(&arena, None).unwrap())
            .collect();
        for queue in &queues {
            queue.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
        }
        assert_eq!(
            queues[299]
                .get(Deadline::now())
                .unwrap()
                .unwrap()
                .bytes
                .len(),
            20_000
        );
        drop(queues);
        relatives(&arena).unwrap();
        // With one or two free, it's started, or leaves nothing behind.
        for _ in 0..4 {
            let before = descriptors();
            if let Err(error) = programs() {
                assert!(
                    matches!(
                        error,
                        Error::Os {
                            errno: libc::EMFILE,
                            ..
                        }
                    ),
                    "{error}"
                );
            }
            assert_eq!(descriptors(), before);
            filling.pop();
        }
        programs().unwrap();
        assert!(!has_children());
        drop(filling);
    })
    .join();
}

#[test]
fn no_more_processes() {
    let _alone = alone();
    fork(|| {
        let arena = memory().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        // The limit doesn't hold for root, and counts all processes of the user: one that has none.
        // SAFETY: takes an id.
        if unsafe { libc::setuid(54_321) } != 0 {
            println!("not root: the limit of processes isn't tried here");
            return;
        }
        limit(libc::RLIMIT_NPROC, 1);
        for _ in 0..2_000 {
            // SAFETY: it fails; a child would end at once.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: ends the process.
                unsafe { libc::_exit(1) };
            }
            assert_eq!((pid, errno()), (-1, libc::EAGAIN));
        }
        let expected = Error::Os {
            call: "posix_spawn",
            errno: libc::EAGAIN,
        };
        assert_eq!(programs(), Err(expected));
        assert_eq!(arena.census().unwrap().processes, 1);
        assert!(arena.reserve().is_ok(), "a failed fork left its place");
        queue.put(0, &[&[7; 50_000]], Deadline::NEVER).unwrap();
        get_all(&queue, 1, 50_000);
        drop(queue);
        until_empty(&arena);
    })
    .join();
}

#[test]
fn closed_standard_streams() {
    let _alone = alone();
    fork(|| {
        for number in 0..3 {
            // SAFETY: this process doesn't use them from now on.
            unsafe { libc::close(number) };
        }
        let arena = Arena::create().unwrap();
        // Else whatever prints would write into it.
        assert!(arena.descriptor().as_raw_fd() > 2);
        assert_eq!(everything(), [None; 3]);
    })
    .join();
}

/// Calls that a filter refuses, with an error.
struct Filter {
    calls: &'static [libc::c_long],
    errno: i32,
    /// Refused only when the second argument has this bit; 0: always.
    bit: u32,
    /// What is then missing for arenas, for programs, and for copies.
    missing: [Option<&'static str>; 3],
}

/// Refuses calls from now on, in this thread and what it starts. Source: seccomp(2).
fn install(filter: &Filter) {
    let has_bit = || {
        let bit = SeccompCmpOp::MaskedEq(filter.bit.into());
        let second = SeccompCondition::new(1, SeccompCmpArgLen::Dword, bit, filter.bit.into());
        SeccompRule::new(vec![second.unwrap()]).unwrap()
    };
    let rules = || {
        if filter.bit == 0 {
            vec![]
        } else {
            vec![has_bit()]
        }
    };
    let rules = filter.calls.iter().map(|call| (*call, rules()));
    let refusal = SeccompAction::Errno(filter.errno.cast_unsigned());
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules.collect(), SeccompAction::Allow, refusal, machine);
    let program = BpfProgram::try_from(filter.unwrap()).unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// What Docker's and others' filters refuse, and what kernels lack, one after another.
const FILTERS: &[Filter] = &[
    // Nothing that the engine needs.
    Filter {
        calls: &[
            libc::SYS_pidfd_getfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_futex_waitv,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_ptrace,
            libc::SYS_userfaultfd,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_membarrier,
            libc::SYS_process_madvise,
        ],
        errno: libc::EPERM,
        bit: 0,
        missing: [None; 3],
    },
    // Done in another way.
    Filter {
        calls: &[
            libc::SYS_get_robust_list,
            libc::SYS_set_robust_list,
            libc::SYS_getrandom,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_yield,
        ],
        errno: libc::EPERM,
        bit: 0,
        missing: [None; 3],
    },
    Filter {
        calls: &[
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_close_range,
        ],
        errno: libc::ENOSYS,
        bit: 0,
        missing: [None; 3],
    },
    Filter {
        calls: &[libc::SYS_clone3, libc::SYS_close_range],
        errno: libc::ENOSYS,
        bit: 0,
        missing: [None; 3],
    },
    // Before 6.3 the flag isn't known.
    Filter {
        calls: &[libc::SYS_memfd_create],
        errno: libc::EINVAL,
        bit: libc::MFD_NOEXEC_SEAL,
        missing: [None; 3],
    },
    // Without locks of open files there are no signs.
    Filter {
        calls: &[libc::SYS_fcntl],
        errno: libc::EINVAL,
        // Of the commands in use, those for these locks alone have this bit.
        bit: 32,
        missing: [None; 3],
    },
    // Can't be done without.
    Filter {
        calls: &[libc::SYS_memfd_create],
        errno: libc::ENOSYS,
        bit: 0,
        missing: [Some("memfd_create"), None, None],
    },
    Filter {
        calls: &[libc::SYS_fallocate],
        errno: libc::EOPNOTSUPP,
        bit: 0,
        missing: [Some("fallocate"), None, None],
    },
    Filter {
        calls: &[libc::SYS_pidfd_open],
        errno: libc::ENOSYS,
        bit: 0,
        missing: [None, Some("pidfd_open"), Some("pidfd_open")],
    },
    Filter {
        calls: &[libc::SYS_pidfd_open],
        errno: libc::EPERM,
        bit: 0,
        missing: [None, Some("pidfd_open"), Some("pidfd_open")],
    },
    Filter {
        calls: &[libc::SYS_pidfd_send_signal],
        errno: libc::EPERM,
        bit: 0,
        missing: [None, Some("pidfd_send_signal"), None],
    },
    Filter {
        calls: &[libc::SYS_execve],
        errno: libc::EPERM,
        bit: 0,
        missing: [None, Some("posix_spawn"), None],
    },
];

#[test]
fn forbidden_calls() {
    let _alone = alone();
    for filter in FILTERS {
        let what = format!("{:?} gives {}", filter.calls, filter.errno);
        println!("{what}");
        fork(|| {
            install(filter);
            assert_eq!(everything(), filter.missing, "{what}");
        })
        .join();
    }
}

#[test]
fn forbidden_forks() {
    let _alone = alone();
    for errno in [libc::EPERM, libc::ENOSYS] {
        fork(|| {
            let arena = memory().unwrap();
            install(&Filter {
                calls: &[libc::SYS_clone, libc::SYS_clone3],
                errno,
                bit: 0,
                missing: [None; 3],
            });
            for _ in 0..2_000 {
                // SAFETY: it fails; a child would end at once.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    // SAFETY: ends the process.
                    unsafe { libc::_exit(1) };
                }
                assert_eq!((pid, self::errno()), (-1, errno));
            }
            let call = "posix_spawn";
            assert_eq!(programs(), Err(Error::Os { call, errno }));
            assert!(arena.reserve().is_ok(), "a failed fork left its place");
            until_empty(&arena);
        })
        .join();
    }
}

/// Whether this process may have namespaces of its own; else a line says what isn't tried.
fn unshare(spaces: i32, what: &str) -> bool {
    // SAFETY: changes what this process sees of the system, and nothing of the system.
    if unsafe { libc::unshare(spaces) } != 0 {
        println!("no namespaces here: {what} isn't tried");
        return false;
    }
    if spaces & libc::CLONE_NEWNS != 0 {
        // Nothing that is mounted below is seen outside.
        mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "");
    }
    true
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) {
    let [source, target, kind, data] =
        [source, target, kind, data].map(|text| std::ffi::CString::new(text).unwrap());
    // SAFETY: the strings outlive the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    assert_eq!(result, 0, "{target:?}: {}", std::io::Error::last_os_error());
}

#[test]
fn no_proc() {
    let _alone = alone();
    fork(|| {
        if !unshare(libc::CLONE_NEWNS, "a system without /proc") {
            return;
        }
        mount("none", "/proc", "tmpfs", 0, "");
        assert!(!std::path::Path::new("/proc/self").exists());
        // Nothing else tells whether a copy would lack threads.
        let missing = Some("stat of /proc/self/task");
        assert_eq!(everything(), [None, None, missing]);
        let error = Spec::myself().start().unwrap_err().to_string();
        assert!(error.contains("/proc/self/exe"), "{error}");
    })
    .join();
}

#[test]
fn no_room_in_dev_shm() {
    let _alone = alone();
    for is_there in [true, false] {
        fork(|| {
            if !unshare(libc::CLONE_NEWNS, "a full or absent /dev/shm") {
                return;
            }
            if is_there {
                mount("none", "/dev/shm", "tmpfs", 0, "size=4k");
                let filled = std::fs::write("/dev/shm/filling", [0; 8192]);
                assert!(filled.is_err(), "it isn't full");
            } else {
                mount("none", "/dev", "tmpfs", 0, "");
                assert!(!std::path::Path::new("/dev/shm").exists());
            }
            assert_eq!(everything(), [None; 3]);
        })
        .join();
    }
}

#[test]
fn first_process_of_a_namespace() {
    let _alone = alone();
    for own_proc in [true, false] {
        fork(|| {
            let spaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
            if !unshare(spaces, "being process 1") {
                return;
            }
            fork(|| {
                assert_eq!(std::process::id(), 1);
                // Here the alarm's signal does nothing: its parent's does.
                // SAFETY: asks for a signal.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                if own_proc {
                    mount("none", "/proc", "proc", 0, "");
                }
                assert_eq!(everything(), [None; 3]);
                adopt();
            })
            .join();
        })
        .join();
    }
}

/// As process 1: a grandchild outlives the child, becomes this process' own, and dies with a lock, and nobody waits
/// for it.
fn adopt() {
    let arena = Arena::create().unwrap();
    let (queue, lock) = (
        Queue::new(&arena, None).unwrap(),
        Lock::new(&arena).unwrap(),
    );
    fork(|| {
        std::mem::forget(fork(|| {
            // SAFETY: asks.
            until("its parent to be gone", || unsafe { libc::getppid() } == 1);
            lock.acquire(Deadline::NEVER).unwrap();
            queue.put(0, &[&[7; 50_000]], Deadline::NEVER).unwrap();
            // SAFETY: to this process, which isn't the first one.
            unsafe { libc::raise(libc::SIGKILL) };
        }));
    })
    .join();
    assert!(queue.get(Deadline::NEVER).unwrap().is_some());
    assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::OwnerDied);
    drop((queue, lock));
    until_empty(&arena);
}
