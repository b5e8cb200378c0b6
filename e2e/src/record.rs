//! Record of a cluster. It permits the removal after the program that started the cluster has
//! ended.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

const FILE: &str = "cluster.json";

/// Process 1 of a cluster, and the number of its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) pid: i32,
    /// Start time of that process, in the kernel's clock ticks. It distinguishes the process from a
    /// later one with the same process ID.
    start_ticks: u64,
    pub(crate) network: u8,
}

impl Record {
    /// Creates the record of a running cluster.
    pub(crate) fn of(pid: i32, network: u8) -> Result<Record> {
        let start_ticks = start_ticks(pid)?.context("the cluster's init has ended")?;
        Ok(Record {
            pid,
            start_ticks,
            network,
        })
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let value =
            json!({"pid": self.pid, "start_ticks": self.start_ticks, "network": self.network});
        let path = folder.join(FILE);
        let partial = folder.join("cluster.json.partial");
        fs::write(&partial, value.to_string())
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Reads the record in a cluster's folder, if it exists.
    pub(crate) fn read(folder: &Path) -> Result<Option<Record>> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => bail!("read {}: {error}", path.display()),
        };
        let value: Value = serde_json::from_str(&text).context("parse a cluster's record")?;
        let number = |key: &str| value[key].as_u64().with_context(|| format!("no {key}"));
        Ok(Some(Record {
            pid: number("pid")?.try_into()?,
            start_ticks: number("start_ticks")?,
            network: number("network")?.try_into()?,
        }))
    }

    /// Whether the cluster's process 1 still runs.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(start_ticks(self.pid), Ok(Some(ticks)) if ticks == self.start_ticks)
    }

    /// Returns the control group of the cluster's containers. Live clusters never share one.
    pub(crate) fn cgroup(&self) -> String {
        format!("/sqlite-backup-e2e-{}", self.pid)
    }
}

/// Returns the start time of a process; `None` if it does not exist or is a zombie.
fn start_ticks(pid: i32) -> Result<Option<u64>> {
    let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => bail!("read the state of process {pid}: {error}"),
    };
    // The name, in parentheses, may contain spaces and parentheses. After it come the state and
    // then numbers; the start time is the 20th word.
    let (_, words) = text
        .rsplit_once(") ")
        .context("a process state without a name")?;
    let mut words = words.split(' ');
    if words.next() == Some("Z") {
        return Ok(None);
    }
    let start = words.nth(18).context("a process state without a start")?;
    Ok(Some(start.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ourselves() -> Record {
        Record::of(std::process::id().try_into().unwrap(), 3).unwrap()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), None);
        ourselves().write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), Some(ourselves()));
    }

    #[test]
    fn another_process_with_the_same_number_is_not_ours() {
        assert!(ourselves().is_alive());
        let other = Record {
            start_ticks: ourselves().start_ticks - 1,
            ..ourselves()
        };
        assert!(!other.is_alive());
    }
}
