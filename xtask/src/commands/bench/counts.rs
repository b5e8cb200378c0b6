//! Requests by kind, and bytes.

use std::fmt;

/// Kind of a request to an S3 server, as on a bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Head,
    Put,
    List,
    Delete,
    Multipart,
    Other,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::Get,
        Kind::Head,
        Kind::Put,
        Kind::List,
        Kind::Delete,
        Kind::Multipart,
        Kind::Other,
    ];

    /// Reads a request line such as `PUT /bucket/key HTTP/1.1`, with the bucket in the path.
    pub(super) fn of(line: &str) -> Kind {
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default();
        let target = words.next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let has = |name: &str| {
            query
                .split('&')
                .any(|pair| pair.split('=').next() == Some(name))
        };
        let of_bucket = !path.trim_matches('/').contains('/');
        match method {
            _ if has("uploads") || has("uploadId") => Kind::Multipart,
            "GET" if of_bucket => Kind::List,
            "GET" => Kind::Get,
            "HEAD" => Kind::Head,
            "PUT" => Kind::Put,
            "DELETE" => Kind::Delete,
            "POST" if has("delete") => Kind::Delete,
            _ => Kind::Other,
        }
    }

    /// Whether the request changes the store.
    pub(super) fn writes(self) -> bool {
        !matches!(self, Kind::Get | Kind::Head | Kind::List)
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Get => "GET",
            Kind::Head => "HEAD",
            Kind::Put => "PUT",
            Kind::List => "LIST",
            Kind::Delete => "DELETE",
            Kind::Multipart => "multipart",
            Kind::Other => "other",
        }
    }
}

/// Counts so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    requests: [u64; Kind::ALL.len()],
    /// Answers with a status of 400 or more.
    pub refused: u64,
    /// Bytes of bodies to the store.
    pub sent_bytes: u64,
    /// Bytes of bodies from the store.
    pub received_bytes: u64,
}

impl Counts {
    pub(super) fn add(&mut self, kind: Kind) {
        self.requests[kind as usize] += 1;
    }

    pub(super) fn of(&self, kind: Kind) -> u64 {
        self.requests[kind as usize]
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.iter().sum()
    }

    /// Returns the difference to earlier counts.
    pub(super) fn since(&self, before: &Counts) -> Counts {
        let mut counts = *self;
        for (now, before) in counts.requests.iter_mut().zip(before.requests) {
            *now -= before;
        }
        counts.refused -= before.refused;
        counts.sent_bytes -= before.sent_bytes;
        counts.received_bytes -= before.received_bytes;
        counts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = Kind::ALL.iter().filter(|kind| self.of(**kind) > 0);
        let words: Vec<String> = kinds
            .map(|kind| format!("{} {}", self.of(*kind), kind.name()))
            .collect();
        if words.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&words.join(", "))?;
        if self.refused > 0 {
            write!(f, " ({} answered with 4xx or 5xx)", self.refused)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_as_the_bill_counts_it() {
        let kinds = [
            ("GET /b/ltx/0/1.ltx HTTP/1.1", Kind::Get),
            ("GET /b?list-type=2&prefix=x%2F HTTP/1.1", Kind::List),
            ("GET /b/?delimiter=/ HTTP/1.1", Kind::List),
            ("HEAD /b/k HTTP/1.1", Kind::Head),
            ("PUT /b/k?x-id=PutObject HTTP/1.1", Kind::Put),
            ("POST /b/k?uploads= HTTP/1.1", Kind::Multipart),
            ("PUT /b/k?partNumber=1&uploadId=a HTTP/1.1", Kind::Multipart),
            ("POST /b?delete= HTTP/1.1", Kind::Delete),
            ("DELETE /b/k HTTP/1.1", Kind::Delete),
            ("OPTIONS /b/k HTTP/1.1", Kind::Other),
        ];
        for (line, kind) in kinds {
            assert_eq!(Kind::of(line), kind, "{line}");
        }
    }

    #[test]
    fn counts_are_told_by_kind() {
        let mut counts = Counts::default();
        assert_eq!(counts.to_string(), "none");
        counts.add(Kind::Put);
        let before = counts;
        counts.add(Kind::Put);
        counts.add(Kind::List);
        assert_eq!(counts.to_string(), "2 PUT, 1 LIST");
        assert_eq!(counts.since(&before).to_string(), "1 PUT, 1 LIST");
        assert_eq!(counts.since(&before).requests(), 2);
    }
}
