//! Merges neighbouring files into one, for compaction and for whole databases.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use sqlite_format::Salts;

use crate::{Decoder, Encoder, Header, LtxError, Misuse, Summary};

/// Fields of the merged file that the inputs do not determine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeOptions {
    /// ID of the writer.
    pub node_id: u64,
}

/// A merged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Header of the file.
    pub header: Header,
    /// Length and checksum of the file.
    pub summary: Summary,
}

/// Writes one file with the same effect as all inputs in order.
///
/// Each input must contain every page by which the database grew, as captures do. Otherwise a page
/// that was truncated, came back, and is in no later input would keep its old content.
///
/// For each page the newest input, which is the last one, wins. Pages past the last input's commit
/// size are dropped. The result begins at the first input's TXID and takes all other fields from
/// the last input; it has no WAL range. All inputs are read to their end and proven. Memory is a
/// few pages for each input, and three bytes for each page of the output.
///
/// # Errors
///
/// Kind `Misuse`, with nothing written, when there are no inputs, or they are not in order, leave a
/// gap, or differ in page size. [`LtxError::Input`] for a bad input. [`LtxError::Pages`] when the
/// result is a snapshot and the inputs together lack one of its pages. Kind `Io`. After an error
/// the output is not an LTX file.
pub fn merge<R: Read, W: Write>(
    inputs: Vec<Decoder<R>>,
    options: MergeOptions,
    out: W,
) -> Result<(W, Merged), LtxError> {
    let header = merged_header(&inputs, options)?;
    let mut encoder = Encoder::new(out, header)?;
    let mut inputs = Inputs::open(inputs)?;
    while let Some((pgno, newest)) = inputs.lowest() {
        if pgno <= header.commit {
            let source = &inputs.sources[newest];
            let written = match source.decoder.last_block() {
                Some(block) => encoder.encode_block(pgno, &source.page, block),
                None => encoder.encode_page(pgno, &source.page),
            };
            written.map_err(as_hole)?;
        }
        inputs.advance(pgno)?;
    }
    inputs.finish()?;
    let (out, summary) = encoder.finish().map_err(as_hole)?;
    Ok((out, Merged { header, summary }))
}

/// Returns the header of the file that [`merge`] makes of these inputs.
///
/// # Errors
///
/// Kind `Misuse`, as for [`merge`].
pub fn merged_header<R: Read>(
    inputs: &[Decoder<R>],
    options: MergeOptions,
) -> Result<Header, LtxError> {
    let mut headers = inputs.iter().map(Decoder::header);
    let Some(first) = headers.next() else {
        return Err(LtxError::Misuse(Misuse::NoInputs));
    };
    let mut last = first;
    for header in headers {
        if !last.file_name().is_continued_by(&header.file_name()) {
            let (min, max) = (header.min_txid, header.max_txid);
            return Err(LtxError::Misuse(Misuse::Gap {
                after: last.max_txid,
                min,
                max,
            }));
        }
        if header.page_size != first.page_size {
            let (expected, found) = (first.page_size, header.page_size);
            return Err(LtxError::Misuse(Misuse::PageSizes { expected, found }));
        }
        last = header;
    }
    Ok(Header {
        flags: Header::NO_CHECKSUM,
        min_txid: first.min_txid,
        pre_apply: 0,
        wal_offset: 0,
        wal_size: 0,
        wal_salts: Salts::default(),
        node_id: options.node_id,
        reserved: [0; 20],
        ..*last
    })
}

/// An input, positioned at a page.
struct Source<R> {
    decoder: Decoder<R>,
    page: Vec<u8>,
}

/// All inputs, ordered by their current page.
struct Inputs<R> {
    sources: Vec<Source<R>>,
    /// Lowest page first; for equal pages, the newest input first.
    heap: BinaryHeap<(Reverse<u32>, usize)>,
}

impl<R: Read> Inputs<R> {
    /// Reads the first page of every input.
    fn open(decoders: Vec<Decoder<R>>) -> Result<Inputs<R>, LtxError> {
        let heap = BinaryHeap::with_capacity(decoders.len());
        let open = |decoder| Source {
            decoder,
            page: Vec::new(),
        };
        let mut inputs = Inputs {
            sources: decoders.into_iter().map(open).collect(),
            heap,
        };
        for input in 0..inputs.sources.len() {
            inputs.read(input)?;
        }
        Ok(inputs)
    }

    /// Returns the lowest current page of all inputs, and the newest input that has it.
    fn lowest(&self) -> Option<(u32, usize)> {
        self.heap
            .peek()
            .map(|(Reverse(pgno), input)| (*pgno, *input))
    }

    /// Advances every input whose current page is `pgno`.
    fn advance(&mut self, pgno: u32) -> Result<(), LtxError> {
        while let Some((lowest, input)) = self.lowest()
            && lowest == pgno
        {
            self.heap.pop();
            self.read(input)?;
        }
        Ok(())
    }

    fn read(&mut self, input: usize) -> Result<(), LtxError> {
        let Source { decoder, page } = &mut self.sources[input];
        if let Some(pgno) = decoder
            .next_page(page)
            .map_err(|error| in_input(input, error))?
        {
            self.heap.push((Reverse(pgno), input));
        }
        Ok(())
    }

    fn finish(self) -> Result<(), LtxError> {
        for (input, source) in self.sources.into_iter().enumerate() {
            source
                .decoder
                .finish()
                .map_err(|error| in_input(input, error))?;
        }
        Ok(())
    }
}

fn in_input(input: usize, source: LtxError) -> LtxError {
    LtxError::Input {
        input,
        source: Box::new(source),
    }
}

/// Reports a wrong page as a fault of the inputs, because the pages come from them and not from the
/// caller.
fn as_hole(error: LtxError) -> LtxError {
    match error {
        LtxError::Misuse(Misuse::Pages(error)) => LtxError::Pages(error),
        error => error,
    }
}
