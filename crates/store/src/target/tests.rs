//! Tests of the URL parser.

use super::*;
use crate::CustomerKey;

fn s3_target(url: &str) -> S3Target {
    match Target::from_url(url).unwrap() {
        Target::S3(target) => target,
        other => panic!("{other:?}"),
    }
}

#[test]
fn urls_of_litestream_give_the_same_prefix() {
    for (url, prefix) in [
        ("s3://bucket", "."),
        ("s3://bucket?region=eu-west-1", "."),
        ("s3://bucket/", ""),
        ("s3://bucket/db", "db"),
        ("s3://bucket/db/", "db"),
        ("s3://bucket//db", "db"),
        ("s3://bucket//a//b/./c/../d/", "a/b/d"),
        ("s3://bucket/a//../b", "b"),
        ("s3://bucket/../db", "db"),
        ("s3://bucket/a%2F%2Fb", "a/b"),
        ("s3://bucket/%2Fb", "b"),
        ("s3://bucket/a%20b/c+d", "a b/c+d"),
        ("s3://bucket/a b", "a b"),
        ("s3://bucket/db#f", "db"),
        ("s3://bucket/\u{e4}", "\u{e4}"),
    ] {
        assert_eq!(s3_target(url).prefix, prefix, "{url}");
    }
    assert_eq!(s3_target("s3://My.Old_Bucket/db").bucket, "My.Old_Bucket");
}

#[test]
fn paths_are_cleaned_as_go_does() {
    for (path, cleaned) in [
        ("", "."),
        (".", "."),
        ("/", "/"),
        ("//db//", "/db"),
        ("./a/", "a"),
        ("a/../..", ".."),
        ("../a", "../a"),
        ("/../a", "/a"),
        ("a/../../../b", "../../b"),
    ] {
        assert_eq!(clean(path), cleaned, "{path:?}");
    }
}

