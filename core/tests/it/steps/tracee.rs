//! A child that is stepped one instruction at a time, and what the kernel would do if it died now.

use procession_core::Arena;
use procession_core::shm::Snapshot;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// From an entry of the list to its word, in bytes.
const WORD_FROM_LINK: u64 = 32;
/// `ROBUST_LIST_LIMIT` of the kernel's include/uapi/linux/futex.h.
const LIMIT: usize = 2048;
const WAITERS: u32 = 0x8000_0000;
const OWNER_DIED: u32 = 0x4000_0000;
const TID: u32 = 0x3fff_ffff;

/// A child under ptrace(2), stopped whenever nobody steps it; killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct Tracee {
    pid: libc::pid_t,
    /// A signal that it is to be given with the next step.
    signal: i32,
    /// Where the kernel has the head of its list; 0 until it has one.
    head: u64,
}

/// How far a step went.
#[derive(Debug)]
pub(crate) enum Step {
    /// One instruction.
    Instruction,
    /// Nothing ran: the process is about to be given a signal.
    Signal,
    /// It has made a child, which stands before its first instruction.
    Forked(Tracee),
    /// The work has returned.
    Done,
}

/// The robust list of a thread, as the kernel would find it at its death.
#[derive(Debug, Default)]
pub(crate) struct RobustList {
    /// Addresses of the words in the list, and what they are.
    words: Vec<(u64, Option<u32>)>,
    pending: Option<(u64, Option<u32>)>,
}

