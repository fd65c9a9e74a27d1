//! Certificates between members and towards clients, and their replacement while all of it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::support::cluster::{host, leader, setup};
use crate::support::{Ctl, Member, Setup, eventually};

/// Somebody who signs certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Authority { pem, issuer }
    }

    /// Writes a certificate for this test's host, and its key.
    fn issue(&self, files: &Files) {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec![host()]).unwrap();
        let cert = own.signed_by(&key, &self.issuer).unwrap().pem();
        fs::write(files.key(), key.serialize_pem()).unwrap();
        fs::write(files.cert(), cert).unwrap();
    }
}

/// The files of one side of connections.
struct Files(PathBuf);

impl Files {
    fn new(dir: &Path, name: &str) -> Files {
        Files(dir.join(name))
    }

    fn file(&self, what: &str) -> String {
        let path = self.0.with_extension(what);
        path.to_str().unwrap().to_owned()
    }

    fn cert(&self) -> String {
        self.file("cert")
    }

    fn key(&self) -> String {
        self.file("key")
    }

    fn ca(&self) -> String {
        self.file("ca")
    }

    /// Whom this side trusts from now on.
    fn trust(&self, authorities: &[&Authority]) {
        let pems: Vec<&str> = authorities.iter().map(|one| one.pem.as_str()).collect();
        fs::write(self.ca(), pems.concat()).unwrap();
    }

    /// etcdctl with these files, at all members.
    fn ctl(&self, members: &[Member]) -> Ctl {
        trusting(&self.ca(), members)
            .with(&format!("--cert={}", self.cert()))
            .with(&format!("--key={}", self.key()))
    }

    /// What ultractl with these files says of a member that refuses them.
    fn complaint(&self, member: &Member) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_ultractl"))
            .env("ULTRACTL_CONFIG", "/dev/null")
            .args(["chainfire", "--endpoints"])
            .arg(format!("https://{}", member.client))
            .args(["--cacert", &self.ca(), "--cert", &self.cert()])
            .args(["--key", &self.key(), "member", "list"])
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }
}

fn trusting(ca: &str, members: &[Member]) -> Ctl {
    let url = |member: &Member| format!("https://{}", member.client);
    let urls: Vec<String> = members.iter().map(url).collect();
    Ctl::at(&urls).with(&format!("--cacert={ca}"))
}

/// A directory of certificates, whoever they are for.
struct Safe {
    dir: TempDir,
}

impl Safe {
    fn new() -> Safe {
        let dir = tempfile::tempdir().unwrap();
        Safe { dir }
    }

    fn files(&self, name: &str) -> Files {
        Files::new(self.dir.path(), name)
    }

    /// Files that an authority signed, and that trust it.
    fn issued(&self, name: &str, by: &Authority) -> Files {
        let files = self.files(name);
        by.issue(&files);
        files.trust(&[by]);
        files
    }

    /// What a member is started with; its files are called as it is.
    fn setup(&self, number: u16, with: &[u16], state: &str) -> Setup {
        let part = |block: &str| {
            let files = self.files(&format!("m{number}"));
            let (cert, key, ca) = (files.cert(), files.key(), files.ca());
            format!("[chainfire.{block}]\ncert = {cert:?}\nkey = {key:?}\nca = {ca:?}\n")
        };
        Setup {
            config: part("client_tls") + &part("peer_tls"),
            ..setup("https", number, with, state)
        }
    }

    fn three(&self, authority: &Authority) -> Vec<Member> {
        let start = |number: u16| {
            self.issued(&format!("m{number}"), authority);
            let others: Vec<u16> = (1..=3).filter(|other| *other != number).collect();
            Member::of(self.setup(number, &others, "new"))
        };
        let members: Vec<Member> = (1..=3).map(start).collect();
        leader(&members);
        members
    }
}

