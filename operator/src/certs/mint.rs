//! Keys and certificates: creation, and reading from PEM.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;

/// Lifetime of an authority. Its key is P-256, because each webhook entry holds the bundle, and the
/// object of the entries has a size limit.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Lifetime of a served certificate.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Time by which certificates are backdated, for API servers whose clock is late.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// Reason for which a certificate or key cannot be created or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    /// Key generation or signing failed.
    #[error("create a certificate")]
    Mint(#[from] rcgen::Error),
    /// The bytes are not valid PEM.
    #[error("{what} is not valid PEM")]
    Pem {
        /// The part that is invalid.
        what: &'static str,
        /// Error of the parser.
        source: rustls::pki_types::pem::Error,
    },
    /// The PEM does not hold a certificate.
    #[error("{what} is not an X.509 certificate")]
    X509 {
        /// The part that is invalid.
        what: &'static str,
    },
    /// The key does not belong to the certificate, or its kind is not supported.
    #[error("the key does not belong to the certificate")]
    Key(#[source] rustls::Error),
}

/// Validity of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: Timestamp,
    /// Last second.
    pub not_after: Timestamp,
}

impl Validity {
    /// Creates a backdated validity of `life` from `now`, which ends at `limit` at the latest.
    fn starting(now: Timestamp, life: Duration, limit: Option<Timestamp>) -> Self {
        let not_after = now + life;
        Validity {
            not_before: now - BACKDATE,
            not_after: limit.map_or(not_after, |limit| limit.min(not_after)),
        }
    }

    /// Whether `now` is inside the validity.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Time of creation.
    pub fn made(&self) -> Timestamp {
        self.not_before + BACKDATE
    }

    /// Time at which a successor is due: after two thirds of the lifetime.
    pub fn renewal(&self) -> Timestamp {
        let life = self.not_after.duration_since(self.made());
        self.made() + life * 2 / 3
    }
}

/// A certificate authority with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// Private key, PEM (PKCS #8).
    pub key_pem: SecretPem,
    /// Validity.
    pub validity: Validity,
}

/// A served certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// Private key, PEM (PKCS #8).
    pub key_pem: SecretPem,
    /// Validity.
    pub validity: Validity,
    /// DNS names and IP addresses of the certificate.
    pub names: Vec<String>,
}

/// A private key in PEM, hidden from `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretPem(pub String);

impl std::fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretPem(..)")
    }
}

impl Authority {
    /// Creates an authority with a new key.
    ///
    /// # Errors
    /// [`CertError::Mint`] when the system provides no randomness.
    pub fn mint(now: Timestamp) -> Result<Self, CertError> {
        let validity = Validity::starting(now, AUTHORITY_LIFE, None);
        let mut params = CertificateParams::new(Vec::new())?;
        set_validity(&mut params, &validity);
        // The time in the name is for people; verifiers compare keys.
        let name = format!("sqlite-backup-operator {}", now.as_second());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = params.self_signed(&key)?;
        Self::parse(cert.pem(), key.serialize_pem())
    }

    /// Reads an authority from PEM.
    ///
    /// # Errors
    /// When one of the texts is invalid.
    pub fn parse(cert_pem: String, key_pem: String) -> Result<Self, CertError> {
        let validity = facts(&cert_pem, "the authority's certificate")?.validity;
        KeyPair::from_pem(&key_pem)?;
        Ok(Authority {
            cert_pem,
            key_pem: SecretPem(key_pem),
            validity,
        })
    }

    /// Creates a certificate for `names`, which does not outlive the authority.
    ///
    /// # Errors
    /// [`CertError::Mint`] when a name is not ASCII or the authority cannot sign.
    pub fn issue(&self, names: &[String], now: Timestamp) -> Result<Leaf, CertError> {
        let validity = Validity::starting(now, LEAF_LIFE, Some(self.validity.not_after));
        let mut params = CertificateParams::new(names.to_vec())?;
        set_validity(&mut params, &validity);
        let common_name = names.first().map_or("webhook", String::as_str);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, KeyPair::from_pem(&self.key_pem.0)?)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = params.signed_by(&key, &issuer)?;
        Leaf::parse(cert.pem(), key.serialize_pem())
    }
}

