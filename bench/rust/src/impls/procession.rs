//! The project itself, through its public crate: what a user would write. `procession-core` lines are the engine
//! below it, for what the crate's types and serde add.
#![cfg_attr(not(feature = "procession"), allow(dead_code, unused_imports))]

use crate::{locks::LockKind, msg::Transport, pool::PoolKind, start::StartKind};

#[cfg(feature = "procession")]
pub use with::{init, locks, pools, starts, transports};

#[cfg(not(feature = "procession"))]
mod without {
    use super::*;

    pub fn init() {}

    pub fn transports() -> Vec<Transport> {
        vec![]
    }

    pub fn locks() -> Vec<LockKind> {
        vec![]
    }

    pub fn starts() -> Vec<StartKind> {
        vec![]
    }

    pub fn pools() -> Vec<PoolKind> {
        vec![]
    }
}
#[cfg(not(feature = "procession"))]
pub use without::{init, locks, pools, starts, transports};

#[cfg(feature = "procession")]
mod with {
    use super::*;
    use crate::msg::*;
    use crate::pool::{arg, task};
    use procession::{Lock, Pool, Process, Queue};
    use procession_core::{Arena, Deadline, Queue as Core};
    use serde_bytes::ByteBuf;
    use std::collections::VecDeque;

    pub fn init() {
        procession::init();
    }

    // ---- messages

    /// Bytes are put as one value of bytes, typed messages as themselves.
    enum Typed {
        Bytes(Queue<ByteBuf>),
        Recs(Queue<Rec>),
    }

    struct Tx(Typed, ByteBuf);
    struct Rx(Typed);

    impl Typed {
        fn again(&self) -> Self {
            match self {
                Self::Bytes(queue) => Self::Bytes(queue.clone()),
                Self::Recs(queue) => Self::Recs(queue.clone()),
            }
        }
    }

    impl Sender for Tx {
        fn send(&mut self, bytes: &[u8]) {
            let Typed::Bytes(queue) = &self.0 else {
                unreachable!()
            };
            self.1.clear();
            self.1.extend_from_slice(bytes);
            queue.put(&self.1).unwrap();
        }
        fn send_rec(&mut self, r: &Rec) {
            let Typed::Recs(queue) = &self.0 else {
                unreachable!()
            };
            queue.put(r).unwrap();
        }
    }

    impl Receiver for Rx {
        fn recv(&mut self, f: &mut dyn FnMut(&[u8])) {
            let Typed::Bytes(queue) = &self.0 else {
                unreachable!()
            };
            f(&queue.get().unwrap());
        }
        fn recv_rec(&mut self) -> Rec {
            let Typed::Recs(queue) = &self.0 else {
                unreachable!()
            };
            queue.get().unwrap()
        }
    }

    impl Channel for Typed {
        fn sender(&mut self, _: usize) -> Box<dyn Sender> {
            Box::new(Tx(self.again(), ByteBuf::new()))
        }
        fn receiver(&mut self, _: usize) -> Box<dyn Receiver> {
            Box::new(Rx(self.again()))
        }
    }

    fn typed(c: ChanCfg) -> Result<Box<dyn Channel>, String> {
        let made = if c.typed {
            Queue::new().map(Typed::Recs)
        } else {
            Queue::new().map(Typed::Bytes)
        };
        Ok(Box::new(made.map_err(|e| e.to_string())?))
    }

    /// The engine's queue of bytes, in an arena of its own.
    struct Bare(Core);
    struct BareEnd(Core, Vec<u8>);

    impl Sender for BareEnd {
        fn send(&mut self, bytes: &[u8]) {
            if !self.0.try_put(0, &[bytes]).unwrap() {
                self.0.put(0, &[bytes], Deadline::NEVER).unwrap();
            }
        }
    }

