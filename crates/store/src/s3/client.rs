//! Creates the S3 client of a target.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Config, IdentityCache, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use futures::FutureExt;
use tokio::sync::{OnceCell, Semaphore};

use super::retry::MayPass;
use super::session::Session;
use crate::StoreError;
use crate::target::S3Target;

/// Limit on concurrent calls to one bucket, from all its stores. Further calls wait and reuse the
/// connections: thousands of databases that start at once do not need one connection each.
const MAX_CALLS: usize = 64;
/// Limit on multipart uploads among them. They take long and hold several parts in memory, and
/// other calls must not wait behind them.
const MAX_LARGE: usize = 4;
/// Time limit of a connection, including name lookup and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of one attempt until its answer begins, without the time for a body.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// The slowest supported link for uploads, in bytes per second.
const SLOWEST_UPLOAD: u64 = 16 * 1024;
/// Number of attempts of one request before the caller gets the error.
const MAX_ATTEMPTS: u32 = 3;
/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Time without a single byte of progress after which an upload counts as stalled.
const STALL_GRACE: Duration = Duration::from_secs(30);
/// The same for a download. It is requested again at once, because a restore waits for it.
const DOWNLOAD_STALL_GRACE: Duration = Duration::from_secs(5);
/// Region for signatures when no other source names one.
const DEFAULT_REGION: &str = "us-east-1";

/// Resources that stores in one bucket share: connections, and credentials that are refreshed once.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(super) client: Client,
    pub(super) session: Arc<Session>,
    pub(super) calls: Arc<Semaphore>,
    pub(super) large: Arc<Semaphore>,
}

/// Creates the client of a target, and the session that keeps its credentials. `system` is the HTTP
/// client for targets that trust the system's certificate authorities.
pub(crate) fn build(target: &S3Target, system: &SharedHttpClient) -> Result<Bucket, StoreError> {
    let what = || format!("open s3://{}", target.bucket);
    let invalid = |error| StoreError::Other {
        what: what(),
        code: "not a valid target".to_owned(),
        source: Some(Box::new(error)),
    };
    target.check().map_err(invalid)?;
    let http = http_client(target, system)?;
    let session = Session::new(&target.credentials);
    let path_style = target.force_path_style.unwrap_or(target.endpoint.is_some());
    let region = region(target);
    let config = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(region.clone())
        .force_path_style(path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(MAX_ATTEMPTS)
                .with_max_backoff(MAX_BACKOFF),
        )
        .retry_classifier(MayPass)
        .timeout_config(timeouts(ATTEMPT_TIMEOUT))
        .stalled_stream_protection(stall_after(STALL_GRACE))
        .http_client(http.clone());
    let config = match &target.endpoint {
        Some(endpoint) => config.endpoint_url(endpoint),
        None => config,
    };
    // Our keys change when a file does, and the next request must be signed with the new ones.
    let config = match session.provider() {
        Some(provider) => config
            .credentials_provider(provider)
            .identity_cache(IdentityCache::no_cache()),
        None => config.credentials_provider(LazyChain {
            http,
            region,
            chain: OnceCell::new(),
        }),
    };
    Ok(Bucket {
        client: Client::from_conf(config.build()),
        session: Arc::new(session),
        calls: Arc::new(Semaphore::new(MAX_CALLS)),
        large: Arc::new(Semaphore::new(MAX_LARGE)),
    })
}

/// Returns the configuration changes for a request with a body of this size.
pub(super) fn for_body(bytes: u64) -> Builder {
    let transfer = Duration::from_secs(bytes / SLOWEST_UPLOAD);
    Config::builder().timeout_config(timeouts(ATTEMPT_TIMEOUT + transfer))
}

/// Returns the configuration changes for a request whose answer has a body.
pub(super) fn for_download() -> Builder {
    Config::builder().stalled_stream_protection(stall_after(DOWNLOAD_STALL_GRACE))
}

fn stall_after(grace: Duration) -> StalledStreamProtectionConfig {
    StalledStreamProtectionConfig::enabled()
        .grace_period(grace)
        .build()
}

/// Returns the configuration changes for a request with other credentials that is sent only once.
pub(super) fn for_probe(credentials: provider::SharedCredentialsProvider) -> Builder {
    Config::builder()
        .credentials_provider(credentials)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts(CONNECT_TIMEOUT * 2))
}

fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(attempt)
        .build()
}

fn region(target: &S3Target) -> Region {
    let given = target.region.clone().map(Region::new);
    // The provider only reads variables, so its future is ready at once.
    let variables = EnvironmentVariableRegionProvider::new();
    let usual = || variables.region().now_or_never().flatten();
    given
        .or_else(usual)
        .unwrap_or(Region::from_static(DEFAULT_REGION))
}

/// Returns an HTTP client that trusts the system's certificate authorities.
pub(crate) fn system_http_client() -> SharedHttpClient {
    with_tls(TlsContext::default())
}

fn http_client(
    target: &S3Target,
    system: &SharedHttpClient,
) -> Result<SharedHttpClient, StoreError> {
    let Some(path) = &target.ca_file else {
        return Ok(system.clone());
    };
    let failed = |code: &str, source| StoreError::Other {
        what: format!("read certificates {}", path.display()),
        code: code.to_owned(),
        source,
    };
    let pem = fs::read(path).map_err(|error| failed("cannot read", Some(Box::new(error))))?;
    if !pem
        .windows(CERTIFICATE.len())
        .any(|window| window == CERTIFICATE)
    {
        return Err(failed("no certificate in it", None));
    }
    let trust = TrustStore::empty().with_pem_certificate(pem);
    let context = TlsContext::builder().with_trust_store(trust).build();
    Ok(with_tls(context.map_err(|error| {
        failed("not usable", Some(Box::new(error)))
    })?))
}

/// Start of a certificate in a PEM file.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn with_tls(context: TlsContext) -> SharedHttpClient {
    let ring = Provider::rustls(CryptoMode::Ring);
    aws_smithy_http_client::Builder::new()
        .tls_provider(ring)
        .tls_context(context)
        .build_https()
}

/// The SDK's provider chain, created at the first request: creating it needs a runtime, opening a
/// store does not.
#[derive(Debug)]
struct LazyChain {
    http: SharedHttpClient,
    region: Region,
    chain: OnceCell<DefaultCredentialsChain>,
}

impl LazyChain {
    async fn provide(&self) -> provider::Result {
        let make = || async {
            let config = ProviderConfig::without_region()
                .with_region(Some(self.region.clone()))
                .with_http_client(self.http.clone());
            DefaultCredentialsChain::builder()
                .configure(config)
                .build()
                .await
        };
        self.chain
            .get_or_init(make)
            .await
            .provide_credentials()
            .await
    }
}

impl ProvideCredentials for LazyChain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.provide())
    }
}
