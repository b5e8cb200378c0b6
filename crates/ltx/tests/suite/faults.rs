//! Readers and writers that fail, or transfer little at a time.

use std::io::{self, Read, Write};

use ltx::{Decoder, Encoder, ErrorKind, LtxError, MergeOptions, merge};

use crate::common::{Pages, encode, header, page};

/// Transfers one byte at a time, is interrupted in between, and fails after `budget` calls.
struct Faulty<T> {
    inner: T,
    budget: usize,
    interrupt: bool,
}

impl<T> Faulty<T> {
    fn new(inner: T, budget: usize) -> Faulty<T> {
        Faulty {
            inner,
            budget,
            interrupt: false,
        }
    }

    fn step(&mut self) -> io::Result<()> {
        self.budget = self
            .budget
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("out of luck"))?;
        self.interrupt = !self.interrupt;
        if self.interrupt {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }
}

impl<R: Read> Read for Faulty<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.step()?;
        let length = buffer.len().min(1);
        self.inner.read(&mut buffer[..length])
    }
}

impl<W: Write> Write for Faulty<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.step()?;
        self.inner.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Runs `attempt` with a budget of 0 calls, then 1, until it succeeds. Every failure must be an I/O
/// error.
fn until_untouched(mut attempt: impl FnMut(usize) -> Result<(), LtxError>) -> usize {
    let failed = (0..10_000).take_while(|budget| match attempt(*budget) {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Io, "budget {budget}: {error}");
            true
        }
    });
    failed.count()
}

fn pages() -> Pages {
    (1..=2).map(|pgno| (pgno, page(512, pgno))).collect()
}

fn read(reader: impl Read) -> Result<(), LtxError> {
    let mut decoder = Decoder::new(reader)?;
    let mut page = Vec::new();
    while decoder.next_page(&mut page)?.is_some() {}
    decoder.finish().map(|_| ())
}

#[test]
fn a_writer_that_fails_at_any_call_is_reported_and_else_the_file_is_whole() {
    let header = header(512, 2, 1, 1);
    let expected = encode(header, &pages()).unwrap();
    let failed = until_untouched(|budget| {
        let mut encoder = Encoder::new(Faulty::new(Vec::new(), budget), header)?;
        for (pgno, page) in pages() {
            encoder.encode_page(pgno, &page)?;
        }
        let (writer, _) = encoder.finish()?;
        assert_eq!(writer.inner, expected);
        Ok(())
    });
    assert_eq!(failed, 2 * expected.len());
}

#[test]
fn a_reader_that_fails_at_any_call_is_reported_and_not_taken_for_a_short_file() {
    let file = encode(header(512, 2, 1, 1), &pages()).unwrap();
    let failed = until_untouched(|budget| read(Faulty::new(&file[..], budget)));
    assert_eq!(failed, 2 * file.len() + 2);
}

#[test]
fn a_merge_reports_failures_of_its_inputs_and_its_output() {
    let file = encode(header(512, 2, 1, 1), &pages()).unwrap();
    let failed = until_untouched(|budget| {
        let input = Decoder::new(Faulty::new(&file[..], budget))?;
        merge(vec![input], MergeOptions::default(), Vec::new()).map(|_| ())
    });
    assert_eq!(failed, 2 * file.len() + 2);
    let failed = until_untouched(|budget| {
        let input = Decoder::new(&file[..])?;
        let out = Faulty::new(Vec::new(), budget);
        merge(vec![input], MergeOptions::default(), out).map(|_| ())
    });
    assert_eq!(failed, 2 * file.len());
}
