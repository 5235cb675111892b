//! What the processes of a simulation did to locks and queues, by their own account, and whether it fits together.
//!
//! A process notes what it begins and what came of it, at no cost of steps. Who is killed in between has noted only the
//! beginning: then both outcomes fit. Times are the world's; an action that ended before another began came first.

use super::world::{Name, World};
use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How long a death may take until others can find what it left: the kernel's steps at its end.
const DEATH: u64 = 2_000_000;

/// Something that a process did to a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Act {
    by: Name,
    begin: u64,
    /// Not there when it was killed on the way.
    end: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody knows: the caller was killed, or is at it.
    Open,
    Stored,
    /// The call said that the message isn't in the queue.
    Refused,
}

#[derive(Debug)]
struct Put {
    act: Act,
    fate: Fate,
}

#[derive(Debug)]
struct Get {
    act: Act,
    claims: bool,
    /// The message that it took.
    number: Option<u64>,
}

/// The account of one queue.
#[derive(Debug, Default)]
pub(crate) struct QueueAccount {
    /// By the message's number.
    puts: BTreeMap<u64, Put>,
    gets: Vec<Get>,
    /// Who took which message, as an index of `gets`.
    taken: BTreeMap<u64, usize>,
    /// The auditor holds it, so nothing in it goes by itself.
    pub(crate) is_kept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    /// That process, for sure.
    Held(Name),
    /// That process is about to release it.
    Releases(Name),
    /// That process is about to leave normally, with it.
    Leaves(Name),
    /// Its process left normally, with it.
    Left,
}

/// The account of one lock.
#[derive(Debug)]
pub(crate) struct LockAccount {
    owner: Owner,
    /// A process was killed while it acquired it: it may have had it.
    acquiring: BTreeSet<Name>,
    pub(crate) deaths_told: u64,
}

/// The account of everything.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) queues: Vec<QueueAccount>,
    pub(crate) locks: Vec<LockAccount>,
    numbers: u64,
    /// What a dead process' claim said after its queues were settled, and when it was asked.
    pub(crate) claims: Vec<(Name, u64, u64)>,
}

/// The accounts, which all processes of a world share.
#[derive(Clone)]
pub(crate) struct Oracle {
    world: Rc<World>,
    accounts: Rc<RefCell<Accounts>>,
}

impl Oracle {
    pub(crate) fn new(world: &Rc<World>) -> Self {
        Self {
            world: Rc::clone(world),
            accounts: Rc::default(),
        }
    }

