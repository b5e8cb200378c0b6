//! Buckets of a real S3 server.

use std::process::Command;
use std::sync::Arc;

use store::testing::Weed;

use super::process::program;

/// A bucket for one test alone.
pub struct Bucket {
    /// The server, to manage identities.
    pub weed: Arc<Weed>,
    name: &'static str,
}

impl Bucket {
    /// Creates a bucket; the name must be unique among the tests.
    pub fn create(name: &'static str) -> Bucket {
        let weed = Weed::shared();
        block_on(weed.create_bucket(name));
        Bucket { weed, name }
    }

    /// Returns the URL of a prefix in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        url(&self.weed, self.name, prefix)
    }

    /// Gives a command the keys of the administrator.
    pub fn sign(&self, command: &mut Command) {
        let keys = self.weed.admin();
        command
            .env("AWS_ACCESS_KEY_ID", keys.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", keys.secret_access_key);
    }

    /// Returns the program with the keys of the administrator.
    pub fn program(&self) -> Command {
        let mut command = program();
        self.sign(&mut command);
        command
    }
}

/// Returns the URL of a prefix in a bucket, which may not exist.
pub fn url(weed: &Weed, bucket: &str, prefix: &str) -> String {
    let endpoint = weed.endpoint();
    format!("s3://{bucket}/{prefix}?endpoint={endpoint}&region=us-east-1")
}

/// Runs a future, as the server's interface is async.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("make a runtime")
        .block_on(future)
}
