//! The other process of a case: brought to where the victim is to find it, and on from there.

use super::acts::{Companion, race, work};
use super::ledger::Who;
use super::stage::Stage;
use crate::child::{Change, Child, fork};
use procession_core::sys::crash::{self, Action, Site, Trigger, Whose};
use std::time::{Duration, Instant};

/// Seconds after which what doesn't end is taken for hanging, on a loaded machine.
const PATIENCE: u32 = 20;

/// Forks a participant, which doesn't outlive the harness, nor hang for ever.
pub(crate) fn start(work: impl FnOnce()) -> Child {
    fork(|| {
        // SAFETY: asks for a signal.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: sets a timer.
        unsafe { libc::alarm(PATIENCE) };
        work();
    })
}

/// The other process of an act, and what is left to be done with it.
pub(crate) struct Other<'a> {
    companion: Companion,
    child: Option<Child>,
    stage: &'a Stage,
    sites: &'a [Site],
    moved: bool,
}

impl Other<'_> {
    /// Forks it. It waits for [`begin`](Self::begin).
    pub(crate) fn new<'a>(stage: &'a Stage, companion: Companion, sites: &'a [Site]) -> Other<'a> {
        let enter = || stage.ledger.pass(Who::Companion);
        let stopping = |run: fn(&Stage), file: &'static str| {
            start(move || {
                enter();
                if !file.is_empty() {
                    crash::arm_at(Trigger::File(file), Action::Stop, Whose::Own);
                }
                run(stage);
            })
        };
        let child = match companion {
            Companion::None => None,
            Companion::Sleeps(run) | Companion::Wakes(run) => Some(start(|| {
                enter();
                run(stage);
            })),
            Companion::Works => Some(start(|| {
                enter();
                work(stage);
            })),
            Companion::Races => Some(start(|| {
                enter();
                race(stage, || stage.ledger.is_asked());
            })),
            Companion::Stops(run, file)
            | Companion::Ends(run, file)
            | Companion::Holds(run, file) => Some(stopping(run, file)),
            Companion::Died(run, site) => Some(start(|| {
                enter();
                if let Some(site) = site {
                    crash::arm_at(Trigger::Site(sites[site], 1), Action::Kill, Whose::Own);
                }
                run(stage);
            })),
        };
        Other {
            companion,
            child,
            stage,
            sites,
            moved: false,
        }
    }

    /// Lets it come to where the victim is to find it.
    pub(crate) fn begin(&mut self) {
        let Some(child) = &self.child else {
            return;
        };
        if !matches!(self.companion, Companion::Wakes(_)) {
            self.stage.ledger.open(Who::Companion);
        }
        match self.companion {
            Companion::None | Companion::Wakes(_) => {}
            Companion::Sleeps(_) => {
                until(|| self.stage.ledger.has_begun(Who::Companion) && child.sleeps())
            }
            Companion::Works | Companion::Races => {
                until(|| self.stage.ledger.has_begun(Who::Companion))
            }
            Companion::Stops(..) | Companion::Ends(..) | Companion::Holds(..) => {
                assert_eq!(child.look(true), Change::Stopped, "a companion");
            }
            Companion::Died(_, site) => {
                let ended = child.look(true);
                if let Some(child) = self.child.take() {
                    child.forget();
                }
                let killed = Change::Ended(-libc::SIGKILL);
                assert_eq!(
                    ended,
                    killed,
                    "before {:?}",
                    site.map(|site| self.sites[site])
                );
            }
        }
    }

    /// Whether it does something once the victim sleeps.
    pub(crate) fn waits(&self) -> bool {
        let waits = matches!(
            self.companion,
            Companion::Wakes(_) | Companion::Stops(..) | Companion::Ends(..) | Companion::Holds(..)
        );
        waits && !self.moved
    }

    /// Whether it is to do it now.
    pub(crate) fn is_due(&self, victim: &Child) -> bool {
        if let Companion::Holds(..) = self.companion {
            self.stage.ledger.is_asked()
        } else {
            self.stage.ledger.has_begun(Who::Victim) && victim.sleeps()
        }
    }

    /// Has it go on.
    pub(crate) fn go_on(&mut self) {
        if let (true, Some(child)) = (self.waits(), &self.child) {
            match self.companion {
                Companion::Wakes(_) => self.stage.ledger.open(Who::Companion),
                Companion::Ends(..) => child.signal(libc::SIGKILL),
                _ => child.signal(libc::SIGCONT),
            }
        }
        self.moved = true;
    }

    pub(crate) fn join(self) {
        let expected = if let Companion::Ends(..) = self.companion {
            -libc::SIGKILL
        } else {
            0
        };
        if let Some(child) = self.child {
            assert_eq!(child.wait(), expected, "the companion failed, or hangs");
        }
    }

    pub(crate) fn dies(&self) -> bool {
        matches!(self.companion, Companion::Ends(..) | Companion::Died(..))
    }
}

/// Waits for another process on this machine, a short while at most unless it is loaded.
pub(crate) fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(u64::from(PATIENCE));
    while !done() {
        assert!(Instant::now() < end, "a companion doesn't come");
        std::thread::sleep(Duration::from_micros(50));
    }
}
