//! How a backend is found alive.

use fiberlb_api::v1;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;

/// Bytes of certificates that a check may carry.
const CA_BYTES_MAX: usize = 64 << 10;
/// Ranges of statuses that a check may name.
const STATUSES_MAX: usize = 16;

/// A check of each backend of a pool.
#[derive(Clone, PartialEq, Debug)]
pub struct Check {
    /// What is done.
    pub kind: CheckKind,
    /// From the begin of one to the next.
    pub interval_ms: u64,
    /// How long one may take.
    pub timeout_ms: u64,
    /// Passes in a row that make a backend healthy.
    pub rise: u32,
    /// Failures in a row that make it unhealthy.
    pub fall: u32,
}

/// What a check does.
#[derive(Clone, PartialEq, Debug)]
pub enum CheckKind {
    /// Connects.
    Tcp,
    /// Asks for a page.
    Http {
        /// Its path.
        path: String,
        /// The host that is asked for; empty for the address.
        host: String,
        /// What passes.
        statuses: Statuses,
        /// With TLS.
        tls: Option<Tls>,
    },
    /// Asks `grpc.health.v1.Health`.
    Grpc {
        /// The service; empty for the whole server.
        service: String,
        /// The authority that is asked for; empty for the address.
        host: String,
        /// With TLS.
        tls: Option<Tls>,
    },
}

/// Whom a check trusts.
#[derive(Clone, PartialEq, Debug)]
pub struct Tls {
    /// DER certificates of those who may sign; `None` takes anybody's.
    pub trusted: Option<Vec<CertificateDer<'static>>>,
    /// The name that the certificate has to be for; empty for the host, else the address.
    pub server_name: String,
}

/// Ranges of statuses, both ends included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statuses(Vec<(u16, u16)>);

impl Statuses {
    /// Whether a status passes.
    pub fn has(&self, status: u16) -> bool {
        self.0
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&status))
    }

    fn parse(texts: &[String]) -> Result<Statuses, String> {
        if texts.is_empty() {
            return Ok(Statuses(vec![(200, 399)]));
        }
        if texts.len() > STATUSES_MAX {
            return Err(format!("at most {STATUSES_MAX} ranges of statuses"));
        }
        let ranges: Result<_, String> = texts.iter().map(|text| range(text)).collect();
        Ok(Statuses(ranges?))
    }
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let status = |text: &str| text.parse().ok().filter(|at| (100..=599).contains(at));
    let found = if let Some(hundreds) = text.strip_suffix("xx") {
        let first: Option<u16> = hundreds.parse().ok().filter(|at| (1..=5).contains(at));
        first.map(|at| (at * 100, at * 100 + 99))
    } else if let Some((from, to)) = text.split_once('-') {
        status(from).zip(status(to)).filter(|(from, to)| from <= to)
    } else {
        status(text).map(|at| (at, at))
    };
    found.ok_or_else(|| format!("{text:?} is no status as 200, 2xx or 200-299"))
}

