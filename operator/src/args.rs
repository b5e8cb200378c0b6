//! The command line. The only module that reads the environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Parser, ValueEnum};

/// Continuous backup and proven restores for SQLite databases in Kubernetes.
#[derive(Debug, Clone, Parser)]
#[command(name = "sqlite-backup-operator", version, about)]
#[command(group = ArgGroup::new("tls").required(true).args(["tls_secret", "tls_directory"]))]
pub struct Args {
    /// Image of the sidecar, of the restore container and of restore tests.
    #[arg(long, env = "SIDECAR_IMAGE", value_name = "IMAGE")]
    pub sidecar_image: String,

    /// Pull policy of that image.
    #[arg(long, value_enum, default_value_t = PullPolicy::IfNotPresent, value_name = "POLICY")]
    pub sidecar_image_pull_policy: PullPolicy,

    /// Size limit of the sidecar's state volume, such as 5Gi; at least 512Mi.
    #[arg(long, value_parser = size_limit, value_name = "QUANTITY")]
    pub state_size_limit: Option<String>,

    /// Namespace in which this operator runs.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "sqlite-backup-system",
        value_name = "NAME"
    )]
    pub namespace: String,

    /// Unique name of this replica.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub replica: String,

    /// Address on which the admission webhook is served.
    #[arg(long, default_value = "[::]:9443", value_name = "IP:PORT")]
    pub webhook_address: SocketAddr,

    /// Service, in the operator's namespace, through which API servers reach the webhook.
    #[arg(
        long,
        default_value = "sqlite-backup-operator-webhook",
        value_name = "NAME"
    )]
    pub webhook_service: String,

    /// Port of that Service.
    #[arg(long, default_value_t = 443, value_name = "PORT")]
    pub webhook_service_port: u16,

    /// URL of the webhook instead of a Service, for an operator outside its cluster.
    #[arg(long, value_name = "URL", conflicts_with = "webhook_service")]
    pub webhook_url: Option<String>,

    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "[::]:8080", value_name = "IP:PORT")]
    pub http_address: SocketAddr,

    /// Secret for self-managed certificates, in the operator's namespace.
    #[arg(long, value_name = "NAME")]
    pub tls_secret: Option<String>,

    /// Directory with tls.crt, tls.key and ca.crt that another program renews.
    #[arg(long, value_name = "DIR")]
    pub tls_directory: Option<PathBuf>,

    /// Lease for the election of the leader.
    #[arg(long, default_value = "sqlite-backup-operator", value_name = "NAME")]
    pub lease: String,

    /// Limit on restore tests that run at once in the cluster.
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub max_running_restore_tests: u16,

    /// Least severe level that is logged.
    #[arg(long, value_enum, default_value_t = LogLevel::Info, value_name = "LEVEL")]
    pub log_level: LogLevel,

    /// Format of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Json, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Pull policy of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node lacks it.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// The value as Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }
}

/// Least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Errors that need a person.
    Error,
    /// Warnings and errors.
    Warn,
    /// State changes, warnings and errors.
    Info,
    /// Individual operations as well.
    Debug,
    /// Everything.
    Trace,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

/// Smallest allowed size limit, in bytes. The databases of a sidecar share four fifths of it.
const STATE_LEAST: f64 = (512_u64 << 20) as f64;

/// Largest quantity that the API server can store, in bytes.
const STATE_MOST: f64 = i64::MAX as f64;

/// Units of quantities of bytes, as Kubernetes spells them.
const UNITS: [(&str, f64); 13] = [
    ("", 1.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", (1_u64 << 10) as f64),
    ("Mi", (1_u64 << 20) as f64),
    ("Gi", (1_u64 << 30) as f64),
    ("Ti", (1_u64 << 40) as f64),
    ("Pi", (1_u64 << 50) as f64),
    ("Ei", (1_u64 << 60) as f64),
];

/// Checks a Kubernetes quantity of bytes. An invalid one would be injected into every selected Pod,
/// and the API server would reject all of them.
fn size_limit(text: &str) -> Result<String, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, f)| f);
    let Some((number, factor)) = number.parse::<f64>().ok().zip(factor) else {
        return Err("not a quantity of bytes; write a number with a unit, such as 5Gi".to_owned());
    };
    match number * factor {
        bytes if bytes < STATE_LEAST => {
            Err("less than 512Mi: the kubelet would evict Pods".to_owned())
        }
        bytes if bytes > STATE_MOST => Err("more than the API server can store".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        let base = ["operator", "--sidecar-image=i", "--replica=r"];
        Args::try_parse_from(base.iter().chain(args))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn exactly_one_source_of_certificates_is_needed() {
        assert!(parse(&["--tls-secret=s"]).is_ok());
        assert!(parse(&["--tls-directory=/tls"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--tls-secret=s", "--tls-directory=/tls"]).is_err());
    }

    #[test]
    fn a_size_limit_is_a_quantity_that_the_api_server_takes() {
        let limit = |text: &str| {
            let args = parse(&["--tls-secret=s", &format!("--state-size-limit={text}")]);
            args.map(|args| args.state_size_limit)
                .map_err(|error| error.to_string())
        };
        for good in [
            "5Gi",
            "512Mi",
            "1.5Gi",
            "600M",
            "5000000000",
            "600000k",
            "1Ei",
        ] {
            assert_eq!(limit(good), Ok(Some(good.to_owned())));
        }
        for (wrong, because) in [
            ("", "not a quantity"),
            ("lots", "not a quantity"),
            ("5GB", "not a quantity"),
            ("5GiB", "not a quantity"),
            ("5gi", "not a quantity"),
            ("5K", "not a quantity"),
            ("5ki", "not a quantity"),
            ("5i", "not a quantity"),
            ("5 Gi", "not a quantity"),
            ("-5Gi", "not a quantity"),
            ("1..5Gi", "not a quantity"),
            ("5000m", "not a quantity"),
            ("5e9", "not a quantity"),
            ("5", "less than 512Mi"),
            ("511Mi", "less than 512Mi"),
            ("9Ei", "more than"),
        ] {
            let error = limit(wrong).expect_err(wrong);
            assert!(error.contains("--state-size-limit"), "{error}");
            assert!(error.contains(because), "{wrong}: {error}");
        }
    }
}
