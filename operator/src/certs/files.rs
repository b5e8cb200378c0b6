//! Certificates from files that another program renews, such as a mounted cert-manager Secret.
//!
//! The files are read every [`POLL`]. An inconsistent set, such as a half-written one or a key of
//! another certificate, is logged, and the previous set stays in use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use logging::chain;
use tokio::sync::watch;
use tracing::{error, info};

use super::mint::{CertError, Leaf, validity};
use super::{Bundle, Certs, Publisher, Serving};

/// Time between two reads.
pub const POLL: Duration = Duration::from_secs(10);

/// Limit on a file, in bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// Paths of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Certificate chain, the served one first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// CA bundle for the webhook configuration.
    pub ca: PathBuf,
}

impl Paths {
    /// The file names of a mounted cert-manager Secret of type `kubernetes.io/tls`.
    pub fn in_directory(directory: &Path) -> Self {
        Paths {
            cert: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            ca: directory.join("ca.crt"),
        }
    }
}

/// Reason for which the files cannot be used. The next read may succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file is larger than the limit.
    #[error("{path} is larger than {MAX_BYTES} bytes")]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
    },
    /// The content is not a valid certificate or key.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// Reads the files and publishes their certificates.
#[derive(Debug)]
pub struct Files {
    paths: Paths,
    publisher: Publisher,
}

impl Files {
    /// Creates a reader and its channels. Nothing is read before [`Files::run`].
    pub fn new(paths: Paths) -> (Self, Certs) {
        let (publisher, certs) = Publisher::new();
        (Files { paths, publisher }, certs)
    }

    /// Runs until `shutdown` turns true or its sender is gone.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let mut failing = false;
        loop {
            match self.read() {
                Ok(()) => {
                    if failing {
                        info!("certificate files are valid again");
                    }
                    failing = false;
                }
                // Logged once: a set that stays bad would fill the log.
                Err(_) if failing => {}
                Err(error) => {
                    error!(
                        error = %chain(&error),
                        "certificate files invalid; the previous certificate stays in use"
                    );
                    failing = true;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Reads the files once and publishes them.
    ///
    /// # Errors
    /// When the files are inconsistent; nothing is published then.
    pub fn read(&self) -> Result<(), FilesError> {
        let leaf = Leaf::parse(read(&self.paths.cert)?, read(&self.paths.key)?)?;
        let ca_pem = read(&self.paths.ca)?;
        validity(&ca_pem)?;
        let serving = Serving {
            key: leaf.certified_key()?,
            not_after: leaf.validity.not_after,
        };
        self.publisher.publish(Bundle { ca_pem }, serving);
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, FilesError> {
    let failed = |source| FilesError::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(FilesError::TooLarge {
            path: path.to_owned(),
        });
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::mint::Authority;

    fn write(paths: &Paths, authority: &Authority, leaf: &Leaf) {
        std::fs::write(&paths.cert, &leaf.cert_pem).unwrap();
        std::fs::write(&paths.key, &leaf.key_pem.0).unwrap();
        std::fs::write(&paths.ca, &authority.cert_pem).unwrap();
    }

    #[test]
    fn new_files_are_published_and_a_mixed_set_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::in_directory(directory.path());
        let (files, certs) = Files::new(paths.clone());
        assert!(matches!(files.read(), Err(FilesError::Read { .. })));
        assert!(!certs.loaded());

        let now = jiff::Timestamp::UNIX_EPOCH;
        let authority = Authority::mint(now).unwrap();
        let names = ["hook".to_owned()];
        let first = authority.issue(&names, now).unwrap();
        write(&paths, &authority, &first);
        files.read().unwrap();
        let served = certs.serving.borrow().clone().unwrap();
        assert_eq!(served.key.cert, first.certified_key().unwrap().cert);
        assert_eq!(
            certs.bundle.borrow().clone().unwrap().ca_pem,
            authority.cert_pem
        );

        let second = authority.issue(&names, now).unwrap();
        std::fs::write(&paths.cert, &second.cert_pem).unwrap();
        assert!(matches!(files.read(), Err(FilesError::Cert(_))));
        assert_eq!(
            certs.serving.borrow().clone().unwrap().key.cert,
            served.key.cert
        );

        std::fs::write(&paths.key, &second.key_pem.0).unwrap();
        files.read().unwrap();
        assert_ne!(
            certs.serving.borrow().clone().unwrap().key.cert,
            served.key.cert
        );
    }
}
