//! The order and completeness of the pages of a file.

use crate::{Header, PagesError};

/// Checks page numbers one by one, for the encoder and the decoder.
#[derive(Debug, Clone)]
pub(crate) struct PageOrder {
    commit: u32,
    lock_pgno: u32,
    snapshot: bool,
    last: u32,
}

impl PageOrder {
    pub(crate) fn new(header: &Header) -> PageOrder {
        PageOrder {
            commit: header.commit,
            lock_pgno: header.page_size.lock_pgno(),
            snapshot: header.is_snapshot(),
            last: 0,
        }
    }

    /// Accepts the next page. After an error the state is unchanged.
    pub(crate) fn accept(&mut self, pgno: u32) -> Result<(), PagesError> {
        if pgno == 0 {
            return Err(PagesError::Page0);
        }
        if pgno > self.commit {
            return Err(PagesError::PastCommit {
                pgno,
                commit: self.commit,
            });
        }
        if pgno == self.lock_pgno {
            return Err(PagesError::LockPage { pgno });
        }
        if pgno <= self.last {
            return Err(PagesError::Order {
                pgno,
                after: self.last,
            });
        }
        match self.due() {
            Some(expected) if expected != pgno => Err(PagesError::Missing { expected }),
            _ => {
                self.last = pgno;
                Ok(())
            }
        }
    }

    /// Accepts the end of the pages. The error names the first missing page.
    pub(crate) fn finish(&self) -> Result<(), PagesError> {
        match self.due() {
            Some(expected) => Err(PagesError::Missing { expected }),
            None => Ok(()),
        }
    }

    /// Returns the page that a snapshot must hold next.
    fn due(&self) -> Option<u32> {
        let after = self.last.checked_add(1)?;
        let next = if after == self.lock_pgno {
            after + 1
        } else {
            after
        };
        (self.snapshot && next <= self.commit).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use sqlite_format::PageSize;

    use super::*;
    use crate::Txid;

    fn order(min_txid: u64, commit: u32) -> PageOrder {
        let (min, max) = (Txid::new(min_txid), Txid::new(9));
        PageOrder::new(&Header::new(PageSize::MAX, commit, min, max))
    }

    #[test]
    fn a_delta_ascends_and_stays_inside_the_database() {
        let mut order = order(2, 20_000);
        assert_eq!(order.accept(0), Err(PagesError::Page0));
        assert_eq!(order.accept(3), Ok(()));
        assert_eq!(
            order.accept(3),
            Err(PagesError::Order { pgno: 3, after: 3 })
        );
        assert_eq!(
            order.accept(16_385),
            Err(PagesError::LockPage { pgno: 16_385 })
        );
        assert_eq!(order.accept(20_000), Ok(()));
        let past = PagesError::PastCommit {
            pgno: 20_001,
            commit: 20_000,
        };
        assert_eq!(order.accept(20_001), Err(past));
        assert_eq!(order.finish(), Ok(()));
    }

    #[test]
    fn a_snapshot_holds_every_page_but_the_lock_page() {
        let mut order = order(1, 16_386);
        for pgno in 1..=16_384 {
            assert_eq!(order.accept(pgno), Ok(()));
        }
        assert_eq!(
            order.finish(),
            Err(PagesError::Missing { expected: 16_386 })
        );
        assert_eq!(order.accept(16_386), Ok(()));
        assert_eq!(order.finish(), Ok(()));
    }

    #[test]
    fn a_snapshot_that_ends_at_the_lock_page_is_complete_without_it() {
        let mut order = order(1, 16_385);
        assert_eq!(order.accept(2), Err(PagesError::Missing { expected: 1 }));
        for pgno in 1..=16_384 {
            assert_eq!(order.accept(pgno), Ok(()));
        }
        assert_eq!(order.finish(), Ok(()));
    }

    #[test]
    fn the_largest_page_number_does_not_overflow() {
        let mut order = order(2, u32::MAX);
        assert_eq!(order.accept(u32::MAX), Ok(()));
        assert_eq!(order.finish(), Ok(()));
    }
}
