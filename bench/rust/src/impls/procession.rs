//! The project itself, as a user would write it.

use crate::locks::{Lock, LockKind};
use crate::msg::*;
use crate::pool::{PoolKind, arg, task};
use crate::recovery::{self, RecoveryKind, after_a_kill};
use crate::start::StartKind;
use crate::sys::now_ns;
use procession::{
    Connection, JoinError, LockError, Pool, Process, Queue, StartMethod, one_way_pipe,
};
use serde_bytes::ByteBuf;
use std::collections::VecDeque;
use std::convert::Infallible;

pub fn init() {
    procession::init();
}

/// Values of one type, encoded with serde.
struct Typed<T>(Queue<T>, Option<T>);

impl Sender for Typed<ByteBuf> {
    fn send(&mut self, bytes: &[u8]) {
        let message = self.1.get_or_insert_default();
        message.clear();
        message.extend_from_slice(bytes);
        self.0.put(message).unwrap();
    }
}

impl Receiver for Typed<ByteBuf> {
    fn recv(&mut self, f: &mut dyn FnMut(&[u8])) {
        f(&self.0.get().unwrap());
    }
}

impl Sender for Typed<Rec> {
    fn send(&mut self, _: &[u8]) {
        unreachable!("a typed channel");
    }
    fn send_rec(&mut self, record: &Rec) {
        self.0.put(record).unwrap();
    }
}

impl Receiver for Typed<Rec> {
    fn recv(&mut self, _: &mut dyn FnMut(&[u8])) {
        unreachable!("a typed channel");
    }
    fn recv_rec(&mut self) -> Rec {
        self.0.get().unwrap()
    }
}

struct TypedChannel<T>(Queue<T>);

impl<T: 'static> Channel for TypedChannel<T>
where
    Typed<T>: Sender + Receiver,
{
    fn sender(&mut self, _: usize) -> Box<dyn Sender> {
        Box::new(Typed(self.0.clone(), None))
    }
    fn receiver(&mut self, _: usize) -> Box<dyn Receiver> {
        Box::new(Typed(self.0.clone(), None))
    }
}

fn typed(config: ChanCfg) -> Result<Box<dyn Channel>, String> {
    fn open<T>() -> Result<TypedChannel<T>, String> {
        Queue::new()
            .map(TypedChannel)
            .map_err(|error| error.to_string())
    }
    Ok(if config.typed {
        Box::new(open::<Rec>()?)
    } else {
        Box::new(open::<ByteBuf>()?)
    })
}

/// Bytes as they are.
struct Bytes(Queue<[u8]>, Vec<u8>);

impl Sender for Bytes {
    fn send(&mut self, bytes: &[u8]) {
        self.0.put_bytes(bytes).unwrap();
    }
}

impl Receiver for Bytes {
    fn recv(&mut self, f: &mut dyn FnMut(&[u8])) {
        self.0.get_bytes_into(&mut self.1).unwrap();
        f(&self.1);
    }
}

struct BytesChannel(Queue<[u8]>);

impl Channel for BytesChannel {
    fn sender(&mut self, _: usize) -> Box<dyn Sender> {
        Box::new(Bytes(self.0.clone(), Vec::new()))
    }
    fn receiver(&mut self, _: usize) -> Box<dyn Receiver> {
        Box::new(Bytes(self.0.clone(), Vec::new()))
    }
}

fn bytes(_: ChanCfg) -> Result<Box<dyn Channel>, String> {
    Queue::new()
        .map(|queue| Box::new(BytesChannel(queue)) as Box<dyn Channel>)
        .map_err(|error| error.to_string())
}

/// A pipe that goes one way, of values or of bytes: each end is for one process.
struct Pipe<T: ?Sized + 'static> {
    receiver: Connection<Infallible, T>,
    sender: Connection<T, Infallible>,
}

/// One end, and what it needs for each message.
struct End<C, B>(C, B);

impl Sender for End<Connection<ByteBuf, Infallible>, ByteBuf> {
    fn send(&mut self, bytes: &[u8]) {
        self.1.clear();
        self.1.extend_from_slice(bytes);
        self.0.send(&self.1).unwrap();
    }
}

impl Receiver for End<Connection<Infallible, ByteBuf>, ByteBuf> {
    fn recv(&mut self, f: &mut dyn FnMut(&[u8])) {
        f(&self.0.recv().unwrap());
    }
}