/// A number of a check, or its default.
fn number(given: u32, default: u32, range: std::ops::RangeInclusive<u32>) -> Result<u32, String> {
    match given {
        0 => Ok(default),
        given if range.contains(&given) => Ok(given),
        given => Err(format!(
            "{given} is not within {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// Checks a check; faults go to `fault` with the field's name.
pub(super) fn parse(
    written: &v1::HealthCheck,
    mut fault: impl FnMut(&str, String),
) -> Option<Check> {
    let mut take = |field: &str, number: Result<u32, String>| match number {
        Ok(number) => number,
        Err(what) => {
            fault(field, what);
            0
        }
    };
    let interval = number(written.interval_ms, 2000, 100..=3_600_000);
    let interval_ms = take("interval_ms", interval);
    let timeout_ms = take("timeout_ms", number(written.timeout_ms, 1000, 10..=60_000));
    let rise = take("rise", number(written.rise, 2, 1..=100));
    let fall = take("fall", number(written.fall, 3, 1..=100));
    let kind = kind(written, &mut fault)?;
    Some(Check {
        kind,
        interval_ms: u64::from(interval_ms),
        timeout_ms: u64::from(timeout_ms),
        rise,
        fall,
    })
}

/// Finds fields that the kind of check does not know.
fn misplaced(
    written: &v1::HealthCheck,
    (is_http, is_grpc, has_tls): (bool, bool, bool),
    fault: &mut impl FnMut(&str, String),
) {
    let tls = "https, and grpc with tls";
    for (field, given, taken, whose) in [
        ("path", !written.path.is_empty(), is_http, "http and https"),
        (
            "statuses",
            !written.statuses.is_empty(),
            is_http,
            "http and https",
        ),
        (
            "host",
            !written.host.is_empty(),
            is_http || is_grpc,
            "http, https and grpc",
        ),
        ("service", !written.service.is_empty(), is_grpc, "grpc"),
        ("tls", written.tls, is_grpc, "grpc"),
        ("ca_pem", !written.ca_pem.is_empty(), has_tls, tls),
        ("server_name", !written.server_name.is_empty(), has_tls, tls),
        ("skip_verify", written.skip_verify, has_tls, tls),
    ] {
        if given && !taken {
            let kind = &written.kind;
            fault(field, format!("is for {whose}, and the kind is {kind:?}"));
        }
    }
}

fn kind(written: &v1::HealthCheck, fault: &mut impl FnMut(&str, String)) -> Option<CheckKind> {
    let is_http = matches!(&*written.kind, "http" | "https");
    let is_grpc = written.kind == "grpc";
    let has_tls = written.kind == "https" || is_grpc && written.tls;
    misplaced(written, (is_http, is_grpc, has_tls), fault);
    let tls = if has_tls {
        match tls(written) {
            Ok(tls) => Some(tls),
            Err((field, what)) => {
                fault(field, what);
                return None;
            }
        }
    } else {
        None
    };
    let host = written.host.clone();
    if !host.is_empty() && hyper::http::uri::Authority::try_from(&*host).is_err() {
        fault("host", format!("{host:?} is no host, or host and port"));
    }
    match &*written.kind {
        "tcp" => Some(CheckKind::Tcp),
        "http" | "https" => {
            let path = match &*written.path {
                "" => "/".to_owned(),
                path => path.to_owned(),
            };
            let is_path = hyper::http::uri::PathAndQuery::try_from(&*path).is_ok();
            if !path.starts_with('/') || !is_path {
                fault("path", format!("{path:?} is no path, as /healthz"));
            }
            let statuses = Statuses::parse(&written.statuses);
            let statuses = statuses.map_err(|what| fault("statuses", what)).ok()?;
            Some(CheckKind::Http {
                path,
                host,
                statuses,
                tls,
            })
        }
        "grpc" => Some(CheckKind::Grpc {
            service: written.service.clone(),
            host,
            tls,
        }),
        other => {
            fault(
                "kind",
                format!("{other:?} is none of tcp, http, https and grpc"),
            );
            None
        }
    }
}

fn tls(written: &v1::HealthCheck) -> Result<Tls, (&'static str, String)> {
    let server_name = written.server_name.clone();
    if !server_name.is_empty() && ServerName::try_from(&*server_name).is_err() {
        return Err(("server_name", format!("{server_name:?} is no host's name")));
    }
    if written.skip_verify {
        if !written.ca_pem.is_empty() {
            let what = "is given, and skip_verify too: leave out one of them";
            return Err(("ca_pem", what.to_owned()));
        }
        return Ok(Tls {
            trusted: None,
            server_name,
        });
    }
    if written.ca_pem.is_empty() {
        let what = "is missing: give the PEM certificates of those who may sign the backends' \
                    certificates, or set skip_verify";
        return Err(("ca_pem", what.to_owned()));
    }
    if written.ca_pem.len() > CA_BYTES_MAX {
        return Err(("ca_pem", format!("has more than {CA_BYTES_MAX} bytes")));
    }
    let read = CertificateDer::pem_slice_iter(written.ca_pem.as_bytes());
    let certificates: Result<Vec<_>, _> = read.collect();
    let certificates =
        certificates.map_err(|error| ("ca_pem", format!("is no PEM text: {error}")))?;
    if certificates.is_empty() {
        return Err(("ca_pem", "holds no certificate".to_owned()));
    }
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        let added = roots.add(certificate.clone());
        added.map_err(|error| ("ca_pem", format!("holds no CA's certificate: {error}")))?;
    }
    Ok(Tls {
        trusted: Some(certificates),
        server_name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_numbers_hundreds_and_ranges() {
        let texts = ["204", "3xx", "500-502"].map(str::to_owned);
        let statuses = Statuses::parse(&texts).unwrap();
        for (status, passes) in [
            (204, true),
            (200, false),
            (399, true),
            (501, true),
            (503, false),
        ] {
            assert_eq!(statuses.has(status), passes, "{status}");
        }
        assert!(Statuses::parse(&[]).unwrap().has(302));
        for wrong in ["", "2x", "99", "600", "300-200", "9xx", "20a"] {
            assert!(Statuses::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tls_wants_certificates_or_says_that_it_takes_any() {
        let faults = |written: &v1::HealthCheck| {
            let mut faults = Vec::new();
            parse(written, |field, what| {
                faults.push(format!("{field} {what}"));
            });
            faults
        };
        let https = v1::HealthCheck {
            kind: "https".into(),
            ..Default::default()
        };
        assert!(faults(&https)[0].starts_with("ca_pem is missing"));
        let skips = v1::HealthCheck {
            skip_verify: true,
            ..https.clone()
        };
        assert!(faults(&skips).is_empty());
        let wrong = v1::HealthCheck {
            ca_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            ..https
        };
        assert!(faults(&wrong)[0].contains("no CA's certificate"));
        let plain = v1::HealthCheck {
            kind: "http".into(),
            skip_verify: true,
            interval_ms: 5,
            ..Default::default()
        };
        assert_eq!(faults(&plain).len(), 2);
    }
}