    pub(crate) fn accounts(&self) -> RefMut<'_, Accounts> {
        self.accounts.borrow_mut()
    }

    pub(crate) fn new_queue(&self, is_kept: bool) -> usize {
        let queues = &mut self.accounts().queues;
        queues.push(QueueAccount {
            is_kept,
            ..QueueAccount::default()
        });
        queues.len() - 1
    }

    pub(crate) fn new_lock(&self) -> usize {
        let locks = &mut self.accounts().locks;
        locks.push(LockAccount {
            owner: Owner::Nobody,
            acquiring: BTreeSet::new(),
            deaths_told: 0,
        });
        locks.len() - 1
    }

    fn begin(&self, by: Name) -> Act {
        Act {
            by,
            begin: self.world.now(),
            end: None,
        }
    }

    /// A process begins to put a message, whose number it is told.
    pub(crate) fn puts(&self, queue: usize, by: Name) -> u64 {
        let act = self.begin(by);
        let accounts = &mut *self.accounts();
        accounts.numbers += 1;
        let number = accounts.numbers;
        let fate = Fate::Open;
        let put = Put { act, fate };
        accounts.queues[queue].puts.insert(number, put);
        number
    }

    pub(crate) fn has_put(&self, queue: usize, number: u64, fate: Fate) {
        let now = self.world.now();
        let accounts = &mut *self.accounts();
        let account = &mut accounts.queues[queue];
        let put = account.puts.get_mut(&number).unwrap();
        put.act.end = Some(now);
        put.fate = fate;
        assert!(
            fate != Fate::Refused || !account.taken.contains_key(&number),
            "message {number} was refused, and got"
        );
    }

    /// A process begins to get a message.
    pub(crate) fn gets(&self, queue: usize, by: Name, claims: bool) -> usize {
        let act = self.begin(by);
        let gets = &mut self.accounts().queues[queue].gets;
        gets.push(Get {
            act,
            claims,
            number: None,
        });
        gets.len() - 1
    }

    pub(crate) fn has_got(&self, queue: usize, get: usize, number: Option<u64>) {
        let now = self.world.now();
        let account = &mut self.accounts().queues[queue];
        account.gets[get].act.end = Some(now);
        let Some(number) = number else { return };
        account.gets[get].number = Some(number);
        let put = account.puts.get(&number);
        let put =
            put.unwrap_or_else(|| panic!("message {number} was never put into queue {queue}"));
        assert!(
            put.fate != Fate::Refused,
            "message {number} was refused, and got"
        );
        let before = account.taken.insert(number, get);
        assert!(before.is_none(), "message {number} was got twice");
    }

    pub(crate) fn acquires(&self, lock: usize, by: Name) {
        self.accounts().locks[lock].acquiring.insert(by);
    }

    pub(crate) fn gave_up(&self, lock: usize, by: Name) {
        self.accounts().locks[lock].acquiring.remove(&by);
    }

    /// A process has a lock, and was told that its last owner died, or not.
    pub(crate) fn acquired(&self, lock: usize, by: Name, told: bool) {
        let accounts = &mut *self.accounts();
        let account = &mut accounts.locks[lock];
        account.acquiring.remove(&by);
        let dead = |name: &Name| self.world.is_dead(*name);
        let (may_be_clean, may_be_told) = match account.owner {
            Owner::Held(owner) => {
                assert!(dead(&owner), "{by} and {owner} have lock {lock}");
                (false, true)
            }
            Owner::Releases(owner) => (true, dead(&owner)),
            // Killed before it had left.
            Owner::Leaves(owner) => (false, dead(&owner)),
            Owner::Nobody => (true, false),
            Owner::Left => {
                panic!("{by} has lock {lock}, which was left held; told {told}: {account:?}")
            }
        };
        // Who was killed while it acquired it may have had it.
        let may_be_told = may_be_told || account.acquiring.iter().any(dead);
        let fits = if told { may_be_told } else { may_be_clean };
        assert!(fits, "{by} was told {told} of {account:?}");
        if told {
            account.deaths_told += 1;
        }
        // Those deaths are told of now, or had nothing to tell.
        let living = |name: &Name| !dead(name);
        account.acquiring.retain(living);
        account.owner = Owner::Held(by);
    }

    pub(crate) fn releases(&self, lock: usize, by: Name) {
        let owner = &mut self.accounts().locks[lock].owner;
        assert_eq!(*owner, Owner::Held(by), "lock {lock} of {by}");
        *owner = Owner::Releases(by);
    }

    pub(crate) fn released(&self, lock: usize, by: Name) {
        let owner = &mut self.accounts().locks[lock].owner;
        if *owner == Owner::Releases(by) {
            *owner = Owner::Nobody;
        }
    }

    /// A process is about to leave normally, with a lock.
    pub(crate) fn leaves(&self, lock: usize, by: Name) {
        let owner = &mut self.accounts().locks[lock].owner;
        assert_eq!(*owner, Owner::Held(by), "lock {lock} of {by}");
        *owner = Owner::Leaves(by);
    }

    pub(crate) fn has_left(&self, lock: usize) {
        self.accounts().locks[lock].owner = Owner::Left;
    }

    /// Nobody who lives has the lock, and it can't be had: the caller is about to release it.
    pub(crate) fn seizes(&self, lock: usize, by: Name) {
        self.accounts().locks[lock].owner = Owner::Releases(by);
    }

    /// Whether a process that lives has a lock.
    pub(crate) fn is_held(&self, lock: usize) -> bool {
        match self.accounts().locks[lock].owner {
            Owner::Held(owner) | Owner::Releases(owner) | Owner::Leaves(owner) => {
                !self.world.is_dead(owner)
            }
            Owner::Nobody | Owner::Left => false,
        }
    }

    /// Whether a lock was left held, and nobody else is at releasing it: the caller is, then.
    pub(crate) fn takes_over_left(&self, lock: usize, by: Name) -> bool {
        let owner = &mut self.accounts().locks[lock].owner;
        let left = *owner == Owner::Left;
        if left {
            *owner = Owner::Releases(by);
        }
        left
    }

    /// Everything that can be said when all is over and what was left in the queues was got. `lost` is what each queue
    /// that is kept says that it lost.
    pub(crate) fn judge(&self, lost: &[u64]) {
        let accounts = self.accounts();
        for (queue, account) in accounts.queues.iter().enumerate() {
            account.judge_order(queue);
            account.judge_emptiness(queue);
        }
        let kept = accounts.queues.iter().filter(|account| account.is_kept);
        for (queue, (account, lost)) in kept.zip(lost).enumerate() {
            account.judge_losses(queue, *lost, &accounts.claims);
        }
        for (by, number, asked) in &accounts.claims {
            // Only these queues were settled before it was asked.
            for account in accounts.queues.iter().filter(|account| account.is_kept) {
                let Some(get) = account.taken.get(number) else {
                    continue;
                };
                let act = account.gets[*get].act;
                assert!(
                    act.by == *by || act.end < Some(*asked),
                    "{by}'s claim named message {number} at {asked}, which was got later: {act:?}"
                );
            }
        }
    }

    /// How many messages were got, and how many deaths were told of.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let accounts = self.accounts();
        let got = accounts.queues.iter().map(|queue| queue.taken.len() as u64);
        let told = accounts.locks.iter().map(|lock| lock.deaths_told);
        (got.sum(), told.sum())
    }
}

