//! The addresses of a cluster, and the cable between it and the machine.

use anyhow::{Result, bail};

use crate::machine::ip;

/// The network of the cluster with one number. Clusters of different numbers don't meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    number: u8,
}

impl Network {
    pub(crate) fn numbered(number: u8) -> Network {
        Network { number }
    }

    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// The machine's address, for servers outside that Pods shall reach.
    pub(crate) fn machine(&self) -> String {
        format!("10.231.{}.1", self.number)
    }

    /// The node's address: what listens in there is reached by it from Pods and machine alike.
    pub(crate) fn node(&self) -> String {
        format!("10.231.{}.2", self.number)
    }

    /// Where Pods get their addresses from.
    pub(crate) fn pods(&self) -> String {
        format!("10.232.{}.0/24", self.number)
    }

    /// Where Services get their addresses from.
    pub(crate) fn services(&self) -> String {
        format!("10.233.{}.0/24", self.number)
    }

    /// Lays a cable from the machine to the network namespace of process `pid`, with routes to
    /// Pods and Services. It vanishes with that namespace.
    ///
    /// Returns whether the number was free on this machine.
    pub(crate) fn connect(&self, pid: i32) -> Result<bool> {
        let device = self.device();
        let add = format!("link add {device} type veth peer name eth0 netns {pid}");
        if let Err(error) = ip(&add) {
            if error.to_string().contains("File exists") {
                return Ok(false);
            }
            return Err(error);
        }
        let (machine, node) = (self.machine(), self.node());
        ip(&format!("address add {machine}/30 dev {device}"))?;
        ip(&format!("link set {device} up"))?;
        inside(pid, &format!("address add {node}/30 dev eth0"))?;
        inside(pid, "link set lo up")?;
        inside(pid, "link set eth0 up")?;
        inside(pid, &format!("route add default via {machine}"))?;
        for subnet in [self.pods(), self.services()] {
            ip(&format!("route add {subnet} via {node}"))?;
        }
        Ok(true)
    }

    /// Whether no cluster has this number now.
    pub(crate) fn is_gone(&self) -> Result<Option<()>> {
        let links = ip("-oneline link show type veth")?;
        let name = format!(" {}@", self.device());
        Ok((!links.contains(&name)).then_some(()))
    }

    fn device(&self) -> String {
        format!("sqb{}", self.number)
    }
}

/// Runs `ip` in the network namespace of a process.
fn inside(pid: i32, words: &str) -> Result<()> {
    let mut command = std::process::Command::new("nsenter");
    command
        .arg(format!("--target={pid}"))
        .args(["--net", "--", "ip"]);
    match xtask::process::output(command.args(words.split_whitespace())) {
        Ok(_) => Ok(()),
        Err(error) => bail!("in the cluster's network: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_different_numbers_share_no_address() {
        let (first, second) = (Network::numbered(0), Network::numbered(1));
        assert_eq!(first.node(), "10.231.0.2");
        for (a, b) in [
            (first.pods(), second.pods()),
            (first.services(), second.services()),
        ] {
            assert_ne!(a, b);
        }
    }
}
