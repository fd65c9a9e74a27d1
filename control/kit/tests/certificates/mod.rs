//! Certificates of an authority of one's own.

use std::path::Path;

use control_kit::tls::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Who signs.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = ca.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(ca, key);
        Authority { pem, issuer }
    }

    /// Writes a certificate of this common name, its key and the authority's certificate.
    pub fn issue(&self, common_name: &str, files: &TlsFiles) {
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        own.distinguished_name.push(DnType::CommonName, common_name);
        let cert = own.signed_by(&key, &self.issuer).unwrap().pem();
        std::fs::write(files.ca.as_ref().unwrap(), &self.pem).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.cert, cert).unwrap();
    }
}

/// The files of a certificate in a directory.
pub fn files(dir: &Path) -> TlsFiles {
    TlsFiles {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        ca: Some(dir.join("ca.pem")),
    }
}