#[test]
fn members_and_clients_show_certificates_of_one_authority() {
    let (safe, authority) = (Safe::new(), Authority::new("ours"));
    let members = safe.three(&authority);
    let client = safe.issued("client", &authority);
    for member in &members {
        let own = client.ctl(std::slice::from_ref(member));
        assert_eq!(own.run(&["put", "a", &member.name]), "OK\n");
        assert_eq!(own.run(&["get", "a"]), format!("a\n{}\n", member.name));
    }
    let healthy = client.ctl(&members).output(&["endpoint", "health"]);
    assert!(healthy.status.success());

    // A client without a certificate, and one with a stranger's.
    trusting(&client.ca(), &members[..1]).fails(&["get", "a"]);
    let bare = Command::new("curl")
        .args(["--silent", "--show-error", "--cacert", &client.ca()])
        .arg(format!("https://{}/version", members[0].client))
        .output()
        .unwrap();
    let bare = String::from_utf8(bare.stderr).unwrap();
    assert!(bare.contains("certificate required"), "{bare}");
    let strangers = safe.issued("stranger", &Authority::new("theirs"));
    strangers.trust(&[&authority]);
    strangers.ctl(&members[..1]).fails(&["get", "a"]);
    let said = strangers.complaint(&members[0]);
    assert!(said.contains("UnknownCA"), "{said}");

    // A member whose certificate is a stranger's, and one that trusts a stranger alone.
    let ctl = client.ctl(&members);
    let url = format!("--peer-urls=https://{}", crate::support::cluster::peer(4));
    ctl.run(&["member", "add", "m4", "--learner", &url]);
    let theirs = Authority::new("theirs");
    let files = safe.issued("m4", &theirs);
    let fourth = Member::stopped(safe.setup(4, &[1, 2, 3], "existing"));
    let said = fourth.refuses_to_start();
    assert!(said.contains("UnknownIssuer"), "{said}");
    files.trust(&[&authority]);
    let said = Member::stopped(safe.setup(4, &[1, 2, 3], "existing")).refuses_to_start();
    assert!(
        said.contains("no member of the cluster knows this one"),
        "{said}"
    );
    // With certificates of its own authority it is one of them.
    authority.issue(&files);
    let fourth = Member::of(safe.setup(4, &[1, 2, 3], "existing"));
    let local = client.ctl(std::slice::from_ref(&fourth));
    eventually("it has the keys", || {
        let read = local.output(&["get", "a", "--consistency=s"]).stdout;
        (!read.is_empty()).then_some(())
    });
}

#[test]
fn certificates_are_replaced_while_the_cluster_runs() {
    let (safe, old, new) = (Safe::new(), Authority::new("old"), Authority::new("new"));
    let mut members = safe.three(&old);
    let pids: Vec<u32> = members.iter().map(Member::pid).collect();
    let all: Vec<Files> = members
        .iter()
        .map(|member| safe.files(&member.name))
        .collect();
    let before = safe.issued("before", &old);
    let after = safe.issued("after", &new);
    assert_eq!(before.ctl(&members).run(&["put", "a", "1"]), "OK\n");
    after.ctl(&members[..1]).fails(&["get", "a"]);

    // Both authorities are trusted, then certificates come from the new one.
    for files in &all {
        files.trust(&[&old, &new]);
    }
    before.trust(&[&old, &new]);
    after.ctl(&members[..1]).fails(&["get", "a"]);
    for files in &all {
        new.issue(files);
    }
    for member in &members {
        let one = std::slice::from_ref(member);
        assert_eq!(before.ctl(one).run(&["put", "a", "2"]), "OK\n");
        // It trusts nobody else, so this is the new certificate.
        assert_eq!(after.ctl(one).run(&["put", "a", "3"]), "OK\n");
    }

    // The old authority goes.
    for files in &all {
        files.trust(&[&new]);
    }
    let gone = before.complaint(&members[0]);
    assert!(gone.contains("UnknownCA"), "{gone}");

    // Whoever starts now knows the new authority alone: members that ran on meet it with what the
    // files hold now, in both directions.
    for restarted in 0..2 {
        members[restarted].kill();
        members[restarted].restart();
        leader(&members);
        for member in &members {
            let one = std::slice::from_ref(member);
            let value = format!("{restarted} at {}", member.name);
            assert_eq!(after.ctl(one).run(&["put", "a", &value]), "OK\n");
            let read = after.ctl(one).run(&["get", "a"]);
            assert_eq!(read, format!("a\n{value}\n"));
        }
    }
    assert_eq!(members[2].pid(), pids[2], "it was never restarted");
}
