//! Runs of pages: the lower half of the allocator. Everything here happens under the allocator's lock.
//!
//! Each window begins with a table of an entry for each page. A run is described by the entry of its first page
//! alone; the entries of its other pages are zero. So each change that others may see is one store: taking a run is
//! the store of its entry, and so is freeing it. A death in between leaves at worst entries inside a longer run,
//! which [`normalize`] zeroes, or zero entries where a run should begin, which it makes free.

use super::arena::Member;
use super::blocks;
use super::layout::{
    PAGE, RECENT, WINDOWS, entry_place, index, table_pages, window_bytes, window_of, window_start,
};
use crate::sys::mapping;
use crate::sys::word::{Cell, Relaxed, Release};
use crate::{Error, Result};

/// Pages that get memory at a time when a fresh run is cut: 256 KiB.
const STEP: u64 = 64;
/// A run of at least this many pages goes back to the system when [`WARM_MAX`] free ones are warm already: 64 KiB.
const PUNCH: u64 = 16;
/// Free pages that keep their memory: 64 MiB. Fresh pages cost a microsecond or three each, so some are kept.
const WARM_MAX: u64 = 16384;

/// What an entry of a page table says.
///
/// ```text
/// bits    field    meaning
/// 0..28   pages    length of the run
/// 28..60  owner    USED: slot of the process; LINKED, LEAVING: offset of the object, in 256 bytes; SLAB: size class
/// 60..64  kind     0 inside a run, 1 WARM, 2 COLD, 3 USED, 4 LINKED, 5 SLAB, 6 RESERVED, 7 LEAVING
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) pages: u64,
    pub(super) owner: u64,
}

/// What a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Free, and has memory.
    Warm = 1,
    /// Free, and has none.
    Cold = 2,
    /// A process has it; it goes with it.
    Used = 3,
    /// An object has it; it goes with it.
    Linked = 4,
    /// Blocks of one size class.
    Slab = 5,
    /// The arena's own tables.
    Reserved = 6,
    /// An object has it, and one of its locks' holder is taking it out; it goes with the object.
    Leaving = 7,
}

/// Pages of an arena: 1 TiB.
const PAGES_MAX: u64 = (1 << 40) / PAGE;
const PAGES_BITS: u32 = 28;
const OWNER_BITS: u32 = 32;

impl Entry {
    pub(super) fn warm(pages: u64) -> Self {
        Self {
            kind: Kind::Warm,
            pages,
            owner: 0,
        }
    }

    pub(super) fn cold(pages: u64) -> Self {
        Self {
            kind: Kind::Cold,
            pages,
            owner: 0,
        }
    }

    pub(super) fn reserved(pages: u64) -> Self {
        Self {
            kind: Kind::Reserved,
            pages,
            owner: 0,
        }
    }

    pub(super) fn used(pages: u64, slot: u32) -> Self {
        Self {
            kind: Kind::Used,
            pages,
            owner: u64::from(slot),
        }
    }

    /// A run of the object at `offset`.
    pub(super) fn linked(pages: u64, offset: u64) -> Self {
        Self {
            kind: Kind::Linked,
            pages,
            owner: offset / blocks::SMALLEST,
        }
    }

    /// A run of the object at `offset`, on its way out.
    pub(super) fn leaving(pages: u64, offset: u64) -> Self {
        Self {
            kind: Kind::Leaving,
            ..Self::linked(pages, offset)
        }
    }

    /// Whether the object at `offset` has it.
    pub(super) fn is_of(self, offset: u64) -> bool {
        self == Self::linked(self.pages, offset) || self == Self::leaving(self.pages, offset)
    }

    pub(super) fn bits(self) -> u64 {
        (self.kind as u64) << (PAGES_BITS + OWNER_BITS) | self.owner << PAGES_BITS | self.pages
    }

    /// The entry of those bits; `None` inside a run, or for bits that mean nothing.
    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        let kind = match bits >> (PAGES_BITS + OWNER_BITS) {
            1 => Kind::Warm,
            2 => Kind::Cold,
            3 => Kind::Used,
            4 => Kind::Linked,
            5 => Kind::Slab,
            6 => Kind::Reserved,
            7 => Kind::Leaving,
            _ => return None,
        };
        let pages = bits & ((1 << PAGES_BITS) - 1);
        let owner = bits >> PAGES_BITS & ((1 << OWNER_BITS) - 1);
        (pages > 0).then_some(Self { kind, pages, owner })
    }

    pub(super) fn is_free(self) -> bool {
        matches!(self.kind, Kind::Warm | Kind::Cold)
    }
}

