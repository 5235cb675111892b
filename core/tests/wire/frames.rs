//! The decoder against what is drawn: however the bytes come, the same frames; and no memory for bytes that don't come.

use crate::counting::peak_of;
use crate::exercise::{Seen, expected, filled, pulled, pushed};
use crate::random::Random;
use procession_core::wire::frame::AHEAD_MAX;
use procession_core::wire::{Decoder, FrameError, Header};

const NO_LIMIT: u64 = u64::MAX;

/// What all ways to read a stream make of it.
fn seen(stream: &[u8], limit: u64) -> Vec<Seen> {
    let expected = expected(stream, limit);
    for mut piece in [|| 1, || 2, || 7, || usize::MAX] {
        assert_eq!(pushed(stream, limit, &mut piece), expected);
        assert_eq!(pulled(stream, limit, &mut piece), expected);
        assert_eq!(filled(stream, limit, &mut piece), expected);
    }
    expected
}

fn frame(bytes: &[u8]) -> Seen {
    Seen::Frame(bytes.into())
}

#[test]
fn lengths_have_the_header_that_cpython_sends() {
    for (length, header) in [
        (0, &[0, 0, 0, 0][..]),
        (1, &[0, 0, 0, 1]),
        (16384, &[0, 0, 0x40, 0]),
        (0x7fff_ffff, &[0x7f, 0xff, 0xff, 0xff]),
        (
            0x8000_0000,
            &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0],
        ),
        (u64::MAX, &[0xff; 12]),
    ] {
        assert_eq!(Header::of(length).bytes(), header);
    }
}

#[test]
fn frames_come_one_after_the_other() {
    let end = Seen::End(Ok(()));
    assert_eq!(seen(b"", 256), std::slice::from_ref(&end));
    let two = b"\0\0\0\x03abc\0\0\0\0\0\0\0\x01d";
    assert_eq!(
        seen(two, 256),
        [frame(b"abc"), frame(b""), frame(b"d"), end.clone()]
    );
    // Needlessly long, but nothing is wrong with it.
    let long = b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x03abc";
    assert_eq!(seen(long, 256), [frame(b"abc"), end.clone()]);
    let empty = b"\xff\xff\xff\xff\0\0\0\0\0\0\0\0";
    assert_eq!(seen(empty, 0), [frame(b""), end]);
}

#[test]
fn the_end_is_clean_between_frames_only() {
    let header = |arrived| Seen::End(Err(FrameError::NoHeader { arrived }));
    for arrived in 1..4 {
        assert_eq!(seen(&[0; 4][..arrived], 9), [header(arrived)]);
    }
    for arrived in 4..12 {
        assert_eq!(seen(&[0xff; 12][..arrived], 9), [header(arrived)]);
    }
    for (stream, arrived, length) in [
        (&b"\0\0\0\x05"[..], 0, 5),
        (b"\0\0\0\x05abcd", 4, 5),
        (b"\x7f\xff\xff\xff", 0, 0x7fff_ffff),
        (b"\xff\xff\xff\xff\x7f\0\0\0\0\0\0\0ab", 2, 0x7f << 56),
    ] {
        let body = Seen::End(Err(FrameError::NoBody { arrived, length }));
        assert_eq!(seen(stream, NO_LIMIT), [body]);
    }
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    for length in [-2, -3, -256, i32::MIN] {
        let error = FrameError::Negative { length, limit: 256 };
        let stream = [&length.to_be_bytes()[..], b"body"].concat();
        assert_eq!(seen(&stream, 256), [Seen::Refused(error)]);
        assert!(
            error
                .to_string()
                .contains(&format!("{length}, where 0 to 256"))
        );
    }
    for (length, limit) in [
        (257, 256),
        (1, 0),
        (0x7fff_ffff, 256),
        (1 << 40, 1 << 30),
        (u64::MAX, u64::MAX - 1),
    ] {
        let error = FrameError::TooLong { length, limit };
        let stream = [Header::of(length).bytes(), b"body"].concat();
        assert_eq!(seen(&stream, limit), [Seen::Refused(error)]);
        let text = format!("bad message length: {length} bytes exceed the limit of {limit}");
        assert_eq!(error.to_string(), text);
        // The frame before it is good.
        let behind = [b"\0\0\0\0", &*stream].concat();
        assert_eq!(seen(&behind, limit), [frame(b""), Seen::Refused(error)]);
    }
}

