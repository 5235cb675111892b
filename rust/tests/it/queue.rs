//! Queues of values between processes.

use crate::watchdog::watch;
use procession::{
    ErrorKind, GetError, JoinableQueue, Process, PutError, Queue, SimpleQueue, TaskError, wait,
    wait_timeout,
};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn a_queue_can_be_sent_through_a_queue() {
    let _watchdog = watch();
    let questions: Queue<(String, Queue<usize>)> = Queue::new().unwrap();
    let serve = |questions: Queue<(String, Queue<usize>)>| {
        while let Ok((text, answers)) = questions.get() {
            answers.put(&text.len()).unwrap();
        }
    };
    let server = Process::spawn(serve, questions.clone()).unwrap();
    for text in ["", "one", "twenty"] {
        let answers = Queue::new().unwrap();
        questions.put(&(text.to_owned(), answers.clone())).unwrap();
        assert_eq!(answers.get().unwrap(), text.len());
    }
    questions.close().unwrap();
    server.join().unwrap();
}

#[test]
fn bounded_ones_keep_their_bound_and_timeouts() {
    let _watchdog = watch();
    let queue = Queue::bounded(2).unwrap();
    assert_eq!(queue.capacity().unwrap(), Some(2));
    assert_eq!(Queue::<()>::new().unwrap().capacity().unwrap(), None);
    assert_eq!(
        Queue::<()>::bounded(0).unwrap_err().kind(),
        ErrorKind::Misuse
    );
    let timeout = Duration::from_millis(40);
    let begin = Instant::now();
    assert!(matches!(queue.get_timeout(timeout), Err(GetError::Empty)));
    assert!(begin.elapsed() >= timeout);
    queue.put(&1u8).unwrap();
    queue.try_put(&2).unwrap();
    assert!(matches!(queue.try_put(&3), Err(PutError::Full)));
    let begin = Instant::now();
    assert!(matches!(
        queue.put_timeout(&3, timeout),
        Err(PutError::Full)
    ));
    assert!(begin.elapsed() >= timeout);
    let child = Process::spawn(|queue: Queue<u8>| queue.put(&3).unwrap(), queue.clone()).unwrap();
    assert_eq!(
        (
            queue.get().unwrap(),
            queue.get().unwrap(),
            queue.get().unwrap()
        ),
        (1, 2, 3)
    );
    child.join().unwrap();
    assert!(queue.is_empty().unwrap());
    assert_eq!((queue.len().unwrap(), queue.lost().unwrap()), (0, 0));
}

const PRODUCERS: u64 = 3;
const EACH: u64 = 5_000;

fn produce((queue, from): (Queue<(u64, String)>, u64)) {
    for number in 0..EACH {
        let number = from * EACH + number;
        queue
            .put(&(number, "x".repeat((number % 100) as usize)))
            .unwrap();
    }
}

