//! A sealed memfd, and windows of it mapped shared.
#![allow(unsafe_code, reason = "mmap and munmap")]

use super::descriptor::above_streams;
use super::{ask, demand, failed};
use crate::{Error, Result};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

/// Makes an anonymous file that can grow and never shrink, closed on exec, for this user only.
///
/// The seals keep a sibling's `ftruncate` from turning our reads into SIGBUS. Source: memfd_create(2), fcntl(2).
pub(crate) fn create() -> Result<OwnedFd> {
    const NAME: &str = "procession";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let make = |flags| ask("memfd_create", || rustix::fs::memfd_create(NAME, flags));
    let file = make(flags | MemfdFlags::NOEXEC_SEAL)
        // Kernels before 6.3 don't know the flag.
        .or_else(|_| make(flags))
        .map_err(|errno| failed("memfd_create", errno))?;
    let file = above_streams(file)?;
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    demand("fchmod", || rustix::fs::fchmod(&file, mode))?;
    let seals = SealFlags::SHRINK | SealFlags::SEAL;
    demand("fcntl(F_ADD_SEALS)", || {
        rustix::fs::fcntl_add_seals(&file, seals)
    })?;
    Ok(file)
}

/// Takes over a descriptor that was inherited across exec, and closes it on the next exec.
///
/// # Errors
/// `Malformed` when it isn't a descriptor of an anonymous file sealed as ours are.
pub(crate) fn inherit(descriptor: RawFd) -> Result<OwnedFd> {
    const WHAT: Error = Error::Malformed {
        what: "inherited descriptor of the arena",
        at: 0,
    };
    if descriptor < 0 {
        return Err(WHAT);
    }
    // SAFETY: descriptor-inherited: borrowed for this one call, which fails cleanly for a number that isn't open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let seals = ask("fcntl(F_GET_SEALS)", || {
        rustix::fs::fcntl_get_seals(borrowed)
    });
    let seals = seals.map_err(|_| WHAT)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(WHAT);
    }
    let flags = rustix::io::FdFlags::CLOEXEC;
    demand("fcntl(F_SETFD)", || {
        rustix::io::fcntl_setfd(borrowed, flags)
    })?;
    // SAFETY: descriptor-inherited: the parent left it to this process for this call alone, and it was just seen open.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Another descriptor of the file, closed on exec.
pub(crate) fn copy(file: impl AsFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(file, 0)
        .map_err(|errno| failed("fcntl(F_DUPFD_CLOEXEC)", errno))
}

/// Makes the file `length` bytes long, if it is shorter. What is new has no memory yet, and reads as zero.
///
/// # Errors
/// `Os` with EFBIG when the limit of file size forbids that.
pub(crate) fn lengthen(file: impl AsFd, length: u64) -> Result<()> {
    const CALL: &str = "ftruncate";
    if extent(&file)?.length >= length {
        return Ok(());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    if limit.is_some_and(|limit| length > limit) {
        // The call itself would send SIGXFSZ, which kills.
        return Err(failed(CALL, rustix::io::Errno::FBIG));
    }
    rustix::fs::ftruncate(&file, length).map_err(|errno| failed(CALL, errno))
}

/// Gives `bytes` at `offset` within the file memory of their own, so that touching them can't fail later.
///
/// # Errors
/// `Os` with ENOSPC or ENOMEM when there is no memory for them.
pub(crate) fn allocate(file: impl AsFd, offset: u64, bytes: u64) -> Result<()> {
    #[cfg(all(loom, test))]
    if super::model::is_running() {
        // Nothing is kept there.
        return Ok(());
    }
    const CALL: &str = "fallocate";
    loop {
        let flags = FallocateFlags::empty();
        match ask(CALL, || rustix::fs::fallocate(&file, flags, offset, bytes)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map_err(|errno| failed(CALL, errno)),
        }
    }
}

/// Hands the memory of `bytes` at `offset` back to the system; they read as zero afterwards.
pub(crate) fn punch(file: impl AsFd, offset: u64, bytes: u64) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    demand("fallocate", || {
        rustix::fs::fallocate(file, flags, offset, bytes)
    })
}

/// Makes another file of the same kind, length and bytes. What was allocated and never touched is a hole there.
#[cfg(crash_points)]
pub(crate) fn replica(file: impl AsFd) -> Result<OwnedFd> {
    use rustix::fs::SeekFrom;
    use rustix::io::Errno;
    let replica = create()?;
    let length = extent(&file)?.length;
    rustix::fs::ftruncate(&replica, length).map_err(|errno| failed("ftruncate", errno))?;
    let mut bytes = Vec::new();
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No more of it.
            Err(Errno::NXIO) => return Ok(replica),
            Err(errno) => return Err(failed("lseek", errno)),
        };
        let end =
            rustix::fs::seek(&file, SeekFrom::Hole(at)).map_err(|errno| failed("lseek", errno))?;
        bytes.resize(usize::try_from(end - at).unwrap_or(usize::MAX), 0);
        let read =
            rustix::io::pread(&file, &mut bytes[..], at).map_err(|errno| failed("pread", errno))?;
        let written = rustix::io::pwrite(&replica, &bytes[..read], at)
            .map_err(|errno| failed("pwrite", errno))?;
        at += written as u64;
    }
}

/// Bytes of memory that the machine has, swap included: more can't be had.
pub(crate) fn machine_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram + info.totalswap) * u64::from(info.mem_unit)
}

/// How long a file is, and how much memory it has, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileExtent {
    pub(crate) length: u64,
    pub(crate) allocated: u64,
}

/// How long a file is, and how much memory it has.
pub(crate) fn extent(file: impl AsFd) -> Result<FileExtent> {
    let stat = demand("fstat", || rustix::fs::fstat(file))?;
    Ok(FileExtent {
        length: stat.st_size.cast_unsigned(),
        // stat(2) counts in 512 bytes, whatever the blocks of the file system are.
        allocated: stat.st_blocks.cast_unsigned() * 512,
    })
}

/// A part of a file, mapped shared, for reading and writing, until it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: map-outlives-view: the address is the same in all threads, and all access goes through atomics and copies.
unsafe impl Send for Mapping {}
// SAFETY: map-outlives-view, as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of `file` at `offset`. They may lie past its end: touching those is the caller's to avoid.
    pub(crate) fn new(file: impl AsFd, offset: u64, bytes: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let address = demand("mmap", || {
            let (anywhere, flags) = (std::ptr::null_mut(), MapFlags::SHARED);
            // SAFETY: the kernel chooses the address, so no mapping of anybody else is replaced.
            unsafe { rustix::mm::mmap(anywhere, bytes, protection, flags, file, offset) }
        })?;
        let base = NonNull::new(address.cast()).ok_or(Error::Broken { what: "a mapping" })?;
        #[cfg(simulated)]
        if let Some(system) = super::simulation::system() {
            system.mapped(address.addr(), bytes, offset);
        }
        Ok(Self { base, bytes })
    }

    /// A mapping again that was forgotten, to be dropped.
    ///
    /// # Safety
    /// *map-outlives-view*: `start` and `bytes` are one forgotten mapping's, and no other value stands for it.
    pub(crate) unsafe fn from_parts(start: *mut u8, bytes: usize) -> Option<Self> {
        NonNull::new(start).map(|base| Self { base, bytes })
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first byte in this process.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(simulated)]
        if let Some(system) = super::simulation::system() {
            system.unmapped(self.base.addr().get());
        }
        // SAFETY: map-outlives-view: views borrow the arena that owns this mapping, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