impl Member {
    /// The entry of a page, by the page's number in the arena.
    #[inline]
    pub(super) fn entry(&self, page: u64) -> Result<&Cell> {
        if page >= PAGES_MAX {
            return Err(Error::Broken {
                what: "the table of pages",
            });
        }
        self.at(entry_place(page))
    }

    /// The run that begins at a page.
    ///
    /// # Errors
    /// `Broken` when none begins there, or it ends outside its window.
    #[inline]
    pub(super) fn run(&self, page: u64) -> Result<Entry> {
        let run = self.entry(page).map(|entry| whole_run(page, entry))?;
        run.ok_or(Error::Broken {
            what: "the table of pages",
        })
    }

    /// The run that begins at a page, if one does, for who isn't sure of the number: a hint, or a name from outside.
    pub(super) fn run_at(&self, page: u64) -> Option<Entry> {
        // A window that isn't mapped yet is mapped for that only if it exists.
        if page >= PAGES_MAX || window_of(page * PAGE) >= self.window_count().ok()? {
            return None;
        }
        let entry = self.windows().at(entry_place(page)).ok()?;
        whole_run(page, entry)
    }

    /// Calls `visit` with each run of each window, until it says to stop by giving a value.
    pub(super) fn runs<T>(
        &self,
        visit: impl FnMut(u64, Entry) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        self.runs_from(0, visit)
    }

    /// As [`runs`](Self::runs), from the run that begins at the page `from`.
    fn runs_from<T>(
        &self,
        from: u64,
        mut visit: impl FnMut(u64, Entry) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        for window in window_of(from * PAGE)..self.window_count()? {
            let mut page = from.max(window_start(window) / PAGE);
            let end = (window_start(window) + window_bytes(window)) / PAGE;
            while page < end {
                let entry = self.run(page)?;
                if let Some(found) = visit(page, entry)? {
                    return Ok(Some(found));
                }
                page += entry.pages;
            }
        }
        Ok(None)
    }
}

/// The run of an entry, if it ends in its window.
fn whole_run(page: u64, entry: &Cell) -> Option<Entry> {
    let window = window_of(page * PAGE);
    let end = (window_start(window) + window_bytes(window)) / PAGE;
    Entry::from_bits(entry.load(Relaxed)).filter(|entry| entry.pages <= end - page)
}

/// Takes a run of `pages` pages, the first one's number a multiple of `align`, for the process in `slot`.
///
/// # Errors
/// `Os` or `Exhausted` when there is no memory.
pub(super) fn take(member: &Member, pages: u64, align: u64, slot: u32) -> Result<u64> {
    const EXHAUSTED: Error = Error::Exhausted {
        what: "bytes of shared memory",
        limit: PAGES_MAX * PAGE,
    };
    if pages > PAGES_MAX / 2 {
        // More than the largest window has.
        return Err(EXHAUSTED);
    }
    let entry = Entry::used(pages, slot);
    if align == 1
        && let Some(page) = take_recent(member, entry)?
    {
        return Ok(page);
    }
    for _ in 0..WINDOWS {
        if let Some(page) = search(member, pages, align)? {
            cut(member, page, entry)?;
            return Ok(page.at);
        }
        add_window(member)?;
    }
    Err(EXHAUSTED)
}

/// A place for a run: where it would begin, and the free run that it would be cut out of.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    /// Where the free run begins; it is warm, but for its end.
    run: u64,
    /// Pages of it that have memory.
    warm: u64,
    /// Pages behind those that have none, up to the next run.
    cold: u64,
}

/// A run of just that many pages among those freed last: the warmest memory there is, found in a few loads.
fn take_recent(member: &Member, entry: Entry) -> Result<Option<u64>> {
    let header = member.header()?;
    let newest = index(header.recent_next.load(Relaxed));
    for back in 1..=RECENT {
        let hint = &header.recent[newest.wrapping_sub(back) % RECENT];
        let page = hint.load(Relaxed) / PAGE;
        if page != 0 && member.run_at(page) == Some(Entry::warm(entry.pages)) {
            hint.store(0, Relaxed);
            member.entry(page)?.store(entry.bits(), Release);
            count_warm(member, 0, entry.pages)?;
            return Ok(Some(page));
        }
    }
    Ok(None)
}

