//! Steps a process through some work, and knows when something changed that others could see.

use super::memory::Memory;
use super::tracee::{RobustList, Step, Tracee};
use crate::scene::Scene;
use procession_core::shm::Snapshot;
use procession_core::sys::dead;

/// Whose instructions are stepped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Those of the process that does the work. A child that it makes is killed at its birth.
    Itself,
    /// Those of the child that it forks, from the first one on; itself, it stands in the fork for good.
    ItsChild,
}

/// A process that is stepped through work on a scene.
#[derive(Debug)]
pub(crate) struct Stepper<'a> {
    scene: &'a Scene,
    tracee: Tracee,
    /// Of a tracee that was forked by another one: that one, and its list.
    parent: Option<(Tracee, RobustList)>,
    memory: Memory,
    /// The head of its list at the last look.
    head: [u64; 3],
    /// Instructions so far.
    pub(crate) instructions: u64,
    /// States so far that differed from the one before.
    pub(crate) states: u64,
    /// The work has returned.
    pub(crate) done: bool,
}

impl<'a> Stepper<'a> {
    /// Forks a process that stands before `work`.
    pub(crate) fn new(scene: &'a Scene, who: Who, work: impl FnOnce()) -> Self {
        let mut tracee = Tracee::new(work);
        let mut parent = None;
        if who == Who::ItsChild {
            let child = loop {
                match tracee.step() {
                    Step::Forked(child) => break child,
                    Step::Instruction | Step::Signal => {}
                    Step::Done => panic!("it forks no child"),
                }
            };
            let list = tracee.robust_list();
            parent = Some((std::mem::replace(&mut tracee, child), list));
        }
        let parents = parent.iter().map(|(parent, _)| parent.pid());
        parents.chain([tracee.pid()]).for_each(dead::declare);
        Self {
            scene,
            tracee,
            parent,
            memory: Memory::new(scene.arena.descriptor()),
            head: [0; 3],
            instructions: 0,
            states: 0,
            done: false,
        }
    }

    /// Steps to the end of the work, and calls `visit` with each new state, and with the last.
    pub(crate) fn walk(&mut self, mut visit: impl FnMut(&Self)) {
        loop {
            if self.is_new() || self.done {
                visit(self);
            }
            if self.done {
                return;
            }
            self.step();
        }
    }

    /// Lets it run one instruction, or notes that the work is done.
    pub(crate) fn step(&mut self) {
        match self.tracee.step() {
            Step::Instruction => self.instructions += 1,
            Step::Signal => {}
            Step::Forked(child) => child.kill(),
            Step::Done => self.done = true,
        }
    }

    /// Whether anything differs from the last look that another process could see, or the kernel would act on.
    fn is_new(&mut self) -> bool {
        let head = self.tracee.list_head();
        // Both are looked at in any case.
        let is_new = self.memory.has_changed() | (self.head != head);
        self.head = head;
        self.states += u64::from(is_new);
        is_new
    }

    /// The arena as it would be if the process died now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let arena = &self.scene.arena;
        let snapshot = arena.snapshot().unwrap();
        if let Some((tracee, list)) = &self.parent {
            tracee.mark(list, arena, &snapshot);
        }
        self.tracee
            .mark(&self.tracee.robust_list(), arena, &snapshot);
        snapshot
    }

    /// What it would run next, for whoever reads a failure.
    pub(crate) fn place(&self) -> String {
        self.tracee.place()
    }

    /// Kills it for real.
    pub(crate) fn kill(self) {
        self.tracee.kill();
    }
}
