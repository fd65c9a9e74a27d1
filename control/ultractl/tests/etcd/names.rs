//! Users named by their certificates: once authentication is on, the common name of a client's verified
//! certificate is the user, unless the request has a token.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};

use crate::judged;
use crate::peer::Etcd;
use crate::script::compare;
use crate::side::{Side, step};
use crate::support::{Ctl, Member, Setup};

/// Certificates of the servers and of some clients, by common name, signed by one CA.
fn issue(dir: &Path, hosts: &[String], names: &[&str]) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    std::fs::write(dir.join("ca.pem"), ca_pem).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for name in names {
        let mut own = CertificateParams::new(hosts.to_vec()).unwrap();
        own.distinguished_name = DistinguishedName::new();
        own.distinguished_name.push(DnType::CommonName, *name);
        let key = KeyPair::generate().unwrap();
        let cert = own.signed_by(&key, &issuer).unwrap().pem();
        std::fs::write(dir.join(format!("{name}.pem")), cert).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn with_certificate(ctl: &Ctl, dir: &Path, name: &str) -> Ctl {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    ctl.with(&format!("--cacert={}", file("ca.pem")))
        .with(&format!("--cert={}", file(&format!("{name}.pem"))))
        .with(&format!("--key={}", file(&format!("{name}.key"))))
}

#[test]
fn certificates_name_users_as_etcds_do() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let hosts = ["127.0.0.1".to_owned(), Etcd::host().to_string()];
    issue(dir, &hosts, &["server", "root", "alice", "stranger", ""]);
    let at = dir.display();
    let config = format!(
        "[chainfire.client_tls]\ncert = \"{at}/server.pem\"\nkey = \"{at}/server.key\"\nca = \"{at}/ca.pem\"\n"
    );
    let member = Member::of(Setup {
        name: "default".into(),
        listen: "127.0.0.1:0".into(),
        peer_listen: "127.0.0.1:0".into(),
        config,
        ..Setup::default()
    });
    let etcd = Etcd::start_tls(dir, "server", |ctl| with_certificate(ctl, dir, "root"));
    let https = |ctl: Ctl| with_certificate(&ctl, dir, "root");
    let mut ours = Side::new(https(Ctl::secure(&[member.client])));
    let mut theirs = Side::new(https(Ctl::secure(&[etcd.client])));
    let script = [
        "put a 1",
        "role add reader",
        "role grant-permission reader read a",
        "user add root:pw",
        "user add alice:pw",
        "user grant-role alice reader",
        "user grant-role root root",
        "--cert={dir}/alice.pem --key={dir}/alice.key put a 2",
        "auth enable",
        "get a",
        "put a 3",
        "user list",
        "--cert={dir}/alice.pem --key={dir}/alice.key get a",
        "--cert={dir}/alice.pem --key={dir}/alice.key put a 4",
        "--cert={dir}/alice.pem --key={dir}/alice.key user list",
        "--cert={dir}/alice.pem --key={dir}/alice.key --user=root:pw put a 5",
        "--user=alice:pw put a 6",
        "--user=alice:wrong get a",
        "--cert={dir}/stranger.pem --key={dir}/stranger.key get a",
        "--cert={dir}/.pem --key={dir}/.key get a",
        "auth disable",
        "--cert={dir}/.pem --key={dir}/.key get a",
    ];
    let steps: Vec<_> = script.iter().map(|line| step(line).plain()).collect();
    for side in [&mut ours, &mut theirs] {
        side.know("dir", at.to_string());
    }
    let found = compare(&mut ours, &mut theirs, &steps);
    let unjudged = judged::unjudged(&[], &found);
    assert!(unjudged.is_empty(), "{}", unjudged.join("\n"));
}