impl Sender for End<Connection<Rec, Infallible>, ByteBuf> {
    fn send(&mut self, _: &[u8]) {
        unreachable!("a typed channel");
    }
    fn send_rec(&mut self, record: &Rec) {
        self.0.send(record).unwrap();
    }
}

impl Receiver for End<Connection<Infallible, Rec>, ByteBuf> {
    fn recv(&mut self, _: &mut dyn FnMut(&[u8])) {
        unreachable!("a typed channel");
    }
    fn recv_rec(&mut self) -> Rec {
        self.0.recv().unwrap()
    }
}

impl Sender for End<Connection<[u8], Infallible>, ByteBuf> {
    fn send(&mut self, bytes: &[u8]) {
        self.0.send_bytes(bytes).unwrap();
    }
}

impl Receiver for End<Connection<Infallible, [u8]>, ByteBuf> {
    fn recv(&mut self, f: &mut dyn FnMut(&[u8])) {
        self.0.recv_bytes_into(&mut self.1).unwrap();
        f(&self.1);
    }
}

impl<T: ?Sized + 'static> Channel for Pipe<T>
where
    End<Connection<T, Infallible>, ByteBuf>: Sender,
    End<Connection<Infallible, T>, ByteBuf>: Receiver,
{
    fn sender(&mut self, _: usize) -> Box<dyn Sender> {
        Box::new(End(self.sender.clone(), ByteBuf::new()))
    }
    fn receiver(&mut self, _: usize) -> Box<dyn Receiver> {
        Box::new(End(self.receiver.clone(), ByteBuf::new()))
    }
}

/// An end in several processes is no queue.
fn pipe<T: ?Sized + 'static>(config: ChanCfg) -> Result<Box<dyn Channel>, String>
where
    Pipe<T>: Channel,
{
    if config.producers > 1 || config.consumers > 1 {
        return Err("one sender, one receiver".into());
    }
    let (receiver, sender) = one_way_pipe().map_err(|error| error.to_string())?;
    Ok(Box::new(Pipe::<T> { receiver, sender }))
}

fn typed_pipe(config: ChanCfg) -> Result<Box<dyn Channel>, String> {
    if config.typed {
        pipe::<Rec>(config)
    } else {
        pipe::<ByteBuf>(config)
    }
}

pub fn transports() -> Vec<Transport> {
    let transport = |name, typed, open| Transport {
        name,
        threads: false,
        typed,
        open,
    };
    vec![
        transport("procession Queue<[u8]>", false, bytes),
        transport("procession Queue<T>", true, typed),
        transport("procession Connection<[u8]>", false, pipe::<[u8]>),
        transport("procession Connection<T>", true, typed_pipe),
    ]
}

impl Lock for procession::Lock {
    fn acquire(&self) {
        self.acquire().unwrap().keep();
    }
    fn release(&self) {
        self.release().unwrap();
    }
}

pub fn locks() -> Vec<LockKind> {
    vec![LockKind::Lock("procession Lock", |_| {
        Box::new(procession::Lock::new().unwrap())
    })]
}

fn start(method: StartMethod, n: usize) -> Result<(), String> {
    let builder = || Process::builder().start_method(method);
    let started: Result<Vec<_>, _> = (0..n as u64)
        .map(|number| builder().spawn(|number: u64| number + 1, number))
        .collect();
    for (number, process) in (1..).zip(started.map_err(|error| error.to_string())?) {
        let value = process.join().map_err(|error| error.to_string())?;
        assert_eq!(value, number as u64);
    }
    Ok(())
}

pub fn starts() -> Vec<StartKind> {
    let kind = |name, run| StartKind {
        name,
        run,
        prepare: || {},
    };
    vec![
        kind("procession spawn", |n| start(StartMethod::Spawn, n)),
        kind("procession fork", |n| start(StartMethod::Fork, n)),
        StartKind {
            name: "procession forkserver",
            run: |n| start(StartMethod::Forkserver, n),
            // The server begins once, while the parent is small, as "fork from a small helper" does.
            prepare: || start(StartMethod::Forkserver, 1).unwrap(),
        },
    ]
}

fn arguments(n: u64, size: usize) -> impl Iterator<Item = ByteBuf> {
    (0..n).map(move |i| ByteBuf::from(arg(i, size)))
}