#[test]
fn a_bucket_before_the_host_of_its_provider_is_read_as_litestream_does() {
    for (host, bucket, region, endpoint, path_style) in [
        ("bkt.s3.amazonaws.com", "bkt", None, None, None),
        (
            "a.bkt.s3.eu-west-1.amazonaws.com",
            "a.bkt",
            Some("eu-west-1"),
            None,
            None,
        ),
        (
            "bkt.fra1.digitaloceanspaces.com",
            "bkt",
            Some("fra1"),
            Some("https://fra1.digitaloceanspaces.com"),
            Some(false),
        ),
        (
            "bkt.s3.us-west-002.backblazeb2.com",
            "bkt",
            Some("us-west-002"),
            Some("https://s3.us-west-002.backblazeb2.com"),
            Some(true),
        ),
        (
            "bkt.s3.filebase.com",
            "bkt",
            None,
            Some("https://s3.filebase.com"),
            Some(false),
        ),
        (
            "bkt.s3.fr-par.scw.cloud",
            "bkt",
            Some("fr-par"),
            Some("https://s3.fr-par.scw.cloud"),
            Some(false),
        ),
        (
            "bkt.localhost:9000",
            "bkt",
            Some("us-east-1"),
            Some("http://localhost:9000"),
            Some(true),
        ),
        (
            "bkt.0123abc.r2.cloudflarestorage.com",
            "bkt",
            Some("auto"),
            Some("https://0123abc.r2.cloudflarestorage.com"),
            Some(true),
        ),
        (
            "bkt.0123abc.eu.r2.cloudflarestorage.com",
            "bkt",
            Some("auto"),
            Some("https://0123abc.eu.r2.cloudflarestorage.com"),
            Some(true),
        ),
        ("my.bucket.example", "my.bucket.example", None, None, None),
    ] {
        let target = s3_target(&format!("s3://{host}/db"));
        assert_eq!(target.bucket, bucket, "{host}");
        assert_eq!(target.region.as_deref(), region, "{host}");
        assert_eq!(target.endpoint.as_deref(), endpoint, "{host}");
        assert_eq!(target.force_path_style, path_style, "{host}");
    }
    let own = s3_target("s3://bkt.fra1.digitaloceanspaces.com/db?endpoint=127.0.0.1:9000");
    assert_eq!(own.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!(own.force_path_style, None);
    for host in [
        "localhost:9000",
        "fra1.digitaloceanspaces.com",
        "s3.filebase.com",
        "0123abc.r2.cloudflarestorage.com",
        "bkt.s3.amazonaws.com:443",
    ] {
        let refused = Target::from_url(&format!("s3://{host}/db"));
        assert!(matches!(refused, Err(UrlError::Bucket { .. })), "{host}");
    }
}

#[test]
fn a_path_that_no_list_can_show_or_that_is_too_long_is_refused() {
    for prefix in ["a\nb", "a\u{1}", "a\u{ffff}", &"x".repeat(901)] {
        let target = S3Target {
            bucket: "bucket".to_owned(),
            prefix: prefix.to_owned(),
            ..S3Target::default()
        };
        assert!(target.check().is_err(), "{prefix:?}");
    }
    let refused = Target::from_url("s3://bucket/a\nb");
    assert!(matches!(refused, Err(UrlError::Invalid { .. })));
}

#[test]
fn query_keys_of_litestream_are_read_in_both_spellings() {
    let target = s3_target(
        "s3://bucket/db?endpoint=http%3A%2F%2F127.0.0.1:9000/&region=eu-west-1&forcePathStyle=false",
    );
    assert_eq!(target.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!(target.region.as_deref(), Some("eu-west-1"));
    assert_eq!(target.force_path_style, Some(false));
    assert_eq!(
        s3_target("s3://bucket?force-path-style=1").force_path_style,
        Some(true)
    );
    s3_target("s3://bucket?signPayload=true&requireContentMD5=false&skipVerify=false");
}

#[test]
fn an_endpoint_without_a_scheme_gets_the_one_litestream_gives_it() {
    for (given, full) in [
        ("localhost:9000", "http://localhost:9000"),
        ("10.1.2.3:9000", "http://10.1.2.3:9000"),
        ("s3.example.com", "https://s3.example.com"),
        ("minio.example.com:9000", "https://minio.example.com:9000"),
    ] {
        let target = s3_target(&format!("s3://bucket?endpoint={given}"));
        assert_eq!(target.endpoint.as_deref(), Some(full));
    }
    for bad in ["ftp://host", "http://", "http://u:p@host"] {
        let url = format!("s3://bucket?endpoint={bad}");
        assert!(
            matches!(Target::from_url(&url), Err(UrlError::Value { .. })),
            "{bad}"
        );
    }
}

#[test]
fn a_key_that_is_not_honoured_is_an_error_that_names_it() {
    let message = |url| Target::from_url(url).unwrap_err().to_string();
    assert!(message("s3://bucket?Endpoint=x").contains("did you mean endpoint"));
    assert!(message("s3://bucket?skipVerify=true").contains("ca-file"));
    assert!(message("s3://bucket?signPayload=false").contains("always signed"));
    assert!(message("s3://bucket?forcePathStyle=maybe").contains("maybe"));
    assert!(message("s3://bucket?sseCustomerKeyPath=/k").contains("sseCustomerKeyPath"));
    assert!(message("file:///a?x=1").contains("\"x\""));
}

#[test]
fn how_objects_are_kept_is_read_in_both_spellings_and_has_limits() {
    for url in [
        "s3://bucket?storageClass=STANDARD_IA&partSize=16777216&concurrency=5&sseKmsKeyId=alias/a",
        "s3://bucket?storage-class=STANDARD_IA&part-size=16777216&concurrency=5&sse-kms-key-id=alias/a",
    ] {
        let target = s3_target(url);
        assert_eq!(target.storage_class.as_deref(), Some("STANDARD_IA"));
        assert_eq!(
            (target.part_bytes, target.parts_in_flight),
            (Some(16 << 20), Some(5))
        );
        assert_eq!(
            target.encryption,
            Some(Encryption::Kms("alias/a".to_owned()))
        );
    }
    for (query, words) in [
        ("storageClass=GLACIER", "STANDARD_IA"),
        ("storageClass=DEEP_ARCHIVE", "STANDARD_IA"),
        ("partSize=1048576", "5 MiB to 512 MiB"),
        ("partSize=5MB", "a number"),
        ("concurrency=0", "1 to 64"),
        ("concurrency=100", "1 to 64"),
        ("sseCustomerKey=c2VjcmV0", "do not belong in the URL"),
    ] {
        let error = Target::from_url(&format!("s3://bucket?{query}")).unwrap_err();
        assert!(error.to_string().contains(words), "{query}: {error}");
    }
}

#[test]
fn a_customer_key_goes_to_no_endpoint_in_the_clear() {
    let key = CustomerKey::from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    for (endpoint, is_fine) in [
        (None, true),
        (Some("https://s3.example.com"), true),
        (Some("http://127.0.0.1:9000"), true),
        (Some("http://s3.example.com"), false),
    ] {
        let target = S3Target {
            bucket: "bucket".to_owned(),
            endpoint: endpoint.map(str::to_owned),
            encryption: key.clone().map(Encryption::Customer),
            ..S3Target::default()
        };
        assert_eq!(target.check().is_ok(), is_fine, "{endpoint:?}");
    }
}

#[test]
fn stores_that_are_not_served_yet_are_told_from_unknown_ones() {
    for url in [
        "gs://b/p",
        "abs://account@container/p",
        "azblob://c/p",
        "sftp://u@h/d",
    ] {
        assert!(
            matches!(Target::from_url(url), Err(UrlError::Unsupported { .. })),
            "{url}"
        );
    }
    assert!(matches!(
        Target::from_url("ftp://h/d"),
        Err(UrlError::UnknownScheme { .. })
    ));
    assert!(matches!(
        Target::from_url("/data/x.db"),
        Err(UrlError::Invalid { .. })
    ));
}

#[test]
fn bad_bucket_names_and_credentials_in_urls_are_refused() {
    for url in ["s3:///db", "s3://ab/db", "s3://-abc", "s3://a..b"] {
        assert!(
            matches!(Target::from_url(url), Err(UrlError::Bucket { .. })),
            "{url}"
        );
    }
    let refused = Target::from_url("s3://key:secret@bucket/db");
    assert_eq!(refused, Err(UrlError::CredentialsInUrl));
}

#[test]
fn file_urls_name_a_directory_of_this_machine() {
    let target = Target::from_url("file:///backups/a%20b/../c").unwrap();
    assert_eq!(
        target,
        Target::File {
            path: "/backups/c".into()
        }
    );
    for url in ["file://host/dir", "file:///"] {
        assert!(
            matches!(Target::from_url(url), Err(UrlError::FilePath { .. })),
            "{url}"
        );
    }
}

#[test]
fn errors_show_no_password() {
    for url in [
        "s3://key:pass word@[bucket/app",
        "s3://b/p?endpoint=http://key:pass@host:1",
    ] {
        let message = Target::from_url(url).unwrap_err().to_string();
        assert!(
            !message.contains("pass") && !message.contains("key:"),
            "{message}"
        );
    }
}