/// The first free run with room from the cursor on, else from the start, joining neighbours on the way.
fn search(member: &Member, pages: u64, align: u64) -> Result<Option<Place>> {
    let cursor = member.header()?.cursor.load(Relaxed);
    // The cursor is a hint: entries inside a run are zero, so one that isn't begins a run.
    if member.run_at(cursor).is_some()
        && let Some(place) = search_from(member, cursor, pages, align)?
    {
        return Ok(Some(place));
    }
    search_from(member, 0, pages, align)
}

fn search_from(member: &Member, from: u64, pages: u64, align: u64) -> Result<Option<Place>> {
    let mut last: Option<(u64, Entry)> = None;
    member.runs_from(from, |page, entry| {
        let mut run = (page, entry);
        if let Some((start, left)) = last
            && left.kind == entry.kind
            && start + left.pages == page
            && window_of(start * PAGE) == window_of(page * PAGE)
        {
            // Inside first: a death between leaves zeroes where a run should begin, which are made free.
            member.entry(page)?.store(0, Relaxed);
            let joined = Entry {
                pages: left.pages + entry.pages,
                ..left
            };
            member.entry(start)?.store(joined.bits(), Release);
            run = (start, joined);
        }
        let before = last.filter(|(start, left)| {
            left.kind == Kind::Warm && start + left.pages == run.0 && !starts_window(run.0)
        });
        last = run.1.is_free().then_some(run);
        let (begin, warm, cold) = match (run.1.kind, before) {
            (Kind::Warm, _) => (run.0, run.1.pages, 0),
            (Kind::Cold, Some((start, left))) => (start, left.pages, run.1.pages),
            (Kind::Cold, None) => (run.0, 0, run.1.pages),
            _ => return Ok(None),
        };
        let at = begin.next_multiple_of(align);
        Ok((at + pages <= begin + warm + cold).then_some(Place {
            at,
            run: begin,
            warm,
            cold,
        }))
    })
}

fn starts_window(page: u64) -> bool {
    window_start(window_of(page * PAGE)) == page * PAGE
}

/// Cuts a run out of a free one: what is right of it first, then the run, then what is left of it.
fn cut(member: &Member, place: Place, entry: Entry) -> Result<()> {
    let Place { at, run, .. } = place;
    let (warm, end) = warm_up(member, place, at + entry.pages)?;
    let rest = at + entry.pages;
    if rest < warm {
        member
            .entry(rest)?
            .store(Entry::warm(warm - rest).bits(), Relaxed);
    }
    count_warm(member, 0, entry.pages)?;
    member.entry(at)?.store(entry.bits(), Release);
    if run < at {
        member
            .entry(run)?
            .store(Entry::warm(at - run).bits(), Release);
    }
    // What is left of the step comes first next time.
    member.header()?.cursor.store(rest.min(end - 1), Relaxed);
    Ok(())
}

/// Gives a free run memory up to the page `until` at least. Gives where its memory ends now, and where it does.
fn warm_up(member: &Member, place: Place, until: u64) -> Result<(u64, u64)> {
    let cold = place.run + place.warm;
    let end = cold + place.cold;
    if until <= cold {
        return Ok((cold, end));
    }
    let warm = until.max(cold + STEP).min(end);
    mapping::allocate(member.windows().file(), cold * PAGE, (warm - cold) * PAGE)?;
    if warm < end {
        member
            .entry(warm)?
            .store(Entry::cold(end - warm).bits(), Relaxed);
    }
    if place.warm > 0 {
        // Inside first: a death between leaves zeroes where a run should begin, which are made free.
        member.entry(cold)?.store(0, Relaxed);
    }
    member
        .entry(place.run)?
        .store(Entry::warm(warm - place.run).bits(), Release);
    count_warm(member, warm - cold, 0)?;
    Ok((warm, end))
}