fn one(argument: ByteBuf) -> u64 {
    task(&argument)
}

/// A task each, their results as they come.
fn imap_unordered(workers: usize, size: usize) -> Box<dyn FnMut(u64) -> u64> {
    let pool = Pool::new(workers as u32).unwrap();
    Box::new(move |n| {
        let results = pool.imap_unordered(one, arguments(n, size)).unwrap();
        results.map(Result::unwrap).sum()
    })
}

/// A task each, submitted one by one, a window of 256.
fn apply_async(workers: usize, size: usize) -> Box<dyn FnMut(u64) -> u64> {
    let pool = Pool::new(workers as u32).unwrap();
    Box::new(move |n| {
        let (mut open, mut arguments, mut sum) = (VecDeque::new(), arguments(n, size), 0);
        for _ in 0..n {
            while open.len() < 256
                && let Some(argument) = arguments.next()
            {
                open.push_back(pool.apply_async(one, argument).unwrap());
            }
            sum += open.pop_front().unwrap().get().unwrap();
        }
        sum
    })
}

/// In chunks, four for each worker.
fn map(workers: usize, size: usize) -> Box<dyn FnMut(u64) -> u64> {
    let pool = Pool::new(workers as u32).unwrap();
    Box::new(move |n| pool.map(one, arguments(n, size)).unwrap().into_iter().sum())
}

pub fn pools() -> Vec<PoolKind> {
    let kind = |name, make: fn(usize, usize) -> Box<dyn FnMut(u64) -> u64>| PoolKind { name, make };
    vec![
        kind("procession imap_unordered", imap_unordered),
        kind("procession apply_async", apply_async),
        kind("procession map", map),
    ]
}

/// A waiter looks at the owner every 50 ms.
fn holder_killed(kills: usize) -> Vec<u64> {
    let lock = procession::Lock::new().unwrap();
    let acquire = || lock.acquire().unwrap().keep();
    let inherit = || match lock.acquire() {
        Err(LockError::OwnerDied(inherited)) => drop(inherited),
        other => panic!("{other:?}"),
    };
    (0..kills)
        .map(|kill| after_a_kill(kill, &acquire, &inherit, &|| {}))
        .collect()
}

/// It sleeps in an empty queue, and others wait for their turn behind it.
fn getter_killed(kills: usize) -> Vec<u64> {
    let queue: Queue<u64> = Queue::new().unwrap();
    let get = || {
        queue.get().unwrap();
    };
    let put = || queue.put(&1).unwrap();
    (0..kills)
        .map(|kill| after_a_kill(kill, &get, &get, &put))
        .collect()
}

/// It sleeps in a full queue, and others wait for their turn behind it.
fn putter_killed(kills: usize) -> Vec<u64> {
    let queue: Queue<u64> = Queue::bounded(1).unwrap();
    let put = || queue.put(&1).unwrap();
    let get = || {
        queue.get().unwrap();
    };
    let killed = |kill| {
        put();
        let time = after_a_kill(kill, &put, &put, &get);
        get();
        time
    };
    (0..kills).map(killed).collect()
}

/// A task that says where it runs, and never ends.
fn hang(running: Queue<u32>) {
    running.put(&std::process::id()).unwrap();
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// Until its caller was told, and another task was done.
fn worker_killed(kills: usize) -> Vec<u64> {
    let pool = Pool::new(2).unwrap();
    let running: Queue<u32> = Queue::new().unwrap();
    let killed = |_| {
        let result = pool.apply_async(hang, running.clone()).unwrap();
        let pid = running.get().unwrap();
        let begin = now_ns();
        unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        assert!(matches!(result.get(), Err(JoinError::Lost(_))));
        assert_eq!(pool.apply(one, ByteBuf::from(arg(1, 8))).unwrap(), 3);
        now_ns() - begin
    };
    (0..kills).map(killed).collect()
}

pub fn recoveries() -> Vec<RecoveryKind> {
    let kind = |name, case, run| RecoveryKind { name, case, run };
    vec![
        kind("procession Lock", recovery::HOLDER, holder_killed),
        kind("procession Queue", recovery::GETTER, getter_killed),
        kind("procession Queue", recovery::PUTTER, putter_killed),
        kind("procession Pool", recovery::WORKER, worker_killed),
    ]
}