    impl Receiver for BareEnd {
        fn recv(&mut self, f: &mut dyn FnMut(&[u8])) {
            self.1.clear();
            let taken = match self.0.try_get_into(&mut self.1).unwrap() {
                Some(taken) => taken,
                None => self
                    .0
                    .get_into(&mut self.1, Deadline::NEVER)
                    .unwrap()
                    .unwrap(),
            };
            if let Some(extent) = taken.extent {
                extent.append_to(&mut self.1).unwrap();
            }
            f(&self.1);
        }
    }

    impl Channel for Bare {
        fn sender(&mut self, _: usize) -> Box<dyn Sender> {
            Box::new(BareEnd(self.0.clone(), vec![]))
        }
        fn receiver(&mut self, _: usize) -> Box<dyn Receiver> {
            Box::new(BareEnd(self.0.clone(), vec![]))
        }
    }

    fn bare(_: ChanCfg) -> Result<Box<dyn Channel>, String> {
        let made = Arena::create().and_then(|arena| Core::new(&arena, None));
        Ok(Box::new(Bare(made.map_err(|e| e.to_string())?)))
    }

    pub fn transports() -> Vec<Transport> {
        let t = |name, open, typed| Transport {
            name,
            threads: false,
            typed,
            open,
        };
        vec![
            t("procession", typed as fn(ChanCfg) -> _, true),
            t("procession-core", bare, false),
        ]
    }

    // ---- locks

    struct Ours(Lock);
    impl crate::locks::Lock for Ours {
        fn acquire(&self) {
            self.0.acquire().unwrap().keep();
        }
        fn release(&self) {
            self.0.release().unwrap();
        }
    }

    pub fn locks() -> Vec<LockKind> {
        vec![LockKind::Lock("procession", |_| {
            Box::new(Ours(Lock::new().unwrap()))
        })]
    }

    // ---- processes

    fn start(n: usize) -> Result<(), String> {
        let started: Result<Vec<_>, _> = (0..n as u64)
            .map(|i| Process::spawn(|i: u64| i + 1, i))
            .collect();
        for (i, child) in started.map_err(|e| e.to_string())?.into_iter().enumerate() {
            assert_eq!(child.join().map_err(|e| e.to_string())?, i as u64 + 1);
        }
        Ok(())
    }

    pub fn starts() -> Vec<StartKind> {
        vec![StartKind {
            name: "procession",
            run: start,
            prepare: || {},
        }]
    }

    // ---- pools

    fn one(a: ByteBuf) -> u64 {
        task(&a)
    }

    fn args(n: u64, size: usize) -> impl Iterator<Item = ByteBuf> {
        (0..n).map(move |i| ByteBuf::from(arg(i, size)))
    }

    /// A task each, their results as they come.
    fn unordered(workers: usize, size: usize) -> Box<dyn FnMut(u64) -> u64> {
        let pool = Pool::new(workers as u32).unwrap();
        Box::new(move |n| {
            let results = pool.imap_unordered(one, args(n, size)).unwrap();
            results.map(Result::unwrap).sum()
        })
    }

    /// A task each, submitted one by one, a window of 256.
    fn one_by_one(workers: usize, size: usize) -> Box<dyn FnMut(u64) -> u64> {
        let pool = Pool::new(workers as u32).unwrap();
        Box::new(move |n| {
            let (mut open, mut args, mut sum) = (VecDeque::new(), args(n, size), 0);
            for _ in 0..n {
                while open.len() < 256
                    && let Some(a) = args.next()
                {
                    open.push_back(pool.apply_async(one, a).unwrap());
                }
                sum += open.pop_front().unwrap().get().unwrap();
            }
            sum
        })
    }

    /// In chunks, four for each worker.
    fn chunks(workers: usize, size: usize) -> Box<dyn FnMut(u64) -> u64> {
        let pool = Pool::new(workers as u32).unwrap();
        Box::new(move |n| pool.map(one, args(n, size)).unwrap().into_iter().sum())
    }

    pub fn pools() -> Vec<PoolKind> {
        vec![
            PoolKind {
                name: "procession",
                make: unordered,
            },
            PoolKind {
                name: "procession apply_async",
                make: one_by_one,
            },
            PoolKind {
                name: "procession map",
                make: chunks,
            },
        ]
    }
}
