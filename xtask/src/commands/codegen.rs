//! `cargo xtask codegen`

use anyhow::Result;
use xtask::process::{cargo, run};

/// Writes crds/ from the types, and the chart's copies from crds/. Without the variable, the same
/// tests compare them.
pub(crate) fn write() -> Result<()> {
    for (package, test, name) in [
        ("api", "crds", "crds"),
        (
            "operator",
            "chart",
            "the_charts_definitions_are_the_generated_ones",
        ),
    ] {
        run(cargo()
            .args([
                "test",
                "--quiet",
                "--locked",
                "--package",
                package,
                "--test",
                test,
                name,
            ])
            .env("UPDATE_CRDS", "1"))?;
    }
    Ok(())
}
