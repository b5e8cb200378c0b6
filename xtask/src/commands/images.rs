//! `cargo xtask images`

use anyhow::Result;
use xtask::images::{self, Published};
use xtask::tools::Tools;

/// Builds the images and prints name and archive of each.
pub(crate) fn run() -> Result<()> {
    Tools::new().debian()?;
    let built = images::build(&Published::default())?;
    for image in [&built.operator, &built.sidecar, &built.app] {
        let archive = image
            .archive
            .as_deref()
            .map(|path| path.display().to_string());
        println!("{}  {}", image.name, archive.unwrap_or_default());
    }
    Ok(())
}