impl Leaf {
    /// Reads a served certificate from PEM. `cert_pem` may hold a chain, with the certificate
    /// first.
    ///
    /// # Errors
    /// When one of the texts is invalid.
    pub fn parse(cert_pem: String, key_pem: String) -> Result<Self, CertError> {
        let Facts { validity, names } = facts(&cert_pem, "the served certificate")?;
        Ok(Leaf {
            cert_pem,
            key_pem: SecretPem(key_pem),
            validity,
            names,
        })
    }

    /// Converts to the type of the TLS server.
    ///
    /// # Errors
    /// When the key does not belong to the certificate.
    pub fn certified_key(&self) -> Result<Arc<CertifiedKey>, CertError> {
        let chain = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| CertError::Pem {
                what: "the served certificate",
                source,
            })?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.0.as_bytes()).map_err(|source| {
            CertError::Pem {
                what: "the served key",
                source,
            }
        })?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(CertError::Key)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(CertError::Key)?;
        Ok(Arc::new(certified))
    }
}

/// Reads the validity of the first certificate in a PEM text.
///
/// # Errors
/// When the text has no certificate.
pub fn validity(cert_pem: &str) -> Result<Validity, CertError> {
    Ok(facts(cert_pem, "the certificate")?.validity)
}

struct Facts {
    validity: Validity,
    names: Vec<String>,
}

fn facts(cert_pem: &str, what: &'static str) -> Result<Facts, CertError> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|source| CertError::Pem { what, source })?;
    let (_, cert) =
        x509_parser::parse_x509_certificate(&der).map_err(|_| CertError::X509 { what })?;
    let time = |seconds| Timestamp::from_second(seconds).map_err(|_| CertError::X509 { what });
    let validity = Validity {
        not_before: time(cert.validity().not_before.timestamp())?,
        not_after: time(cert.validity().not_after.timestamp())?,
    };
    let names = match cert.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().filter_map(name).collect(),
        Ok(None) => Vec::new(),
        Err(_) => return Err(CertError::X509 { what }),
    };
    Ok(Facts { validity, names })
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets)
                .ok()
                .map(|o| std::net::Ipv4Addr::from(o).to_string()),
            _ => <[u8; 16]>::try_from(*octets)
                .ok()
                .map(|o| std::net::Ipv6Addr::from(o).to_string()),
        },
        _ => None,
    }
}

fn set_validity(params: &mut CertificateParams, validity: &Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |time: Timestamp| {
        epoch + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default())
    };
    params.not_before = at(validity.not_before);
    params.not_after = at(validity.not_after);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_authority_and_its_leaf_survive_pem() {
        let authority = Authority::mint(now()).unwrap();
        assert_eq!(authority.validity.made(), now());
        assert_eq!(authority.validity.not_after, now() + AUTHORITY_LIFE);
        let names = vec![
            "hook.ns.svc".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let leaf = authority.issue(&names, now()).unwrap();
        assert_eq!(leaf.names, names);
        assert_eq!(leaf.validity.not_after, now() + LEAF_LIFE);
        assert!(leaf.certified_key().is_ok());
        assert!(
            leaf.cert_pem.len() + authority.cert_pem.len() < 2000,
            "entries carry the bundle"
        );
    }

    #[test]
    fn a_leaf_does_not_outlive_its_authority() {
        let authority = Authority::mint(now()).unwrap();
        let late = authority.validity.not_after - Duration::from_secs(10);
        let leaf = authority.issue(&["a".to_owned()], late).unwrap();
        assert_eq!(leaf.validity.not_after, authority.validity.not_after);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let authority = Authority::mint(now()).unwrap();
        let names = ["a".to_owned()];
        let mut leaf = authority.issue(&names, now()).unwrap();
        leaf.key_pem = authority.issue(&names, now()).unwrap().key_pem;
        assert!(matches!(leaf.certified_key(), Err(CertError::Key(_))));
    }

    #[test]
    fn debug_shows_no_key() {
        let authority = Authority::mint(now()).unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn garbage_is_refused_by_name() {
        let error = Authority::parse("x".to_owned(), "y".to_owned()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the authority's certificate is not valid PEM"
        );
    }
}