impl Tracee {
    /// Forks a child that stands before `work`, and will stop after it.
    pub(crate) fn new(work: impl FnOnce()) -> Self {
        // SAFETY: as in `child::fork`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // SAFETY: asks to be traced.
            unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
            // SAFETY: stops for the tracer.
            unsafe { libc::raise(libc::SIGSTOP) };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            if result.is_ok() {
                // SAFETY: stops for the tracer, which doesn't continue it.
                unsafe { libc::raise(libc::SIGSTOP) };
            }
            // SAFETY: ends the process.
            unsafe { libc::_exit(101) };
        }
        let tracee = Self::stopped(pid);
        assert!(libc::WIFSTOPPED(tracee.wait()), "it stops before the work");
        let options = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_EXITKILL;
        // SAFETY: our own stopped tracee.
        let set = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) };
        assert_eq!(set, 0, "PTRACE_SETOPTIONS");
        tracee
    }

    fn stopped(pid: libc::pid_t) -> Self {
        Self {
            pid,
            signal: 0,
            head: 0,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Lets it run one instruction; all that a system call does belongs to the instruction that makes it.
    pub(crate) fn step(&mut self) -> Step {
        let signal = std::mem::take(&mut self.signal);
        // SAFETY: our own stopped tracee.
        let went = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, signal) };
        assert_eq!(went, 0, "PTRACE_SINGLESTEP");
        let status = self.wait();
        assert!(libc::WIFSTOPPED(status), "the work failed: {status:x}");
        match (libc::WSTOPSIG(status), status >> 16) {
            (libc::SIGTRAP, 0) => Step::Instruction,
            (libc::SIGTRAP, libc::PTRACE_EVENT_FORK) => Step::Forked(self.child()),
            (libc::SIGSTOP, 0) => Step::Done,
            (signal, 0) => {
                self.signal = signal;
                Step::Signal
            }
            _ => panic!("stopped by {status:x}"),
        }
    }

    /// The child that it has just made, which the kernel traces for us.
    fn child(&self) -> Self {
        let mut pid: libc::c_ulong = 0;
        // SAFETY: writes one number.
        let told = unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, self.pid, 0, &raw mut pid) };
        assert_eq!(told, 0, "PTRACE_GETEVENTMSG");
        let child = Self::stopped(libc::pid_t::try_from(pid).unwrap());
        assert!(libc::WIFSTOPPED(child.wait()), "it stops before it begins");
        child
    }

    fn wait(&self) -> i32 {
        let mut status = 0;
        // SAFETY: writes one status.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        assert_eq!(waited, self.pid, "waitpid");
        status
    }

    /// Kills it for real, and returns when it is gone.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// The function and line of the instruction that it would run next, as far as the machine has a tool to tell.
    pub(crate) fn place(&self) -> String {
        let at = self.instruction();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap_or_default();
        let maps: Vec<Map<'_>> = maps.lines().map(Map::new).collect();
        let Some(file) = maps.iter().find(|map| map.range.contains(&at)) else {
            return format!("{at:#x}");
        };
        let base = maps.iter().find(|map| map.path == file.path);
        let at = format!("{:#x}", at - base.map_or(0, |base| base.range.start));
        let told = std::process::Command::new("addr2line")
            .args(["-fCpe", file.path, &at])
            .output();
        let told = told.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned());
        format!("{at} of {}: {}", file.path, told.unwrap_or_default())
    }

    /// The address of the instruction that it would run next; 0 where that isn't known.
    fn instruction(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        let at = {
            let register = std::mem::offset_of!(libc::user_regs_struct, rip);
            // SAFETY: reads one register of our own stopped tracee.
            unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, self.pid, register, 0) }
        };
        #[cfg(not(target_arch = "x86_64"))]
        let at: i64 = 0;
        at.cast_unsigned()
    }

    /// Where the kernel finds its first thread's robust list; 0: it has none.
    fn list(&self) -> u64 {
        let mut head: u64 = 0;
        let mut bytes: u64 = 0;
        // SAFETY: writes one pointer and one length.
        let told = unsafe {
            libc::syscall(
                libc::SYS_get_robust_list,
                self.pid,
                &raw mut head,
                &raw mut bytes,
            )
        };
        assert_eq!(told, 0, "get_robust_list");
        head
    }

    /// The head of its robust list: the first entry, the distance to a word, the pending one. The rest of the list lies in the
    /// arena, so it doesn't change unless this or the arena does.
    pub(crate) fn list_head(&mut self) -> [u64; 3] {
        if self.head == 0 {
            self.head = self.list();
        }
        let mut cells = [[0; 8]; 3];
        self.read(self.head, cells.as_flattened_mut());
        cells.map(u64::from_le_bytes)
    }

    /// Its first thread's robust list.
    pub(crate) fn robust_list(&self) -> RobustList {
        let head = self.list();
        let mut list = RobustList::default();
        let mut cells = [[0; 8]; 3];
        if head == 0 || !self.read(head, cells.as_flattened_mut()) {
            return list;
        }
        let [mut entry, distance, pending] = cells.map(u64::from_le_bytes);
        assert_eq!(
            distance,
            WORD_FROM_LINK.wrapping_neg(),
            "the C library's list"
        );
        // The lowest bit says of which kind the futex is; none of ours has it.
        while entry & !1 != head && list.words.len() < LIMIT {
            // The word, the C library's own, the link.
            let mut node = [[0; 8]; 5];
            let at = (entry & !1).wrapping_sub(WORD_FROM_LINK);
            let whole = self.read(at, node.as_flattened_mut());
            let [word, .., next] = node.map(u64::from_le_bytes);
            if entry != pending {
                let word = u32::try_from(word & u64::from(u32::MAX)).ok();
                list.words.push((at, word.filter(|_| whole)));
            }
            if !whole {
                break;
            }
            entry = next;
        }
        list.pending = (pending != 0).then(|| self.word(pending));
        list
    }

    /// The word of an entry, and where it lies.
    fn word(&self, entry: u64) -> (u64, Option<u32>) {
        let at = (entry & !1).wrapping_sub(WORD_FROM_LINK);
        let mut word = [0; 4];
        let read = self.read(at, &mut word);
        (at, read.then(|| u32::from_le_bytes(word)))
    }

    /// Reads its memory; false where it has none.
    fn read(&self, at: u64, to: &mut [u8]) -> bool {
        let here = libc::iovec {
            iov_base: to.as_mut_ptr().cast(),
            iov_len: to.len(),
        };
        let there = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(usize::try_from(at).unwrap()),
            iov_len: to.len(),
        };
        // SAFETY: writes at most as many bytes as `to` has.
        let read =
            unsafe { libc::process_vm_readv(self.pid, &raw const here, 1, &raw const there, 1, 0) };
        usize::try_from(read) == Ok(to.len())
    }

    /// Does to `twin` what the kernel does at a death with `list`: `exit_robust_list` and `handle_futex_death` of
    /// kernel/futex/core.c. The wakes have nobody to wake there.
    pub(crate) fn mark(&self, list: &RobustList, arena: &Arena, twin: &Snapshot) {
        let inode = arena.descriptor().try_clone_to_owned().unwrap();
        let inode = File::from(inode).metadata().unwrap().ino();
        let file = File::from(twin.as_fd().try_clone_to_owned().unwrap());
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        let maps: Vec<Map<'_>> = maps.lines().map(Map::new).collect();
        for (address, word) in list.words.iter().chain(&list.pending) {
            let ours = |map: &&Map<'_>| map.inode == inode && map.range.contains(address);
            let (Some(word), Some(map)) = (word, maps.iter().find(ours)) else {
                continue;
            };
            if word & TID == self.pid() {
                let marked = word & WAITERS | OWNER_DIED;
                let at = address - map.range.start + map.offset;
                file.write_all_at(&marked.to_le_bytes(), at).unwrap();
            }
        }
    }
}

/// A line of /proc/PID/maps. Source: proc_pid_maps(5).
#[derive(Debug)]
struct Map<'a> {
    range: Range<u64>,
    offset: u64,
    inode: u64,
    path: &'a str,
}

impl<'a> Map<'a> {
    fn new(line: &'a str) -> Self {
        // Range, permissions, offset, device, inode, path.
        let mut fields = line.split_ascii_whitespace();
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = fields.next().unwrap_or_default().split_once('-').unwrap();
        let offset = fields.nth(1).unwrap_or_default();
        let inode = fields.nth(1).unwrap_or_default();
        Self {
            range: hex(start)..hex(end),
            offset: hex(offset),
            inode: inode.parse().unwrap(),
            path: fields.next().unwrap_or_default(),
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // SAFETY: our own tracee, not reaped yet.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        let mut status = 0;
        // SAFETY: writes one status.
        while unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) } == self.pid
            && libc::WIFSTOPPED(status)
        {}
    }
}