/// Makes the next window, all of it free and without memory but for its table.
fn add_window(member: &Member) -> Result<()> {
    let window = member.window_count()?;
    if window == WINDOWS {
        return Err(Error::Exhausted {
            what: "bytes of shared memory",
            limit: window_start(WINDOWS),
        });
    }
    let (start, table) = (window_start(window), table_pages(window));
    mapping::lengthen(member.windows().file(), start + window_bytes(window))?;
    mapping::allocate(member.windows().file(), start, table * PAGE)?;
    let first = start / PAGE;
    let pages = window_bytes(window) / PAGE;
    member
        .entry(first + table)?
        .store(Entry::cold(pages - table).bits(), Relaxed);
    member
        .entry(first)?
        .store(Entry::reserved(table).bits(), Relaxed);
    member.header()?.windows.store(window as u64 + 1, Release);
    Ok(())
}

/// Frees the run that begins at a page; nothing if it is free already.
pub(super) fn free(member: &Member, page: u64) -> Result<()> {
    let entry = member.run(page)?;
    if entry.is_free() {
        return Ok(());
    }
    let header = member.header()?;
    let warm = header.warm_pages.load(Relaxed);
    let large = entry.pages >= PUNCH && warm.saturating_add(entry.pages) > WARM_MAX;
    if large && mapping::punch(member.windows().file(), page * PAGE, entry.pages * PAGE).is_ok() {
        member
            .entry(page)?
            .store(Entry::cold(entry.pages).bits(), Release);
        return Ok(());
    }
    member
        .entry(page)?
        .store(Entry::warm(entry.pages).bits(), Release);
    count_warm(member, entry.pages, 0)?;
    let next = header.recent_next.load(Relaxed);
    header.recent[index(next) % RECENT].store(page * PAGE, Relaxed);
    header
        .recent_next
        .store(next.wrapping_add(1) % RECENT as u64, Relaxed);
    Ok(())
}

fn count_warm(member: &Member, more: u64, fewer: u64) -> Result<()> {
    let warm = &member.header()?.warm_pages;
    let counted = warm.load(Relaxed).saturating_add(more);
    warm.store(counted.saturating_sub(fewer), Relaxed);
    Ok(())
}

/// Makes the tables whole after a death inside the allocator: entries inside a run become zero, and zeroes where a
/// run should begin become free.
pub(super) fn normalize(member: &Member) -> Result<()> {
    let header = member.header()?;
    for hint in header
        .recent
        .iter()
        .chain(&header.slab_hints)
        .chain([&header.cursor])
    {
        hint.store(0, Relaxed);
    }
    let mut warm = 0;
    for window in 0..member.window_count()? {
        let mut page = window_start(window) / PAGE;
        let end = page + window_bytes(window) / PAGE;
        while page < end {
            let known = Entry::from_bits(member.entry(page)?.load(Relaxed))
                .filter(|entry| entry.pages <= end - page);
            let Some(entry) = known else {
                let mut next = page + 1;
                while next < end && member.entry(next)?.load(Relaxed) == 0 {
                    next += 1;
                }
                // Whether it has memory isn't known; without is the safe answer, it gets some when it is cut.
                member
                    .entry(page)?
                    .store(Entry::cold(next - page).bits(), Release);
                page = next;
                continue;
            };
            for inside in page + 1..page + entry.pages {
                if member.entry(inside)?.load(Relaxed) != 0 {
                    member.entry(inside)?.store(0, Relaxed);
                }
            }
            if entry.kind == Kind::Warm {
                warm += entry.pages;
            }
            page += entry.pages;
        }
    }
    header.warm_pages.store(warm, Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Entry, Kind, OWNER_BITS, PAGES_BITS};

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let kinds = [
            Kind::Warm,
            Kind::Cold,
            Kind::Used,
            Kind::Linked,
            Kind::Slab,
            Kind::Reserved,
            Kind::Leaving,
        ];
        for kind in kinds {
            for pages in [1, 2, (1 << PAGES_BITS) - 1] {
                for owner in [0, 1, (1 << OWNER_BITS) - 1] {
                    let entry = Entry { kind, pages, owner };
                    assert_eq!(Entry::from_bits(entry.bits()), Some(entry));
                }
            }
        }
    }

    #[test]
    fn bits_that_mean_nothing_are_no_entry() {
        let kind = |kind: u64| kind << (PAGES_BITS + OWNER_BITS);
        for bits in [0, 1, kind(0) | 5, kind(1), kind(8) | 1, kind(15) | 1] {
            assert_eq!(Entry::from_bits(bits), None);
        }
    }
}