#[test]
fn the_limit_counts_when_the_header_is_there() {
    let mut decoder = Decoder::new(256);
    assert_eq!(decoder.push(b"\0\0\x01"), Ok(3));
    decoder.set_limit(1 << 20);
    assert_eq!(decoder.push(b"\x01a"), Ok(2));
    assert_eq!(decoder.length(), Some(257));
    // Somebody else reads on, and wants no more than this.
    decoder.set_limit(200);
    let (length, limit) = (257, 200);
    assert_eq!(
        decoder.push(b"a"),
        Err(FrameError::TooLong { length, limit })
    );
    assert_eq!(decoder.length(), None);
    assert!(decoder.fill(&mut [0; 300]).is_none());
}

#[test]
fn memory_is_for_what_arrived() {
    for length in [i32::MAX as u64, 1 << 40, u64::MAX >> 1, u64::MAX] {
        let (end, peak) = peak_of(|| {
            let mut decoder = Decoder::new(NO_LIMIT);
            decoder.push(Header::of(length).bytes()).unwrap();
            decoder.push(&[0; 1000]).unwrap();
            decoder.end()
        });
        assert_eq!(
            end,
            Err(FrameError::NoBody {
                arrived: 1000,
                length
            })
        );
        assert!(peak <= AHEAD_MAX + 1100, "{peak}");
    }
    // As it grows, too; a buffer that moves is there twice for a moment.
    let (_, peak) = peak_of(|| {
        let mut decoder = Decoder::new(NO_LIMIT);
        decoder.push(Header::of(1 << 33).bytes()).unwrap();
        for _ in 0..40 {
            decoder.push(&[0; AHEAD_MAX / 4]).unwrap();
        }
    });
    assert!(peak <= 11 * AHEAD_MAX + 100, "{peak}");
}

#[test]
fn a_usual_message_has_one_buffer_of_its_length() {
    for length in [1, 1000, AHEAD_MAX] {
        let mut decoder = Decoder::new(NO_LIMIT);
        decoder.push(Header::of(length as u64).bytes()).unwrap();
        let wanted = decoder.wanted().unwrap().unwrap();
        assert_eq!(wanted.most, length);
        let at = wanted.into.as_ptr();
        let bytes = vec![3; length];
        assert_eq!(decoder.push(&bytes), Ok(length));
        let frame = decoder.frame().unwrap();
        assert_eq!((frame.as_ptr(), frame), (at, bytes));
    }
}

#[test]
fn an_interrupted_fill_loses_nothing() {
    let mut decoder = Decoder::new(NO_LIMIT);
    decoder.push(b"\0\0\0\x06ab").unwrap();
    let mut buffer = [0; 8];
    let mut filling = decoder.fill(&mut buffer).unwrap();
    assert_eq!(filling.room().len(), 4);
    filling.room()[..2].copy_from_slice(b"cd");
    filling.filled(2);
    assert_eq!(filling.whole(), None);
    drop(filling);
    // Too short a buffer: the message isn't touched.
    assert!(decoder.fill(&mut [0; 5]).is_none());
    decoder.push(b"ef\0\0\0\x01").unwrap();
    assert_eq!(decoder.frame().unwrap(), b"abcdef");
}

#[test]
fn any_split_is_the_same() {
    for case in 0..3_000 {
        let mut random = Random::of_case(3, case);
        let mut stream = Vec::new();
        for _ in 0..random.below(5) {
            let length = random.pick(&[0_u64, 1, 3, 40, 64, 300]);
            let body: Vec<u8> = (0..length).map(|_| random.byte()).collect();
            let header = Header::of(length);
            let long = [&[0xff; 4][..], &length.to_be_bytes()].concat();
            stream.extend_from_slice(if random.below(4) == 0 {
                &long
            } else {
                header.bytes()
            });
            stream.extend(body);
        }
        stream.truncate(stream.len() - random.below(3).min(stream.len()));
        let expected = expected(&stream, 256);
        let widest = random.pick(&[2, 9, 400]);
        let mut piece = || random.below(widest);
        assert_eq!(pushed(&stream, 256, &mut piece), expected, "{case}");
        assert_eq!(pulled(&stream, 256, &mut piece), expected, "{case}");
        assert_eq!(filled(&stream, 256, &mut piece), expected, "{case}");
    }
}
