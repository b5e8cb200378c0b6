//! Reads keys from a directory such as a mounted Secret.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Keys;

/// Limit on reads of a directory whose content the kubelet swaps meanwhile.
const MAX_READS: u32 = 3;
/// Limit on the length of a credential, in bytes; a session token has about 1,000.
const MAX_VALUE_BYTES: u64 = 64 * 1024;

/// The file name of each key, in both forms.
const ACCESS_KEY_ID: [&str; 2] = ["AWS_ACCESS_KEY_ID", "access-key-id"];
const SECRET_ACCESS_KEY: [&str; 2] = ["AWS_SECRET_ACCESS_KEY", "secret-access-key"];
const SESSION_TOKEN: [&str; 2] = ["AWS_SESSION_TOKEN", "session-token"];

/// Why a directory contains no keys.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Missing {
    /// The missing file, with its path.
    pub(crate) what: String,
    /// The underlying error.
    pub(crate) source: Option<io::Error>,
}

/// Returns the keys in a directory.
///
/// The kubelet swaps the symlink `..data` to replace all files at once. So the files are read
/// through its target, and read again when it points elsewhere afterwards: old and new keys never
/// mix.
pub(crate) fn read(directory: &Path) -> Result<Keys, Missing> {
    let mut reads = 1;
    loop {
        let before = projection(directory);
        let keys = read_files(before.as_deref().unwrap_or(directory));
        if reads == MAX_READS || projection(directory) == before {
            return keys;
        }
        reads += 1;
    }
}

/// Returns the target directory of `..data`, if the link exists.
fn projection(directory: &Path) -> Option<PathBuf> {
    Some(directory.join(fs::read_link(directory.join("..data")).ok()?))
}

fn read_files(directory: &Path) -> Result<Keys, Missing> {
    Ok(Keys {
        access_key_id: required(directory, ACCESS_KEY_ID)?,
        secret_access_key: required(directory, SECRET_ACCESS_KEY)?,
        session_token: optional(directory, SESSION_TOKEN)?,
    })
}

fn required(directory: &Path, names: [&str; 2]) -> Result<String, Missing> {
    optional(directory, names)?.ok_or_else(|| Missing {
        what: format!(
            "no file {} or {} in {}",
            names[0],
            names[1],
            directory.display()
        ),
        source: None,
    })
}

/// Returns the content of the first name that holds more than white space.
fn optional(directory: &Path, names: [&str; 2]) -> Result<Option<String>, Missing> {
    for name in names {
        let path = directory.join(name);
        match read_value(&path) {
            Ok(value) if value.is_empty() => {}
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("cannot read {}", path.display());
                return Err(Missing {
                    what,
                    source: Some(error),
                });
            }
        }
    }
    Ok(None)
}

/// Editors end files with a line feed; no key ends with one.
fn read_value(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_VALUE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn both_ways_to_name_the_files_are_read_and_line_feeds_dropped() {
        for names in [0, 1] {
            let directory = tempfile::tempdir().unwrap();
            let write = |name: &str, value: &str| fs::write(directory.path().join(name), value);
            write(ACCESS_KEY_ID[names], "id\n").unwrap();
            write(SECRET_ACCESS_KEY[names], "secret").unwrap();
            let keys = read(directory.path()).unwrap();
            assert_eq!(
                (keys.access_key_id.as_str(), keys.session_token),
                ("id", None)
            );
            write(SESSION_TOKEN[names], "token\n").unwrap();
            assert_eq!(
                read(directory.path()).unwrap().session_token.as_deref(),
                Some("token")
            );
        }
    }

    #[test]
    fn a_missing_directory_or_file_says_what_was_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let missing = read(&directory.path().join("nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("AWS_ACCESS_KEY_ID") && missing.contains("nowhere"),
            "{missing}"
        );
        fs::write(directory.path().join("access-key-id"), "id").unwrap();
        fs::write(directory.path().join("secret-access-key"), " \n").unwrap();
        let missing = read(directory.path()).unwrap_err().to_string();
        assert!(missing.contains("AWS_SECRET_ACCESS_KEY"), "{missing}");
    }

    #[test]
    fn files_are_read_through_the_projection_of_the_kubelet() {
        let directory = tempfile::tempdir().unwrap();
        let version = directory.path().join("..2026_1");
        fs::create_dir(&version).unwrap();
        fs::write(version.join("AWS_ACCESS_KEY_ID"), "new").unwrap();
        fs::write(version.join("AWS_SECRET_ACCESS_KEY"), "secret").unwrap();
        symlink("..2026_1", directory.path().join("..data")).unwrap();
        // A swap that is only half visible leaves this at the top.
        fs::write(directory.path().join("AWS_ACCESS_KEY_ID"), "old").unwrap();
        assert_eq!(read(directory.path()).unwrap().access_key_id, "new");
    }
}
