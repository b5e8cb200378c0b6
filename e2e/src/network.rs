//! The addresses of a cluster, and the virtual cable between it and the machine.

use anyhow::{Result, bail};

use crate::machine::ip;

/// The network of the cluster with one number. Clusters with different numbers cannot reach each
/// other.
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

    /// Returns the machine's address, for servers outside that Pods must reach.
    pub(crate) fn machine(&self) -> String {
        format!("10.231.{}.1", self.number)
    }

    /// Returns the node's address. Pods and the machine use it to reach servers inside.
    pub(crate) fn node(&self) -> String {
        format!("10.231.{}.2", self.number)
    }

    /// Returns the address range of Pods.
    pub(crate) fn pods(&self) -> String {
        format!("10.232.{}.0/24", self.number)
    }

    /// Returns the address range of Services.
    pub(crate) fn services(&self) -> String {
        format!("10.233.{}.0/24", self.number)
    }

    /// Connects the machine to the network namespace of process `pid` by a virtual cable, with
    /// routes to Pods and Services. The cable is removed with that namespace.
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

    /// Returns `Some` when no cluster uses this number.
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