impl Act {
    fn is_before(&self, other: &Self) -> bool {
        self.end.is_some_and(|end| end < other.begin)
    }
}

impl QueueAccount {
    /// First in, first out: among messages whose puts, and whose gets, came one after the other.
    fn judge_order(&self, queue: usize) {
        let both: Vec<_> = (self.taken.iter())
            .map(|(number, get)| (number, self.puts[number].act, self.gets[*get].act))
            .collect();
        for (first, put, got) in &both {
            for (second, later_put, later_got) in &both {
                assert!(
                    !(put.is_before(later_put) && later_got.is_before(got)),
                    "queue {queue}: {second} was put after {first}, and got before it"
                );
            }
        }
    }

    /// Nobody found it empty while a message was in it that nobody was at.
    fn judge_emptiness(&self, queue: usize) {
        let puts = self.puts.values().map(|put| put.act);
        let acts: Vec<Act> = puts.chain(self.gets.iter().map(|get| get.act)).collect();
        for get in self.gets.iter().filter(|get| get.number.is_none()) {
            let Some(end) = get.act.end else { continue };
            let overlaps = |other: &Act| {
                let until = other.end.unwrap_or(u64::MAX);
                other.by != get.act.by && other.begin <= end && until + DEATH >= get.act.begin
            };
            let is_disturbed = acts.iter().any(|act| {
                let act = Act {
                    end: act.end.or(Some(u64::MAX - DEATH)),
                    ..*act
                };
                overlaps(&act)
            });
            if is_disturbed {
                continue;
            }
            let waiting = self.puts.iter().find(|(number, put)| {
                let taken = self.taken.get(number).map(|get| self.gets[*get].act);
                put.fate == Fate::Stored
                    && put.act.is_before(&get.act)
                    && taken.is_some_and(|taken| get.act.is_before(&taken))
            });
            assert!(
                waiting.is_none(),
                "queue {queue}: {} found nothing while {waiting:?} was there",
                get.act.by
            );
        }
    }

    /// Only who was killed in a get may have a message that nobody else got, one each.
    fn judge_losses(&self, queue: usize, lost: u64, claims: &[(Name, u64, u64)]) {
        let is_missing = |number: &u64| !self.taken.contains_key(number);
        let stored = (self.puts.iter()).filter(|(_, put)| put.fate == Fate::Stored);
        let missing: BTreeSet<u64> = stored
            .map(|(number, _)| *number)
            .filter(is_missing)
            .collect();
        let cut_short = |claiming: bool| {
            let gets = self.gets.iter();
            gets.filter(move |get| get.act.end.is_none() && get.claims == claiming)
        };
        // A claim that went with its holder before it could be asked explains a message, too.
        let claimed = cut_short(true).filter(|get| {
            let mine = claims.iter().find(|(by, ..)| *by == get.act.by);
            mine.is_none_or(|(_, number, _)| missing.contains(number))
        });
        let explained = cut_short(false).count() + claimed.count();
        assert!(
            missing.len() <= explained,
            "queue {queue}: {missing:?} are gone, and {explained} getters that may have had them"
        );
        // One that dies inside may have the message of the one before counted: docs/shm.md, 5.10.
        let deaths = cut_short(false).count() + cut_short(true).count();
        assert!(
            lost <= deaths as u64,
            "queue {queue} says that {lost} were lost, with {deaths} getters"
        );
    }
}