fn consume(queue: Queue<(u64, String)>) -> Vec<u64> {
    let mut seen = Vec::new();
    loop {
        match queue.get() {
            Ok((number, text)) => {
                assert_eq!(text.len() as u64, number % 100);
                seen.push(number);
            }
            Err(GetError::Closed) => return seen,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn each_value_is_got_exactly_once() {
    let _watchdog = watch();
    for queue in [Queue::new().unwrap(), Queue::bounded(5).unwrap()] {
        let consumers = [(); 2].map(|()| Process::spawn(consume, queue.clone()).unwrap());
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|from| Process::spawn(produce, (queue.clone(), from)).unwrap())
            .collect();
        for producer in producers {
            producer.join().unwrap();
        }
        queue.close().unwrap();
        let seen: Vec<u64> = consumers
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect();
        assert_eq!(seen.len() as u64, PRODUCERS * EACH);
        let distinct: BTreeSet<u64> = seen.into_iter().collect();
        assert_eq!(distinct.len() as u64, PRODUCERS * EACH);
    }
}

#[test]
fn what_was_put_outlives_its_process() {
    let _watchdog = watch();
    let queue = Queue::new().unwrap();
    let put_and_abort = |(queue, length): (Queue<String>, usize)| -> () {
        queue.put(&"y".repeat(length)).unwrap();
        std::process::abort();
    };
    for length in [3, 100_000] {
        let child = Process::spawn(put_and_abort, (queue.clone(), length)).unwrap();
        child.join().unwrap_err();
        assert_eq!(queue.try_get().unwrap().len(), length);
    }
}

#[test]
fn bytes_go_as_they_are() {
    let _watchdog = watch();
    let queue = Queue::<[u8]>::bounded(2).unwrap();
    let echo = Queue::<[u8]>::new().unwrap();
    let child = Process::spawn(
        |(queue, echo): (Queue<[u8]>, Queue<[u8]>)| {
            let mut bytes = vec![1, 2, 3];
            loop {
                queue.get_bytes_into(&mut bytes).unwrap();
                echo.put_bytes(&bytes).unwrap();
                if bytes.is_empty() {
                    return;
                }
            }
        },
        (queue.clone(), echo.clone()),
    )
    .unwrap();
    for length in [1, 7, 64, 16 << 10, (16 << 10) + 1, 1 << 20, 0] {
        let bytes = vec![u8::try_from(length % 251).unwrap(); length];
        queue.put_bytes(&bytes).unwrap();
        assert_eq!(echo.get_bytes().unwrap(), bytes);
    }
    child.join().unwrap();
    let short = Duration::from_millis(20);
    assert!(matches!(queue.try_get_bytes(), Err(GetError::Empty)));
    assert!(matches!(
        queue.get_bytes_timeout(short),
        Err(GetError::Empty)
    ));
    queue.try_put_bytes(b"one").unwrap();
    queue.put_bytes_timeout(b"two", short).unwrap();
    assert!(matches!(queue.try_put_bytes(b"three"), Err(PutError::Full)));
    assert!(matches!(
        queue.put_bytes_timeout(b"three", short),
        Err(PutError::Full)
    ));
    queue.close().unwrap();
    assert!(matches!(queue.put_bytes(b"three"), Err(PutError::Closed)));
    assert_eq!(queue.get_bytes().unwrap(), b"one");
    assert_eq!(queue.try_get_bytes().unwrap(), b"two");
    assert!(matches!(queue.get_bytes(), Err(GetError::Closed)));
}

#[test]
fn workers_do_all_tasks() {
    let _watchdog = watch();
    let queue = JoinableQueue::<u64>::bounded(3).unwrap();
    let sums = SimpleQueue::<u64>::new().unwrap();
    let work = |(queue, sums): (JoinableQueue<u64>, SimpleQueue<u64>)| {
        let mut sum = 0;
        while let Ok(number) = queue.get() {
            sum += number;
            queue.task_done().unwrap();
        }
        sums.put(&sum).unwrap();
    };
    let workers = [(); 2].map(|()| Process::spawn(work, (queue.clone(), sums.clone())).unwrap());
    (1..=100).for_each(|number| queue.put(&number).unwrap());
    queue.join().unwrap();
    assert_eq!((queue.unfinished().unwrap(), queue.len().unwrap()), (0, 0));
    assert_eq!(queue.task_done().unwrap_err().kind(), ErrorKind::Misuse);
    queue.close().unwrap();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(sums.get().unwrap() + sums.get().unwrap(), 5050);
    assert!(sums.is_empty().unwrap());
}

#[test]
fn a_join_tells_of_what_was_lost() {
    let _watchdog = watch();
    let queue = JoinableQueue::<String>::new().unwrap();
    for text in ["one", "two", "three"] {
        queue.put(&text.to_owned()).unwrap();
    }
    let short = Duration::from_millis(60);
    assert!(matches!(
        queue.join_timeout(short),
        Err(TaskError::Unfinished)
    ));
    let get_and_abort = |queue: JoinableQueue<String>| -> () {
        (0..2).for_each(|_| drop(queue.get().unwrap()));
        std::process::abort();
    };
    let dead = Process::spawn(get_and_abort, queue.clone()).unwrap();
    dead.join().unwrap_err();
    assert_eq!(queue.get().unwrap(), "three");
    queue.task_done().unwrap();
    assert!(matches!(queue.join(), Err(TaskError::Lost(2))));
    queue.join().unwrap();
}

#[test]
fn simple_ones_carry_bytes_and_close() {
    let _watchdog = watch();
    let queue = SimpleQueue::<[u8]>::new().unwrap();
    let echo = SimpleQueue::<[u8]>::new().unwrap();
    let copy = |(queue, echo): (SimpleQueue<[u8]>, SimpleQueue<[u8]>)| {
        let mut bytes = Vec::new();
        while queue.get_bytes_into(&mut bytes).is_ok() {
            echo.put_bytes(&bytes).unwrap();
        }
    };
    let child = Process::spawn(copy, (queue.clone(), echo.clone())).unwrap();
    for length in [0, 5, 100_000] {
        queue.put_bytes(&vec![3; length]).unwrap();
        assert_eq!(echo.get_bytes().unwrap(), vec![3; length]);
    }
    queue.close().unwrap();
    child.join().unwrap();
    assert!(matches!(queue.put_bytes(b"more"), Err(PutError::Closed)));
    assert!(matches!(queue.get_bytes(), Err(GetError::Closed)));
}

#[test]
fn queues_are_waited_for_beside_processes_and_sockets() {
    let _watchdog = watch();
    let (full, simple) = (Queue::bounded(1).unwrap(), SimpleQueue::new().unwrap());
    let [by_value, by_room] = [full.readable().unwrap(), full.writable().unwrap()];
    let by_simple = simple.readable().unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let go: Queue<()> = Queue::new().unwrap();
    let child = |(go, full, simple): (Queue<()>, Queue<u8>, SimpleQueue<u8>)| {
        go.get().unwrap();
        full.put(&1).unwrap();
        go.get().unwrap();
        simple.put(&2).unwrap();
        go.get().unwrap();
    };
    let child = Process::spawn(child, (go.clone(), full.clone(), simple.clone())).unwrap();
    let everything: [&dyn AsFd; 4] = [&by_value, &by_simple, &theirs, &child];
    let timeout = Duration::from_millis(10);
    assert!(wait_timeout(everything, timeout).unwrap().is_empty());
    for (place, get) in [
        (0, &(|| full.get()) as &dyn Fn() -> _),
        (1, &|| simple.get()),
    ] {
        go.put(&()).unwrap();
        assert_eq!(wait(everything).unwrap(), [place]);
        assert_eq!(usize::from(get().unwrap()), place + 1);
        assert!(wait_timeout(everything, timeout).unwrap().is_empty());
    }
    ours.write_all(b"!").unwrap();
    assert_eq!(wait(everything).unwrap(), [2]);
    go.put(&()).unwrap();
    while wait(everything).unwrap() != [2, 3] {}
    child.join().unwrap();
    assert_eq!(
        by_room.as_fd().as_raw_fd(),
        full.writable().unwrap().as_raw_fd()
    );
    full.close().unwrap();
    assert_eq!(wait([&by_value]).unwrap(), [0]);
}
