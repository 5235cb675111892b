//! Descriptors in messages.

use crate::each::{each, start};
use crate::watchdog::{until, watch};
use procession::{
    Descriptor, ErrorKind, GetError, Pool, Process, PutError, Queue, current_process,
};
use serde::{Serialize, Serializer, ser};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

fn write(to: Descriptor, text: &str) {
    PipeWriter::from(to.into_inner())
        .write_all(text.as_bytes())
        .unwrap();
}

fn all(from: impl Read) -> String {
    let (mut from, mut text) = (from, String::new());
    from.read_to_string(&mut text).unwrap();
    text
}

/// A pipe, and its writer as what can be sent.
fn piped() -> (PipeReader, Descriptor) {
    let (reader, writer) = pipe().unwrap();
    (reader, Descriptor::new(writer))
}

/// What it is given a writer of, and returns a reader of.
fn exchange((to, text): (Descriptor, String)) -> Descriptor {
    let (reader, writer) = pipe().unwrap();
    write(to, &text);
    write(Descriptor::new(writer), "returned");
    Descriptor::new(reader)
}

#[test]
fn arguments_and_values_of_processes_carry_them() {
    each(|method| {
        for round in 0..3 {
            let (reader, writer) = piped();
            let child = start(method, exchange, (writer, format!("argument {round}")));
            assert_eq!(all(reader), format!("argument {round}"));
            // The child has ended when its value is looked at.
            let returned = child.join().unwrap();
            assert_eq!(all(PipeReader::from(returned.into_inner())), "returned");
        }
    });
}

#[test]
fn queues_carry_them_in_one_process_and_between_two() {
    let _watchdog = watch();
    let queue = Queue::new().unwrap();
    let (reader, writer) = piped();
    queue.put(&(1, writer.try_clone().unwrap())).unwrap();
    queue.put(&(2, writer)).unwrap();
    for number in 1..3 {
        let (got, writer): (u8, Descriptor) = queue.get().unwrap();
        assert_eq!(got, number);
        write(writer, "x");
    }
    assert_eq!(all(reader), "xx");
    // A connection that one process accepts and another serves.
    let connections = Queue::<Descriptor>::new().unwrap();
    let serve = |connections: Queue<Descriptor>| {
        let mut client = TcpStream::from(connections.get().unwrap().into_inner());
        client.write_all(b"served elsewhere").unwrap();
    };
    let child = Process::spawn(serve, connections.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    connections.put(&Descriptor::new(accepted)).unwrap();
    assert_eq!(all(client), "served elsewhere");
    child.join().unwrap();
}

#[test]
fn a_value_of_a_dead_sender_is_an_error_and_the_next_one_comes() {
    let _watchdog = watch();
    let queue = Queue::<(u32, Option<Descriptor>)>::new().unwrap();
    let send = |queue: Queue<(u32, Option<Descriptor>)>| -> () {
        let null = std::fs::File::open("/dev/null").unwrap();
        let me = current_process().pid();
        queue.put(&(me, Some(Descriptor::new(null)))).unwrap();
        queue.put(&(me, None)).unwrap();
        std::process::abort();
    };
    let child = Process::spawn(send, queue.clone()).unwrap();
    let pid = child.pid();
    assert!(child.join().is_err());
    match queue.get() {
        Err(GetError::Failed(error)) => {
            assert_eq!(error.kind(), ErrorKind::Lost);
            let text = error.to_string();
            let named = format!("of process {pid} can't be had: the process has ended");
            assert!(text.contains(&named), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(queue.get(), Ok((it, None)) if it == pid));
    assert!(matches!(queue.try_get(), Err(GetError::Empty)));
}

#[test]
fn tasks_and_their_results_carry_them() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    let (readers, writers): (Vec<_>, Vec<_>) = (0..20).map(|_| piped()).unzip();
    let tasks = writers
        .into_iter()
        .zip((0..20).map(|task| format!("task {task}")));
    let returned = pool.map(exchange, tasks).unwrap();
    for (task, (reader, returned)) in readers.into_iter().zip(returned).enumerate() {
        assert_eq!(all(reader), format!("task {task}"));
        assert_eq!(all(PipeReader::from(returned.into_inner())), "returned");
    }
}

/// Has a descriptor, and then can't be encoded.
struct Unfinished(Descriptor);

impl Serialize for Unfinished {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)?;
        Err(ser::Error::custom("no more"))
    }
}

#[test]
fn what_was_not_put_is_not_kept() {
    let _watchdog = watch();
    let (reader, writer) = piped();
    let queue = Queue::bounded(1).unwrap();
    queue.put(&None).unwrap();
    let writer = Some(writer);
    for _ in 0..5 {
        assert!(matches!(queue.try_put(&writer), Err(PutError::Full)));
        let put = queue.put_timeout(&writer, Duration::from_millis(5));
        assert!(matches!(put, Err(PutError::Full)));
    }
    queue.close().unwrap();
    assert!(matches!(queue.put(&writer), Err(PutError::Closed)));
    let Some(writer) = writer else { unreachable!() };
    let other = Queue::new().unwrap();
    let unfinished = Unfinished(writer);
    assert!(matches!(other.put(&unfinished), Err(PutError::Failed(_))));
    drop(unfinished);
    // Other tests' children may have it for a moment, until they have exec'ed.
    assert_eq!(all(reader), "");
}

#[test]
fn what_is_no_message_of_ours_does_not_carry_them() {
    let (_reader, writer) = piped();
    assert!(postcard::to_allocvec(&writer).is_err());
    // The reason is that of the next value that fails, and no other's.
    let queue = Queue::<Descriptor>::new().unwrap();
    queue.put(&writer).unwrap();
    assert!(queue.get().is_ok());
    until("an empty queue", || queue.is_empty().unwrap());
}
