//! `cargo xtask tools`

use anyhow::Result;
use xtask::tools::{LITESTREAM_VERSIONS, Tools};

/// Installs every tool and prints its path.
pub(crate) fn run() -> Result<()> {
    let tools = Tools::new();
    tools.ensure()?;
    println!("weed        {}", tools.weed()?.display());
    for version in LITESTREAM_VERSIONS {
        println!("litestream  {}", tools.litestream(version)?.display());
    }
    println!("cluster     {}", tools.cluster()?.display());
    println!("cni         {}", tools.cni_plugins()?.display());
    Ok(())
}
