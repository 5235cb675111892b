//! The executable and the libraries that this process has loaded, and functions named by their place in one.
//!
//! A function that another process is to call is named by the build id of its image and the offset of an [`Entry`]: a
//! constant that the compiler lays out beside the code, one for each function and body. Not the function's own
//! address: equal functions are merged, and an offset that comes out of shared memory must not become a jump before
//! it is known to be one. An entry is recognised by its marks, in memory that nobody can write to.
//! Source: dl_iterate_phdr(3), elf(5).
#![allow(
    unsafe_code,
    reason = "reads the headers of loaded images, and turns an offset in one into a function"
)]

use crate::{Error, Result};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ops::Range;

/// What an entry begins with, and ends with.
const MARKS: [[u64; 2]; 2] = [
    [0x9d1f_63c4_07ab_58e2, 0x42c8_be19_f05d_7a36],
    [0xe6b0_2d97_5c14_8f3a, 0x1873_fa6e_d249_0bc5],
];

/// What a face does with a function of type `F` in another process: decodes, calls, encodes.
pub trait Body<F>: 'static {
    /// Calls `function` with what `input` says, appends what it gave to `output`, and says in a byte of the face's
    /// own what that is.
    fn run(function: F, input: &[u8], output: &mut Vec<u8>) -> u8;
}

/// A function that other processes can find.
#[repr(C)]
struct Entry {
    begin: [u64; 2],
    run: fn(&[u8], &mut Vec<u8>) -> u8,
    end: [u64; 2],
}

/// Lays out the entry of a function and a body.
struct Lay<F, B>(PhantomData<(F, B)>);

impl<F: Copy + 'static, B: Body<F>> Lay<F, B> {
    const ENTRY: &'static Entry = &Entry {
        begin: MARKS[0],
        run: trampoline::<F, B>,
        end: MARKS[1],
    };
}

fn trampoline<F: Copy + 'static, B: Body<F>>(input: &[u8], output: &mut Vec<u8>) -> u8 {
    // SAFETY: nothing-captured: `F` has no bytes, and can be copied; `FunctionName::of`, the only way to here, was
    // given one.
    let function: F = unsafe { std::ptr::NonNull::<F>::dangling().read() };
    B::run(function, input, output)
}

/// The name of a function, good in every process that runs the same build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FunctionName {
    /// Stands for the build: the first eight bytes of its id.
    pub image: u64,
    /// Where the function's entry lies, from the image's start.
    pub offset: u64,
}

/// A function that was found by its name.
#[derive(Clone, Copy)]
pub struct Function(&'static Entry);

impl FunctionName {
    /// The name of `function`, to be run by `B`: a plain function, or a closure that captures nothing. Another one
    /// doesn't compile. About 100 ns.
    ///
    /// # Errors
    /// `Misuse` when the linker put constants where they can be written to.
    pub fn of<F: Copy + 'static, B: Body<F>>(_function: F) -> Result<Self> {
        const {
            assert!(
                size_of::<F>() == 0,
                "a function for another process must be a `fn` item or a closure that captures nothing: \
                 pass what it needs as its argument"
            );
        }
        let address = std::ptr::from_ref(Lay::<F, B>::ENTRY).expose_provenance();
        find(|image| {
            let offset = address.checked_sub(image.base)?;
            image.holds(address).then(|| Self {
                image: image.id(),
                offset: offset as u64,
            })
        })
        .ok_or(Error::Misuse {
            what: "the function lies in an image without read-only constants",
        })
    }

    /// Finds the function in this process. About 100 ns.
    ///
    /// # Errors
    /// `Misuse` when no loaded image is of that build, `Malformed` when the offset isn't a function's.
    pub fn find(self) -> Result<Function> {
        let found = find(|image| (image.id() == self.image).then(|| image.entry(self.offset)));
        found.ok_or(Error::Misuse {
            what: "the function is of another build of this program",
        })?
    }
}

impl Function {
    /// Calls it, as its [`Body`] says.
    pub fn call(self, input: &[u8], output: &mut Vec<u8>) -> u8 {
        (self.0.run)(input, output)
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Function({:p})", self.0.run)
    }
}

/// The text that follows `mark` in the constants of the running program, up to a zero byte.
///
/// `mark` must be put together at run time, or it would be found itself. Reads all constants: some milliseconds.
#[must_use]
pub fn text_behind(mark: &[u8]) -> Option<String> {
    // The program itself comes first.
    find(|image| Some(image.text_behind(mark))).flatten()
}

/// Where the stack of this process' first thread begins, as `/proc/PID/stat` has it; 0 where the C library doesn't tell, as in a
/// program that is linked statically. Source: elf/rtld.c of glibc, fs/binfmt_elf.c of the kernel, prctl(2).
pub(crate) fn first_stack() -> u64 {
    // SAFETY: strings-end: a constant that ends with a zero.
    let place = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_stack_end".as_ptr()) };
    if place.is_null() || !has_own_stack() {
        return 0;
    }
    // SAFETY: constants-are-mapped: the loader has this one address there, and wrote it before the program began.
    let start = unsafe { place.cast::<usize>().read() };
    start as u64
}

