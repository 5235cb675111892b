//! Shared data between processes.

use crate::watchdog::watch;
use bytemuck::{Pod, Zeroable};
use procession::{Array, LockError, Process, Queue, RawArray, RawValue, SharedMemory, Value};
use std::sync::atomic::Ordering::SeqCst;

const ROUNDS: u32 = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Triple {
    first: u64,
    second: u64,
    third: [u8; 8],
}

fn triple(number: u64) -> Triple {
    Triple {
        first: number,
        second: number * 2,
        third: (number * 3).to_ne_bytes(),
    }
}

#[test]
fn no_increment_is_lost() {
    let _watchdog = watch();
    let (value, atomic) = (Value::new(0u32).unwrap(), RawValue::new(0i64).unwrap());
    let work = |(value, atomic): (Value<u32>, RawValue<i64>)| {
        for _ in 0..ROUNDS {
            *value.acquire().unwrap() += 1;
            atomic.atomic().fetch_sub(1, SeqCst);
        }
    };
    let arguments = (value.clone(), atomic.clone());
    let children = [(); 2].map(|()| Process::spawn(work, arguments.clone()).unwrap());
    for child in children {
        child.join().unwrap();
    }
    assert_eq!(value.get().unwrap(), 2 * ROUNDS);
    assert_eq!(atomic.get(), -2 * i64::from(ROUNDS));
}

#[test]
fn a_struct_under_its_lock_is_never_torn() {
    let _watchdog = watch();
    let value = Value::new(triple(0)).unwrap();
    let write = |value: Value<Triple>| {
        for number in 0..u64::from(ROUNDS) {
            value.set(triple(number)).unwrap();
        }
    };
    let child = Process::spawn(write, value.clone()).unwrap();
    while child.is_alive().unwrap() {
        let seen = value.get().unwrap();
        assert_eq!(seen, triple(seen.first));
    }
    child.join().unwrap();
    assert_eq!(value.get().unwrap(), triple(u64::from(ROUNDS) - 1));
}

#[test]
fn an_array_can_be_sent_through_a_queue() {
    let _watchdog = watch();
    let queue = Queue::<Array<f32>>::new().unwrap();
    let double = |queue: Queue<Array<f32>>| {
        let array = queue.get().unwrap();
        let locked = array.acquire().unwrap();
        for index in 0..locked.len() {
            locked.set(index, locked.get(index).unwrap() * 2.0);
        }
    };
    let child = Process::spawn(double, queue.clone()).unwrap();
    let array = Array::from_slice(&[0.5, 1.5, 2.5]).unwrap();
    queue.put(&array).unwrap();
    child.join().unwrap();
    assert_eq!(array.raw().to_vec(), [1.0, 3.0, 5.0]);
}

#[test]
fn it_is_of_the_type_that_it_was_sent_as() {
    let _watchdog = watch();
    let array = RawArray::from_slice(&[1u8; 6]).unwrap();
    let sent = postcard::to_stdvec(&array).unwrap();
    let same: RawArray<u8> = postcard::from_bytes(&sent).unwrap();
    assert_eq!(same.to_vec(), [1; 6]);
    // Bytes that don't make whole elements, or more than one value.
    assert!(postcard::from_bytes::<RawArray<u32>>(&sent).is_err());
    assert!(postcard::from_bytes::<RawValue<u16>>(&sent).is_err());
    let halves: RawArray<u16> = postcard::from_bytes(&sent).unwrap();
    assert_eq!(halves.to_vec(), [0x0101; 3]);
}

#[test]
fn a_dead_holder_leaves_the_old_value_and_is_told_of() {
    let _watchdog = watch();
    let value = Value::new(7u64).unwrap();
    let die = |value: Value<u64>| -> () {
        let mut guard = value.acquire().unwrap();
        *guard = 8;
        std::process::abort();
    };
    let child = Process::spawn(die, value.clone()).unwrap();
    child.join().unwrap_err();
    match value.acquire() {
        Err(LockError::OwnerDied(guard)) => assert_eq!(*guard, 7),
        other => panic!("{other:?}"),
    }
    assert_eq!(value.get().unwrap(), 7);
}

#[test]
fn elements_are_where_they_were_put() {
    let _watchdog = watch();
    let array = RawArray::<Triple>::new(3).unwrap();
    array.set(1, triple(5));
    let expected = [Triple::zeroed(), triple(5), Triple::zeroed()];
    assert_eq!(array.to_vec(), expected);
    assert_eq!(array.get(3), None);
    assert_eq!(array.get(usize::MAX), None);
    let numbers = RawArray::<u16>::from_slice(&[1, 2, 3]).unwrap();
    numbers.atomic(2).unwrap().fetch_add(4, SeqCst);
    assert!(numbers.atomic(3).is_none());
    let mut two = [0; 2];
    numbers.read(1, &mut two);
    assert_eq!(two, [2, 7]);
    let outside = std::panic::catch_unwind(|| numbers.write(2, &[0, 0]));
    assert!(outside.is_err());
    assert!(RawArray::<u8>::new(0).unwrap().is_empty());
}

#[test]
fn a_named_block_is_found_by_a_process_that_is_told_its_name() {
    let _watchdog = watch();
    let block = SharedMemory::create(64).unwrap();
    let answer = |name: String| {
        let block = SharedMemory::open(&name).unwrap();
        block.atomic::<u32>(8).unwrap().store(42, SeqCst);
    };
    let child = Process::spawn(answer, block.name().to_owned()).unwrap();
    child.join().unwrap();
    assert_eq!(block.atomic::<u32>(8).unwrap().load(SeqCst), 42);
    assert!(block.atomic::<u32>(62).is_none());
    let taken = SharedMemory::create_named(block.name(), 8);
    assert!(taken.is_err());
    block.unlink().unwrap();
    assert!(SharedMemory::open(block.name()).is_err());
}
