//! Hosts of storage providers with the bucket in front, as in
//! `s3://BUCKET.fra1.digitaloceanspaces.com/PATH`.

use super::UrlError;

/// Suffix of Cloudflare's hosts, which Litestream treats as a bucket at AWS.
const R2: &str = ".r2.cloudflarestorage.com";

/// The parts of an S3 URL's host.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) bucket: String,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) force_path_style: Option<bool>,
}

/// Parses the host of an S3 URL; an unknown host is a bucket at AWS.
pub(super) fn read(host: &str, port: Option<u16>) -> Result<Host, UrlError> {
    match port {
        None => Ok(provider(host).unwrap_or_else(|| Host {
            bucket: host.to_owned(),
            ..Host::default()
        })),
        Some(port) => match host.split_once('.') {
            Some((bucket, server)) if !host.contains(".com") => Ok(Host {
                bucket: bucket.to_owned(),
                region: Some("us-east-1".to_owned()),
                endpoint: Some(format!("http://{server}:{port}")),
                force_path_style: Some(true),
            }),
            _ => Err(UrlError::Bucket {
                bucket: format!("{host}:{port}"),
                reason: "a port belongs to an endpoint: write s3://BUCKET/PATH?endpoint=HOST:PORT",
            }),
        },
    }
}

fn provider(host: &str) -> Option<Host> {
    if let Some(rest) = host.strip_suffix(".amazonaws.com") {
        let (rest, region) = match rest.strip_suffix(".s3") {
            Some(bucket) => (bucket, None),
            None => {
                let (rest, region) = rest.rsplit_once('.')?;
                (rest.strip_suffix(".s3")?, Some(region.to_owned()))
            }
        };
        return Some(Host {
            bucket: rest.to_owned(),
            region,
            ..Host::default()
        });
    }
    if let Some(rest) = host.strip_suffix(R2) {
        let (bucket, account) = rest.split_once('.').unwrap_or(("", rest));
        return Some(Host {
            bucket: bucket.to_owned(),
            region: Some("auto".to_owned()),
            endpoint: Some(format!("https://{account}{R2}")),
            force_path_style: Some(true),
        });
    }
    if host == "s3.filebase.com" || host.ends_with(".s3.filebase.com") {
        let bucket = host.strip_suffix(".s3.filebase.com").unwrap_or_default();
        return Some(Host {
            bucket: bucket.to_owned(),
            region: None,
            endpoint: Some("https://s3.filebase.com".to_owned()),
            force_path_style: Some(false),
        });
    }
    for (end, before, is_path_style) in [
        (".digitaloceanspaces.com", "", false),
        (".backblazeb2.com", "s3.", true),
        (".scw.cloud", "s3.", false),
    ] {
        let Some(rest) = host.strip_suffix(end) else {
            continue;
        };
        let (rest, region) = rest.rsplit_once('.').unwrap_or(("", rest));
        let bucket = match before.strip_suffix('.') {
            None => rest,
            // A host of this provider that is not an S3 endpoint.
            Some(word) if rest != word && !rest.ends_with(&format!(".{word}")) => return None,
            Some(word) => rest.strip_suffix(word)?.trim_end_matches('.'),
        };
        return Some(Host {
            bucket: bucket.to_owned(),
            region: Some(region.to_owned()),
            endpoint: Some(format!("https://{before}{region}{end}")),
            force_path_style: Some(is_path_style),
        });
    }
    None
}