/// Whether the first stack is the one that the kernel made: a program that is emulated has another. Above its beginning are
/// random bytes, whose place the kernel and the C library tell: since Linux 6.4.
fn has_own_stack() -> bool {
    /// `PR_GET_AUXV` of the kernel's include/uapi/linux/prctl.h.
    const GET_AUXV: c_int = 0x4155_5856;
    /// More pairs than the kernel has.
    const PAIRS: usize = 64;
    let mut pairs = [[0u64; 2]; PAIRS];
    // SAFETY: constants-are-mapped: the kernel writes at most so many bytes to the table, any of which are numbers.
    let told = unsafe { libc::prctl(GET_AUXV, pairs.as_mut_ptr(), size_of_val(&pairs), 0, 0) };
    // SAFETY: looks for a number that the loader has.
    let random = unsafe { libc::getauxval(libc::AT_RANDOM) };
    told > 0 && random != 0 && pairs.contains(&[libc::AT_RANDOM, random])
}

/// A loaded executable or library, while dl_iterate_phdr shows it.
struct Image<'a> {
    base: usize,
    headers: &'a [libc::Elf64_Phdr],
}

/// The first answer that `visit` has for a loaded image.
fn find<T>(mut visit: impl FnMut(&Image<'_>) -> Option<T>) -> Option<T> {
    let mut found = None;
    let mut look = |image: &Image<'_>| {
        found = visit(image);
        found.is_some()
    };
    let mut look: &mut dyn FnMut(&Image<'_>) -> bool = &mut look;
    // SAFETY: the callback gets back the address of `look`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut look).cast()) };
    found
}

extern "C" fn each(info: *mut libc::dl_phdr_info, _bytes: usize, look: *mut c_void) -> c_int {
    // SAFETY: the C library shows an image that stays loaded during this call.
    let info = unsafe { &*info };
    // SAFETY: `find` passed this address of its own, and waits.
    let look = unsafe { &mut *look.cast::<&mut dyn FnMut(&Image<'_>) -> bool>() };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    let count = usize::from(info.dlpi_phnum);
    // SAFETY: as many headers lie there, as long as the image is loaded.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, count) };
    let base = address(info.dlpi_addr);
    c_int::from(look(&Image { base, headers }))
}

impl<'a> Image<'a> {
    /// Stands for the build: from its build id, or where the linker wrote none, from its headers.
    fn id(&self) -> u64 {
        let mut notes = self.headers.iter().filter(|it| it.p_type == libc::PT_NOTE);
        let id = notes.find_map(|header| build_id(self.bytes(header)));
        let first = id.and_then(|id| id.first_chunk().copied());
        first.map_or_else(|| self.digest(), u64::from_le_bytes)
    }

    /// FNV-1a over the sizes of all segments and the header of the file, which has the sizes of what isn't loaded.
    fn digest(&self) -> u64 {
        let sizes = self.headers.iter().flat_map(|it| [it.p_vaddr, it.p_memsz]);
        let sizes = sizes.flat_map(u64::to_le_bytes);
        let head = self.loaded().find(|it| it.p_offset == 0);
        let head = head.map_or(&[][..], |it| self.bytes(it));
        let head = head.iter().take(64).copied();
        sizes.chain(head).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Loaded segments that can be read and not written to.
    fn loaded(&self) -> impl Iterator<Item = &'a libc::Elf64_Phdr> {
        let constant = |it: &&libc::Elf64_Phdr| {
            it.p_type == libc::PT_LOAD && it.p_flags & (libc::PF_R | libc::PF_W) == libc::PF_R
        };
        self.headers.iter().filter(constant)
    }

    fn range(&self, header: &libc::Elf64_Phdr) -> Range<usize> {
        let start = self.base.wrapping_add(address(header.p_vaddr));
        start..start.saturating_add(address(header.p_memsz))
    }

    /// The bytes of a segment that nobody writes to.
    fn bytes(&self, header: &libc::Elf64_Phdr) -> &'a [u8] {
        let range = self.range(header);
        let start = std::ptr::with_exposed_provenance(range.start);
        // SAFETY: constants-are-mapped: the segment is loaded there, and is read-only.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    /// Whether a whole entry can lie at this address: among constants, those with addresses in them included, which
    /// the loader fills in and then protects.
    fn holds(&self, address: usize) -> bool {
        let protected = self.headers.iter();
        let protected = protected.filter(|it| it.p_type == libc::PT_GNU_RELRO);
        address.is_multiple_of(align_of::<Entry>())
            && self.loaded().chain(protected).any(|header| {
                let range = self.range(header);
                range.contains(&address) && range.end - address >= size_of::<Entry>()
            })
    }

    fn entry(&self, offset: u64) -> Result<Function> {
        const MALFORMED: Error = Error::Malformed {
            what: "name of a function",
            at: 8,
        };
        let place = self.base.wrapping_add(address(offset));
        if !self.holds(place) {
            return Err(MALFORMED);
        }
        let words = std::ptr::with_exposed_provenance::<[usize; size_of::<Entry>() / 8]>(place);
        // SAFETY: constants-are-mapped: `holds` has found it aligned and in a read-only part.
        let words = unsafe { &*words };
        let [a, b, run, c, d] = words.map(|word| word as u64);
        let code = self
            .headers
            .iter()
            .any(|it| it.p_flags & libc::PF_X != 0 && self.range(it).contains(&address(run)));
        if [[a, b], [c, d]] != MARKS || !code {
            return Err(MALFORMED);
        }
        let entry = std::ptr::with_exposed_provenance::<Entry>(place);
        // SAFETY: an entry lies there: between its marks is an address in code, and nothing but `Lay` makes those.
        Ok(Function(unsafe { &*entry }))
    }

    fn text_behind(&self, mark: &[u8]) -> Option<String> {
        self.loaded().find_map(|header| {
            let bytes = self.bytes(header);
            let at = bytes.windows(mark.len()).position(|it| it == mark)?;
            let text = bytes[at + mark.len()..].split(|byte| *byte == 0).next()?;
            String::from_utf8(text.to_vec()).ok()
        })
    }
}

const _: () = assert!(size_of::<Entry>() == 40);

/// The description of the note that holds the build id, among the notes of a segment.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const BUILD_ID: u32 = 3;
    while let Some((head, rest)) = notes.split_first_chunk::<12>() {
        let word = |at: usize| {
            let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            u32::from_ne_bytes(bytes)
        };
        let (name_bytes, id_bytes) = (word(0) as usize, word(4) as usize);
        let name = rest.get(..name_bytes)?;
        let rest = rest.get(name_bytes.next_multiple_of(4)..)?;
        if word(8) == BUILD_ID && name == b"GNU\0" {
            return rest.get(..id_bytes);
        }
        notes = rest.get(id_bytes.next_multiple_of(4)..)?;
    }
    None
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the core is for 64-bit systems"
)]
fn address(number: u64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Add;
    impl<F: Fn(u8) -> u8 + Copy> Body<F> for Add {
        fn run(function: F, input: &[u8], output: &mut Vec<u8>) -> u8 {
            output.push(function(input[0]));
            7
        }
    }

    fn double(number: u8) -> u8 {
        number * 2
    }

    fn name<F: Fn(u8) -> u8 + Copy + 'static>(function: F) -> FunctionName {
        FunctionName::of::<F, Add>(function).unwrap()
    }

    #[test]
    fn functions_and_closures_are_found_by_name() {
        for (name, expected) in [(name(double), 42), (name(|number| number + 1), 22)] {
            let mut output = Vec::new();
            assert_eq!(name.find().unwrap().call(&[21], &mut output), 7);
            assert_eq!(output, [expected]);
        }
    }

    #[test]
    fn what_is_no_function_is_not_called() {
        let right = name(double);
        let image = right.image;
        let wrong = [
            0,
            1,
            8,
            right.offset - 8,
            right.offset + 8,
            right.offset + 1,
            1 << 40,
            u64::MAX - 7,
        ];
        for offset in wrong {
            let found = FunctionName { image, offset }.find();
            assert!(matches!(found, Err(Error::Malformed { .. })), "{offset}");
        }
        let other = FunctionName {
            image: image ^ 1,
            ..right
        };
        assert!(matches!(other.find(), Err(Error::Misuse { .. })));
    }

    #[test]
    fn the_program_has_a_build_id_of_its_own() {
        let mut seen = Vec::new();
        find(|image| {
            seen.push(image.id());
            None::<()>
        });
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert!(count > 1 && seen.len() == count, "{count} images");
    }

    #[test]
    fn notes_are_read_with_care() {
        let note = |name_bytes: u32, id_bytes: u32, kind: u32| {
            let mut note = [name_bytes, id_bytes, kind].map(u32::to_ne_bytes).concat();
            note.extend(b"GNU\0abcd");
            note
        };
        assert_eq!(build_id(&note(4, 4, 3)), Some(&b"abcd"[..]));
        let both = [note(4, 4, 1), note(4, 3, 3)].concat();
        assert_eq!(build_id(&both), Some(&b"abc"[..]));
        for (name_bytes, id_bytes) in [(4, 5), (9, 4), (u32::MAX, 4), (4, u32::MAX)] {
            assert_eq!(build_id(&note(name_bytes, id_bytes, 3)), None);
        }
    }
}
